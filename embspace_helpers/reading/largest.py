"""The largest entries of A @ B.T, for thin factors: exact, though few entries are computed exactly.

Each score a · b stays what it is when A becomes A T and B becomes B inv(T).T. T is chosen such
that both have the same lengths along the same directions: then |a| |b|, which no a · b exceeds, is
small for most pairs, and whole blocks need no product. The other blocks are screened in bf16 where
that is fast, and in float32. What could be among the best is computed again in float64.
"""

from collections.abc import Iterator
from functools import cache, partial
from timeit import repeat

import numpy as np
import torch
from torch import Tensor

from embspace_helpers.reading.arrays import all_finite, as_count, one_thread

CHUNK = 1024  # rows that are in float64 at a time


@torch.no_grad()
def largest_entries(A: Tensor, B: Tensor, k: int, *, smallest: bool = False,
                    skip: tuple[Tensor, Tensor] | None = None,
                    block: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest (or smallest) entries of A @ B.T, for A (m, r) and B (n, r): exact.

    Returns scores, rows and columns, each (k,), best first; of equal scores the one in the smaller
    row, then column, comes first. A score is the sum in float64, rounded to A's type. `skip`,
    integer labels (m,) and (n,), leaves out the entries (i, j) with equal labels (a negative label
    leaves out nothing).

    Blocks (block, block) whose largest score cannot reach the k-th best so far are not computed;
    those that promise most come first. Extra memory: two copies of each factor and a few
    blocks, not more for more entries. Raises ValueError for shapes that do not fit, factors that
    are not finite, or fewer than k entries.
    """
    _check_factors(A, B)
    k, labels = as_count(k, name="k"), _labels(skip, len(A), len(B))
    _check_k(k, *labels)
    B = -B if smallest else B
    screen = _Screen(A, B, block)
    best = _Best(k, len(B), screen.floor(k, labels) * screen.unit)
    for bound, size, first, x, y in screen.pairs():
        least = best.least / screen.unit
        if bound < least or (bound == least and first > best.last):  # equal, but too late
            continue
        margin = screen.slack + screen.fine * size
        products = screen.products(x, y, size, least, margin)
        if products is not None:
            places = screen.A.order[x], screen.B.order[y]
            found = _candidates(products, places, labels, least - margin)
            for i, j in zip(*(side.split(CHUNK) for side in found)):
                best.add((A[i].double() * B[j].double()).sum(1).to(A.dtype), i, j)
    return -best.scores if smallest else best.scores, best.places // len(B), best.places % len(B)


class _Best:
    """The k best scores so far and their places, row * n + column; of equals the first places."""

    def __init__(self, k: int, n: int, floor: float):
        """Begin with a score that at least k entries have."""
        self.k, self.n = k, n
        self.scores, self.places = torch.empty(0), torch.empty(0, dtype=torch.long)
        self.least, self.last = floor, torch.inf  # the k-th best score and its place

    def add(self, scores: Tensor, rows: Tensor, columns: Tensor) -> None:
        """Take in more scores, in any order."""
        places = rows * self.n + columns
        new = (scores > self.least) | ((scores == self.least) & (places < self.last))
        if new.any():
            self._merge(scores[new], places[new])

    def _merge(self, scores: Tensor, places: Tensor) -> None:
        places, order = torch.cat([self.places, places]).sort()
        scores = torch.cat([self.scores.to(scores.dtype), scores])[order]
        scores, again = scores.sort(descending=True, stable=True)
        self.scores, self.places = scores[:self.k], places[again][:self.k]
        if len(self.scores) == self.k:
            self.least, self.last = self.scores[-1].item(), int(self.places[-1])


class _Side:
    """The rows X T, longest first, in blocks, in float32, and in bf16 where that is fast."""

    def __init__(self, X: Tensor, T: Tensor, block: int, coarse: bool):
        parts = [part.double() @ T for part in X.split(CHUNK)]
        lengths, order = torch.cat([part.norm(dim=1) for part in parts]).sort(
            descending=True, stable=True)
        rows = torch.cat([part.float() for part in parts])[order]
        self.longest, self.order = lengths[::block], order.split(block)
        self.first = torch.stack([part.min() for part in self.order])
        self.blocks = rows.split(block)
        self.coarse = rows.bfloat16().split(block) if coarse else ()


class _Screen:
    """Bounds and products of blocks; one of its scores times `unit` is one of A @ B.T.

    Its scores are at most 1 in size. `slack` is how far X T can be off in float64, relative to 1;
    `fine` and `rough` are how far a product in float32 and in bf16 can, relative to |a| |b|.
    """

    def __init__(self, A: Tensor, B: Tensor, block: int):
        """Turn both sides, see `_balance`."""
        coarse, r = len(A) * len(B) > 16 * block**2 and bf16_is_fast(), A.shape[1]
        T, T2, self.unit, self.slack = _balance(A, B)
        self.A, self.B = _Side(A, T, block, coarse), _Side(B, T2, block, coarse)
        self.buffer = torch.empty(block**2)
        self.half = torch.empty(block**2 if coarse else 0, dtype=torch.bfloat16)
        self.fine = (r + 8) * 2.0**-24
        self.rough = 3.02 * 2.0**-8 + self.fine  # three roundings to 8 binary digits

    def pairs(self) -> Iterator[tuple[float, float, int, int, int]]:
        """Every pair of blocks: bound, largest |a| |b|, place of the first entry, which two.

        After the best few they come row by row, so that one of the two stays in the cache.
        """
        sizes = self.A.longest[:, None] * self.B.longest
        bounds = torch.where(sizes > 0, sizes * (1 + 1e-12) + self.slack, 0).flatten()
        firsts = self.A.first[:, None] * sum(map(len, self.B.order)) + self.B.first
        order = bounds.argsort(descending=True, stable=True)
        order = torch.cat([order[:8], order[8:].sort().values])
        columns = (bounds, sizes.flatten(), firsts.flatten(), torch.arange(len(bounds)))
        for *known, pair in zip(*(column[order].tolist() for column in columns)):
            yield *known, *divmod(pair, len(self.B.blocks))

    def floor(self, k: int, labels: tuple[Tensor, Tensor]) -> float:
        """What at least k entries reach, by some of the longest rows; -inf if these have not k."""
        A, B = self.A.blocks[0][:len(self.A.blocks[0]) // 8 + 1], self.B.blocks[0]
        rows, columns = self.A.order[0][:len(A)], self.B.order[0]
        products = (A @ B.T)[labels[0][rows][:, None] != labels[1][columns]]
        if len(products) < k:
            return -torch.inf
        size = (self.A.longest[0] * self.B.longest[0]).item()
        return products.topk(k).values[-1].item() - 2 * (self.slack + self.fine * size)

    def products(self, x: int, y: int, size: float, least: float, margin: float) -> Tensor | None:
        """The products of two blocks in float32; None if none of them can reach `least`."""
        rough = self.slack + self.rough * size
        if self.half.numel() and least > rough:
            products = _product(self.A.coarse[x], self.B.coarse[y], self.half)
            if not _reaches(products, least - rough):
                return None
        products = _product(self.A.blocks[x], self.B.blocks[y], self.buffer)
        return products if _reaches(products, least - margin) else None


def _candidates(products: Tensor, places: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor],
                least: float) -> tuple[Tensor, Tensor]:
    """Rows and columns, (c,), of a block's entries from `least` on.

    `places`: which row of A and of B each of its rows and columns is.
    """
    some = (products.amax(1) >= least).nonzero().squeeze(1)
    at, j = (products[some] >= least).nonzero().unbind(1)
    rows, columns = places[0][some[at]], places[1][j]
    allowed = labels[0][rows] != labels[1][columns]
    return rows[allowed], columns[allowed]


def _reaches(products: Tensor, least: float) -> bool:
    """Whether an entry, in float32 or bf16, is at least `least`; a little less may do too.

    Positive numbers are in the order of their bits, and those of negative ones are below 0 as
    whole numbers: of these the largest is found in a third of the time.
    """
    if least <= 0:
        return products.amax().item() >= least
    bits = int(np.float32(least).view(np.int32)) - 1  # which was rounded
    if products.dtype == torch.bfloat16:
        return products.view(torch.int16).amax().item() >= bits >> 16
    return products.view(torch.int32).amax().item() >= bits


def _balance(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """T and inv(T).T, (r, r) in float64, scaled so that no row of A T or B inv(T).T exceeds 1.

    With the scale's inverse, and a bound of what rounding does to a product of two such rows. The
    covariances of both sides become the same diagonal: of all T, the mean of |a|² |b|² is
    smallest for this one. Rows are sampled, since any T is exact.
    """
    scales = [X.abs().max().item() or 1.0 for X in (A, B)]
    with one_thread():
        L, L2 = _root(A, scales[0]), _root(B, scales[1])
        U, S, _ = torch.linalg.svd(L.T @ L2)
        T = torch.linalg.solve_triangular(L.T, U * S.clamp_min(1e-12 * S[0]).sqrt(), upper=True)
        T2 = torch.linalg.inv(T).T
        off = torch.eye(len(T), dtype=T.dtype) - T @ T2.T
    slack = (off.norm() / (T.norm() * T2.norm())).item() + 4 * len(T) * 2.0**-53
    sizes = [len(T)**0.5 * scale * M.norm().item() for M, scale in zip((T, T2), scales)]
    return T / sizes[0], T2 / sizes[1], max(sizes[0] * sizes[1], 5e-324), slack


def _root(X: Tensor, scale: float) -> Tensor:
    """L, lower triangular, with L L.T about the covariance of X's rows, never singular."""
    some = X[:: max(1, len(X) // CHUNK)].double() / scale
    C = some.T @ some
    ridge = 1e-8 * C.trace().item() / len(C) or 1.0
    return torch.linalg.cholesky(C + ridge * torch.eye(len(C), dtype=C.dtype))


def _product(A: Tensor, B: Tensor, buffer: Tensor) -> Tensor:
    """A @ B.T, in the memory of `buffer`."""
    return torch.mm(A, B.T, out=buffer[:len(A) * len(B)].view(len(A), len(B)))


@cache
def bf16_is_fast() -> bool:
    """Whether this processor multiplies in bf16 at twice the speed of float32 or more: measured."""
    seconds = []
    for dtype in (torch.bfloat16, torch.float32):
        X, out = torch.ones(512, 64, dtype=dtype), torch.empty(512, 512, dtype=dtype)
        product = partial(torch.mm, X, X.T, out=out)
        seconds.append(min(repeat(product, number=1, repeat=6)))
    return 2 * seconds[0] < seconds[1]


def _labels(skip: tuple[Tensor, Tensor] | None, m: int, n: int) -> tuple[Tensor, Tensor]:
    """Labels (m,) and (n,) that are equal only where an entry is left out."""
    if skip is None:
        return torch.full((m,), -1), torch.full((n,), -2)
    rows, columns = skip
    if rows.shape != (m,) or columns.shape != (n,):
        raise ValueError(f"skip has labels of shapes {tuple(rows.shape)} and "
                         f"{tuple(columns.shape)}, expected ({m},) and ({n},)")
    return rows.masked_fill(rows < 0, -1), columns.masked_fill(columns < 0, -2)


def _check_k(k: int, labels_A: Tensor, labels_B: Tensor) -> None:
    there, sizes = labels_B.unique(return_counts=True)
    place = torch.searchsorted(there, labels_A).clamp_max(len(there) - 1)
    left_out = int(sizes[place][there[place] == labels_A].sum())
    entries = len(labels_A) * len(labels_B) - left_out
    if not 1 <= k <= entries:
        raise ValueError(f"k = {k}, but it must be between 1 and the {entries} entries there are"
                         + (f" ({left_out} are left out)" if left_out else ""))


def _check_factors(A: Tensor, B: Tensor) -> None:
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[1]:
        raise ValueError("the factors must be (m, r) and (n, r) with the same r, got "
                         f"{tuple(A.shape)} and {tuple(B.shape)}")
    if not (all_finite(A) and all_finite(B)):
        raise ValueError("the factors have NaN or infinite entries")
