"""Do two models learn the same things in the same layers? Correlations of their parameters.

Dar et al. (2023), section 5: every vector of a group in one model is correlated with every vector
of the other, as vectors over the vocabulary, and layers are matched. No vector over the vocabulary
is formed: with centred embeddings C_A (d_A, m), C_B (d_B, m) of the m tokens that both share,

    corr(x, y) = x C_A C_B.T y.T / sqrt(x C_A C_A.T x.T · y C_B C_B.T y.T),

so three small kernels are enough; and what is asked of a layer pair is summed up block by block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from embspace_helpers.experiments.controls import mixtures, random_directions
from embspace_helpers.reading.arrays import as_count, as_model
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.shared_tokens import shared_tokens
from embspace_helpers.reading.sources import DATA
from embspace_helpers.reading.spaces import READINGS, as_reading, reading_map

ALIGNMENT_RESULTS = DATA / "alignment.csv"
SPACES = ("embedding", "feature")
DICTIONARY = "dictionary"  # the reading through the dictionary of each layer
WRITERS, CONTROLS = ("V", "W_O"), ("mixtures", "random")
EXACT = 50_000  # as many ways to match are gone through one by one; of more, random ones
Tokens = tuple[Tensor, Tensor]  # ids of the same tokens in two models, (m,) each
Group = str | tuple[str, str]


@dataclass(frozen=True)
class Alignment:
    """How alike the layers of two models are, in one group of parameters.

    `mean` (L_A, L_B): mean |correlation| over all pairs of vectors of two layers, the paper's
    measure. `best` (L_A, L_B): the |correlation| of a vector with its best match in the other
    layer, a mean over the vectors of both layers. `group`, `space`: what was compared and how;
    `tokens`: over how many shared tokens (features, in feature space).
    """

    mean: Tensor
    best: Tensor
    group: str
    space: str
    tokens: int


class Kernels:
    """All that correlations between rows of two models need: three small matrices.

    `aa` (d_A, d_A), `bb` (d_B, d_B), `ab` (d_A, d_B): products of centred embeddings over the
    tokens shared; in "feature" space, where rows are compared number by number, all three take
    the mean off. `tokens`: ids in a and ids in b, default all shared (see `shared_tokens`).
    `size`: how many. Raises ValueError for an unknown space, for feature spaces of different
    widths and for tokens that do not fit.
    """

    def __init__(self, a: Model, b: Model, space: str = "embedding", tokens: Tokens | None = None):
        """Sum up the kernels, a few thousand tokens at a time."""
        a, b = as_model(a), as_model(b)
        if space not in SPACES:
            raise ValueError(f"space = {space!r}: there are {' and '.join(map(repr, SPACES))}")
        E, F = a.parameters.E, b.parameters.E
        if space == "feature":
            if len(E) != len(F):
                raise ValueError(f"the models are {len(E)} and {len(F)} wide: their feature spaces "
                                 "cannot be compared, their embedding spaces can")
            self.size = len(E)
            self.aa = torch.eye(len(E), dtype=E.dtype) - 1 / len(E)
            self.bb = self.ab = self.aa
            return
        ids, others = shared_tokens(a, b) if tokens is None else _checked(tokens, a, b)
        self.size = len(ids)
        self.aa, self.bb, self.ab = _products(E, F, ids, others)

    def inverse_lengths(self, x: Tensor, side: str) -> Tensor:
        """What rows of model "a" or "b", (n, d), are scaled by for products to be correlations.

        (n, 1); 0 for a row without variance, as one of zeros.
        """
        variance = ((x @ (self.aa if side == "a" else self.bb)) * x).sum(1, keepdim=True)
        return torch.where(variance > 0, variance.clamp_min(0).rsqrt(), 0)

    def unit(self, x: Tensor, side: str) -> Tensor:
        """Rows of model "a" or "b", (n, d), so scaled."""
        return x * self.inverse_lengths(x, side)

    def pair(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Rows P (n, r), Q (m, r) with P @ Q.T the correlations of x (n, d_A) and y (m, d_B)."""
        return self.unit(x, "a") @ self.ab, self.unit(y, "b")


