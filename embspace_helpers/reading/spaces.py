"""Embedding spaces: the readings of a vector as words, through one small map and a view of E.

A vector x of the stream is read as the scores x M (E - m), one for every token: M (d, d) is the
map of the reading, m the mean column of E, or 0. Source: Dar et al. (2023), section 3 and its
table of projections; the readings beyond the paper's two are derived in notebook 01.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embspace_helpers.reading.arrays import (
    all_finite,
    as_count,
    as_mask,
    as_vector,
    as_vectors,
    gram,
    one_thread,
    row_sums,
)
from embspace_helpers.reading.factored import FactoredMatrix
from embspace_helpers.reading.ranking import Scan, larger
from embspace_helpers.reading.tables import WordTable
from embspace_helpers.reading.vocabulary import Vocabulary

READINGS = ("transpose", "pseudo-inverse", "centred", "top-removed", "orthogonal")


class Sums:
    """What all spaces of one E (d, e) share; each is computed when it is first asked for."""

    def __init__(self, E: Tensor):
        """Keep E, a view."""
        self.E = E

    @cached_property
    def mean(self) -> Tensor:
        """The mean column m of E, (d,)."""
        return self.E.mean(1)

    @cached_property
    def gram(self) -> Tensor:
        """E E.T, (d, d) in float64."""
        return gram(self.E)


class Space:
    """The words of stream vectors in one reading: scores x M (E - m), over the tokens in `keep`.

    `E` (d, e): one column per token, a view, never copied. `vocabulary` of e tokens. `map` M
    (d, d): None for the identity. `centred`: whether the mean column m is taken off. `keep` (e,):
    mask of the tokens that a list may show, default `vocabulary.keep()`; `ids` (e_kept,) are
    theirs. `name`: of the reading. `sums`: those of E, where other spaces have them already.
    Raises ValueError where sizes differ or E is not finite.
    """

    def __init__(self, E: Tensor, vocabulary: Vocabulary, map: Tensor | None = None,
                 centred: bool = False, keep: Tensor | None = None, name: str = "",
                 sums: Sums | None = None):
        """Check that the parts belong together; see the class."""
        if E.ndim != 2 or E.shape[0] >= E.shape[1]:
            raise ValueError(f"E must be (d, e) with d < e, got {tuple(E.shape)}: transposed?")
        if E.shape[1] != len(vocabulary):
            raise ValueError(f"E has {E.shape[1]} columns, the vocabulary {len(vocabulary)} "
                             "tokens: they belong to different models")
        if not all_finite(E):
            raise ValueError("E has NaN or infinite entries: the weights may be damaged")
        if map is not None and map.shape != (len(E), len(E)):
            raise ValueError(f"the map must be (d, d) with d = {len(E)}, got {tuple(map.shape)}")
        self.E, self.vocabulary, self.name = E, vocabulary, name
        self.map, self.centred = map, centred
        self.sums = Sums(E) if sums is None else sums
        self._keep_only(vocabulary.keep() if keep is None else keep)

    def __repr__(self) -> str:
        """Say which reading this is and over how many tokens."""
        return f"Space {self.name!r}: d = {self.d}, lists of {len(self.ids):,} tokens"

    def _keep_only(self, keep: Tensor) -> None:
        keep = as_mask(keep, len(self.vocabulary))
        if not keep.any():
            raise ValueError("keep leaves no token: nothing can be listed")
        self.keep, self.ids = keep, keep.nonzero().squeeze(1)  # (e,), (e_kept,)
        self.dropped = (~keep).nonzero().squeeze(1)  # (e - e_kept,)

    def only(self, keep: Tensor) -> "Space":
        """Return the same reading over other tokens, those of the mask `keep` (e,)."""
        other = object.__new__(Space)
        other.__dict__ |= {name: x for name, x in self.__dict__.items()
                           if name not in ("moments", "lengths")}
        other._keep_only(keep)
        return other

    @property
    def d(self) -> int:
        """Size of the vectors that are read."""
        return len(self.E)

    # ---- scores

    def _mapped(self, x: Tensor) -> Tensor:
        return x if self.map is None else x @ self.map

    @property
    def mean(self) -> Tensor:
        """The mean column m of E, (d,)."""
        return self.sums.mean

    def _scores(self, x: Tensor, columns: Tensor, out: Tensor | None = None) -> Tensor:
        """Scores of x (n, d) for `columns` (d, m) of E, without copies of them, in `out`."""
        y = self._mapped(x)
        scores = torch.matmul(y, columns, out=out)
        return scores.sub_((y @ self.mean)[..., None]) if self.centred else scores

    def scores(self, x: Tensor) -> Tensor:
        """Scores of x (n, d) for all tokens of the vocabulary, kept or not: (n, e), new memory."""
        return self._scores(as_vectors(x, self.d, self.E.dtype), self.E)

    def project(self, x: Any) -> Tensor:
        """Scores of x, (d,) or (n, d), for every kept token: (e_kept,) or (n, e_kept)."""
        x = as_vectors(x, self.d, self.E.dtype)
        if self._most_kept:
            return self._scores(x, self.E)[..., self.ids]
        return self._scores(x, self.E.T[self.ids].T)

    @property
    def _most_kept(self) -> bool:
        """Whether it is less work to score all tokens and choose than to gather E's columns."""
        return 2 * len(self.ids) > self.E.shape[1]

    def columns(self, ids: Tensor | None = None) -> Tensor:
        """M (E - m) written out for the tokens `ids` (m,), (d, m): a copy.

        Default: all kept tokens. x @ columns are the scores. Memory: d x m numbers.
        """
        chosen = self.E[:, self.ids if ids is None else torch.as_tensor(ids).reshape(-1)]
        chosen = chosen - self.mean[:, None] if self.centred else chosen
        return chosen if self.map is None else self.map @ chosen

    @cached_property
    def lengths(self) -> Tensor:
        """Lengths of the kept tokens' columns, (e_kept,), a block at a time."""
        return torch.cat([torch.linalg.vector_norm(self.columns(part), dim=0)
                          for part in self.ids.split(4096)])

    def over_words(self, W: FactoredMatrix, right: "Space | None" = None,
                   unit: bool = False) -> FactoredMatrix:
        """The matrix of all pairs of kept tokens: columns.T W columns', (e_kept, e'_kept).

        Its entry (i, j) is how strongly W goes from token i to token j (Dar et al., 2023, section
        3). `right`: the space of the right side, default this one. `unit`: columns at length 1,
        so that no token weighs more for being rare or frequent. Raises ValueError where W does
        not fit or the vocabularies differ.
        """
        other = self if right is None else right
        if self.vocabulary.shown != other.vocabulary.shown:
            raise ValueError("the left and the right space have different vocabularies")
        if not isinstance(W, FactoredMatrix) or W.shape != (self.d, other.d):
            shape = tuple(W.shape) if isinstance(W, FactoredMatrix | Tensor) else type(W).__name__
            raise ValueError(f"W must be a FactoredMatrix ({self.d}, {other.d}), as W_VO(layer, "
                             f"head) gives; got {shape}")
        left, out = self.project(W.left.T).T.contiguous(), other.project(W.right).contiguous()
        if unit:
            left /= self.lengths.clamp_min(1e-12)[:, None]
            out /= other.lengths.clamp_min(1e-12)
        return FactoredMatrix(left, out)

    # ---- ranking

    @torch.no_grad()
    def top(self, x: Any, k: int = 10, batch: int = 512,
            by_magnitude: bool = False) -> tuple[Tensor, Tensor]:
        """The k best tokens of each row of x, (n, d): scores (n, k) and token ids (n, k).

        Best is largest, or largest in magnitude. Memory: that of a `Scan` of `batch` rows,
        whatever n. One vector (d,) gives (k,) and (k,).
        """
        k, x = as_count(k, len(self.ids)), as_vectors(x, self.d, self.E.dtype)
        batch = as_count(batch, name="batch")
        columns = self.E if self._most_kept else self.E.T[self.ids].T  # the second: a copy
        scan = Scan(columns, k, (1, -1) if by_magnitude else (1,), min(batch, x[..., 0].numel()),
                    dropped=self.dropped if self._most_kept else None)
        found = [(x.new_empty(0, k), torch.empty(0, k, dtype=torch.long))]
        for rows in x.reshape(-1, self.d).split(batch):
            y = self._mapped(rows)
            scan.read(y)
            middle = (y @ self.mean)[:, None] if self.centred else y.new_zeros(len(y), 1)
            scores, index = scan.top(k)
            scores = scores - middle
            if by_magnitude:
                low, other = scan.top(k, largest=False)
                scores, index = larger(scores, index, low - middle, other)
            found.append((scores, index if self._most_kept else self.ids[index]))
        values, ids = (torch.cat(part) for part in zip(*found))
        return (values[0], ids[0]) if x.ndim == 1 else (values, ids)

    def words(self, x: Any, k: int = 10) -> list[str]:
        """The k top words of one vector (d,), as shown.

        Raises ValueError for another shape and for a zero vector, which has no top words.
        """
        x = self._one(x)
        return [self.vocabulary.shown[i] for i in self.top(x, k)[1].tolist()]

    def table(self, vectors: Mapping[str, Any] | Any, k: int = 10, title: str = "",
              scores: bool = True) -> WordTable:
        """A table of the top words of several named vectors (d,), side by side, with `scores`.

        A score is in standard deviations of all the vector's scores above their mean (see
        `standardise`). One vector without a name makes one column. Raises ValueError for
        another shape and for a zero vector, which has no top words.
        """
        vectors = vectors if isinstance(vectors, Mapping) else {"": vectors}
        columns = {}
        for name, x in vectors.items():
            x = self._one(x, f" {name!r}" if name else "")
            best, ids = self.top(x, k)
            above = self.standardise(x[None], best[None])[0]
            words = [self.vocabulary.shown[i] for i in ids.tolist()]
            columns[str(name)] = list(zip(words, above.tolist()))
        return WordTable(columns, title, scores)

    def _one(self, x: Any, name: str = "") -> Tensor:
        x = as_vector(x, self.d, self.E.dtype, name)
        if not x.any():
            raise ValueError(f"the vector{name} is zero: all tokens score alike, it has no top "
                             "words")
        return x

    # ---- standard deviations

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of the kept tokens' columns of E, in float64."""
        n, few = len(self.ids), self.dropped
        if self._most_kept:  # less work: all columns less those dropped
            total = row_sums(self.E) - row_sums(self.E[:, few])
            squares = self.sums.gram - gram(self.E[:, few])
        else:
            kept = self.E[:, self.ids]
            total, squares = row_sums(kept), gram(kept)
        mean = total / n
        return mean, (squares - n * torch.outer(mean, mean)) / max(n - 1, 1)

    @property
    def covariance(self) -> Tensor:
        """C (d, d): the scores of a vector x over the kept tokens have the variance x C x."""
        C = self.moments[1].to(self.E.dtype)
        return C if self.map is None else self.map @ C @ self.map.T

    def standardise(self, x: Tensor, scores: Tensor) -> Tensor:
        """Scores (n, ...) of the vectors x (n, d), in standard deviations above their mean.

        Mean and deviation are over the vector's scores of all kept tokens, had from `moments`
        without computing them. 0 for a zero vector.
        """
        y, (mean, C) = self._mapped(x), self.moments
        middle = y @ (mean - self.mean if self.centred else mean).to(y.dtype)  # (n,)
        sd = ((y @ C.to(y.dtype)) * y).sum(1).clamp_min(0).sqrt()  # (n,)
        shape = (-1, *[1] * (scores.ndim - 1))
        return ((scores - middle.reshape(shape)) / sd.reshape(shape)).nan_to_num(0, 0, 0)


