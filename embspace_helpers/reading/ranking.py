"""The k largest of many scores: exact, and little slower than reading them once."""

import torch
from torch import Tensor

BLOCK = 64


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of scores (n, m): values and columns, (n, k), largest first.

    The k largest entries lie in the k blocks of columns with the largest maxima, so only these
    are sorted; `torch.topk` of everything takes several times as long.
    """
    n, m = scores.shape
    blocks = m // BLOCK
    if blocks <= 2 * k:
        return scores.topk(k, dim=1)
    whole = scores[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK))  # (n, blocks, BLOCK)
    best = whole.amax(2).topk(k, dim=1).indices  # (n, k)
    columns = (best[..., None] * BLOCK + torch.arange(BLOCK)).flatten(1)  # (n, k BLOCK)
    rest = torch.arange(blocks * BLOCK, m).expand(n, -1)
    columns = torch.cat([columns, rest], dim=1).sort(dim=1).values  # of equals the first column
    values, index = scores.gather(1, columns).topk(k, dim=1)
    return values, columns.gather(1, index)


def both_ends(scores: Tensor, k: int, left_out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest of scores (n, m) and of -scores: values (n, 2, k) and columns (n, 2, k).

    `left_out` (r,): columns that do not count; they are overwritten.
    """
    def end() -> tuple[Tensor, Tensor]:
        if left_out is not None:
            scores.index_fill_(1, left_out, -torch.inf)
        found = top_k(scores, k)
        scores.neg_()
        return found

    (high, first), (low, second) = end(), end()
    return torch.stack([high, low], 1), torch.stack([first, second], 1)
