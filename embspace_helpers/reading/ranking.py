"""The k largest of many scores: exact, and little slower than computing them.

Scores are cut into blocks of columns. The k largest lie in the k blocks with the largest maxima,
so that only these are sorted; `torch.topk` of everything takes several times as long.
"""

import torch
from torch import Tensor

BLOCK = 64
TILE = 64 * BLOCK  # columns that are multiplied at once: their scores stay in the cache


def top_k(scores: Tensor, k: int, largest: bool = True,
          ends: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest of each row of scores (n, m), or smallest: values and columns, (n, k).

    The best comes first. `ends` (n, m // BLOCK): the best of every whole block, where known.
    """
    n, m = scores.shape
    blocks = m // BLOCK
    if blocks <= 2 * k:
        return scores.topk(k, dim=1, largest=largest)
    ends = block_ends(scores, largest) if ends is None else ends
    best = ends.topk(k, dim=1, largest=largest).indices.sort(dim=1).values  # (n, k)
    whole = scores[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK))
    rows = torch.arange(n, device=scores.device)[:, None]
    found = torch.cat([whole[rows, best].flatten(1), scores[:, blocks * BLOCK :]], dim=1)
    values, place = found.topk(k, dim=1, largest=largest)  # columns ascend: of equals the first
    starts = torch.cat([best, best.new_full((n, 1), blocks)], dim=1) * BLOCK  # the rest is last
    return values, starts.gather(1, place // BLOCK) + place % BLOCK


def block_ends(scores: Tensor, largest: bool = True) -> Tensor:
    """The largest, or the smallest, of every whole block of columns: (n, m // BLOCK)."""
    blocks = scores.shape[1] // BLOCK
    whole = scores[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK))  # (n, blocks, BLOCK)
    return whole.amax(2) if largest else whole.amin(2)


def both_ends(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of scores (n, m) and of -scores: values (n, 2, k) and columns (n, 2, k)."""
    (high, first), (low, second) = top_k(scores, k), top_k(scores, k, largest=False)
    return torch.stack([high, -low], 1), torch.stack([first, second], 1)


def product_and_ends(x: Tensor, columns: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores x @ columns (n, m), and the largest and the smallest of their blocks.

    `x` (n, d), `columns` (d, m). The ends cost little, for they are taken a tile at a time, while
    its scores are in the cache. `out` (at least n, m): memory that the scores are written to.
    """
    n, m = len(x), columns.shape[1]
    scores, (high, low) = out[:n], x.new_empty(2, n, m // BLOCK)
    for start in range(0, m, TILE):
        tile = scores[:, start : start + TILE]
        torch.mm(x, columns[:, start : start + TILE], out=tile)
        blocks = slice(start // BLOCK, start // BLOCK + tile.shape[1] // BLOCK)
        if blocks.stop > blocks.start:
            high[:, blocks], low[:, blocks] = block_ends(tile), block_ends(tile, largest=False)
    return scores, high, low
