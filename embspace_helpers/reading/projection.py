"""From parameters to words: readings (E'), keep_k, projection, top words and their tables.

Source: Dar et al. (2023), section 3 and its table of projections; the readings beyond the paper's
two are derived in notebook 01.
"""

import html
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embspace_helpers.reading.vocabulary import Vocabulary

READINGS = ("transpose", "pseudo-inverse", "centred", "top-removed", "orthogonal")


def reading_matrix(E: Tensor, reading: str = "transpose", remove: int = 3,
                   columns: Tensor | None = None) -> Tensor:
    """Return R of shape (d, e) with which a vector x of the stream is read as x R.

    R is the transposed E' of the paper. With m the mean column of E, and E_c = E - m:

    - "transpose": R = E, the paper's choice, E' = E.T
    - "pseudo-inverse": R = (E E.T)^-1 E, that is E' = E^+, an exact right inverse
    - "centred": R = E_c
    - "top-removed": R = (I - U U.T) E_c, U the `remove` leading principal directions of E_c
    - "orthogonal": R = (E_c E_c.T)^-1/2 E_c, square-root whitened: R R.T = I, so that R is its
      own right inverse and (x R) · (y R) = x · y exactly

    `columns` (m,): only these of R's columns, (d, m). "transpose" without `columns` returns E
    itself, all else a new tensor. Raises ValueError for an unknown name, an E that has not more
    columns than rows, an impossible `remove`, or, for the two readings that invert, columns of a
    rank below d.
    """
    if reading not in READINGS:
        raise ValueError(f"no reading {reading!r}: there are {', '.join(READINGS)}")
    if E.ndim != 2 or E.shape[0] >= E.shape[1]:
        raise ValueError(f"E must be (d, e) with d < e, got {tuple(E.shape)}: transposed?")
    chosen = E if columns is None else E[:, columns]
    if reading == "transpose":
        return chosen
    mean = E.mean(1, keepdim=True)  # (d, 1)
    if reading == "centred":
        return chosen - mean
    M = _reading_map(E, mean, reading, remove).to(E.dtype)  # (d, d)
    R = M @ chosen
    return R if reading == "pseudo-inverse" else R.sub_(M @ mean)


def _reading_map(E: Tensor, mean: Tensor, reading: str, remove: int) -> Tensor:
    """Return M, (d, d) in float64, with R = M E (pseudo-inverse) or R = M (E - mean)."""
    products = gram(E)  # (d, d)
    if reading == "pseudo-inverse":
        with one_thread():
            _check_rank(torch.linalg.eigvalsh(products), reading)
            return torch.linalg.inv(products)
    products -= E.shape[1] * mean.double() @ mean.double().T  # E_c E_c.T
    with one_thread():
        variances, directions = torch.linalg.eigh(products)  # ascending
    if reading == "orthogonal":
        _check_rank(variances, reading)
        return directions @ torch.diag(variances.rsqrt()) @ directions.T
    if not 0 < remove < len(E):
        raise ValueError(f"remove = {remove}, but it must be between 1 and {len(E) - 1}: "
                         f"E has {len(E)} directions")
    U = directions[:, -remove:]  # (d, remove)
    return torch.eye(len(E), dtype=U.dtype) - U @ U.T


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: small operations on several stall where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def gram(E: Tensor, chunk: int = 4096) -> Tensor:
    """E E.T, (d, d), summed in float64 over chunks of columns: exact enough to be inverted."""
    return sum((part := c.double()) @ part.T for c in E.split(chunk, dim=1))


def keep_k(x: Tensor, k: int) -> Tensor:
    """Zero all but the k entries of largest magnitude in every row of x, (n, e) or (e,).

    Raises ValueError unless 1 <= k <= e.
    """
    _check_k(k, x.shape[-1])
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