# ---- the readings


def as_reading(reading: Any) -> str:
    """Return the name of a reading, whatever its case. Raises ValueError for what is none."""
    plain = reading.strip().lower() if isinstance(reading, str) else reading
    if not isinstance(plain, str) or plain not in READINGS:
        raise ValueError(f"no reading {reading!r}: there are {', '.join(READINGS)}")
    return plain


def reading_map(E: Tensor, reading: str = "transpose", remove: int = 3,
                sums: Sums | None = None) -> tuple[Tensor | None, bool]:
    """The map M (d, d), None for the identity, of a reading of E (d, e), and whether it centres.

    With R = M (E - m), the transposed E' of the paper, and E_c = E less its mean column:

    - "transpose": R = E, the paper's choice, E' = E.T
    - "pseudo-inverse": R = (E E.T)^-1 E, that is E' = E^+, an exact right inverse
    - "centred": R = E_c
    - "top-removed": R = (I - U U.T) E_c, U the `remove` leading principal directions of E_c
    - "orthogonal": R = (E_c E_c.T)^-1/2 E_c, square-root whitened: R R.T = I, so that R is its
      own right inverse and (x R) · (y R) = x · y exactly

    `sums`: those of E, where other spaces have them already. Raises ValueError for an unknown
    name, an impossible `remove`, or, for the two readings that invert, a rank below d.
    """
    reading = as_reading(reading)
    if reading in ("transpose", "centred"):
        return None, reading == "centred"
    sums = Sums(E) if sums is None else sums
    products, mean = sums.gram, sums.mean.double()
    with one_thread():
        if reading == "pseudo-inverse":
            _check_rank(torch.linalg.eigvalsh(products), reading)
            return torch.linalg.inv(products).to(E.dtype), False
        variances, U = torch.linalg.eigh(products - E.shape[1] * torch.outer(mean, mean))
    if reading == "orthogonal":
        _check_rank(variances, reading)
        return (U @ torch.diag(variances.rsqrt()) @ U.T).to(E.dtype), True
    U = U[:, -as_count(remove, len(E) - 1, "remove", "directions"):]  # variances ascend
    return (torch.eye(len(E), dtype=U.dtype) - U @ U.T).to(E.dtype), True


