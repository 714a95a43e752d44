"""Which model comes from which? Same numbers for the same parts are the trace of a common origin.

Models that were trained apart may learn the same neurons, but at other places: how neurons,
subheads and dimensions of the stream are numbered follows from the random numbers that training
began with. A network with its neurons in another order is as likely to begin with, so without a
common origin any order of one model's parts is as probable as the one it has, whatever both have
learned. That gives an exact permutation test, the idea of Zhu et al. (ICML 2025). A copy may have
been permuted or turned, but what undoes one numbering leaves another in place.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from embspace_helpers.experiments.alignment import Kernels, rows_of
from embspace_helpers.experiments.controls import random_rotation
from embspace_helpers.experiments.displacement import stream_views
from embspace_helpers.reading.arrays import as_count, as_model
from embspace_helpers.reading.model import Model

PARTS = ("neurons", "subheads", "dimensions")
MOST = 256  # so many parts of a kind are enough


@dataclass(frozen=True)
class Descent:
    """Whether parts with the same number are more alike than by chance.

    `p` for every kind of part: the share of random orders of one model's parts that fit as well;
    `z`: how many standard deviations of these the true order lies above their mean. `together`:
    one p-value for all kinds, the smallest times their number.
    """

    p: dict[str, float]
    z: dict[str, float]
    together: float


def likeness(a: Model, b: Model, part: str, kernels: Kernels) -> Tensor:
    """How alike part i of one model is to part j of the other, summed over layers, (n, n).

    "neurons" and "subheads": correlations over the vocabulary of keys and of queries, so that
    turning a model does not matter. "dimensions": correlations over the vocabulary of the rows
    of E, so that permuting neurons and heads does not. n: the first parts that both have, whole
    heads and at most `MOST`.
    """
    if part not in PARTS:
        raise ValueError(f"no part {part!r}: there are {', '.join(PARTS)}")
    if part == "dimensions":
        n = min(MOST, *kernels.ab.shape)
        lengths = [G.diagonal()[:n].clamp_min(1e-30).sqrt() for G in (kernels.aa, kernels.bb)]
        return kernels.ab[:n, :n] / torch.outer(*lengths)
    group, p, q = "K" if part == "neurons" else "W_Q", a.parameters, b.parameters
    sizes = [p.d_ff, q.d_ff] if part == "neurons" else [p.H * p.d_h, q.H * q.d_h]
    n, found = min(MOST, *sizes), torch.zeros(())
    if part == "subheads":
        n = n // p.d_h * p.d_h if p.d_h == q.d_h else 0
    for layer in range(min(p.L, q.L)):
        P, Q = kernels.pair(rows_of(a, group, layer)[:n], rows_of(b, group, layer)[:n])
        found = found + P @ Q.T
    return found


@torch.no_grad()
def descent(a: Model, b: Model, draws: int = 9999, seed: int = 0) -> Descent:
    """Test whether two models have a common origin, by the order of their parts.

    Neither training data nor a shared vocabulary makes a p-value small: without a common origin
    it is uniform. `draws`: random orders; the smallest p is 1 / (draws + 1). Raises ValueError
    where the models share no token.
    """
    a, b = as_model(a), as_model(b)
    kernels, draws = Kernels(a, b), as_count(draws, name="draws")
    p, z = {}, {}
    for part in PARTS:
        table = likeness(a, b, part, kernels).double()
        if len(table) < 2:  # heads of two sizes have no parts in common
            continue
        orders = _orders(len(table), a.parameters.d_h if part == "subheads" else 1, draws, seed)
        scores = table[torch.arange(len(table)), orders.long()].sum(1)
        true = table.trace()
        p[part] = (1 + int((scores >= true - 1e-9 * true.abs()).sum())) / (draws + 1)
        z[part] = ((true - scores.mean()) / scores.std()).item()
    return Descent(p, z, min(1.0, len(p) * min(p.values())))


@lru_cache(maxsize=3)
def _orders(n: int, inside: int, draws: int, seed: int) -> Tensor:
    """Random orders (draws, n) of n parts, in 16 bits; drawn once for many pairs of models.

    `inside`: parts of one head stay together, in any order, and heads change places.
    """
    generator = torch.Generator().manual_seed(seed)
    outer = torch.rand(draws, n // inside, 1, generator=generator).argsort(1)
    within = torch.rand(draws, n // inside, inside, generator=generator).argsort(2)
    return (outer * inside + within).flatten(1).short()


def descent_table(models: dict[str, Model], draws: int = 9999) -> pd.DataFrame:
    """A row for every pair of named models: their names, p and z by part, and p together."""
    rows = []
    for (one, a), (two, b) in combinations(models.items(), 2):
        found = descent(a, b, draws)
        rows.append({"one": one, "two": two, "p": found.together,
                     **{f"p {part}": p for part, p in found.p.items()},
                     **{f"z {part}": z for part, z in found.z.items()}})
    return pd.DataFrame(rows)


def distance(a: Model, b: Model, groups: Sequence[str] = ("K", "V", "W_Q", "W_K", "W_V", "W_O")
             ) -> float:
    """How far all rows of two models of one shape lie apart, as a share of their length.

    Fine-tuning moves copies in unrelated directions, so that the model they all come from is
    nearest to each.
    """
    moved = total = 0.0
    for group in groups:
        x, y = as_model(a).parameters.vectors(group), as_model(b).parameters.vectors(group)
        if x.shape != y.shape:
            raise ValueError(f"{group} has the shapes {tuple(x.shape)} and {tuple(y.shape)}: "
                             "models of one shape are needed")
        moved += (x - y).square().sum().item()
        total += x.norm().item() * y.norm().item()
    return (moved / total) ** 0.5


# ---------------------------------------------------------------- copies in disguise


@torch.no_grad()
def turned(model: Model, seed: int = 0) -> Model:
    """A copy with every vector of the stream in another basis, turned by one random rotation.

    E and all rows that read or write the stream are turned alike: products of rows and
    embeddings, and so all that is read over the vocabulary, stay. Norms are left as they are,
    so it is to be compared, not to be run.
    """
    other = _copy(model)
    R = random_rotation(other.parameters.d, seed).to(other.parameters.E.dtype)
    other.parameters.E.copy_(R.T @ other.parameters.E)
    for layer in range(other.parameters.L):
        for rows, axis in stream_views(other.parameters, layer):
            rows.copy_((rows.movedim(axis, -1) @ R).movedim(-1, axis))
    return other


@torch.no_grad()
def permuted(model: Model, seed: int = 0) -> Model:
    """A copy with the neurons of every layer in a random order: it computes the same."""
    other, generator = _copy(model), torch.Generator().manual_seed(seed)
    p = other.parameters
    for layer in range(p.L):
        order = torch.randperm(p.d_ff, generator=generator)
        biases = [b for kind in p.key_kinds if (b := p.b_K(layer, kind)) is not None]
        for rows in (*(p.K(layer, kind) for kind in p.key_kinds), p.V(layer), *biases):
            rows.copy_(rows[order])
    return other


def _copy(model: Model) -> Model:
    model = as_model(model)
    other = Model(copy.deepcopy(model.model), model.tokenizer, model.name)
    other.vocabulary = model.vocabulary  # the same tokens, read once
    return other
