"""Tokens as a reader wants to see them, and which of them a list may show.

`Vocabulary(tokenizer)` turns the pieces of any tokenizer (byte-level `Ġ`, WordPiece `##`,
SentencePiece `▁`) into readable strings and builds the masks (e,) that lists are filtered with.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from embspace_helpers.reading.arrays import as_count

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNUSED = re.compile(r"[\[<]unused_?\d+[\]>]")  # place-holders that were never trained
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's pieces for single bytes
BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


class Vocabulary:
    r"""The tokens of a tokenizer, ids 0 to e - 1.

    `texts[i]` is the token's bare text ("movie", "ing"), `starts_word[i]` says whether a word
    begins with it, `shown[i]` is what tables print: `movie`, or `-ing` for a piece that goes on a
    word, `<E2>` for bytes that are no text, `\n` for a line end.

    `size`: e of the model where its embedding has more columns than the tokenizer has tokens.
    `counts`: how often each token occurs in a corpus, (e,), for `min_count`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int | None = None,
                 counts: Iterable[int] | None = None):
        self.size = size or len(tokenizer)
        raw = tokenizer.convert_ids_to_tokens(range(min(self.size, len(tokenizer))))
        raw += [None] * (self.size - len(raw))
        self.special = {i for i, piece in enumerate(raw) if piece is None or UNUSED.match(piece)}
        self.special |= {i for i in tokenizer.all_special_ids if i < self.size}
        self.special |= {i for i in getattr(tokenizer, "added_tokens_decoder", {}) if i < self.size}
        marker = _marker(raw)
        parts = [_read(piece, marker) if i not in self.special else (piece or f"<unused{i}>", True)
                 for i, piece in enumerate(raw)]
        self.texts = [text for text, _ in parts]
        self.starts_word = [starts for _, starts in parts]
        self.shown = [_show(text, starts) for text, starts in parts]
        self.counts = None if counts is None else torch.as_tensor(list(counts))
        if self.counts is not None and self.counts.shape != (self.size,):
            raise ValueError(f"counts has shape {tuple(self.counts.shape)}, the vocabulary has "
                             f"{self.size} tokens")

    def __len__(self) -> int:
        return self.size

    @cached_property
    def _ids(self) -> dict[str, int]:
        """What tables print -> id: of doubles the one that starts a word, then the smallest."""
        items = [i for i, text in enumerate(self.texts) if i not in self.special and text.strip()]
        items.sort(key=lambda i: (not self.starts_word[i], i), reverse=True)  # the last one stays
        return {self.shown[i]: i for i in items}

    @cached_property
    def _words(self) -> dict[str, int]:
        """Text of every whole word -> id (the smallest, where several read the same)."""
        whole = self.keep(whole_words=True, ascii=False, classroom=False).tolist()
        return {self.texts[i]: i for i in reversed(range(self.size)) if whole[i]}

    @cached_property
    def _fit(self) -> Tensor:
        """Mask (e,) of the tokens that are fit for a classroom; hashing them all takes a while."""
        return torch.tensor([not is_coarse(text) for text in self.texts])

    def id(self, word: str) -> int:
        """Return the id of a word that is one token, as tables print it: "movie", "of", "1990".

        A space in front or behind does not matter (" movie"). A piece is asked for with its dash,
        "-ing". ValueError with the nearest tokens if none fits.
        """
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"expected a word such as 'movie', or a piece such as '-ing'; got "
                             f"{word!r}")
        bare = word if word in self._ids else word.strip()
        if bare not in self._ids:
            near = [w for w in self._ids if not is_coarse(w) and (
                w.lower() == bare.lower() or w.startswith(bare[:4]) or w == f"-{bare}")]
            hint = f"; near it: {', '.join(sorted(near, key=len)[:5])}" if near else ""
            raise ValueError(f"{word!r} is not one token (it is cut into pieces){hint}")
        return self._ids[bare]

    def ids(self, words: Iterable[str] | str) -> list[int]:
        """Return the ids of several words, see `id`; of one word, given alone, a list of one."""
        if not isinstance(words, Iterable):
            raise ValueError(f"expected words, such as ['movie', 'story'], got {words!r}")
        return [self.id(word) for word in ([words] if isinstance(words, str) else words)]

    def keep(self, *, ascii: bool = True, alphabetic: bool = False, whole_words: bool = False,
             min_count: int = 0, only: Iterable[str] | str | None = None,
             classroom: bool = True) -> Tensor:
        """Return the mask (e,) of the tokens a list may show; special tokens never are.

        `ascii`: only printable ASCII; `alphabetic`: only letters; `whole_words`: a word begins
        with it, letters only, at least three (pieces like " unc" that begin longer words cannot
        be told from words); `min_count`: seen so often in the corpus; `only`: these texts;
        `classroom`: no slurs or coarse words (on by default, turn off with False).
        Raises ValueError when nothing is left, or for `min_count` without counts.
        """
        only = {only} if isinstance(only, str) else None if only is None else set(only)
        min_count = as_count(min_count, name="min_count", least=0)
        if min_count and self.counts is None:
            raise ValueError("min_count needs the items' counts: Vocabulary(..., counts=...)")
        kept = torch.tensor([
            i not in self.special and text.strip() != ""
            and (not ascii or (text.isascii() and text.isprintable()))
            and (not (alphabetic or whole_words) or text.isalpha())
            and (not whole_words or (self.starts_word[i] and len(text) >= 3))
            and (only is None or text in only)
            for i, text in enumerate(self.texts)
        ])
        if classroom:
            kept &= self._fit
        if self.counts is not None:
            kept &= self.counts >= min_count
        if not kept.any():
            raise ValueError("no token passes this filter: loosen it")
        return kept


