"""The atlas: the top words of every parameter vector of a model, computed once, kept, searchable.

`load_atlas` builds it on first use, with a bar, and keeps it in the cache folder: one file a layer.
Cut off, it goes on where it was. `python -m embspace_helpers.atlas [names]` does so before a
lesson.
"""

from __future__ import annotations

import re
import tempfile
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence, Set
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from embspace_helpers.experiments.atlas_build import (
    Build,
    atlas_path,
    known_build,
    source_of,
    texts_of,
    wanted,
)
from embspace_helpers.experiments.atlas_files import Files
from embspace_helpers.experiments.atlas_lists import DICTIONARY, IN, OUT, as_reading, group_vectors
from embspace_helpers.reading.arrays import as_count, as_model, as_vector
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.ranking import top_k
from embspace_helpers.reading.sources import locate
from embspace_helpers.reading.tables import WordTable
from embspace_helpers.reading.vocabulary import Vocabulary, load_vocabulary
from embspace_helpers.reading.weights import read_tokenizer

SIGNS = {1: "+", -1: "−"}
SHOWN = 8  # words of a row in the table that a search gives


class Hits(pd.DataFrame):
    """What a search finds: a table that shows whole lists of words, and numbers in two digits."""

    _SHOWN = ("display.max_colwidth", None, "display.precision", 2, "display.float_format", None,
              "display.max_columns", None, "display.width", None)

    @property
    def _constructor(self) -> type:
        return Hits

    def _repr_html_(self) -> str:
        with pd.option_context(*self._SHOWN):
            return super()._repr_html_()

    def __repr__(self) -> str:
        """Text for a terminal, whole lists too, however narrow it is."""
        with pd.option_context(*self._SHOWN):
            return super().__repr__()


