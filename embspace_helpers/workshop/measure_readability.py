"""Measure what share of every layer's vectors can be read, for notebooks 01 and 02.

    python -m embspace_helpers.readability twin-a smollm2 --texts embedded --out readability.csv

A line for every model, layer, group, reading and sign. The table is renewed after every layer:
stopped and run again, the command goes on with the layers that are missing. Columns, all shares of
`rows` vectors but for `r2` (of the layer's dictionary), `positions` (that it was fitted on) and
the names: those of `readable_share`; `shuffled`, the same vectors through the dictionary of
shuffled tokens; `kurtosis` and `kurtosis_mixtures`, the share whose scores have a larger kurtosis
than those of 95 % of random directions: a judge that needs no second model.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from embspace_helpers.classroom.reviews import EMBEDDED, load_reviews
from embspace_helpers.experiments.controls import mixtures, random_directions, share_above
from embspace_helpers.experiments.readability import (
    ATTENTION,
    FINAL,
    READABILITY,
    READINGS,
    WRITERS,
    Control,
    coherence,
    kurtosis,
    random_control,
    readable_share,
    reading_of,
    sample_rows,
)
from embspace_helpers.experiments.statistics import replace_rows, save_table
from embspace_helpers.reading.model import Model, load
from embspace_helpers.reading.spaces import Space

KEY = ["model", "texts", "layer"]  # what is measured in one go, in the table of results
MODELS = ("twin-a", "twin-b", "wide-w", "minilm", "smollm2")
ROWS = {"smollm2": 200}  # of a group in a layer
DRAWS = 300  # random directions that set the threshold of the kurtosis
SHUFFLE = 0  # seed of the dictionary of shuffled tokens


def read_texts(source: str, reviews: int) -> list[str]:
    """So many embedded reviews, IMDB's of a folder, or the lines of a text file that are not empty.

    Raises FileNotFoundError where there are none.
    """
    if Path(source).is_file():
        return [line for line in Path(source).read_text("utf-8").splitlines() if line.strip()]
    return load_reviews("train", reviews, source=source)["text"].tolist()


@dataclass(frozen=True)
class Ruler:
    """A space, its random directions' coherence, and their kurtosis (n,)."""

    space: Space
    control: Control
    peaked: Tensor


class Measurement:
    """The shares of one model, dictionaries fitted on `texts`, from `rows` rows of a layer."""

    def __init__(self, model: Model, texts: list[str], rows: int):
        self.model, self.texts, self.rows, self.judge = model, texts, rows, model.judge
        self.rulers: dict[tuple, Ruler] = {}  # one for all groups that are read through one map

    def layer(self, layer: int) -> pd.DataFrame:
        """All groups of a layer in all readings."""
        p = self.model.parameters
        self.rulers = {key: ruler for key, ruler in self.rulers.items() if key[-1] is None}
        tables = [self.one(layer, group, reading) for reading in READINGS for group in p.groups]
        if p.final_norm() is not None:
            tables += [self.one(layer, group, FINAL) for group in WRITERS]
        return pd.concat(tables).assign(layer=layer)

    def one(self, layer: int, group: str, reading: str) -> pd.DataFrame:
        """The two lines of a group in a reading, + and -."""
        x, ruler = sample_rows(self.model, group, layer, self.rows), self.ruler(layer, group,
                                                                               reading)
        found = readable_share(self.model, x, ruler.space, self.judge, control=ruler.control,
                               mean=self.model.parameters.vectors(group, layer).mean(0))
        r2, positions, shuffled = math.nan, 0, torch.full((2,), math.nan)
        if reading.startswith("dictionary"):
            fitted = self.model.dictionaries(self.texts, side(group))[layer]
            r2, positions = fitted.r2, fitted.n
            other = self.ruler(layer, group, reading, shuffle=SHUFFLE)
            shuffled = other.control.share(coherence(other.space, self.judge, x))
        peaks = [share_above(kurtosis(ruler.space, rows), ruler.peaked).mean().item()
                 for rows in (x, mixtures(x)[0])]
        return found.assign(group=group, reading=reading, rows=len(x), r2=r2, positions=positions,
                            shuffled=shuffled.tolist(), kurtosis=peaks[0],
                            kurtosis_mixtures=peaks[1])

    def ruler(self, layer: int, group: str, reading: str, **options: int) -> Ruler:
        """The ruler of a group in a reading."""
        p, place = self.model.parameters, side(group)
        if not reading.startswith("dictionary"):
            norm = p.attention_norm(layer) if place == "attention" else p.ff_norm(layer)
            place = "as it is" if group in WRITERS or norm is None else place
        always = place == "as it is"  # the same in all layers
        key = (reading, place, *options.items(), None if always else layer)
        if key not in self.rulers:
            space = reading_of(self.model, group, layer, reading, self.texts, self.judge.keep,
                               **options)
            peaked = kurtosis(space, random_directions(DRAWS, space.d).to(space.E.dtype))
            self.rulers[key] = Ruler(space, random_control(space, self.judge), peaked)
        return self.rulers[key]


def side(group: str) -> str:
    """Which block a group belongs to: "attention" or "ff"."""
    return "attention" if group in ATTENTION else "ff"


def layers_in_turn(L: int) -> list[int]:
    """All layers, every third first: a run that is stopped has seen the whole depth."""
    return [*range(0, L, 3), *(layer for layer in range(L) if layer % 3)]


def measure(name: str, source: str, reviews: int, rows: int, out: Path) -> None:
    """Measure what the file `out` does not have yet of a model."""
    model, short, label = load(name), Path(name).name, Path(source).name
    old = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=KEY)
    done = set(old.loc[(old["model"] == short) & (old["texts"] == label), "layer"])
    left = [layer for layer in layers_in_turn(model.parameters.L) if layer not in done]
    measurement = Measurement(model, read_texts(source, reviews), rows)
    for layer in tqdm(left, desc=short, unit="layer"):
        found = measurement.layer(layer).assign(model=short, texts=label)
        first = [*KEY, "group", "reading", "sign"]
        found = found[[*first, *found.columns.drop(first)]].round(4)
        save_table(replace_rows(found, out, KEY), out)


def main(arguments: list[str] | None = None) -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.readability",
        description="Measure the readable share of every layer's vectors, with its controls.")
    parser.add_argument("models", nargs="*", default=MODELS,
                        help="names or folders (default: all that have a judge)")
    parser.add_argument("--texts", default=EMBEDDED,
                        help="what dictionaries are fitted on: embedded reviews, a text file of "
                             "one text a line, IMDB's folder (default %(default)s)")
    parser.add_argument("--reviews", type=int, default=100, help="how many (default %(default)s)")
    parser.add_argument("--rows", type=int, help="of a group in a layer (default: 200 of SmolLM2, "
                                                 "400 of the others)")
    parser.add_argument("--out", type=Path, default=READABILITY, help="file to write or to renew")
    args = parser.parse_args(arguments)
    for name in args.models:
        measure(name, args.texts, args.reviews, args.rows or ROWS.get(name, 400), args.out)
        print(f"{name}: done", flush=True)
