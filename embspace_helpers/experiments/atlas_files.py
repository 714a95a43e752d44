"""The files of an atlas: a folder with one parquet file a layer, read a part at a time.

A file is there whole or not at all, and says what it was made of. So a build that was cut off goes
on with the layers that are missing, and several processes may share them out. In a file every
group of vectors is a row group: what a search does not ask for is not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from embspace_helpers.reading.arrays import as_index
from embspace_helpers.reading.files import whole_file

VERSION = "2"  # of the files: raise it when the same weights would give another atlas
TABLE = ("name", "group", "layer", "index", "sign", "norm", "coherence")
LISTS = ("words", "scores")


class Found(NamedTuple):
    """Rows of an atlas: their table, ids of their words (rows, k) and scores (rows, k)."""

    table: pd.DataFrame
    ids: np.ndarray
    scores: np.ndarray


class Part(NamedTuple):
    """A group of vectors in a layer: row group `number` of a file; `start`: its first row."""

    layer: int
    group: str
    number: int
    start: int
    rows: int


def layer_path(folder: str | Path, layer: int) -> Path:
    """The file of a layer."""
    return Path(folder) / f"layer-{layer:03}.parquet"


def write_layer(path: Path, groups: Iterable[tuple[pd.DataFrame, np.ndarray, np.ndarray]],
                about: Mapping[str, str]) -> None:
    """Write a layer's groups, each as it comes; a file that is there is replaced when all are.

    Each is a table of rows, ids (rows, k) and scores (rows, k). `about`: what the layer is of.
    """
    tables = (_as_table(*group) for group in groups)
    first = next(tables)
    schema = first.schema.with_metadata(dict(about))
    with whole_file(path) as part, parquet.ParquetWriter(
            part, schema, compression="zstd", use_dictionary=list(TABLE),
            write_page_checksum=True) as writer:
        for table in chain([first], tables):
            writer.write_table(table, row_group_size=len(table))


def _as_table(rows: pd.DataFrame, ids: np.ndarray, scores: np.ndarray) -> pa.Table:
    table = pa.Table.from_pandas(rows, preserve_index=False)
    for name, x in zip(LISTS, (ids, scores)):
        cells = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
        table = table.append_column(name, cells)
    return table


def about_layer(path: Path) -> dict[str, str]:
    """What the file of a layer says that it is of; {} where there is none that can be read."""
    try:
        found = parquet.read_metadata(path).metadata or {}
    except (pa.ArrowException, OSError):
        return {}
    return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
            for key, value in found.items() if key != b"ARROW:schema"}


def missing_layers(folder: str | Path, about: Mapping[str, str]) -> list[int]:
    """The layers whose file is not there, is damaged or is of something else than `about`."""
    return [layer for layer in range(int(about["L"]))
            if about_layer(layer_path(folder, layer)) != about]


class Files:
    """The rows of an atlas in the files of a folder; their order is that of layers and groups.

    `about`: what the files say; `groups`; `layers`; `k` words a list. Only what the files hold is
    looked up here, not the rows. Raises ValueError where layers are missing or do not belong
    together, for another version, and, when rows are read, for damage; FileNotFoundError for a
    folder without an atlas.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not layer_path(folder, 0).is_file():
            raise FileNotFoundError(f"there is no atlas in {folder}")
        self.about = about_layer(layer_path(folder, 0))
        if self.about.get("version") != VERSION:
            raise ValueError(f"{folder} holds no atlas of version {VERSION}, but of "
                             f"{self.about.get('version', 'another kind')}: build it anew")
        if missing := missing_layers(folder, self.about):
            raise ValueError(f"of {self.about['L']} layers in {folder} are missing, damaged or of "
                             f"another model: {', '.join(map(str, missing))}. A build goes on "
                             "where it was")
        self.groups, self.k = tuple(self.about["groups"].split()), int(self.about["k"])
        self.layers = tuple(range(int(self.about["L"])))
        self.parts: list[Part] = []
        for layer in self.layers:
            found = parquet.read_metadata(layer_path(folder, layer))
            for number in range(found.num_row_groups):
                held = found.row_group(number)
                group = held.column(TABLE.index("group")).statistics.min
                self.parts.append(Part(layer, group, number, len(self), held.num_rows))

    def __len__(self) -> int:
        return self.parts[-1].start + self.parts[-1].rows if self.parts else 0

    def table(self) -> pd.DataFrame:
        """All rows without their lists: `TABLE`, with name and group as categories."""
        parts = [self._read(layer, self._of(layer), TABLE, list(TABLE[:2]))
                 for layer in self.layers]
        frame = pa.concat_tables(parts).unify_dictionaries().to_pandas()
        frame["group"] = frame["group"].cat.set_categories(self.groups)
        return frame

    def lists(self, groups: Sequence[str] | None = None, layers: Sequence[int] | None = None,
              ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Layer by layer the numbers of the rows, their ids (rows, k) and their scores (rows, k).

        `groups`, `layers`: of these alone (None: all).
        """
        for layer in self.layers if layers is None else layers:
            chosen = [p for p in self._of(layer) if groups is None or p.group in groups]
            table = self._read(layer, chosen, LISTS)
            rows = [np.arange(0), *(np.arange(p.start, p.start + p.rows) for p in chosen)]
            ids, scores = (self._array(table[name]) for name in LISTS)
            yield np.concatenate(rows), ids, scores
        pa.default_memory_pool().release_unused()  # what decompression took

    def take(self, rows: Sequence[int] | np.ndarray) -> Found:
        """The rows with these numbers, in this order. Raises ValueError for one that is none."""
        rows = np.array([as_index(row, len(self), "row") for row in rows], dtype=int)
        starts, pieces, places = [p.start for p in self.parts], [], []
        holders = np.searchsorted(starts, rows, side="right") - 1
        for holder in np.unique(holders):
            part, at = self.parts[holder], np.flatnonzero(holders == holder)
            pieces.append(self._read(part.layer, [part], TABLE + LISTS).take(rows[at] - part.start))
            places.append(at)
        if not pieces:
            pieces, places = [self._read(0, self._of(0)[:1], TABLE + LISTS).slice(0, 0)], [rows]
        found = pa.concat_tables(pieces).take(np.argsort(np.concatenate(places)))
        ids, scores = (self._array(found[name]) for name in LISTS)
        return Found(found.select(TABLE).to_pandas().set_index(rows), ids, scores)

    def _of(self, layer: int) -> list[Part]:
        return [part for part in self.parts if part.layer == layer]

    def _array(self, column: pa.ChunkedArray) -> np.ndarray:
        return column.combine_chunks().flatten().to_numpy().reshape(-1, self.k)

    def _read(self, layer: int, parts: Sequence[Part], columns: Sequence[str],
              categories: Sequence[str] = ()) -> pa.Table:
        path = layer_path(self.folder, layer)
        try:
            with parquet.ParquetFile(path, page_checksum_verification=True,
                                     read_dictionary=list(categories)) as file:
                return file.read_row_groups([part.number for part in parts], list(columns),
                                            use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}. Delete it, and load the atlas again: "
                             "its layer is built anew") from None