class Atlas:
    """The top words of the parameter vectors of a model; see `load_atlas`.

    It stays in the files of `folder`, of which a search reads the two columns that it needs, a
    layer at a time. `vocabulary`: the model's. `about`: model, reading, judge, fingerprint of the
    weights, as far as known; `groups` of vectors; `sides`, the embeddings through which each group
    is read: "E", or "E_out" for what an untied model's blocks write. Raises what `Files` raises,
    and ValueError for another vocabulary.
    """

    def __init__(self, folder: str | Path, vocabulary: Vocabulary):
        """Look up what the files hold."""
        self.files, self.vocabulary = Files(folder), vocabulary
        self.about, self.groups = self.files.about, self.files.groups
        sides = self.about.get("sides", f"{IN} " * len(self.groups)).split()
        self.sides = dict(zip(self.groups, sides))
        if self.about["e"] != str(len(vocabulary)):
            raise ValueError(f"{folder} is about a vocabulary of {self.about['e']} tokens, not of "
                             f"{len(vocabulary)}")

    def __repr__(self) -> str:
        written = [group for group, side in self.sides.items() if side == OUT]
        return (f"Atlas of {self.about.get('model') or 'a model'}, {self.about['reading']} "
                f"reading: {len(self):,} rows of {self.files.k} words, "
                f"groups {', '.join(self.groups)}"
                + (f"; {', '.join(written)} through {OUT}" if written else ""))

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The table of all rows: name, group, layer, index, sign (1, -1), norm and coherence.

        It is read from the files when it is first asked for; searches do without.
        """
        return self.files.table()

    def search(self, *words: str, groups: str | Iterable[str] | None = None,
               layers: int | Iterable[int] | None = None, sign: int | None = None,
               n: int = 10) -> Hits:
        """The n rows with most of `words` in their lists, then with the largest sum of scores.

        A word means every token that reads so up to case and leading space (the best placed one
        counts); a piece of a word is asked for as shown, "-ing". Words in one string are parted by
        spaces or commas, and count once, however often they are asked for. `groups`, `layers`,
        `sign` (1 or -1) choose rows. The words that were asked for stand first in a list. Index of
        the result: the row in `rows`. Raises ValueError, with the nearest tokens, for a word that
        is none, and for a choice that is not there.
        """
        n = as_count(n, name="n")
        asked = dict.fromkeys(w for given in _flat(words) for w in re.split(r"[\s,;]+", given))
        meanings = dict.fromkeys(tuple(self._same(word)) for word in asked if word)
        if not meanings:
            raise ValueError(f"search needs at least one word, got {words!r}")
        groups, layers = self._chosen("group", groups), self._chosen("layer", layers)
        sign = self._chosen("sign", sign)
        asked_for = np.zeros((len(meanings), len(self.vocabulary)), dtype=bool)
        for word, same in zip(asked_for, meanings):
            word[list(same)] = True
        hits = [_matches(asked_for, *part) for part in self.files.lists(groups, layers)]
        row, places, total = (np.concatenate(part) for part in zip(*hits))
        right = np.isin(row % 2, [(1 - s) // 2 for s in sign])  # +v stands in front of -v
        row, places, total = row[right], places[right], total[right]
        best = np.lexsort((-total, -(places >= 0).sum(1)))[:n]
        return self._show(row[best], places[best], score=total[best])

    def like(self, vector: Any, model: Model, n: int = 10,
             groups: str | Iterable[str] | None = None,
             layers: int | Iterable[int] | None = None) -> Hits:
        """The n rows whose parameter vectors are most alike to `vector` (d,), whatever the sign.

        Alike: by the correlation of their scores over all kept tokens, as the paper aligns models.
        It is x C y / sqrt(x C x · y C y) with C the `Space.covariance` of the reading, so that no
        vector over the vocabulary is formed. Where the correlation with v is negative, the row of
        -v is shown. In an untied model, writers are compared through E_out, and `vector` with them
        (see `sides`). `model`: the one whose atlas this is. The directions of heads are computed
        anew, which takes the longest; `groups` without them is faster. Raises ValueError for an
        atlas of dictionaries, which has one reading a layer.
        """
        n, model = as_count(n, name="n"), as_model(model)
        if self.about["reading"] == DICTIONARY:
            raise ValueError("vectors are alike in one reading, and the dictionary is another in "
                             "every layer: load_atlas(name).like(...) compares through F")
        if str(model.parameters.d) != self.about["d"]:
            raise ValueError(f"this atlas is of vectors with d = {self.about['d']}, the model has "
                             f"d = {model.parameters.d}: it is another one's")
        groups, layers = self._chosen("group", groups), self._chosen("layer", layers)
        covariances = {side: model.space(self.about["reading"], output=side == OUT).covariance
                       for side in set(self.sides.values())}
        C = covariances[IN]
        vector, index, found = as_vector(vector, len(C), C.dtype).to(C.device), [], []
        for part in self.files.parts:
            if part.group in groups and part.layer in layers:
                x = group_vectors(model.parameters, part.group, part.layer,
                                  int(self.about["directions"]))[0]  # (m, d)
                C = covariances[self.sides[part.group]]
                along = C @ vector  # (d,)
                variance = ((x @ C) * x).sum(1) * (along @ vector)  # (m,)
                found.append((x @ along / variance.sqrt()).nan_to_num(0, 0, 0).cpu())
                index.append(torch.arange(part.start, part.start + part.rows, 2))
        found, index = torch.cat(found), torch.cat(index)
        best = top_k(found.abs()[None], min(n, len(found)))[1][0]
        rows = index[best] + (found[best] < 0)  # the row of -v is the next one
        return self._show(rows.numpy(), correlation=found[best].float().numpy())

    def words(self, row: int, k: int | None = None) -> list[str]:
        """The words of one row, as shown, best first: k of them, or all.

        Raises ValueError for a row that is none, or for more words than a list has.
        """
        k = self.files.k if k is None else as_count(k, self.files.k, things="words of a list")
        return [self.vocabulary.shown[i] for i in self.files.take([row]).ids[0, :k].tolist()]

    def table(self, rows: Iterable[int] | int | pd.DataFrame, k: int = 10,
              title: str = "") -> WordTable:
        """The words of rows side by side, with their scores: `table(found.index[:4])`.

        `rows`: numbers of rows, or what a search found. Raises ValueError for a row that is none,
        or for more words than a list has.
        """
        k = as_count(k, self.files.k, things="words of a list")
        rows = rows.index if isinstance(rows, pd.DataFrame) else rows
        rows = [rows] if isinstance(rows, int | np.integer | str) else list(rows)
        for row in rows:
            if isinstance(row, bool | str) or not 0 <= row < len(self) or row != int(row):
                raise ValueError(f"no row {row!r}: rows are numbers from 0 to {len(self) - 1}, "
                                 "such as the index of what `search` gives")
        found, columns = self.files.take([int(row) for row in rows]), {}
        for (_, row), ids, scores in zip(found.table.iterrows(), found.ids, found.scores):
            words = [self.vocabulary.shown[i] for i in ids[:k].tolist()]
            columns[f"{row['name']} {row['group']} {SIGNS[row['sign']]}"] = list(
                zip(words, scores[:k].tolist()))
        return WordTable(columns, title)

    def _same(self, word: str) -> list[int]:
        """Ids of all tokens that read like `word`, whatever case and space."""
        text, v = word.strip().lower(), self.vocabulary
        same = [i for i, t in enumerate(v.texts) if t.strip().lower() == text
                and i not in v.special]
        return (text and same) or [v.id(word)]

    def _chosen(self, name: str, wanted: Any) -> list:
        """The groups, layers or signs that are wanted (None: all), in their order here."""
        there = {"group": self.groups, "layer": self.files.layers, "sign": (1, -1)}[name]
        if wanted is None:
            return list(there)
        wanted = list(wanted) if isinstance(wanted, Set | Iterator) else wanted
        wanted = np.atleast_1d(wanted).tolist()
        if missing := [w for w in wanted if w not in there]:
            raise ValueError(f"no {name} {missing[0]!r} in this atlas: there are "
                             f"{', '.join(map(str, there))}")
        return [x for x in there if x in wanted]

    def _show(self, rows: np.ndarray, first: np.ndarray | None = None,
              **values: np.ndarray) -> Hits:
        """The table that searches give, best first; `first`: places of words that lead a list."""
        found, lists = self.files.take(rows), []
        for i, ids in enumerate(found.ids.tolist()):
            leading = [] if first is None else sorted(p for p in first[i].tolist() if p >= 0)
            order = list(dict.fromkeys([*leading, *range(len(ids))]))[:SHOWN]
            lists.append(", ".join(self.vocabulary.shown[ids[place]] for place in order))
        table = found.table
        return Hits({
            "name": table["name"], "group": table["group"], "layer": table["layer"],
            "sign": table["sign"].map(SIGNS), **values, "coherence": table["coherence"],
            "words": lists}, index=table.index)


def _matches(asked_for: np.ndarray, rows: np.ndarray, ids: np.ndarray,
             scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows with words that are asked for, (hits,), their places (hits, words), sums (hits,).

    `asked_for` (words, e): which ids mean a word. A list is sorted, so the first place is the
    best; -1 for a word that a list has not.
    """
    there = [word[ids] for word in asked_for]  # (rows, k) each
    hit = np.flatnonzero(np.any([x.any(1) for x in there], axis=0))
    places = np.stack([np.where(x[hit].any(1), x[hit].argmax(1), -1) for x in there], 1)
    best = np.take_along_axis(scores[hit], np.maximum(places, 0), 1).astype("float32")
    return rows[hit], places, np.where(places >= 0, best, 0).sum(1, dtype="float32")


