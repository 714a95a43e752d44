"""The dictionary of a layer: for every token, the state that stands for it there.

A key of layer l meets states of layer l, in which a token no longer looks like its embedding. The
dictionary is the ridge regression, over the positions of some texts, from the embedding of the
token that stands at a position to what the layer's block reads there: the state behind its norm.
It needs forward passes only. Row r of a reader (an FF key, a column of W_Q, W_K or W_V) is then
read by its products with the dictionary's states. With E in their place, this is the paper's
reading (Dar et al., 2023, section 3).

With X (n, d) the centred embeddings and Y (n, d) the centred states, W = (X.T X + λ I)^-1 X.T Y,
and the state of token i is W.T e_i + b: a reading with the map W.T, as small as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from embspace_helpers.reading.activations import (
    BAR_AFTER,
    Hook,
    Tokens,
    hooked,
    padded,
    run,
    tokenize,
)
from embspace_helpers.reading.arrays import as_count, as_mask, one_thread
from embspace_helpers.reading.spaces import Space

if TYPE_CHECKING:
    from embspace_helpers.reading.model import Model

RIDGE = 0.01  # λ, as a share of the mean variance of the embeddings' coordinates


@dataclass(frozen=True)
class Dictionary:
    """The regression of one layer: state of token i = W.T e_i + b.

    `W` (d, d) maps embeddings to states, `r2` is the share of the states' variance that it
    explains at the positions it was fitted on, `n` how many these were.
    """

    W: Tensor
    r2: float
    n: int


def fit_dictionaries(model: Model, texts: Sequence[str] | str | None = None,
                     reads: str | Sequence[str] = "ff", length: int = 256, batch: int = 8,
                     ridge: float = RIDGE, only: Tensor | None = None, shuffle: int | None = None,
                     offset: int = 0) -> list[Dictionary]:
    """Fit the dictionary of every layer, in one pass of `model` over `texts`: a list of L.

    `texts` None: every token of the vocabulary alone, behind the token that starts a text.
    `reads`: what the "ff" or the "attention" block reads; of both, ("ff", "attention"), the list
    has the L of the first and then the L of the second. `only` (e,): mask of the tokens whose
    positions may be used, to hold others out. `shuffle`: a seed; the control, in which states and
    tokens are paired at random. `offset` 1: the token that comes next takes the place of the one
    that stands at a position. The first position of a text is left out: no token stands before
    it, and its state is unlike all others. Memory beyond the model: a forward pass of `batch`
    texts and (d, d) sums in float64, one a dictionary. Raises ValueError where fewer than two
    tokens are left, or for an offset without texts.
    """
    offset = as_count(offset, name="offset", least=0)
    if offset and texts is None:
        raise ValueError(f"offset = {offset} needs texts: behind a token alone stands no other")
    only = None if only is None else as_mask(only, model.parameters.e, "only")
    batch = as_count(batch, name="batch")
    tokens = _alone(model) if texts is None else tokenize(model, texts, length)
    batch = max(batch, 64) if texts is None else batch
    sums = _Sums(model, [reads] if isinstance(reads, str) else reads)
    generator = None if shuffle is None else torch.Generator().manual_seed(shuffle)
    order = sorted(range(len(tokens)), key=lambda t: len(tokens[t]))
    with hooked(sums.hooks()), torch.no_grad():
        for start in tqdm(range(0, len(order), batch), unit="batch", leave=False, delay=BAR_AFTER,
                          desc="fitting dictionaries"):
            rows = [tokens[t] for t in order[start : start + batch]]
            if sums.expect(rows, only, generator, texts is None, offset):
                run(model, rows)
    return sums.solve(ridge)


def _alone(model: Model) -> Tokens:
    """Every token that is not special, alone, with what the tokenizer puts around a text."""
    t = model.tokenizer
    starts = (t.bos_token_id, t.cls_token_id, t.eos_token_id)
    start = next((i for i in starts if i is not None), None)
    if start is None:
        raise ValueError("the tokenizer has no token that starts a text: give texts")
    end = [t.sep_token_id] if t.cls_token_id is not None and t.sep_token_id is not None else []
    special = model.vocabulary.special
    return [[start, i, *end] for i in range(model.parameters.e) if i not in special]


class _Sums:
    """Sums over positions, gathered by hooks on every layer's readers: X.T X, X.T Y and moments."""

    def __init__(self, model: Model, reads: Sequence[str]):
        p = model.parameters

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, p.d, dtype=torch.float64)

        self.readers = [p.reader(i, block) for block in reads for i in range(p.L)]
        self.E_T, many = p.E.T, len(self.readers)  # (e, d)
        self.n, self.x, self.xx = 0, zeros(), zeros(p.d)
        self.seen = torch.zeros(p.e, dtype=torch.bool)
        self.y, self.yy, self.xy = zeros(many), zeros(many), [zeros(p.d) for _ in range(many)]
        self.centre = self.E_T.mean(0)  # taken off first: sums of small numbers lose less

    def hooks(self) -> list[tuple[nn.Module, Hook, bool]]:
        """One hook a reader, on the input of the module that reads."""
        def keeper(i: int) -> Hook:
            def hook(module: nn.Module, inputs: tuple) -> None:
                y = inputs[0].detach().reshape(-1, self.X.shape[1])[self.places]
                y = y.to(self.X.dtype)  # (n, d)
                self.y[i] += y.sum(0, dtype=torch.float64)
                self.yy[i] += y.square().sum(0, dtype=torch.float64)
                self.xy[i] += self.X.T @ y
            return hook
        return [(module, keeper(i), True) for i, module in enumerate(self.readers)]

    def expect(self, rows: Tokens, only: Tensor | None = None,
               generator: torch.Generator | None = None, last: bool = False,
               offset: int = 0) -> int:
        """Say which rows run next; returns how many of their positions are used."""
        ids, mask = padded(rows)
        used = mask.bool()
        used[:, 0] = False
        if last:  # of a token alone only its own position, not what stands behind it
            used[:, 2:] = False
        if offset:  # a token that has none so far behind it is left out
            there = mask.bool().roll(-offset, 1)
            there[:, -offset:] = False
            ids, used = ids.roll(-offset, 1), used & there
        if only is not None:
            used &= only[ids]
        self.places, chosen = used.flatten(), ids[used]
        if generator is not None:
            chosen = chosen[torch.randperm(len(chosen), generator=generator)]
        self.X = self.E_T[chosen] - self.centre  # (n, d)
        self.n += len(chosen)
        self.seen[chosen] = True
        self.x += self.X.sum(0, dtype=torch.float64)
        self.xx += self.X.T @ self.X
        return len(chosen)

    @one_thread()
    def solve(self, ridge: float) -> list[Dictionary]:
        """The regressions, one factorisation for all readers."""
        if self.seen.sum() < 2:
            raise ValueError("a dictionary needs at least 2 positions with different tokens, there "
                             f"are {self.n} with {self.seen.sum()} (the first position of a text "
                             "is left out)")
        x, d = self.x / self.n, len(self.xx)
        xx = self.xx - self.n * torch.outer(x, x)
        weight = ridge * xx.trace() / d  # λ
        factor, failed = torch.linalg.cholesky_ex(xx + weight * torch.eye(d, dtype=xx.dtype))
        if failed:
            raise ValueError(f"{self.n} positions do not fix {d} directions with ridge = {ridge}: "
                             "more text or a larger ridge does")
        return [self._one(i, x, weight, factor) for i in range(len(self.xy))]

    def _one(self, i: int, x: Tensor, weight: Tensor, factor: Tensor) -> Dictionary:
        xy = self.xy[i] - torch.outer(x, self.y[i])
        W = torch.cholesky_solve(xy, factor)  # (d, d)
        total = (self.yy[i] - self.y[i].square() / self.n).sum()
        left = total - (W * xy).sum() - weight * W.square().sum()  # as X.T X W = X.T Y - λ W
        return Dictionary(W.to(self.X.dtype), (1 - left / total).item(), self.n)


def dictionary_space(model: Model, found: Dictionary, keep: Tensor | None = None,
                     whitened: bool = False, name: str = "dictionary") -> Space:
    """The space of a layer's readers: scores x · (state of token i), centred over the vocabulary.

    `whitened`: the states' leading directions do not outweigh the others (the "orthogonal" reading
    of the states, as F is of E); those with less than a thousandth of the largest deviation, as
    the one that a LayerNorm leaves empty, stay behind. Centring takes b off: the map is W.T alone.
    """
    turned = found.W.T.contiguous()
    space = Space(model.parameters.E, model.vocabulary, turned, True, keep, name, model.sums)
    if whitened:
        mean = space.mean.double()
        centred = model.sums.gram - model.parameters.e * torch.outer(mean, mean)
        states = found.W.T.double() @ centred @ found.W.double()  # (d, d): M_c M_c.T
        with one_thread():
            variances, U = torch.linalg.eigh(states)
        floor = 1e-6 * variances.max()
        whitening = (U * variances.clamp_min(floor).rsqrt()) @ U.T
        space.map = whitening.to(turned.dtype) @ turned
    return space
