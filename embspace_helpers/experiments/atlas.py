"""The atlas: the top words of every parameter vector of a model, computed once, saved, searchable.

`load_atlas` builds it on first use, with a bar, and keeps it in the cache folder;
`python -m embspace_helpers.atlas [names]` does so before a lesson.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor

from embspace_helpers.experiments.atlas_lists import atlas_lists, group_vectors
from embspace_helpers.reading.arrays import as_count, as_index, as_model, as_vector
from embspace_helpers.reading.files import whole_file
from embspace_helpers.reading.judge import JUDGES
from embspace_helpers.reading.model import Model, load
from embspace_helpers.reading.ranking import top_k
from embspace_helpers.reading.sources import cache_folder, fingerprint, known_name, locate
from embspace_helpers.reading.tables import WordTable
from embspace_helpers.reading.vocabulary import Vocabulary, load_vocabulary
from embspace_helpers.reading.weights import read_tokenizer

VERSION = "1"  # of the file: raise it when the same weights would give another atlas
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


@dataclass(repr=False)
class Atlas:
    """The top words of the parameter vectors of a model; see `load_atlas`.

    `rows`: a table with name, group, layer, index, sign (1, -1), norm and coherence; row i has
    the vocabulary ids `ids[i]` (k,) and `scores[i]` (k,), in standard deviations of all the
    vector's scores above their mean. `covariance` (d, d): see `like`. `about`: model, reading,
    judge, fingerprint of the weights, as far as known.
    """

    rows: pd.DataFrame
    ids: np.ndarray
    scores: np.ndarray
    covariance: Tensor
    vocabulary: Vocabulary
    about: dict[str, str]

    def __repr__(self) -> str:
        return (f"Atlas of {self.about.get('model') or 'a model'}, {self.about['reading']} "
                f"reading: {len(self.rows):,} rows of {self.ids.shape[1]} words, "
                f"groups {', '.join(self.rows['group'].cat.categories)}")

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
        chosen = self._choose(groups, layers, sign)
        found = np.zeros(len(self.rows), dtype=int)
        total = np.zeros(len(self.rows), dtype="float32")
        places = []
        for same in meanings:
            row, place = np.isin(self.ids, same, kind="sort").nonzero()  # "sort": least memory
            row, first = np.unique(row, return_index=True)  # lists are sorted: first is best
            found[row] += 1
            total[row] += self.scores[row, place[first]]
            places.append(dict(zip(row.tolist(), place[first].tolist())))
        hits = np.flatnonzero((found > 0) & chosen)
        best = hits[np.lexsort((-total[hits], -found[hits]))][:n]
        leading = {row: [at[row] for at in places if row in at] for row in best.tolist()}
        return self._show(best, leading, score=total[best])

    def like(self, vector: Any, model: Model, n: int = 10,
             groups: str | Iterable[str] | None = None,
             layers: int | Iterable[int] | None = None) -> Hits:
        """The n rows whose parameter vectors are most alike to `vector` (d,), whatever the sign.

        Alike: by the correlation of their scores over all kept tokens, as the paper aligns models.
        It is x C y / sqrt(x C x · y C y) with C = `covariance`, so that no vector over the
        vocabulary is formed. Where the correlation with v is negative, the row of -v is shown.
        `model`: the one whose atlas this is. (The directions of heads are computed anew, which
        takes the longest; `groups` without them is faster.)
        """
        n, C, model = as_count(n, name="n"), self.covariance, as_model(model)
        if model.parameters.d != len(C):
            raise ValueError(f"this atlas is of vectors with d = {len(C)}, the model has "
                             f"d = {model.parameters.d}: it is another one's")
        vector, index, found = as_vector(vector, len(C)), [], []
        along = C @ vector  # (d,)
        chosen = self.rows[self._choose(groups, layers, 1)]
        for (layer, group), part in chosen.groupby(["layer", "group"], observed=True, sort=False):
            x = group_vectors(model.parameters, group, int(layer),
                              int(self.about["directions"]))[0].float()  # (m, d)
            variance = ((x @ C) * x).sum(1) * (along @ vector)  # (m,)
            found.append((x @ along / variance.sqrt()).nan_to_num(0, 0, 0))
            index.append(torch.tensor(part.index.to_numpy()))
        found, index = torch.cat(found), torch.cat(index)
        best = top_k(found.abs()[None], min(n, len(found)))[1][0]
        rows = index[best] + (found[best] < 0)  # the row of -v is the next one
        return self._show(rows.numpy(), {}, correlation=found[best].numpy())

    def words(self, row: int, k: int | None = None) -> list[str]:
        """The words of one row, as shown, best first: k of them, or all.

        Raises ValueError for a row that is none, or for more words than a list has.
        """
        row, most = as_index(row, len(self.rows), "row"), self.ids.shape[1]
        k = most if k is None else as_count(k, most, things="words of a list")
        return [self.vocabulary.shown[i] for i in self.ids[row, :k].tolist()]

    def table(self, rows: Iterable[int] | int | pd.DataFrame, k: int = 10,
              title: str = "") -> WordTable:
        """The words of rows side by side, with their scores: `table(found.index[:4])`.

        `rows`: numbers of rows, or what a search found. Raises ValueError for a row that is none,
        or for more words than a list has.
        """
        columns, k = {}, as_count(k, self.ids.shape[1], things="words of a list")
        rows = rows.index if isinstance(rows, pd.DataFrame) else rows
        for row in [rows] if isinstance(rows, int | np.integer | str) else rows:
            if row not in self.rows.index:
                raise ValueError(f"no row {row!r}: rows are numbers from 0 to "
                                 f"{len(self.rows) - 1}, such as the index of what `search` gives")
            name, group, sign = self.rows.loc[row, ["name", "group", "sign"]]
            scores = self.scores[int(row), :k].tolist()
            columns[f"{name} {group} {SIGNS[sign]}"] = list(zip(self.words(int(row), k), scores))
        return WordTable(columns, title)

    def save(self, path: str | Path) -> None:
        """Write one parquet file; a file that is there is replaced only by a finished one."""
        table = pa.Table.from_pandas(self.rows, preserve_index=False)
        for name, values in (("words", self.ids), ("scores", self.scores)):
            cells = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
            table = table.append_column(name, cells)
        about = {**self.about, "covariance": self.covariance.numpy().tobytes()}
        with whole_file(path) as part:
            parquet.write_table(table.replace_schema_metadata(about), part, compression="zstd",
                                write_page_checksum=True)

    def _same(self, word: str) -> list[int]:
        """Ids of all tokens that read like `word`, whatever case and space."""
        text, v = word.strip().lower(), self.vocabulary
        same = [i for i, t in enumerate(v.texts) if t.strip().lower() == text
                and i not in v.special]
        return (text and same) or [v.id(word)]

    def _choose(self, groups: Any, layers: Any, sign: Any) -> np.ndarray:
        """Mask of the rows in these groups and layers and of this sign (None: all)."""
        mask = np.ones(len(self.rows), dtype=bool)
        for column, wanted in (("group", groups), ("layer", layers), ("sign", sign)):
            if wanted is not None:
                wanted = list(wanted) if isinstance(wanted, Set | Iterator) else wanted
                wanted = np.atleast_1d(wanted).tolist()
                there = self.rows[column].unique().tolist()
                if missing := [w for w in wanted if w not in there]:
                    raise ValueError(f"no {column} {missing[0]!r} in this atlas: there are "
                                     f"{', '.join(map(str, there))}")
                mask &= self.rows[column].isin(wanted).to_numpy()
        return mask

    def _show(self, rows: np.ndarray, first: dict[int, list[int]], **values: np.ndarray) -> Hits:
        """The table that searches give, best first; `first`: places of words that lead a list."""
        chosen = self.rows.iloc[rows]
        lists = []
        for row in rows.tolist():
            order = dict.fromkeys([*sorted(first.get(row, [])), *range(self.ids.shape[1])])
            ids = [self.ids[row, i] for i in list(order)[:SHOWN]]
            lists.append(", ".join(self.vocabulary.shown[i] for i in ids))
        return Hits({
            "name": chosen["name"].astype(str), "group": chosen["group"].astype(str),
            "layer": chosen["layer"], "sign": chosen["sign"].map(SIGNS), **values,
            "coherence": chosen["coherence"], "words": lists}, index=chosen.index)


def _flat(words: tuple) -> list[str]:
    """The words of a call, given one by one, in one string or as a list."""
    flat = [w for given in words
            for w in (given if isinstance(given, list | tuple | set) else [given])]
    if wrong := [w for w in flat if not isinstance(w, str)]:
        raise ValueError(f"words are strings, got {wrong[0]!r}")
    return flat


# ---- files


def read_atlas(path: str | Path, vocabulary: Vocabulary) -> Atlas:
    """Read what `Atlas.save` wrote; `vocabulary` is the model's.

    Raises ValueError for a damaged or foreign file, an older version or another vocabulary.
    """
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            about = dict(file.schema_arrow.metadata or {})
            if about.get(b"version", b"").decode() != VERSION:
                found = about.get(b"version", b"another kind").decode()
                raise ValueError(f"{path} is no atlas of version {VERSION}, but of {found}: build "
                                 "it anew")
            others = [name for name in file.schema_arrow.names if name not in ("words", "scores")]
            rows = file.read(others).to_pandas()
            ids, scores = _lists(file, "words"), _lists(file, "scores")
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged or no atlas: {error}") from None
    pa.default_memory_pool().release_unused()  # what decompression took: as much as the lists
    C = torch.tensor(np.frombuffer(about.pop(b"covariance", b""), dtype="float32"))
    about = {key.decode(): value.decode() for key, value in about.items()}
    if ids.max() >= len(vocabulary):
        raise ValueError(f"{path} is about more than the {len(vocabulary)} tokens of the "
                         "vocabulary")
    d = math.isqrt(len(C))
    return Atlas(rows, ids, scores, C.reshape(d, d), vocabulary, about)


def _lists(file: parquet.ParquetFile, column: str) -> np.ndarray:
    """A column of lists as an array (rows, k), filled a part at a time: nothing is held twice."""
    kind, start = file.schema_arrow.field(column).type, 0
    size = (file.metadata.num_rows, kind.list_size)
    lists = np.empty(size, kind.value_type.to_pandas_dtype())
    for batch in file.iter_batches(2**14, columns=[column]):
        lists[start:start + len(batch)] = batch[0].flatten().to_numpy().reshape(len(batch), -1)
        start += len(batch)
    return lists


# ---- known models


def build_atlas(model: Model, reading: str = "orthogonal", directions: int = 4,
                **options: Any) -> Atlas:
    """Compute the atlas of a model, in memory only: `atlas_lists` takes the `options`."""
    found = atlas_lists(model, reading=reading, directions=directions, **options)
    about = {"version": VERSION, "reading": reading, "directions": str(directions)}
    return Atlas(*found, model.vocabulary, about)


def load_atlas(model: Model | str | Path, reading: str = "orthogonal") -> Atlas:
    """The atlas of a model, from the cache folder, or built now, with a bar, and kept there.

    `model`: one that is loaded, or its name, which spares loading its weights where the atlas is
    there already. It is built anew when the weights of the model or of its judge changed. Only
    known models have a judge. Raises what `load` raises; warns where the cache folder cannot be
    written. The atlas of a model made here, or untrained, is not kept.
    """
    loaded = model if isinstance(model, Model) else None
    if loaded is not None and loaded.source is None:
        return build_atlas(loaded, reading)
    name = str(loaded.source if loaded else known_name(model) or model)
    judge_name, path = JUDGES.get(name), atlas_path(name, reading)
    wanted = {"model": name, "reading": reading, "judge": judge_name or "", "fingerprint":
              " ".join(fingerprint(n) for n in (name, judge_name) if n)}
    if path.is_file():
        try:
            atlas = read_atlas(path, loaded.vocabulary if loaded else _vocabulary(name))
            if wanted.items() <= atlas.about.items():
                return atlas
        except (ValueError, OSError):
            pass  # damaged or of another version: a new one takes its place
    loaded = loaded or load(name)
    atlas = build_atlas(loaded, reading, judge=loaded.judge if judge_name else None)
    atlas.about |= wanted
    try:
        atlas.save(path)
    except OSError as error:
        warnings.warn(f"the atlas of {name} cannot be kept in {path.parent}, so it is built again "
                      f"next time: {error}", stacklevel=2)
    return atlas


def atlas_path(name: str, reading: str = "orthogonal") -> Path:
    """Where `load_atlas` keeps an atlas, in the cache folder."""
    return cache_folder() / "atlas" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{reading}.parquet"


def _vocabulary(name: str) -> Vocabulary:
    """The vocabulary of a model, without its weights."""
    config, tokenizer = read_tokenizer(locate(name))
    return load_vocabulary(SimpleNamespace(config=config), tokenizer)
