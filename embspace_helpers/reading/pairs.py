"""Pairs of words that a head matches or maps: the largest entries of its matrix over words.

Source: Dar et al. (2023), section 3; such pairs of words fill their appendix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from embspace_helpers.reading.factored import FactoredMatrix
from embspace_helpers.reading.spaces import Space
from embspace_helpers.reading.tables import WordTable
from embspace_helpers.reading.vocabulary import Vocabulary

SAME = ("token", "word", "stem")


def word_classes(vocabulary: Vocabulary, same: str) -> Tensor:
    """Label every item, (e,), so that items counted as the same word share a label.

    - "token": every token is its own word
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
    if same == "token":
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


def word_pairs(space: Space, W: FactoredMatrix, k: int = 20, *, right: Space | None = None,
               smallest: bool = False, drop: str | None = None, unit: bool = False,
               title: str = "") -> Pairs:
    """The k pairs of words with the largest (smallest) entries of W over the vocabulary.

    `W` (d, d): W_QK(layer, head) for what a head matches (query → key), W_VO(layer, head) for
    what it moves (reads → writes). `space` reads its left side, `right` its right side: the same
    unless given (for the exact W_VO: "pseudo-inverse" on the left, "transpose" on the right).
    `drop`: leave out pairs of one "token", "word" or "stem" (see `word_classes`). `unit`: columns
    of the spaces at length 1, so that no word weighs more for being rare or frequent.

    Scores are in standard deviations of all entries, dropped ones too, above their mean. Raises
    ValueError for shapes that do not fit, two vocabularies, or fewer than k pairs.
    """
    other = _other_side(space, right)
    over_words = space.over_words(W, other, unit)
    classes = None if drop is None else word_classes(space.vocabulary, drop)
    skip = None if classes is None else (classes[space.ids], classes[other.ids])
    scores, rows, columns = over_words.top_entries(k, smallest=smallest, skip=skip)
    mean, std = over_words.moments()
    return Pairs((scores - mean) / (std or 1.0), space.ids[rows], other.ids[columns],
                 space.vocabulary, title)


def copying_score(space: Space, W: FactoredMatrix, *, right: Space | None = None,
                  unit: bool = True) -> float:
    """How far the pairs of a word with itself lie above all pairs, on average.

    The mean of the diagonal of W over the vocabulary less the mean of all its entries, in
    standard deviations of all entries; arguments and errors as for `word_pairs`. Large for a head
    that writes what it reads, below 0 for one that takes it away, 0 for a zero W. Without `unit`
    a few long columns decide.
    """
    other = _other_side(space, right)
    over_words = space.over_words(W, other, unit)
    mean, std = over_words.moments()
    A = over_words.left[torch.isin(space.ids, other.ids)]
    B = over_words.right[:, torch.isin(other.ids, space.ids)]
    if not len(A):
        raise ValueError("the two sides keep no word in common: no word can be copied")
    diagonal = FactoredMatrix(A, B).diagonal()
    return (diagonal.double().mean().item() - mean) / (std or 1.0)


def _other_side(space: Space, right: Space | None) -> Space:
    """The space of the right side. Raises ValueError for what is no space."""
    for side, name in ((space, "first"), (space if right is None else right, "as right")):
        if not isinstance(side, Space):
            raise ValueError(f"expected a Space {name}, as model.space(reading) gives it, got "
                             f"{type(side).__name__}")
    return side