def _flat(words: tuple) -> list[str]:
    """The words of a call, given one by one, in one string or as a list."""
    flat = [w for given in words
            for w in (given if isinstance(given, list | tuple | set) else [given])]
    if wrong := [w for w in flat if not isinstance(w, str)]:
        raise ValueError(f"words are strings, got {wrong[0]!r}")
    return flat


# ---- building and loading


def build_atlas(model: Model, reading: str = "orthogonal", progress: bool = True,
                **options: Any) -> Atlas:
    """Build the atlas of a model in a temporary folder, which goes when the atlas does.

    `options`: of `Build` (texts, judge, k, directions).
    """
    scratch = tempfile.TemporaryDirectory(prefix="atlas-")
    atlas = _finish(Build(model, scratch.name, reading, **options), progress)
    weakref.finalize(atlas, scratch.cleanup)
    return atlas


def load_atlas(model: Model | str | Path, reading: str = "orthogonal",
               texts: Sequence[str] | str | None = None) -> Atlas:
    """The atlas of a model, from the cache folder, or built now, with a bar, and kept there.

    `model`: one that is loaded, or its name, which spares loading its weights where the atlas is
    there already. `reading`: of `Model.space`, or "dictionary": keys, W_Q, W_K and W_V are read
    through the dictionary of their layer, fitted on `texts` (default: embedded reviews), V and W_O
    through "orthogonal". An untied model's V and W_O meet E_out. It is built anew when the weights
    of the model or of its judge changed, and goes on where a build was cut off. Only known models
    have a judge. Raises what `load` raises; warns where the cache folder cannot be written. The
    atlas of a model made here, or untrained, is not kept.
    """
    name, reading = source_of(model), as_reading(reading)
    texts = texts_of(reading, texts)
    if isinstance(model, Model) and not name:
        return build_atlas(model, reading, texts=texts)
    try:
        tied, vocabulary = ((model.parameters.tied, model.vocabulary) if isinstance(model, Model)
                            else _facts(name))
        atlas = Atlas(atlas_path(name, reading), vocabulary)
        whole = tied or "sides" in atlas.about  # before there were sides, writers met E too
        if whole and wanted(name, reading, texts).items() <= atlas.about.items():
            return atlas
    except (ValueError, FileNotFoundError):
        pass  # none yet, not whole, damaged or of another version
    build = known_build(model, reading, texts)
    try:
        return _finish(build)
    except OSError as error:
        warnings.warn(f"the atlas of {name} cannot be kept in {build.folder.parent}, so it is "
                      f"built again next time: {error}", stacklevel=2)
    return build_atlas(build.model, reading, texts=texts, judge=build.judge)


def _finish(build: Build, progress: bool = True) -> Atlas:
    """Build the layers that are missing."""
    name = build.model.name or "the model"
    for layer in tqdm(build.missing(), desc=f"atlas of {name}", unit="layer",
                      disable=not progress):
        build.layer(layer)
    return Atlas(build.folder, build.model.vocabulary)


def _facts(name: str) -> tuple[bool, Vocabulary]:
    """Whether a model is tied, and its vocabulary, without its weights."""
    config, tokenizer = read_tokenizer(locate(name))
    return config.tie_word_embeddings, load_vocabulary(SimpleNamespace(config=config), tokenizer)