def _checked(tokens: Tokens, a: Model, b: Model) -> Tokens:
    """The pair of ids. Raises ValueError where they are not paired, or not of these models."""
    if not isinstance(tokens, tuple | list) or len(tokens) != 2:
        raise ValueError("tokens must be a pair, ids in a and ids in b, as shared_tokens gives "
                         f"them; got {type(tokens).__name__}")
    ids, others = (torch.as_tensor(x) for x in tokens)
    if ids.ndim != 1 or ids.shape != others.shape or len(ids) < 2:
        raise ValueError(f"tokens has ids of shapes {tuple(ids.shape)} and {tuple(others.shape)}: "
                         "as many in a as in b are needed, and at least 2")
    for model, chosen in ((a, ids), (b, others)):
        if chosen.min() < 0 or chosen.max() >= model.parameters.e:
            raise ValueError(f"tokens reach from {int(chosen.min())} to {int(chosen.max())}, but "
                             f"{model.name or 'a model'} has the ids 0 to {model.parameters.e - 1}")
    return ids, others


def _products(E: Tensor, F: Tensor, ids: Tensor, others: Tensor,
              chunk: int = 4096) -> tuple[Tensor, Tensor, Tensor]:
    """C_A C_A.T, C_B C_B.T and C_A C_B.T over the tokens, divided by their number."""
    means = [sum(X.T[part].sum(0, dtype=torch.float64) for part in chosen.split(chunk)) / len(ids)
             for X, chosen in ((E, ids), (F, others))]
    sums = [torch.zeros(len(X), len(Y), dtype=torch.float64) for X, Y in ((E, E), (F, F), (E, F))]
    for part, other in zip(ids.split(chunk), others.split(chunk)):
        C, D = E.T[part] - means[0].to(E.dtype), F.T[other] - means[1].to(F.dtype)  # (chunk, d)
        D = D.to(C.dtype)
        for total, X, Y in zip(sums, (C, D, C), (C, D, D)):
            total += X.T @ Y
    aa, bb, ab = ((total / len(ids)).to(E.dtype) for total in sums)
    return aa, bb, ab


def rows_of(model: Model, group: str, layer: int, reading: str = "transpose",
            texts: Sequence[str] | None = None, fold_norm: bool = False,
            control: str | None = None, seed: int = 0) -> Tensor:
    """Rows (n, d) of a group, so turned that their products with E are those of the reading.

    `reading`: one of the `READINGS`, or "dictionary": readers through the dictionary of their
    layer, fitted on `texts` (None: on every token alone). `control`: other vectors in the rows'
    place, read in the same way, drawn from `seed`: "mixtures" of the layer's rows, with their mean
    and covariance, or "random" ones. Raises ValueError for other readings and controls, and for
    writers through a dictionary.
    """
    if group == "K" and "K" not in model.parameters.key_kinds:
        group = model.parameters.key_kinds[0]
    rows = _other(model.parameters.vectors(group, layer, fold_norm), control, [seed, layer])
    if reading == DICTIONARY:
        if group in WRITERS:
            raise ValueError(f"{group} writes to the stream: only readers, such as K or W_Q, are "
                             "read through a dictionary")
        reads = "ff" if group in model.parameters.key_kinds else "attention"
        W = model.dictionaries(texts, reads)[layer].W
        return rows @ W.T.to(rows.dtype)
    if reading not in READINGS:
        as_reading(reading)  # which says what there is
    turned = reading_map(model.parameters.E, reading, 3, model.sums)[0]
    return rows if turned is None else rows @ turned


def _other(rows: Tensor, control: str | None, seeds: Sequence[int]) -> Tensor:
    """The rows (n, d), or a control's in their place."""
    if control not in (None, *CONTROLS):
        raise ValueError(f"no control {control!r}: there are {', '.join(CONTROLS)}")
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    if control == "mixtures":
        return mixtures(rows, seed=seed)[0]
    n, d = rows.shape
    return rows if control is None else random_directions(n, d, seed).to(rows.dtype)


