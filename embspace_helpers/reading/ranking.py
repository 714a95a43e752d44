"""The k largest of many scores: exact, and little slower than computing them.

Scores are cut into blocks of columns. The k largest lie in the k blocks with the largest maxima,
so that only these are sorted; `torch.topk` of everything takes several times as long.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

BLOCK = 64
TILE = 64 * BLOCK  # columns that are multiplied at once: their scores stay in the cache
FEW = 128  # rows for which that is not worth it


def top_k(scores: Tensor, k: int, largest: bool = True) -> tuple[Tensor, Tensor]:
    """The k largest of each row of scores (n, m), or smallest: values and columns, (n, k).

    The best comes first.
    """
    n, m = scores.shape
    blocks = m // BLOCK
    if blocks <= 2 * k:
        return scores.topk(k, dim=1, largest=largest)
    whole = scores[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK))  # (n, blocks, BLOCK)
    ends = whole.amax(2) if largest else whole.amin(2)
    best = ends.topk(k, dim=1, largest=largest).indices.sort(dim=1).values  # (n, k)
    rows = torch.arange(n, device=scores.device)[:, None]
    found = torch.cat([whole[rows, best].flatten(1), scores[:, blocks * BLOCK :]], dim=1)
    values, place = found.topk(k, dim=1, largest=largest)  # columns ascend: of equals the first
    starts = torch.cat([best, best.new_full((n, 1), blocks)], dim=1) * BLOCK  # the rest is last
    return values, starts.gather(1, place // BLOCK) + place % BLOCK


def both_ends(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of scores (n, m) and of -scores: values (n, 2, k) and columns (n, 2, k)."""
    (high, first), (low, second) = top_k(scores, k), top_k(scores, k, largest=False)
    return torch.stack([high, -low], 1), torch.stack([first, second], 1)


