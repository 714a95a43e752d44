"""The lists of an atlas: the words of every parameter vector of a layer, and of its negative.

Which vectors there are: every FF key and value and every subhead (`Parameters.vectors`), and the
leading singular directions of every head's W_VO and W_QK. What is written goes through the norm
behind the block, where a model has one: its gain is folded into V and W_O.

Through which embeddings: what reads the stream meets E, or a dictionary over E; what writes to it
meets E_out, which is E where embeddings are tied. `side_of` decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from embspace_helpers.reading.arrays import as_count, one_thread
from embspace_helpers.reading.factored import FactoredMatrix
from embspace_helpers.reading.judge import Judge
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.parameters import Parameters
from embspace_helpers.reading.ranking import Scan
from embspace_helpers.reading.spaces import READINGS

DICTIONARY = "dictionary"  # readers through their layer's dictionary, writers through F
IN, OUT = "E", "E_out"  # the sides of a model: its input and its output embeddings
WRITTEN = "orthogonal"  # how writers are read then
JUDGED = 10  # words of a list that its coherence is about
ROWS = 512  # vectors whose scores are made at once
HEAD_GROUPS = ("VO_reads", "VO_writes", "QK_query", "QK_key")
WRITERS = ("V", "W_O", "VO_writes")

Lists = tuple[pd.DataFrame, np.ndarray, np.ndarray]  # of one group: rows, ids and scores


def group_vectors(params: Parameters, group: str, layer: int,
                  directions: int = 4) -> tuple[Tensor, Tensor]:
    """Vectors (n, d) of one of the atlas's groups in one layer, and their norms (n,).

    Beside those of `Parameters.vectors` the groups "VO_reads", "VO_writes" (W_VO = W_V W_O) and
    "QK_query", "QK_key" (W_QK = W_Q W_K.T): `directions` unit vectors for every head, head by
    head, with the singular values for norms. W_O and V have the gain of the norm behind the block.
    """
    if group not in HEAD_GROUPS:
        x = params.vectors(group, layer, fold_norm=group in WRITERS)  # (n, d)
        return x, x.norm(dim=1)
    matrix = _moved if group.startswith("VO") else Parameters.W_QK
    triples = [matrix(params, layer, head).svd(directions) for head in range(params.H)]
    left = group in ("VO_reads", "QK_query")
    x = torch.cat([triple.U.T if left else triple.Vh for triple in triples])
    return x, torch.cat([triple.S for triple in triples])


def _moved(params: Parameters, layer: int, head: int) -> FactoredMatrix:
    """W_VO with the gain of the norm behind the block, but not of that in front."""
    return FactoredMatrix(params.W_V(layer, head), params.W_O(layer, head, fold_norm=True))


def side_of(params: Parameters, group: str) -> str:
    """The embeddings that a group's vectors meet: "E_out" for an untied model's writers, or "E"."""
    return OUT if group in WRITERS and not params.tied else IN


def reading_map(model: Model, group: str, layer: int, reading: str,
                texts: Sequence[str] | None = None) -> Tensor | None:
    """The map M (d, d) that a group of vectors is read by, for E or E_out; None for the identity.

    `reading`: of `Model.space`, or "dictionary": what reads the stream goes through the dictionary
    of its layer, fitted on `texts`, and what writes to it through "orthogonal".
    """
    if reading != DICTIONARY or group in WRITERS:
        name = WRITTEN if reading == DICTIONARY else reading
        return model.space(name, output=side_of(model.parameters, group) == OUT).map
    reads = "ff" if group in model.parameters.key_kinds else "attention"
    return model.dictionaries(texts, reads)[layer].W.T


class Lister:
    """What gives the lists of many vectors x (n, d), and of -x, from one product with E.

    `k` words each, of the kept tokens of `model`; with a `judge` also their coherence. `device`:
    where the scores are made, which holds a copy of E. `side`: "E", or "E_out" in its place.
    Memory: that copy, and the scores of `ROWS` vectors.
    """

    def __init__(self, model: Model, k: int = 20, judge: Judge | None = None,
                 device: torch.device | str = "cpu", side: str = IN):
        """Put what the judge knows first, so that its scores stand side by side."""
        space = model.space("transpose", output=side == OUT)
        known = _known(space.keep, k, judge)
        self.k, self.judge, self.device = k, judge, torch.device(device)
        order = torch.cat([known.nonzero(), (space.keep & ~known).nonzero()]).squeeze(1)
        self.judged = int(known.sum())
        self.ids = order.to(self.device)
        columns = space.E.T[order].to(self.device).T  # (d, kept)
        self.mean, self.C = (x.to(columns) for x in space.moments)
        self.scan = Scan(columns, max(k, JUDGED if self.judged else 0), rows=ROWS,
                         first=self.judged, tile=len(order))

    def lists(self, x: Tensor, map: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """For x (n, d): ids (n, 2, k), scores (n, 2, k) and coherence (n, 2), of +x and of -x.

        Scores are in standard deviations of all the vector's scores, for -x of its negative's;
        coherence is that of the ten best words which the judge knows, NaN without one.
        """
        found = [self._some(part, map) for part in x.detach().split(ROWS)]
        return tuple(torch.cat(part) for part in zip(*found))

    def _some(self, x: Tensor, map: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        y = x.to(self.device) if map is None else x.to(self.device) @ map.to(self.device)
        self.scan.read(y)
        middle, sd = y @ self.mean, ((y @ self.C) * y).sum(1).clamp_min(0).sqrt()  # (n,)
        values, places = [], []
        for sign in (1, -1):
            best, place = self.scan.top(self.k, sign > 0)
            values.append(sign * ((best - middle[:, None]) / sd[:, None]).nan_to_num(0, 0, 0))
            places.append(place)
        ids = self.ids[torch.stack(places, 1)].int()
        return ids.cpu(), torch.stack(values, 1).half().cpu(), self._coherence(len(x))

    def _coherence(self, n: int) -> Tensor:
        if self.judge is None:
            return torch.full((n, 2), torch.nan, device="cpu")
        best = [self.scan.top(JUDGED, sign > 0, self.judged)[1] for sign in (1, -1)]
        words = self.ids[torch.stack(best, 1)].cpu()  # (n, 2, 10)
        with one_thread():
            return self.judge.coherence(words.flatten(0, 1)).unflatten(0, (-1, 2)).float()


def layer_lists(model: Model, layer: int, listers: Mapping[str, Lister],
                reading: str = "orthogonal", directions: int = 4,
                texts: Sequence[str] | None = None) -> Iterator[Lists]:
    """The rows, ids (rows, k) and scores (rows, k) of every group of a layer, one by one.

    Two rows, +v and -v, for every vector of `group_vectors`. `listers`: one for every side.
    """
    params = model.parameters
    for group in groups_of(params):
        x, norms = group_vectors(params, group, layer, directions)  # (n, d), (n,)
        lister = listers[side_of(params, group)]
        found = lister.lists(x, reading_map(model, group, layer, reading, texts))
        ids, scores, coherence = (part.flatten(0, 1).numpy() for part in found)
        n, signs = len(norms), np.array([1, -1], dtype="int8")
        yield pd.DataFrame({
            "name": np.repeat(_names(params, group, layer, n, directions), 2), "group": group,
            "layer": np.int16(layer), "index": np.arange(n, dtype="int32").repeat(2),
            "sign": np.tile(signs, n), "norm": norms.float().cpu().numpy().repeat(2),
            "coherence": coherence}), ids, scores


def groups_of(params: Parameters) -> tuple[str, ...]:
    """Every group of vectors that an atlas has."""
    return (*params.groups, *HEAD_GROUPS)


def as_reading(reading: str) -> str:
    """Return the name of a reading that an atlas can have. Raises ValueError for what is none."""
    plain, there = str(reading).strip().lower(), (*READINGS, DICTIONARY)
    if plain not in there:
        raise ValueError(f"no reading {reading!r}: there are {', '.join(there)}")
    return plain


def _names(params: Parameters, group: str, layer: int, n: int, directions: int) -> list[str]:
    """Names of a group's n vectors: L23N907, L9H6S12 as `Parameters.label`, or L9H6D0."""
    if group in (*params.key_kinds, "V"):
        return [f"L{layer}N{i}" for i in range(n)]
    size, letter = (directions, "D") if group in HEAD_GROUPS else (params.d_h, "S")
    return [f"L{layer}H{i // size}{letter}{i % size}" for i in range(n)]


def _known(keep: Tensor, k: int, judge: Judge | None) -> Tensor:
    """Mask (e,) of the kept tokens that the judge knows; ValueError where lists are impossible."""
    as_count(k, int(keep.sum()), things="kept tokens")
    if judge is None:
        return torch.zeros_like(keep)
    if len(judge.keep) != len(keep):
        raise ValueError(f"the vocabulary has {len(keep)} tokens, the judge knows of "
                         f"{len(judge.keep)}: they belong to different models")
    as_count(JUDGED, int((keep & judge.keep).sum()), "coherence", "words of the judge")
    return keep & judge.keep