@torch.no_grad()
def alignment(a: Model, b: Model, group: Group, space: str = "embedding",
              reading: str = "transpose", tokens: Tokens | None = None,
              texts: Sequence[str] | None = None, fold_norm: bool = False, block: int = 1024,
              kernels: Kernels | None = None, control: str | None = None) -> Alignment:
    """How alike every layer of a is to every layer of b in a group of parameters.

    `group`: "K", "V", "W_Q", ... or a pair, a's and b's; "K" stands for gate keys where a model
    has these. `space`: "embedding", over the shared tokens, or "feature", number by number, where
    widths agree. `reading`, `texts`, `fold_norm`, `control`: see `rows_of`; another reading is for
    embedding space only.
    `tokens`: ids in a and in b, default all that are shared. `kernels`: of these two models, to
    be made once for several groups. Memory beyond the weights: a copy of b's rows and one layer
    of a's, whatever the number of pairs. Raises ValueError for what does not fit.
    """
    a, b = as_model(a), as_model(b)
    block = as_count(block, name="block")
    one, two = (group, group) if isinstance(group, str) else group
    if space == "feature" and reading != "transpose":
        raise ValueError(f"reading = {reading!r} is of embedding space: in feature space rows are "
                         "compared as they are")
    kernels = Kernels(a, b, space, tokens) if kernels is None else kernels
    Q = [rows_of(b, two, j, reading, texts, fold_norm, control, 1) for j in range(b.parameters.L)]
    scales = [kernels.inverse_lengths(rows, "b") for rows in Q]  # rows are often views: no copies
    mean = torch.zeros(a.parameters.L, len(Q), dtype=torch.float64)
    best = torch.zeros_like(mean)
    for i in range(a.parameters.L):
        rows = rows_of(a, one, i, reading, texts, fold_norm, control, 0)
        P = kernels.unit(rows, "a") @ kernels.ab  # (n, d_B)
        for j, (other, scale) in enumerate(zip(Q, scales)):
            mean[i, j], best[i, j] = _tally(P, other * scale, block)
    name = one if one == two else f"{one}, {two}"
    return Alignment(mean, best, name, space, kernels.size)


def _tally(P: Tensor, Q: Tensor, block: int) -> tuple[float, float]:
    """Of the correlations P @ Q.T (n, m): mean size, and mean size of the best in row and column.

    Only one block (block, block) of them exists at a time.
    """
    total, along, down = 0.0, P.new_zeros(len(P)), Q.new_zeros(len(Q))
    buffer = P.new_empty(block * block)
    for i in range(0, len(P), block):
        for j in range(0, len(Q), block):
            p, q = P[i:i + block], Q[j:j + block]
            found = torch.mm(p, q.T, out=buffer[:len(p) * len(q)].view(len(p), len(q))).abs_()
            total += found.sum().item()
            torch.maximum(along[i:i + block], found.amax(1), out=along[i:i + block])
            torch.maximum(down[j:j + block], found.amax(0), out=down[j:j + block])
    best = (along.mean(dtype=torch.float64) + down.mean(dtype=torch.float64)) / 2
    return total / (len(P) * len(Q)), best.item()


# ---------------------------------------------------------------- which layer goes with which


@dataclass(frozen=True)
class LayerMatch:
    """Layers matched one to one so that the sum of their entries is largest.

    Layer rows[i] of one model goes with columns[i] of the other. `hits`: how many pairs have the
    same number (of as many layers as the smaller model has). `distance`: how far apart the two of
    a pair lie on average, as a share of the depth: 0 is the diagonal. `p`: how often a random
    match is as good, by hits for equal depths, by distance for others.
    """

    rows: list[int]
    columns: list[int]
    hits: int
    distance: float
    p: float


def without_means(table: Tensor) -> Tensor:
    """The table (L_A, L_B) less the means of its rows and columns, plus that of all entries.

    What is left says which layers go together, not which layer correlates with everything. Every
    match of all layers has lost the same, so the best match is the same.
    """
    table = torch.as_tensor(table)
    return table - table.mean(1, keepdim=True) - table.mean(0, keepdim=True) + table.mean()