class EmbeddingSpace:
    """The vocabulary space of one embedding, through one reading, over the items a list may show.

    `E` (d, e), `vocabulary` of e items, `reading` one of `READINGS`, `keep` a mask (e,) (default
    `vocabulary.keep()`). The reading is derived from all of E; only columns in `keep` are scored.
    Raises ValueError where sizes differ or E is not finite.
    """

    def __init__(self, E: Tensor, vocabulary: Vocabulary, reading: str = "transpose",
                 keep: Tensor | None = None, remove: int = 3):
        if E.shape[1] != len(vocabulary):
            raise ValueError(f"E has {E.shape[1]} columns, the vocabulary {len(vocabulary)} items: "
                             "they belong to different models")
        if not E.isfinite().all():
            raise ValueError("E has NaN or infinite entries: the weights may be damaged")
        keep = vocabulary.keep() if keep is None else keep
        if keep.shape != (len(vocabulary),):
            raise ValueError(f"keep has shape {tuple(keep.shape)}, expected ({len(vocabulary)},)")
        self.vocabulary, self.reading = vocabulary, reading
        self.ids = keep.nonzero().squeeze(1)  # (e_kept,) vocabulary ids of the scored columns
        self._late = 2 * len(self.ids) > E.shape[1]  # choose columns of the scores, not of R
        self._dropped = (~keep).nonzero().squeeze(1)
        columns = None if self._late else self.ids
        self.R = reading_matrix(E, reading, remove, columns)  # (d, e) or (d, e_kept)

    def project(self, x: Tensor) -> Tensor:
        """Scores of x, (d,) or (n, d), for every kept item: (e_kept,) or (n, e_kept)."""
        _check_rows(x, self.R)
        scores = x @ self.R
        return scores[..., self.ids] if self._late else scores

    def lengths(self) -> Tensor:
        """Lengths of the kept items' columns of R, (e_kept,)."""
        lengths = torch.linalg.vector_norm(self.R, dim=0)
        return lengths[self.ids] if self._late else lengths

    def top(self, x: Tensor, k: int = 10, batch: int = 256,
            by_magnitude: bool = False) -> tuple[Tensor, Tensor]:
        """The k best items of each row of x, (n, d): scores (n, k) and vocabulary ids (n, k).

        Best is largest, or largest in magnitude. Streams over `batch` rows: memory is
        batch x e numbers, whatever n. One vector (d,) gives (k,) and (k,).
        """
        _check_k(k, len(self.ids))
        if x.ndim == 1:
            scores, ids = self.top(x[None], k, batch, by_magnitude)
            return scores[0], ids[0]
        found = []
        for rows in x.split(batch):
            _check_rows(rows, self.R)
            scores = rows @ self.R  # (batch, e) or (batch, e_kept)
            order = scores.abs() if by_magnitude else scores
            if self._late:
                order[:, self._dropped] = -torch.inf
            index = order.topk(k, dim=-1).indices
            found.append((scores.gather(-1, index), index if self._late else self.ids[index]))
        return torch.cat([s for s, _ in found]), torch.cat([i for _, i in found])

    def words(self, x: Tensor, k: int = 10) -> list[str]:
        """The k top words of one vector (d,), as shown; ValueError for another shape."""
        _check_vector(x)
        return [self.vocabulary.shown[i] for i in self.top(x, k)[1].tolist()]

    def table(self, vectors: dict[str, Tensor], k: int = 10, title: str = "") -> "WordTable":
        """A table of the top words of several named vectors (d,), side by side, with scores.

        A score is in standard deviations of all the vector's scores above their mean (0 for a
        zero vector). Raises ValueError for another shape.
        """
        _check_k(k, len(self.ids))
        columns = {}
        for name, x in vectors.items():
            _check_vector(x, f" {name!r}")
            scores = self.project(x)  # (e_kept,)
            above = scores - scores.mean()
            best, index = (above / scores.std() if above.any() else above).topk(k)
            words = [self.vocabulary.shown[i] for i in self.ids[index].tolist()]
            columns[name] = list(zip(words, best.tolist()))
        return WordTable(columns, title)


@dataclass(frozen=True)
class WordTable:
    """Named lists of (word, score), side by side: HTML in a notebook, text in a terminal."""

    columns: dict[str, list[tuple[str, float]]]
    title: str = ""

    def __repr__(self) -> str:
        cells = {name: [f"{word} {score:.1f}" for word, score in rows]
                 for name, rows in self.columns.items()}
        widths = [max(len(name), *map(len, rows)) for name, rows in cells.items()]
        lines = ["  ".join(n.ljust(w) for n, w in zip(cells, widths)).rstrip()]
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip()
                  for row in zip(*cells.values())]
        return "\n".join([self.title, *lines] if self.title else lines)

    def _repr_html_(self) -> str:
        head = "".join(f'<th style="text-align:left;padding:2px 14px 2px 4px">{html.escape(name)}</th>'
                       for name in self.columns)
        rows = "".join(
            "<tr>" + "".join(
                '<td style="text-align:left;padding:1px 14px 1px 4px">'
                f'{html.escape(word)} <span style="opacity:.55;font-size:85%">{score:.1f}</span></td>'
                for word, score in row) + "</tr>"
            for row in zip(*self.columns.values()))
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _check_rank(variances: Tensor, reading: str) -> None:
    rank = int((variances > 1e-10 * variances.max()).sum())
    if rank < len(variances):
        raise ValueError(f"no {reading!r} reading of this E: its columns have rank {rank}, it "
                         f"needs rank d = {len(variances)}")


def _check_rows(x: Tensor, R: Tensor) -> None:
    if x.shape[-1] != R.shape[0]:
        raise ValueError(f"vectors have {x.shape[-1]} entries, this space is read from "
                         f"d = {R.shape[0]}: shape {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError("the vectors have NaN or infinite entries")


def _check_vector(x: Tensor, name: str = "") -> None:
    if x.ndim != 1:
        raise ValueError(f"expected one vector (d,), got{name} of shape {tuple(x.shape)}")


def _check_k(k: int, size: int) -> None:
    if not 1 <= k <= size:
        raise ValueError(f"k = {k}, but it must be between 1 and the {size} items there are")