def load_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Return the vocabulary of a loaded model, with the corpus counts of a bundled one."""
    counts = Path(model.config._name_or_path) / "token_counts.json"
    return Vocabulary(tokenizer, size=model.config.vocab_size,
                      counts=json.loads(counts.read_text()) if counts.is_file() else None)


def valence(vocabulary: Vocabulary) -> Tensor:
    """How pleasant every item is by VADER's lexicon (Hutto and Gilbert, 2014), (e,): -4 to 4.

    The mean rating of ten people; NaN for words that are not in it, and for what `keep` does not
    count as a whole word (pieces that begin none, words of one or two letters).
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    lexicon = SentimentIntensityAnalyzer().lexicon
    whole = vocabulary.keep(whole_words=True, classroom=False).tolist()
    return torch.tensor([lexicon.get(text.lower(), math.nan) if fits else math.nan
                         for text, fits in zip(vocabulary.texts, whole)])


def shared_words(first: Vocabulary, second: Vocabulary) -> tuple[Tensor, Tensor]:
    """Return ids (m,) and (m,) of the whole words that two vocabularies share, by their text.

    Used to judge one model's lists in another's embedding. Case is ignored, and of doubles
    ("The", "the") one is taken, in small letters where there is a choice: every word is once in
    each column. Raises ValueError if there is none.
    """
    one, two = ({w.lower(): i for w, i in sorted(v._words.items())} for v in (first, second))
    allowed = first.keep(whole_words=True).tolist()
    pairs = sorted((i, two[word]) for word, i in one.items() if allowed[i] and word in two)
    if not pairs:
        raise ValueError("the two vocabularies share no whole word")
    ids = torch.tensor(pairs)
    return ids[:, 0], ids[:, 1]


def is_coarse(text: str) -> bool:
    """Whether the classroom filter hides a text, a slur or a coarse word.

    The list is kept as hashes, so that nobody has to read it in the repository.
    """
    word = "".join(c for c in text.lower() if c.isalpha())
    return hashlib.sha256(word.encode("utf-8")).hexdigest()[:16] in _coarse_digests()


@lru_cache(maxsize=1)
def _coarse_digests() -> frozenset[str]:
    path = resources.files("embspace_helpers") / "data" / "classroom.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def _marker(raw: list[str | None]) -> str:
    """Tell the kind of a tokenizer by the mark its pieces carry."""
    marks = {mark: sum(p is not None and p.startswith(mark) for p in raw)
             for mark in ("Ġ", "##", "▁")}
    best = max(marks, key=lambda mark: marks[mark])
    return best if marks[best] else ""


def _read(piece: str, marker: str) -> tuple[str, bool]:
    """Return (bare text, starts a word) of a raw piece."""
    if marker == "Ġ":
        text = bytes(BYTES[c] for c in piece).decode("utf-8", "surrogateescape")
        return (text[1:], True) if len(text) > 1 and text[0] == " " else (text, False)
    if marker == "##":
        return piece.removeprefix("##"), not piece.startswith("##")
    if marker == "▁":
        if byte := BYTE.fullmatch(piece):
            return bytes.fromhex(byte[1]).decode("utf-8", "surrogateescape"), False
        return (piece[1:], True) if len(piece) > 1 and piece[0] == marker else (piece, False)
    return piece, True


def _show(text: str, starts_word: bool) -> str:
    """Make a text printable: escapes for line ends, hex for stray bytes, `-` before a suffix."""
    shown = "".join(
        f"<{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF  # a byte that is no text
        else c if c.isprintable() and not c.isspace()
        else "␠" if c == " " else c.encode("unicode_escape").decode()
        for c in text
    )
    return f"-{shown}" if not starts_word and text[:1].isalpha() else shown