def hungarian(table: Tensor, draws: int = 20_000, seed: int = 0) -> LayerMatch:
    """The best match of layers in a table (L_A, L_B), and a p-value for lying on the diagonal.

    The p-value is exact where all matches can be counted: by hits for equal depths, by distance
    for up to 50,000 of them; else of `draws` random ones. Source: Dar et al. (2023), section 5;
    the p-value is ours. Raises ValueError for what is no table of numbers.
    """
    values = _as_table(table)
    rows, columns = linear_sum_assignment(values, maximize=True)
    hits = int((rows == columns).sum())
    if values.shape[0] == values.shape[1]:
        distance, p = _distances(values.shape, rows, columns[None])[0], _at_least(hits, len(rows))
    else:
        distance, p = _band(values.shape, rows, columns, draws, seed)
    return LayerMatch(rows.tolist(), columns.tolist(), hits, float(distance), p)


def _as_table(table: Tensor) -> np.ndarray:
    """The table as an array of numbers. Raises ValueError for what is none."""
    values = np.asarray(table, dtype=float)
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        raise ValueError("expected a table of numbers (L_A, L_B), at least 2 layers each; got "
                         f"shape {values.shape}")
    return values


def _at_least(hits: int, n: int) -> float:
    """Probability that a random permutation of n leaves at least so many in their place."""
    def ways(k: int) -> float:  # permutations with exactly k in place, divided by n!
        return sum((-1) ** i / math.factorial(i) for i in range(n - k + 1)) / math.factorial(k)
    return min(1.0, sum(ways(k) for k in range(hits, n + 1)))


def _distances(shape: tuple[int, ...], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Mean distance in relative depth, 0 to 1, of the pairs of each match: columns (n, l)."""
    return np.abs(rows / (shape[0] - 1) - columns / (shape[1] - 1)).mean(1)


def _band(shape: tuple[int, ...], rows: np.ndarray, columns: np.ndarray, draws: int,
          seed: int) -> tuple[float, float]:
    """Distance of a match, and how often random matches of all the shallower's layers have less."""
    if shape[0] > shape[1]:
        order = columns.argsort()
        return _band(shape[::-1], columns[order], rows[order], draws, seed)
    found = _distances(shape, rows, columns[None])[0]
    if math.perm(shape[1], shape[0]) <= EXACT:
        others = np.array(list(permutations(range(shape[1]), shape[0])))
        return found, float((_distances(shape, rows, others) <= found + 1e-12).mean())
    dice = np.random.default_rng(seed)
    others = dice.random((as_count(draws, name="draws"), shape[1])).argsort(1)[:, :shape[0]]
    near = (_distances(shape, rows, others) <= found + 1e-12).sum()
    return found, float(near + 1) / (len(others) + 1)


def near_diagonal(table: Tensor, draws: int = 20_000, seed: int = 0) -> tuple[float, float]:
    """Whether all of a table (L_A, L_B) leans to the diagonal, not only its best match.

    Returns the correlation, over layer pairs, of the entries less their row and column means with
    how near the two layers are in relative depth, and its p-value: the share of orders of the
    shallower model's layers with as large a correlation (all of them, or `draws` random ones).
    Raises ValueError as `hungarian` does.
    """
    values = _as_table(table)
    values = values if values.shape[0] <= values.shape[1] else values.T
    rows, columns = (np.linspace(0, 1, n) for n in values.shape)
    near = without_means(torch.tensor(-np.abs(rows[:, None] - columns)))
    left = without_means(torch.tensor(values))
    products = (near @ left.T / (near.norm() * left.norm())).numpy()  # (place, layer)
    n = len(products)
    if math.factorial(n) <= EXACT:
        orders = np.array(list(permutations(range(n))))
    else:
        dice = np.random.default_rng(seed).random((as_count(draws, name="draws"), n))
        orders = np.concatenate([np.arange(n)[None], dice.argsort(1)])
    found = products[np.arange(n), orders].sum(1)
    return float(found[0]), float((found >= found[0] - 1e-12).mean())
