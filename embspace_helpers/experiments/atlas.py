"""The atlas: the top words of every parameter vector of a model, computed once, saved, searchable.

Which vectors there are: every FF key and value and every subhead (`Parameters.vectors`), and the
leading singular directions of every head's W_VO and W_QK; of each the words of +v and of -v.
`python -m embspace_helpers.atlas [names]` builds the atlases of the known models at set-up.
"""

import argparse
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer

from embspace_helpers.reading.models import (ModelNotFound, cache_folder, fingerprint, hub_errors,
                                     load_model, locate, model_names, quiet)
from embspace_helpers.reading.parameters import Parameters
from embspace_helpers.reading.projection import WordTable, gram, one_thread, reading_matrix
from embspace_helpers.experiments.statistics import Judge
from embspace_helpers.reading.vocabulary import Vocabulary, load_vocabulary, shared_words

VERSION = "1"  # of the file: raise it when the same weights would give another atlas
JUDGES = {"twin-a": "twin-b", "twin-b": "twin-a", "wide-w": "twin-a", "minilm": "smollm2",
          "smollm2": "minilm"}
JUDGED = 10  # words of a list that its coherence is about
HEAD_GROUPS = ("VO_reads", "VO_writes", "QK_query", "QK_key")
SIGNS = {1: "+", -1: "−"}


# ---- the vectors


