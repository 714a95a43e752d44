"""Pairs of words that a head matches or maps: the largest entries of E' W E', never written out.

W is a product of two thin factors, W_Q W_K.T or W_V W_O, so the (e, e) matrix over the vocabulary
is A @ B.T with A and B of shape (e, d_h). Its entries are computed in blocks and only the k best
kept. Source: Dar et al. (2023), section 3; such pairs of words fill their appendix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from embspace_helpers.reading.projection import EmbeddingSpace, WordTable, gram
from embspace_helpers.reading.vocabulary import Vocabulary

SAME = ("item", "word", "stem")


@torch.no_grad()
def largest_entries(A: Tensor, B: Tensor, k: int, *, smallest: bool = False,
                    skip: tuple[Tensor, Tensor] | None = None,
                    block: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest (or smallest) entries of A @ B.T, for A (m, r) and B (n, r): exact.

    Returns scores, rows and columns, each (k,), best first; of equal scores the one in the smaller
    row, then column, comes first. `skip`, integer labels (m,) and (n,), leaves out the entries
    (i, j) with equal labels (a negative label leaves out nothing).

    Rows of A and of B are taken longest first: once |a| |b|, which no a · b exceeds, falls below
    the k-th best so far, the rest is not computed. In a block (block, block) only rows that reach
    the k-th best are looked at. Extra memory: a copy of each factor and a few blocks, not more for
    more entries. Raises ValueError for shapes that do not fit, factors that are not finite, or
    fewer than k entries.
    """
    _check_factors(A, B)
    labels_A, labels_B = _labels(skip, len(A), len(B))
    _check_k(k, labels_A, labels_B)
    lengths_A, order_A, A = _longest_first(A)
    lengths_B, order_B, B = _longest_first(-B if smallest else B)
    labels_A, labels_B, n = labels_A[order_A], labels_B[order_B], len(B)
    best = _Best(k, _first_floor(A[:block // 8 + 1], B[:block], labels_A, labels_B, k))
    buffer = A.new_empty(block * block)
    for i, longest_a in zip(range(0, len(A), block), lengths_A[::block]):
        for j, longest_b in zip(range(0, n, block), lengths_B[::block]):
            if longest_a * longest_b < best.least:
                break
            products = _product(A[i:i + block], B[j:j + block], buffer)
            rows = best.rows(products, order_A[i:i + block] * n)
            if len(rows):
                among, columns = (products[rows] >= best.least).nonzero().unbind(1)
                rows = rows[among]
                allowed = labels_A[i + rows] != labels_B[j + columns]
                rows, columns = rows[allowed], columns[allowed]
                best.add(products[rows, columns], order_A[i + rows] * n + order_B[j + columns])
    return -best.scores if smallest else best.scores, best.places // n, best.places % n


class _Best:
    """The k best scores so far and their places, row * n + column; of equals the first places."""

    def __init__(self, k: int, least: Tensor):
        self.k, self.least = k, least.item()  # what a score must reach to be among them
        self.scores, self.places = least.new_empty(0), torch.empty(0, dtype=torch.long)

    def rows(self, products: Tensor, first: Tensor) -> Tensor:
        """Rows of a block where one of the k best may be; `first`: the place where each begins."""
        top = products.amax(1)
        rows = (top >= self.least).nonzero().squeeze(1)
        if len(rows) and len(self.scores) == self.k:  # as good as the last, but behind it: too late
            rows = rows[(top[rows] > self.least) | (first[rows] < self.places[-1])]
        return rows

    def add(self, scores: Tensor, places: Tensor) -> None:
        """Take in more scores, in any order."""
        scores, places = torch.cat([self.scores, scores]), torch.cat([self.places, places])
        places, order = places.sort()
        scores, again = scores[order].sort(descending=True, stable=True)
        self.scores, self.places = scores[:self.k], places[again][:self.k]
        if len(self.scores) == self.k:
            self.least = self.scores[-1].item()


def _longest_first(A: Tensor) -> tuple[list[float], Tensor, Tensor]:
    """Lengths of A's rows, longest first, their order, and A in it.

    Lengths are a little too large, by more than rounding can add to a product.
    """
    lengths, order = torch.linalg.vector_norm(A, dim=1, dtype=torch.float64).sort(
        descending=True, stable=True)
    lengths *= 1 + A.shape[1] * torch.finfo(A.dtype).eps
    return lengths.tolist(), order, A[order]


def _first_floor(A: Tensor, B: Tensor, labels_A: Tensor, labels_B: Tensor, k: int) -> Tensor:
    """A little less than the k-th best entry of A @ B.T, a scalar, for a few of the longest rows.

    So it is no more than the k-th best of all; less by what rounding can make of a product.
    """
    products, limits = A @ B.T, torch.finfo(A.dtype)
    allowed = products[labels_A[:len(A), None] != labels_B[:len(B)]]
    if len(allowed) < k:
        return A.new_tensor(limits.min)
    return allowed.topk(k).values[-1] - 2 * A.shape[1] * limits.eps * A[0].norm() * B[0].norm()


def _product(A: Tensor, B: Tensor, buffer: Tensor) -> Tensor:
    """A @ B.T, in the memory of `buffer`."""
    return torch.mm(A, B.T, out=buffer[:len(A) * len(B)].view(len(A), len(B)))


def entry_moments(A: Tensor, B: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of all m n entries of A @ B.T, from A (m, r) and B (n, r).

    With a, b the columns' sums: the entries sum to a · b, their squares to the sum over the
    elementwise product of A.T A and B.T B, (r, r). In float64, without the product.
    """
    _check_factors(A, B)
    count = len(A) * len(B)
    mean = (A.sum(0, dtype=torch.float64) @ B.sum(0, dtype=torch.float64)).item() / count
    square = (gram(A.T) * gram(B.T)).sum().item() / count
    return mean, max(square - mean**2, 0.0) ** 0.5


def word_classes(vocabulary: Vocabulary, same: str) -> Tensor:
    """Label every item, (e,), so that items counted as the same word share a label.

    - "item": every item is its own word
    - "word": items that read the same but for case and for the space or mark in front
    - "stem": also singular and plural, or the verb's -s: an ending 's, -ies (for -y), -s (not
      after s, i or u) or -es (after s, x, z, ch, sh, o) is taken off, again and again, where what
      is left has three letters or more and is itself an item that begins a word

    "movies" goes with "movie", "bodies" with "body", but "glass", "this" and "bus" stay as they
    are. The rule knows no grammar: "news" goes with "new". Blank items are each their own word.
    Raises ValueError for another `same`.
    """
    if same not in SAME:
        raise ValueError(f"cannot tell words apart by {same!r}: there are {', '.join(SAME)}")
    if same == "item":
        return torch.arange(len(vocabulary))
    words = [text.strip().lower() for text in vocabulary.texts]
    if same == "stem":
        known = {w for w, starts in zip(words, vocabulary.starts_word) if starts and len(w) > 2}
        words = [_stem(word, known) for word in words]
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(w, i) if w else i for i, w in enumerate(words)])


def _stem(word: str, known: set[str]) -> str:
    """Take endings off as long as a known word is left (see `word_classes`)."""
    shorter = [word.removesuffix("'s"), word.removesuffix("ies") + "y"]
    if word.endswith("s") and not word.endswith(("ss", "is", "us")):
        shorter.append(word[:-1])
    if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        shorter.append(word[:-2])
    left = [s for s in shorter if len(s) < len(word) and s in known]
    return _stem(left[0], known) if left else word


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of vocabulary items and their scores, each (k,): a table in a notebook or terminal."""

    scores: Tensor
    left_ids: Tensor
    right_ids: Tensor
    vocabulary: Vocabulary
    title: str = ""

    @property
    def words(self) -> list[tuple[str, str]]:
        """The pairs (left, right) as tables show them."""
        shown = self.vocabulary.shown
        return [(shown[i], shown[j]) for i, j in zip(self.left_ids.tolist(),
                                                     self.right_ids.tolist())]

    @property
    def table(self) -> WordTable:
        """The pairs and their scores as one column."""
        rows = [(f"{left} → {right}", score)
                for (left, right), score in zip(self.words, self.scores.tolist())]
        return WordTable({"left → right": rows}, self.title)

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def word_pairs(space: EmbeddingSpace, left: Tensor, right: Tensor, k: int = 20, *,
               right_space: EmbeddingSpace | None = None, smallest: bool = False,
               drop: str | None = None, unit: bool = False, title: str = "") -> Pairs:
    """The k pairs of words with the largest (smallest) entries of R.T W R', W = left @ right.T.

    `left`, `right` (d, r): (W_Q, W_K) for what a head matches (query → key), (W_V, W_O.T) for
    what it moves (reads → writes). R is the reading of `space`, R' that of `right_space`: the
    same unless given (for the exact W_VO: "pseudo-inverse" on the left, "transpose" on the
    right). `drop`: leave out pairs of one "item", "word" or "stem" (see `word_classes`). `unit`:
    columns of R and R' at length 1, so that no word weighs more for being rare or frequent.

    Scores are in standard deviations of all entries, dropped ones too, above their mean. Raises
    ValueError for shapes that do not fit, two vocabularies, or fewer than k pairs.
    """
    other = space if right_space is None else right_space
    A, B = _factors(space, other, left, right, unit)
    classes = None if drop is None else word_classes(space.vocabulary, drop)
    skip = None if classes is None else (classes[space.ids], classes[other.ids])
    scores, rows, columns = largest_entries(A, B, k, smallest=smallest, skip=skip)
    mean, std = entry_moments(A, B)
    return Pairs((scores - mean) / (std or 1.0), space.ids[rows], other.ids[columns],
                 space.vocabulary, title)


def copying_score(space: EmbeddingSpace, left: Tensor, right: Tensor, *,
                  right_space: EmbeddingSpace | None = None, unit: bool = True) -> float:
    """How far the pairs of a word with itself lie above all pairs, on average.

    The mean of the diagonal of R.T W R' less the mean of all entries, in standard deviations of
    all entries; arguments and errors as for `word_pairs`. Large for a head that writes what it
    reads, below 0 for one that takes it away, 0 for a zero W. Without `unit` a few long columns
    decide.
    """
    other = space if right_space is None else right_space
    A, B = _factors(space, other, left, right, unit)
    mean, std = entry_moments(A, B)
    A, B = A[torch.isin(space.ids, other.ids)], B[torch.isin(other.ids, space.ids)]
    if not len(A):
        raise ValueError("the two sides keep no word in common: no word can be copied")
    return ((A * B).sum(1).double().mean().item() - mean) / (std or 1.0)


def _factors(space: EmbeddingSpace, other: EmbeddingSpace, left: Tensor, right: Tensor,
             unit: bool) -> tuple[Tensor, Tensor]:
    """A = R.T left and B = R'.T right over the kept words, (e_kept, r) each."""
    if space.vocabulary.shown != other.vocabulary.shown:
        raise ValueError("the left and the right space have different vocabularies")
    wanted = (len(space.R), *left.shape[1:]), (len(other.R), *left.shape[1:])
    if left.ndim != 2 or (left.shape, right.shape) != wanted:
        turned = left.ndim == 2 and right.shape[::-1] == wanted[1]
        raise ValueError(f"left must be ({len(space.R)}, r) and right ({len(other.R)}, r), got "
                         f"{tuple(left.shape)} and {tuple(right.shape)}"
                         + (": transpose right, as in W_O.T" if turned else ""))
    A, B = space.project(left.T).T.contiguous(), other.project(right.T).T.contiguous()
    if unit:
        A /= space.lengths().clamp_min(1e-12)[:, None]
        B /= other.lengths().clamp_min(1e-12)[:, None]
    return A, B


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
    if not (A.isfinite().all() and B.isfinite().all()):
        raise ValueError("the factors have NaN or infinite entries")
