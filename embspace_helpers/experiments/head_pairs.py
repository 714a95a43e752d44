"""The pairs of words of all heads of a model at once, kept layer by layer.

Source: Dar et al. (2023), section 3; their appendix lists such pairs for some heads.
"""

import hashlib
from pathlib import Path

import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from embspace_helpers.reading.arrays import as_count
from embspace_helpers.reading.files import whole_file
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.pairs import word_pairs
from embspace_helpers.reading.spaces import Space

KINDS = {"W_QK": ("W_Q", "W_K"), "W_VO": ("W_V", "W_O")}


def head_pairs(model: Model, kind: str = "W_VO", k: int = 20, *, reading: str = "orthogonal",
               drop: str | None = "stem", folder: str | Path | None = None,
               progress: bool = True) -> pd.DataFrame:
    """The k best pairs of words of every head: columns layer, head, left, right, score.

    `kind`: "W_QK", what a head matches, or "W_VO", what it moves. `reading`, `drop`, scores: as
    `word_pairs` has them. With a `folder` each layer is written there when it is done, and read
    the next time: a run that was stopped goes on. A file of other weights or options is written
    anew. Raises ValueError for another kind, and what `word_pairs` raises.
    """
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}: there are {', '.join(KINDS)}")
    p, space, layers = model.parameters, model.space(reading), []
    about = {"k": as_count(k), "reading": reading, "drop": drop}
    with tqdm(total=p.L * p.H, unit="head", disable=not progress) as bar:
        for layer in range(p.L):
            path = folder and Path(folder, f"{kind}-L{layer}.parquet")
            if path:
                about["weights"] = [_digest(x) for x in (p.E.T, *(p.vectors(group, layer)
                                                                  for group in KINDS[kind]))]
            table = pd.read_parquet(path) if path and path.exists() else None
            if table is None or table.attrs != about:
                table = pd.concat([_of_head(model, kind, layer, head, k, space, drop)
                                   for head in range(p.H)], ignore_index=True)
                table.attrs = dict(about)
                if path:
                    with whole_file(path) as part:
                        table.to_parquet(part)
            bar.update(p.H)
            layers.append(table)
    return pd.concat(layers, ignore_index=True)


def _digest(weights: Tensor) -> str:
    return hashlib.sha256(weights.contiguous().numpy()).hexdigest()


def _of_head(model: Model, kind: str, layer: int, head: int, k: int, space: Space,
             drop: str | None) -> pd.DataFrame:
    found = word_pairs(space, getattr(model.parameters, kind)(layer, head), k, drop=drop)
    left, right = zip(*found.words)
    return pd.DataFrame({"layer": layer, "head": head, "left": left, "right": right,
                         "score": found.scores.numpy()})