@one_thread()
def singular_directions(left: Tensor, right: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading n singular triples of W = left @ right.T: U (n, d), S (n,), V (n, d'), rows.

    W is about U.T diag(S) V: x W reads along the rows of U and writes along those of V. From the
    factors, left (d, r) and right (d', r): with QR of both, only an (r, r) matrix is decomposed.
    The largest entry of each row of U is positive. Raises ValueError if W has not n directions.
    """
    if left.shape[1] != right.shape[1] or not 1 <= n <= min(*left.shape, len(right)):
        raise ValueError(f"no {n} singular directions of left @ right.T with left "
                         f"{tuple(left.shape)} and right {tuple(right.shape)}")
    (Q_left, R_left), (Q_right, R_right) = torch.linalg.qr(left), torch.linalg.qr(right)
    U, S, V_T = torch.linalg.svd(R_left @ R_right.T, full_matrices=False)  # of the (r, r) core
    U, V = (Q_left @ U[:, :n]).T, V_T[:n] @ Q_right.T  # (n, d) and (n, d')
    sign = U.gather(1, U.abs().argmax(1, keepdim=True)).sign()  # (n, 1)
    return U * sign, S[:n], V * sign


def group_vectors(params: Parameters, group: str, layer: int,
                  directions: int = 4) -> tuple[Tensor, Tensor]:
    """Vectors (n, d) of one of the atlas's groups in one layer, and their norms (n,).

    Beside those of `Parameters.vectors` the groups "VO_reads", "VO_writes" (W_VO = W_V W_O) and
    "QK_query", "QK_key" (W_QK = W_Q W_K.T): `directions` unit vectors for every head, head by
    head, with the singular values for norms.
    """
    if group not in HEAD_GROUPS:
        x = params.vectors(group, layer)  # (n, d)
        return x, x.norm(dim=1)
    found = []
    for head in range(params.H):
        left, right = (params.W_VO if group.startswith("VO") else params.W_QK)(layer, head)
        right = right.T if group.startswith("VO") else right  # W_O is (d_h, d)
        U, S, V = singular_directions(left, right, directions)
        found.append((U if group in ("VO_reads", "QK_query") else V, S))
    return torch.cat([x for x, _ in found]), torch.cat([s for _, s in found])


def _names(params: Parameters, group: str, layer: int, n: int, directions: int) -> list[str]:
    """Names of a group's n vectors: L23N907, L9H6S12 as `Parameters.label`, or L9H6D0."""
    if group in (*params.key_kinds, "V"):
        return [f"L{layer}N{i}" for i in range(n)]
    size, letter = (directions, "D") if group in HEAD_GROUPS else (params.d_h, "S")
    return [f"L{layer}H{i // size}{letter}{i % size}" for i in range(n)]


# ---- building


class _Lists:
    """Word lists of batches of vectors: one product with the reading serves all of them.

    Columns stand so that the judge's and the kept ones are two slices: judge's only, both, kept
    only. `covariance` (d, d) is C of the kept scores: x R has variance x C x (see `Atlas.like`).
    """

    @one_thread()
    def __init__(self, E: Tensor, reading: str, keep: Tensor, k: int, judge: Judge | None):
        known = torch.zeros_like(keep) if judge is None else judge.keep
        parts = [mask.nonzero().squeeze(1) for mask in (known & ~keep, known & keep, keep & ~known)]
        self.ids, self.k, self.judge = torch.cat(parts), k, judge
        self.known, self.kept = slice(len(parts[0]) + len(parts[1])), slice(len(parts[0]), None)
        self.R = reading_matrix(E, reading, columns=self.ids)  # (d, m)
        R = self.R[:, self.kept]
        self.mean = R.mean(1)  # (d,)
        C = gram(R) - R.shape[1] * torch.outer(self.mean, self.mean).double()
        self.covariance = (C / (R.shape[1] - 1)).to(R.dtype)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For x (n, d): ids (n, 2, k), scores (n, 2, k) and coherence (n, 2), of +x and of -x."""
        scores = x @ self.R  # (n, m)
        values, index = _both_ends(scores[:, self.kept], self.k)
        mean = torch.stack([x @ self.mean, -x @ self.mean], 1)[:, :, None]  # (n, 2, 1)
        sd = ((x @ self.covariance) * x).sum(1).clamp_min(0).sqrt()[:, None, None]
        values = ((values - mean) / sd).nan_to_num(0, 0, 0)  # 0 for a zero vector
        coherence = torch.full((len(x), 2), torch.nan)
        if self.judge is not None:
            lists = self.ids[self.known][_both_ends(scores[:, self.known], JUDGED)[1]]
            with one_thread():
                coherence = self.judge.coherence(lists.flatten(0, 1)).unflatten(0, (-1, 2))
        return self.ids[self.kept][index].int(), values.half(), coherence.float()


def _both_ends(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of scores (n, m) and of -scores: values (n, 2, k) and columns (n, 2, k)."""
    high, low = scores.topk(k), scores.topk(k, largest=False)
    return (torch.stack([high.values, -low.values], 1),
            torch.stack([high.indices, low.indices], 1))


def build_atlas(params: Parameters, vocabulary: Vocabulary, *, reading: str = "orthogonal",
                keep: Tensor | None = None, judge: Judge | None = None, k: int = 20,
                directions: int = 4, progress: bool = True, batch: int = 256) -> "Atlas":
    """Compute the atlas of a model: two rows, +v and -v, for every vector of `group_vectors`.

    All are read through the input embedding E by one `reading`, over the items in `keep` (default
    `vocabulary.keep()`); `directions` singular directions a head. Coherence is the `judge`'s, of
    the ten best words it knows (NaN without one). Memory: batch x e numbers over the result.
    """
    keep = vocabulary.keep() if keep is None else keep
    _check(params.E, vocabulary, keep, k, judge)
    lists, groups = _Lists(params.E, reading, keep, k, judge), (*params.groups, *HEAD_GROUPS)
    found, rows = [], []
    for layer in tqdm(range(params.L), desc="atlas", unit="layer", disable=not progress):
        for group in groups:
            x, norms = group_vectors(params, group, layer, directions)  # (n, d), (n,)
            rows.append(_frame(params, group, layer, norms, directions))
            found += [lists(part) for part in x.split(batch)]
    ids, scores, coherence = (torch.cat(part).flatten(0, 1).numpy() for part in zip(*found))
    frame = pd.concat(rows, ignore_index=True).assign(coherence=coherence)
    frame["group"] = pd.Categorical(frame["group"], categories=groups)
    frame["name"] = frame["name"].astype("category")
    about = {"version": VERSION, "reading": reading, "directions": str(directions)}
    return Atlas(frame, ids, scores, lists.covariance.float(), vocabulary, about)


def _check(E: Tensor, vocabulary: Vocabulary, keep: Tensor, k: int, judge: Judge | None) -> None:
    sizes = {"E": E.shape[1], "vocabulary": len(vocabulary), "keep": len(keep)}
    counts = [(k, "k", int(keep.sum()), "kept items")]
    if judge is not None:
        sizes["judge"] = len(judge.keep)
        counts.append((JUDGED, "coherence", int(judge.keep.sum()), "words of the judge"))
    if len(set(sizes.values())) > 1:
        raise ValueError(f"numbers of items differ, so these belong to different models: {sizes}")
    for wanted, name, there, what in counts:
        if not 1 <= wanted <= there:
            raise ValueError(f"{name} needs {wanted} items, but there are {there} {what}")


def _frame(params: Parameters, group: str, layer: int, norms: Tensor,
           directions: int) -> pd.DataFrame:
    """The rows of one group in one layer: each vector twice, + and -."""
    n = len(norms)
    return pd.DataFrame({
        "name": np.repeat(_names(params, group, layer, n, directions), 2),
        "group": group, "layer": np.int16(layer), "index": np.arange(n, dtype="int32").repeat(2),
        "sign": np.tile(np.int8([1, -1]), n), "norm": norms.float().numpy().repeat(2)})


# ---- the atlas


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
               n: int = 10) -> pd.DataFrame:
        """The n rows with most of `words` in their lists, then with the largest sum of scores.

        A word means every item that reads so up to case and leading space (the best placed one
        counts); a piece of a word is asked for as shown, "-ing". `groups`, `layers`, `sign` (1 or
        -1) choose rows. Index of the result: the row in `rows`. Raises ValueError, with the
        nearest items, for a word that is none, and for a choice that is not there.
        """
        if not words:
            raise ValueError("search needs at least one word")
        found = np.zeros(len(self.rows), dtype=int)
        total = np.zeros(len(self.rows), dtype="float32")
        for word in words:
            row, place = np.isin(self.ids, self._items(word), kind="sort").nonzero()  # least memory
            row, first = np.unique(row, return_index=True)  # lists are sorted: first is best
            found[row] += 1
            total[row] += self.scores[row, place[first]]
        hits = np.flatnonzero((found > 0) & self._choose(groups, layers, sign))
        best = hits[np.lexsort((-total[hits], -found[hits]))][:n]
        return self._show(best, score=total[best])

    def like(self, vector: Tensor, params: Parameters, n: int = 10,
             groups: str | Iterable[str] | None = None,
             layers: int | Iterable[int] | None = None) -> pd.DataFrame:
        """The n rows whose parameter vectors are most alike to `vector` (d,), whatever the sign.

        Alike: by the correlation of their scores over all kept items, as the paper aligns models.
        It is x C y / sqrt(x C x · y C y) with C = `covariance`, so that no vector over the
        vocabulary is formed. Where the correlation with v is negative, the row of -v is shown.
        `params`: of the model whose atlas this is. (The directions of heads are computed anew,
        which takes the longest; `groups` without them is faster.)
        """
        C, vector, index, found = self.covariance, vector.float(), [], []
        if vector.shape != C.shape[:1] or params.d != len(C):
            raise ValueError(f"this atlas is of vectors with d = {len(C)}, got a vector of shape "
                             f"{tuple(vector.shape)} and parameters with d = {params.d}")
        along = C @ vector  # (d,)
        chosen = self.rows[self._choose(groups, layers, 1)]
        for (layer, group), part in chosen.groupby(["layer", "group"], observed=True, sort=False):
            x, _ = group_vectors(params, group, int(layer), int(self.about["directions"]))
            x = x.float()  # (m, d)
            variance = ((x @ C) * x).sum(1) * (along @ vector)  # (m,)
            found.append((x @ along / variance.sqrt()).nan_to_num(0, 0, 0))
            index.append(torch.tensor(part.index.to_numpy()))
        found, index = torch.cat(found), torch.cat(index)
        best = found.abs().topk(min(n, len(found))).indices
        rows = index[best] + (found[best] < 0)  # the row of -v is the next one
        return self._show(rows.numpy(), correlation=found[best].numpy())

    def words(self, row: int, k: int | None = None) -> list[str]:
        """The words of one row, as shown, best first."""
        return [self.vocabulary.shown[i] for i in self.ids[row, :k].tolist()]

    def table(self, rows: Iterable[int], k: int = 10, title: str = "") -> WordTable:
        """The words of several rows side by side, with their scores: `table(found.index[:4])`."""
        columns = {}
        for row in rows:
            name, group, sign = self.rows.loc[row, ["name", "group", "sign"]]
            columns[f"{name} {group} {SIGNS[sign]}"] = list(zip(self.words(row, k),
                                                                self.scores[row, :k].tolist()))
        return WordTable(columns, title)

    def save(self, path: str | Path) -> None:
        """Write one parquet file; a file that is there is replaced only by a finished one."""
        path = Path(path)
        table = pa.Table.from_pandas(self.rows, preserve_index=False)
        for name, values in (("words", self.ids), ("scores", self.scores)):
            cells = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
            table = table.append_column(name, cells)
        about = {**self.about, "covariance": self.covariance.numpy().tobytes()}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            parquet.write_table(table.replace_schema_metadata(about), part, compression="zstd",
                                write_page_checksum=True)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _items(self, word: str) -> list[int]:
        """Ids of all items that read like `word`, whatever case and space."""
        text, v = word.strip().lower(), self.vocabulary
        same = [i for i, t in enumerate(v.texts) if t.strip().lower() == text
                and i not in v.special]
        return (text and same) or [v.id(word)]

    def _choose(self, groups, layers, sign) -> np.ndarray:
        """Mask of the rows in these groups and layers and of this sign (None: all)."""
        mask = np.ones(len(self.rows), dtype=bool)
        for column, wanted in (("group", groups), ("layer", layers), ("sign", sign)):
            if wanted is not None:
                wanted = np.atleast_1d(wanted).tolist()
                there = self.rows[column].unique().tolist()
                if missing := [w for w in wanted if w not in there]:
                    raise ValueError(f"no {column} {missing[0]!r} in this atlas: there are "
                                     f"{', '.join(map(str, there))}")
                mask &= self.rows[column].isin(wanted).to_numpy()
        return mask

    def _show(self, rows: np.ndarray, **values: np.ndarray) -> pd.DataFrame:
        """The table that searches give, best first."""
        chosen = self.rows.iloc[rows]
        return pd.DataFrame({
            "name": chosen["name"].astype(str), "group": chosen["group"].astype(str),
            "layer": chosen["layer"], "sign": chosen["sign"].map(SIGNS), **values,
            "coherence": chosen["coherence"],
            "words": [", ".join(self.words(row, 8)) for row in rows]}, index=chosen.index)


# ---- files


def read_atlas(path: str | Path, vocabulary: Vocabulary) -> Atlas:
    """Read what `Atlas.save` wrote; `vocabulary` is the model's.

    Raises ValueError for a damaged or foreign file, an older version or another vocabulary.
    """
    try:
        table = parquet.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged or no atlas: {error}") from None
    about = dict(table.schema.metadata or {})
    C = torch.tensor(np.frombuffer(about.pop(b"covariance", b""), dtype="float32"))
    about = {key.decode(): value.decode() for key, value in about.items()}
    if about.get("version") != VERSION:
        raise ValueError(f"{path} is no atlas of version {VERSION}, but of "
                         f"{about.get('version', 'another kind')}: build it anew")
    words, scores = (table[name].combine_chunks() for name in ("words", "scores"))
    ids, scores = (part.flatten().to_numpy().reshape(len(table), -1) for part in (words, scores))
    if ids.max() >= len(vocabulary):
        raise ValueError(f"{path} is about more than the {len(vocabulary)} items of the vocabulary")
    rows, d = table.drop_columns(["words", "scores"]).to_pandas(), math.isqrt(len(C))
    pa.default_memory_pool().release_unused()  # what decompression took: three times the table
    return Atlas(rows, ids, scores, C.reshape(d, d), vocabulary, about)


# ---- known models


@one_thread()
def load_judge(name: str, vocabulary: Vocabulary,
               loaded: tuple[Parameters, Vocabulary] | None = None) -> Judge:
    """The judge of a known model's lists (`JUDGES`): the embedding of another, as in notebook 01.

    Two models with one vocabulary: of words seen at least 200 times; else of shared words.
    `vocabulary`: that of the model under test. `loaded`: the judging model's own, if it is in
    memory already. Raises ValueError for a model without a judge.
    """
    if name not in JUDGES:
        raise ValueError(f"no judge is set for {name!r}: there are judges for {', '.join(JUDGES)}")
    if loaded is None:
        model, tokenizer = load_model(JUDGES[name])
        loaded = Parameters(model), load_vocabulary(model, tokenizer)
    E, other = loaded[0].E, loaded[1]
    if other.shown == vocabulary.shown:
        ids = vocabulary.keep(whole_words=True, min_count=200).nonzero().squeeze(1)
        return Judge(E, ids, len(vocabulary))
    ids, judge_ids = shared_words(vocabulary, other)
    return Judge(E, ids, len(vocabulary), judge_ids)


def load_atlas(name: str | Path, reading: str = "orthogonal", params: Parameters | None = None,
               vocabulary: Vocabulary | None = None) -> Atlas:
    """The atlas of a model, from the cache folder, or built now (minutes) and kept there.

    It is built anew when the weights of the model or of its judge changed. `params` and
    `vocabulary`, of this very model, spare loading them. Only known models have a judge. Raises
    what `load_model` raises; warns where the cache folder cannot be written.
    """
    name = str(name)
    judge_name = JUDGES.get(name)
    wanted = {"model": name, "reading": reading, "judge": judge_name or "", "fingerprint":
              " ".join(fingerprint(n) for n in (name, judge_name) if n)}
    path = atlas_path(name, reading)
    vocabulary = _vocabulary(name) if vocabulary is None else vocabulary
    if path.is_file():
        try:
            atlas = read_atlas(path, vocabulary)
            if wanted.items() <= atlas.about.items():
                return atlas
        except (ValueError, OSError):
            pass  # damaged or of another version: a new one takes its place
    judge = load_judge(name, vocabulary) if judge_name else None
    params = Parameters(load_model(name)[0]) if params is None else params
    atlas = build_atlas(params, vocabulary, reading=reading, judge=judge)
    atlas.about |= wanted
    try:
        atlas.save(path)
    except OSError as error:
        warnings.warn(f"the atlas of {name} cannot be kept in {path.parent}, so it is built again "
                      f"next time: {error}")
    return atlas


def atlas_path(name: str, reading: str = "orthogonal") -> Path:
    """Where `load_atlas` keeps an atlas, in the cache folder."""
    return cache_folder() / "atlas" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{reading}.parquet"


def _vocabulary(name: str) -> Vocabulary:
    """The vocabulary of a model, without its weights."""
    source, options = locate(name)
    with quiet(), hub_errors(name, options):
        config = AutoConfig.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    return load_vocabulary(SimpleNamespace(config=config), tokenizer)


def main(arguments: list[str] | None = None) -> None:
    """Build the atlases that are missing, of all known models or of those named."""
    parser = argparse.ArgumentParser("python -m embspace_helpers.atlas", description=main.__doc__)
    parser.add_argument("names", nargs="*", help=f"default: {' '.join(model_names())}")
    for name in parser.parse_args(arguments).names or model_names():
        start = time.perf_counter()
        try:
            atlas = load_atlas(name)
        except ModelNotFound as error:
            sys.exit(str(error))
        path, seconds = atlas_path(name), time.perf_counter() - start
        size = path.stat().st_size / 1e6 if path.is_file() else 0
        print(f"{name}: {len(atlas.rows):,} rows, {size:.1f} MB, {seconds:.1f} s: {path}")
