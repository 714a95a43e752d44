"""How many vectors of a layer can be read? The readable share, with its controls.

A vector is *readable* in a reading if its ten top words are more coherent, in the eyes of another
model, than those of 95 % of random directions through the same map. Chance is 0.05. Dar et al.
(2023, section 4) show examples of readable vectors; the share says how many there are.

    table = census(model, ("K", "V"), ("transpose", "dictionary"), texts=reviews)

In the table, every layer's vectors stand beside mixtures of the same vectors, both with and
without the layer's mean: what mixtures show belongs to the layer, not to the single vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from embspace_helpers.experiments.controls import mixtures, random_directions
from embspace_helpers.reading.arrays import as_count, as_model
from embspace_helpers.reading.judge import Judge
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.ranking import both_ends
from embspace_helpers.reading.sources import DATA
from embspace_helpers.reading.spaces import Space

READINGS = ("transpose", "orthogonal", "dictionary", "dictionary whitened")
FINAL = "final gain"  # of writers: E behind the final norm's gain, as the logits have it
WRITERS, ATTENTION = ("V", "W_O"), ("W_Q", "W_K", "W_V", "W_O")
WORDS, CHANCE = 10, 0.05  # words of a list; the share of random directions that count as readable
DRAWS = 500  # random directions that set the threshold, each with both signs
SIGNS = ("+", "-")
READABILITY = DATA / "readability.csv"  # measured by `python -m embspace_helpers.readability`
DICTIONARIES = DATA / "dictionaries.csv"  # by `python -m embspace_helpers.dictionaries`


# ---------------------------------------------------------------- one space


def coherence(space: Space, judge: Judge, rows: Tensor, k: int = WORDS,
              batch: int = 512) -> Tensor:
    """Coherence of the top k words of x and of -x, for each x of rows (n, d): (2, n).

    Listed are the space's tokens that the judge knows.
    """
    both = space.keep & judge.keep
    judged = space if torch.equal(space.keep, both) else space.only(both)
    found = [rows.new_empty(2, 0)]
    for part in rows.split(batch):
        ends = both_ends(judged.project(part), k)[1]  # (b, 2, k) places among the kept tokens
        lists = judged.ids[ends.transpose(0, 1)]  # (2, b, k)
        found.append(torch.stack([judge.coherence(x) for x in lists]))
    return torch.cat(found, 1)


def kurtosis(space: Space, rows: Tensor, batch: int = 512) -> Tensor:
    """Excess kurtosis of the scores of each x of rows (n, d) over the space's tokens: (n,).

    0 for normal scores; large where a few tokens stand out. It needs no second model.
    """
    found = [rows.new_empty(0)]
    for part in rows.split(batch):
        scores = space.project(part)
        scores -= scores.mean(1, keepdim=True)
        squares = scores.square_()
        found.append(squares.square().mean(1) / squares.mean(1).square() - 3)
    return torch.cat(found)


@dataclass(frozen=True)
class Control:
    """Random directions in a space: what a list's coherence is held against.

    `threshold`: the coherence that 95 % of them stay below. `random` (2,): the share of *other*
    random directions above it, with plus and with minus; 0.05 but for chance.
    """

    threshold: float
    random: Tensor

    def share(self, scores: Tensor) -> Tensor:
        """Share of coherences (..., n) above the threshold: (...)."""
        return (scores > self.threshold).float().mean(-1)


def random_control(space: Space, judge: Judge, seed: int = 0, n: int = DRAWS) -> Control:
    """The control of a space: n random directions set the threshold, as many others test it."""
    one, other = (coherence(space, judge, random_directions(n, space.d, s).to(space.E.dtype))
                  for s in (seed, seed + 1))  # (2, n) each
    found = Control(torch.quantile(one.flatten(), 1 - CHANCE).item(), torch.empty(0))
    return replace(found, random=found.share(other))


def readable_share(model: Model, rows: Tensor, space: Space, judge: Judge | None = None, *,
                   control: Control | None = None, mean: Tensor | None = None,
                   seed: int = 0) -> pd.DataFrame:
    """Share of the rows (n, d) that are readable in `space`, and of their controls.

    Two lines, for the vectors as they are ("+") and with the other sign ("-"). Columns: `vectors`;
    `less_mean`, the vectors without their mean; `mixtures` of the vectors, `mixtures_less_mean`;
    `random`, other random directions than those that set the threshold. `judge`: default the
    model's. `control`: of this space, where it is known. `mean` (d,): of the whole layer where the
    rows are a sample of it; default theirs.
    """
    judge = as_model(model).judge if judge is None else judge
    control = random_control(space, judge, seed) if control is None else control
    mean, mixed = rows.mean(0) if mean is None else mean, mixtures(rows, seed=seed + 1)[0]
    tested = {"vectors": rows, "less_mean": rows - mean, "mixtures": mixed,
              "mixtures_less_mean": mixed - mean}
    scores = coherence(space, judge, torch.cat([*tested.values()])).split(len(rows), dim=1)
    shares = {name: control.share(x) for name, x in zip(tested, scores)} | {
        "random": control.random}
    return pd.DataFrame({"sign": SIGNS} | {name: x.tolist() for name, x in shares.items()})


# ---------------------------------------------------------------- a model's groups and layers


def sample_rows(model: Model, group: str, layer: int, n: int | None = None) -> Tensor:
    """n rows of a group in a layer, evenly spaced (all, where n is None or too many): (n, d)."""
    rows = model.parameters.vectors(group, layer)
    if n is None or n >= len(rows):
        return rows
    return rows[torch.arange(as_count(n, name="n")) * len(rows) // n]


def reading_of(model: Model, group: str, layer: int, reading: str = "transpose",
               texts: Sequence[str] | str | None = None, keep: Tensor | None = None,
               **options: Any) -> Space:
    """The space in which `parameters.vectors(group, layer)` are read, norm's gain included.

    What a block reads is the state behind its norm. A dictionary holds such states, so that keys
    and W_Q, W_K, W_V are read as they are. E holds the stream in front of the norm, so that its
    gain (and a LayerNorm's centring) becomes part of the map: the scores are those of
    `parameters.fold(rows, norm)`. Writers have no norm in front; that behind, which few models
    have, is part of the map as well (`fold_written`); "final gain" reads them through the final
    norm's. Where embeddings are untied, E_out reads the writers. Their dictionary is that of what
    their own block reads. `texts` and `options`: of the dictionary, see `Model.dictionary`.
    """
    p, reads = model.parameters, "attention" if group in ATTENTION else "ff"
    if reading in ("dictionary", "dictionary whitened"):
        return model.dictionary(layer, texts, reads, keep, reading != "dictionary", **options)
    if reading == FINAL and group not in WRITERS:
        raise ValueError(f"{FINAL!r} reads what is written, {' and '.join(WRITERS)}; got {group!r}")
    space = model.space("transpose" if reading == FINAL else reading, keep,
                        output=group in WRITERS)
    ff, same = reads == "ff", torch.eye(p.d, dtype=p.E.dtype)
    if group in WRITERS:
        behind = p.ff_post_norm(layer) if ff else p.attention_post_norm(layer)
        gain = p.fold(p.fold_written(same, behind), p.final_norm() if reading == FINAL else None)
    else:
        gain = p.fold(same, p.ff_norm(layer) if ff else p.attention_norm(layer))
    if gain is same:
        return space  # else (d, d): x @ gain is fold(x)
    return Space(space.E, model.vocabulary, gain if space.map is None else gain @ space.map,
                 space.centred, space.keep, f"{reading}, norm folded in", space.sums)


def census(model: Model, groups: Sequence[str] | None = None,
           readings: Sequence[str] = ("transpose", "dictionary"),
           layers: Sequence[int] | None = None, n: int | None = 200,
           texts: Sequence[str] | str | None = None, judge: Judge | None = None) -> pd.DataFrame:
    """The readable shares of `groups` in `layers` (default: all), a line for each sign.

    Columns group, layer, reading, r2 (of the layer's dictionary) and those of `readable_share`.
    `n` rows of a layer, None for all. `texts`: what dictionaries are fitted on. All groups that
    are read through one map share one threshold.
    """
    p, judge = as_model(model).parameters, model.judge if judge is None else judge
    tables: list[pd.DataFrame] = []
    controls: dict[tuple, Control] = {}
    for layer in range(p.L) if layers is None else layers:
        for reading, group in product(readings, p.groups if groups is None else groups):
            space = reading_of(model, group, layer, reading, texts, judge.keep)
            mark = (space.E.data_ptr(), space.centred,
                    None if space.map is None else hash(space.map.numpy().tobytes()))
            if mark not in controls:
                controls[mark] = random_control(space, judge)
            found = readable_share(model, sample_rows(model, group, layer, n), space, judge,
                                   control=controls[mark], mean=p.vectors(group, layer).mean(0))
            facts = {"group": group, "layer": layer, "reading": reading,
                     "r2": _r2(model, group, layer, reading, texts)}
            tables.append(found.assign(**facts)[[*facts, *found]])
    return pd.concat(tables, ignore_index=True)


def _r2(model: Model, group: str, layer: int, reading: str,
        texts: Sequence[str] | str | None) -> float:
    """R² of the dictionary behind a reading; NaN where there is none."""
    if not reading.startswith("dictionary"):
        return math.nan
    return model.dictionaries(texts, "attention" if group in ATTENTION else "ff")[layer].r2