class Scan:
    """The `k` largest, or smallest, of scores x @ columns, which are never held all at once.

    Scores are made a tile at a time. While they are in the cache, the ends of their blocks are
    taken, and blocks that may hold one of the k best are kept: those whose end is no worse than
    the k-th end of the tiles before. `columns` (d, m). `signs`: 1 for the largest, -1 for the
    smallest. `rows`: of x, at most. `first`: `top` may be asked about so many first columns alone.
    `dropped`: columns, in ascending order, that are never among the best. `tile`: its columns;
    default `TILE`, all for `FEW` rows. Memory: rows x tile scores and, for scores in no special
    order, three to five times as many kept ones. With a tile of all columns nothing is kept apart,
    which is faster where both signs are asked for.
    """

    def __init__(self, columns: Tensor, k: int, signs: Sequence[int] = (1, -1), rows: int = 512,
                 first: int = 0, dropped: Tensor | None = None, tile: int | None = None):
        """Make room; nothing is computed yet."""
        self.columns, self.k, self.m, self.first = columns, k, columns.shape[1], first
        tile = tile or (self.m if rows <= FEW else TILE)
        self.per = -(-min(tile, self.m) // BLOCK)  # blocks of a tile
        self.step = self.per * BLOCK
        starts = [*range(0, self.m, self.step), self.m]
        shape = len(starts) - 1, rows, self.per
        self.ends = {sign: columns.new_empty(shape) for sign in signs}  # of every block
        self.places = torch.arange(math.prod(shape), device=columns.device).view(shape)
        self.tile = columns.new_empty(rows * self.step)
        self.kept = columns.new_empty(0, BLOCK)  # blocks, at the `places` that are set
        self.dropped: Sequence[Tensor] = ()
        if dropped is not None:
            cuts = torch.searchsorted(dropped, dropped.new_tensor(starts)).tolist()
            self.dropped = [dropped[i:j] % self.step for i, j in pairwise(cuts)]

    def read(self, x: Tensor) -> None:
        """Make the scores of x (n, d); `top` is about them from now on."""
        self.n, self.used, bounds = len(x), 0, {}
        for number, start in enumerate(range(0, self.m, self.step)):
            if start >= self.k * BLOCK and number & (number - 1) == 0:  # behind 1, 2, 4, ... tiles
                bounds = {sign: _last(self._ends(sign, start // BLOCK), self.k, sign > 0)
                          for sign in self.ends}
            part = self.columns[:, start : start + self.step]
            width = -(-part.shape[1] // BLOCK) * BLOCK
            scores = self.tile[: self.n * width].view(self.n, width)
            torch.mm(x, part, out=scores[:, : part.shape[1]])
            self._keep(scores, number, bounds)

    def _ends(self, sign: int, blocks: int) -> Tensor:
        """The ends of the first so many blocks, (n, blocks)."""
        return self.ends[sign][:, : self.n].transpose(0, 1).flatten(1)[:, :blocks]

    def _keep(self, scores: Tensor, number: int, bounds: dict[int, Tensor]) -> None:
        """Take the ends of a tile's blocks, and keep those that may hold one of the best."""
        blocks = scores.view(self.n, scores.shape[1] // BLOCK, BLOCK)
        width, done = blocks.shape[1], number * self.per
        wanted = torch.full(blocks.shape[:2], not bounds, device=scores.device)
        for sign, all_ends in self.ends.items():
            if self.dropped:
                scores.index_fill_(1, self.dropped[number], -sign * torch.inf)
            ends = all_ends[number, : self.n, :width]
            (torch.amax if sign > 0 else torch.amin)(blocks, 2, out=ends)
            if bounds:
                wanted |= ends >= bounds[sign] if sign > 0 else ends <= bounds[sign]
        if len(self.places) == 1:
            self.kept, self.used = blocks.flatten(0, 1), self.n * width
            return
        for count in (self.first, self.m):  # blocks that are cut have no end of their own
            if count % BLOCK and done <= count // BLOCK < done + width:
                wanted[:, count // BLOCK - done] = True
        index = wanted.flatten().nonzero().squeeze(1)
        before, self.used = self.used, self.used + len(index)
        if self.used > len(self.kept):
            more = max(self.used, 2 * before, 4 * self.tile.numel() // BLOCK)  # mostly enough
            self.kept = torch.cat([self.kept[:before], self.kept.new_empty(more - before, BLOCK)])
        torch.index_select(blocks.flatten(0, 1), 0, index, out=self.kept[before : self.used])
        self.places[number, : self.n, :width].masked_scatter_(
            wanted, torch.arange(before, self.used, device=index.device))

    def top(self, k: int, largest: bool = True, first: int = 0) -> tuple[Tensor, Tensor]:
        """The k best of each row that was read, best first: values and columns, (n, k).

        `first`: of so many first columns; 0: of all. Equal ones stand in the order of columns.
        """
        blocks, rest = divmod(first or self.m, BLOCK)
        best = torch.arange(blocks, device=self.kept.device).expand(self.n, -1)
        if blocks > k:
            best = _best(self._ends(1 if largest else -1, blocks), k, largest)  # (n, k)
        if rest:
            best = torch.cat([best, best.new_full((self.n, 1), blocks)], 1)
        rows = torch.arange(self.n, device=best.device)[:, None]
        places = self.places[best // self.per, rows, best % self.per]
        found = self.kept.index_select(0, places.flatten()).view(self.n, best.shape[1] * BLOCK)
        worst = -torch.inf if largest else torch.inf
        if rest:
            found[:, rest - BLOCK :] = worst
        if self.dropped and len(self.ends) > 1:  # each sign has filled them its own way
            found.masked_fill_(found.isinf(), worst)
        some = _best(found, k, largest)
        values, order = found.gather(1, some).sort(dim=1, descending=largest, stable=True)
        some = some.gather(1, order)
        return values, best.gather(1, some // BLOCK) * BLOCK + some % BLOCK


def larger(high: Tensor, first: Tensor, low: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The k largest in magnitude of the k largest and the k smallest scores, (n, k) each.

    `first`, `second`: their columns. Returns scores and columns, (n, k).
    """
    scores, columns = torch.cat([high, low], 1), torch.cat([first, second], 1)
    sizes = torch.cat([high.where(high >= 0, -1), -low.where(low < 0, 1)], 1)  # each column once
    best = sizes.sort(dim=1, descending=True, stable=True).indices[:, : high.shape[1]]
    return scores.gather(1, best), columns.gather(1, best)


# numpy's selection is vectorised, and several times faster than torch's.


def _best(scores: Tensor, k: int, largest: bool) -> Tensor:
    """The columns of the k largest, or smallest, of each row of scores, ascending: (n, k)."""
    place = scores.shape[1] - k if largest else k - 1
    order = torch.from_numpy(np.argpartition(scores.numpy(force=True), place, axis=1))
    return (order[:, place:] if largest else order[:, :k]).to(scores.device).sort(1).values


def _last(scores: Tensor, k: int, largest: bool) -> Tensor:
    """The k-th largest, or smallest, of each row of scores (n, m): (n, 1)."""
    place = scores.shape[1] - k if largest else k - 1
    ordered = torch.from_numpy(np.partition(scores.numpy(force=True), place, axis=1))
    return ordered[:, place, None].to(scores.device)
