"""A matrix kept as two thin factors, and its largest entries, found without writing it out.

W_QK = W_Q W_K.T and W_VO = W_V W_O are such products, (d, d) of rank d_h; over the vocabulary they
are (e, e), 10 GB for one head of GPT-2 (Dar et al., 2023, section 3). All that is asked of them
here comes from the factors.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from embspace_helpers.reading.arrays import as_count, as_index, gram, one_thread
from embspace_helpers.reading.largest import largest_entries

LARGEST = 10_000_000  # entries that `dense` writes out without being told to


class SVD(NamedTuple):
    """W is about U diag(S) Vh: U (m, n), S (n,), Vh (n, k), strongest first, as torch has them.

    x W reads along the columns of U and writes along the rows of Vh.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor


class FactoredMatrix:
    """W = left @ right, (m, n), from factors `left` (m, r) and `right` (r, n).

    It behaves as the matrix would, `W.T`, `x @ W`, `W @ other`, and is never written out but by
    `dense`. Raises ValueError for factors that do not fit.
    """

    __array_ufunc__ = None  # numpy leaves `array @ W` to __rmatmul__
    __iter__ = None  # or `W_V, W_O = W_VO(...)` would take rows

    def __init__(self, left: Tensor, right: Tensor):
        """Keep both factors as they are, views included."""
        left, right = torch.as_tensor(left), torch.as_tensor(right)
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
            turned = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[1]
            raise ValueError("the factors must be (m, r) and (r, n), got "
                             f"{tuple(left.shape)} and {tuple(right.shape)}"
                             + (": transpose the second, as in W_K.T" if turned else ""))
        self.left, self.right = left, right

    def __repr__(self) -> str:
        """Show shape and factors, not entries."""
        (m, n), r = self.shape, self.r
        return f"FactoredMatrix ({m:,}, {n:,}) = ({m:,}, {r}) @ ({r}, {n:,})"

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the product."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def r(self) -> int:
        """Size of the inner axis: the rank is at most r."""
        return self.left.shape[1]

    @property
    def T(self) -> "FactoredMatrix":
        """The transpose, (n, m)."""
        return FactoredMatrix(self.right.T, self.left.T)

    def __matmul__(self, other: "Tensor | FactoredMatrix") -> "Tensor | FactoredMatrix":
        """W @ other: a vector (n,) gives a vector (m,), a matrix (n, k) a FactoredMatrix (m, k)."""
        other = other if isinstance(other, FactoredMatrix) else self._as_tensor(other)
        self._check_inner(self.shape, tuple(other.shape))
        if isinstance(other, FactoredMatrix):
            core = self.right @ other.left  # (r, r')
            if self.r <= other.r:
                return FactoredMatrix(self.left, core @ other.right)
            return FactoredMatrix(self.left @ core, other.right)
        if other.ndim == 1:
            return self.left @ (self.right @ other)
        return FactoredMatrix(self.left, self.right @ other)

    def __rmatmul__(self, other: Tensor) -> "Tensor | FactoredMatrix":
        """Other @ W: a vector (m,) gives a vector (n,), a matrix (k, m) a FactoredMatrix (k, n)."""
        other = self._as_tensor(other)
        self._check_inner(tuple(other.shape), self.shape)
        if other.ndim == 1:
            return (other @ self.left) @ self.right
        return FactoredMatrix(other @ self.left, self.right)

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Sequence[type],
                           args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Torch asks here before it multiplies: `tensor @ W` is W's own affair."""
        if func in (Tensor.matmul, Tensor.__matmul__, torch.matmul) and isinstance(args[0], Tensor):
            return args[1].__rmatmul__(args[0])
        return NotImplemented

    def __getitem__(self, row: int) -> Tensor:
        """One row of the matrix, (n,)."""
        return self.left[as_index(row, self.shape[0], "row")] @ self.right

    def _as_tensor(self, other: Tensor) -> Tensor:
        try:
            other = other if isinstance(other, Tensor) else torch.from_numpy(np.array(other))
            return other.to(self.left.dtype)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"cannot multiply a matrix {self.shape} by {type(other).__name__} "
                             f"{str(other)[:30]!r}: a vector or matrix is needed") from None

    @staticmethod
    def _check_inner(first: tuple, second: tuple) -> None:
        if not all(1 <= len(shape) <= 2 for shape in (first, second)):
            raise ValueError(f"cannot multiply {first} by {second}: a vector or matrix is needed")
        if first[-1] != second[0]:
            raise ValueError(f"cannot multiply {first} by {second}: {first[-1:]} and {second[:1]} "
                             "differ")

    def dense(self, limit: int = LARGEST) -> Tensor:
        """The matrix written out, (m, n). Raises ValueError for more than `limit` entries."""
        m, n = self.shape
        if m * n > limit:
            size = m * n * self.left.element_size() / 1e6
            raise ValueError(f"({m}, {n}) has {m * n:,} entries, {size:,.0f} MB: what is asked of "
                             f"it usually comes from the factors; dense(limit={m * n}) writes it "
                             "out all the same")
        return self.left @ self.right

    # ---- numbers

    def norm(self) -> float:
        """The Frobenius norm: the root of the sum of all squared entries."""
        return max(self.inner(self), 0.0) ** 0.5  # rounding can leave a little less than 0

    def inner(self, other: "FactoredMatrix") -> float:
        """The sum over all entries of the product of two matrices of one shape."""
        if not isinstance(other, FactoredMatrix) or self.shape != other.shape:
            shape = tuple(other.shape) if hasattr(other, "shape") else type(other).__name__
            raise ValueError(f"a FactoredMatrix {self.shape} cannot be compared with {shape}: "
                             "another of the same shape is needed")
        return ((self.left.T @ other.left) * (self.right @ other.right.T)).sum().item()

    def cosine(self, other: "FactoredMatrix") -> float:
        """Cosine of two matrices over all their entries; 0 where one of them is zero."""
        product = self.inner(other)  # which checks the shapes
        lengths = self.norm() * other.norm()
        return product / lengths if lengths else 0.0

    def trace(self) -> float:
        """Sum of the diagonal; ValueError where the matrix is not square."""
        return self.diagonal().sum().item()

    def diagonal(self) -> Tensor:
        """The diagonal, (m,); ValueError where the matrix is not square."""
        if self.shape[0] != self.shape[1]:
            raise ValueError(f"a matrix of shape {self.shape} has no diagonal: it is not square")
        return (self.left * self.right.T).sum(1)

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of all entries, in float64, without computing them.

        With a, b the sums of the factors' rows: the entries sum to a · b, their squares to the
        sum over the elementwise product of left.T left and right right.T, (r, r).
        """
        count = self.shape[0] * self.shape[1]
        sums = self.left.sum(0, dtype=torch.float64) @ self.right.sum(1, dtype=torch.float64)
        mean = sums.item() / count
        square = (gram(self.left.T) * gram(self.right)).sum().item() / count
        return mean, max(square - mean**2, 0.0) ** 0.5

    def svd(self, n: int | None = None) -> SVD:
        """The n leading singular triples (default: all r), from an (r, r) core.

        With QR of both factors only the core is decomposed. The largest entry of each column of
        U is positive. Raises ValueError if W has not n directions.
        """
        most = min(*self.shape, self.r)
        n = most if n is None else as_count(n, most, "n", "singular directions")
        with one_thread():
            (Q, R), (Q2, R2) = torch.linalg.qr(self.left), torch.linalg.qr(self.right.T)
            U, S, Vh = torch.linalg.svd(R @ R2.T, full_matrices=False)
            U, Vh = Q @ U[:, :n], Vh[:n] @ Q2.T  # (m, n), (n, k)
        sign = U.gather(0, U.abs().argmax(0, keepdim=True)).sign()  # (1, n)
        return SVD(U * sign, S[:n], Vh * sign.T)

    def top_entries(self, k: int, *, smallest: bool = False,
                    skip: tuple[Tensor, Tensor] | None = None,
                    block: int = 512) -> tuple[Tensor, Tensor, Tensor]:
        """The k largest (or smallest) entries: scores, rows and columns, (k,) each, best first.

        Exact, in blocks; see `largest_entries`.
        """
        return largest_entries(self.left, self.right.T, k, smallest=smallest, skip=skip,
                               block=block)