def _check_rank(variances: Tensor, reading: str) -> None:
    rank = int((variances > 1e-10 * variances.max()).sum())
    if rank < len(variances):
        raise ValueError(f"no {reading!r} reading of this E: its columns have rank {rank}, it "
                         f"needs rank d = {len(variances)}")


def reading_space(E: Tensor, vocabulary: Vocabulary, reading: str = "transpose",
                  keep: Tensor | None = None, remove: int = 3,
                  sums: Sums | None = None) -> Space:
    """The space of E (d, e) in one of the `READINGS`; see `reading_map` and `Space`."""
    space = Space(E, vocabulary, None, False, keep, reading, sums)
    space.map, space.centred = reading_map(E, reading, remove, space.sums)
    return space


def keep_k(x: Tensor, k: int) -> Tensor:
    """Zero all but the k entries of largest magnitude in every row of x, (n, e) or (e,).

    Raises ValueError unless 1 <= k <= e.
    """
    k = as_count(k, x.shape[-1], things="entries")
    if k == x.shape[-1]:
        return x.clone()
    sizes = x.abs()
    if sizes.dtype == torch.float32:  # numpy's vectorised selection is several times faster
        place = sizes.shape[-1] - k
        least = torch.from_numpy(np.partition(sizes.numpy(force=True), place)[..., place, None])
        kept = sizes >= least.to(x.device)
        if int(kept.sum()) == k * kept[..., 0].numel():  # no ties at the threshold
            return x * kept
    index = sizes.topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(x).scatter(-1, index, x.gather(-1, index))
