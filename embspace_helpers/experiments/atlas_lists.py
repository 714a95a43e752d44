"""Building an atlas: the words of every parameter vector of a model, and of its negative.

Which vectors there are: every FF key and value and every subhead (`Parameters.vectors`), and the
leading singular directions of every head's W_VO and W_QK.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from embspace_helpers.reading.arrays import as_count, one_thread
from embspace_helpers.reading.judge import Judge
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.parameters import Parameters
from embspace_helpers.reading.ranking import both_ends
from embspace_helpers.reading.spaces import Space

JUDGED = 10  # words of a list that its coherence is about
HEAD_GROUPS = ("VO_reads", "VO_writes", "QK_query", "QK_key")


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
    matrix = params.W_VO if group.startswith("VO") else params.W_QK
    triples = [matrix(layer, head).svd(directions) for head in range(params.H)]
    left = group in ("VO_reads", "QK_query")
    x = torch.cat([triple.U.T if left else triple.Vh for triple in triples])
    return x, torch.cat([triple.S for triple in triples])


def _names(params: Parameters, group: str, layer: int, n: int, directions: int) -> list[str]:
    """Names of a group's n vectors: L23N907, L9H6S12 as `Parameters.label`, or L9H6D0."""
    if group in (*params.key_kinds, "V"):
        return [f"L{layer}N{i}" for i in range(n)]
    size, letter = (directions, "D") if group in HEAD_GROUPS else (params.d_h, "S")
    return [f"L{layer}H{i // size}{letter}{i % size}" for i in range(n)]


def word_lists(space: Space, x: Tensor, k: int,
               judge: Judge | None) -> tuple[Tensor, Tensor, Tensor]:
    """For x (n, d): ids (n, 2, k), scores (n, 2, k) and coherence (n, 2), of +x and of -x.

    One product with the vocabulary serves all of them. Scores are in standard deviations of all
    the vector's scores, for -x of its negative's; coherence is that of the ten best words which
    the judge knows, NaN without one.
    """
    scores = space.scores(x)  # (n, e)
    coherence = torch.full((len(x), 2), torch.nan)
    if judge is not None:
        _, index = both_ends(scores[:, judge.ids], JUDGED)
        with one_thread():
            coherence = judge.coherence(judge.ids[index].flatten(0, 1)).unflatten(0, (-1, 2))
    values, ids = both_ends(scores, k, space.dropped)
    plus, minus = space.standardise(x, values[:, 0]), space.standardise(-x, values[:, 1])
    return ids.int(), torch.stack([plus, minus], 1).half(), coherence.float()


def atlas_lists(model: Model, *, reading: str = "orthogonal", keep: Tensor | None = None,
                judge: Judge | None = None, k: int = 20, directions: int = 4,
                progress: bool = True, batch: int = 256,
                ) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, Tensor]:
    """Compute the lists of all vectors of a model: a table, ids, scores and the covariance.

    Two rows, +v and -v, for every vector of `group_vectors`; see `Atlas` for the four. All are
    read through the input embedding E by one `reading`, over the tokens in `keep` (default
    `vocabulary.keep()`); `directions` singular directions a head. Coherence is the `judge`'s (NaN
    without one). Memory: batch x e numbers over the result.
    """
    params, space = model.parameters, model.space(reading, keep)
    _check(space, k, judge)
    groups, found, rows = (*params.groups, *HEAD_GROUPS), [], []
    for layer in tqdm(range(params.L), desc=f"atlas of {model.name or 'the model'}", unit="layer",
                      disable=not progress):
        for group in groups:
            x, norms = group_vectors(params, group, layer, directions)  # (n, d), (n,)
            rows.append(_frame(params, group, layer, norms, directions))
            found += [word_lists(space, part, k, judge) for part in x.split(batch)]
    ids, scores, coherence = (torch.cat(part).flatten(0, 1).numpy() for part in zip(*found))
    frame = pd.concat(rows, ignore_index=True).assign(coherence=coherence)
    frame["group"] = pd.Categorical(frame["group"], categories=groups)
    frame["name"] = frame["name"].astype("category")
    return frame, ids, scores, space.covariance.float()


def _check(space: Space, k: int, judge: Judge | None) -> None:
    as_count(k, len(space.ids), things="kept tokens")
    if judge is None:
        return
    if len(judge.keep) != len(space.vocabulary):
        raise ValueError(f"the vocabulary has {len(space.vocabulary)} tokens, the judge knows of "
                         f"{len(judge.keep)}: they belong to different models")
    as_count(JUDGED, len(judge.ids), "coherence", "words of the judge")


def _frame(params: Parameters, group: str, layer: int, norms: Tensor,
           directions: int) -> pd.DataFrame:
    """The rows of one group in one layer: each vector twice, + and -."""
    n, signs = len(norms), np.array([1, -1], dtype="int8")
    return pd.DataFrame({
        "name": np.repeat(_names(params, group, layer, n, directions), 2),
        "group": group, "layer": np.int16(layer), "index": np.arange(n, dtype="int32").repeat(2),
        "sign": np.tile(signs, n), "norm": norms.float().numpy().repeat(2)})
