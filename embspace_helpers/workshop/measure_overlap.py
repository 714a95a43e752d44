"""Measure the overlap of states and active parameters on IMDB, for notebook 04.

    python -m embspace_helpers.overlap twin-a --data stanfordnlp/imdb --out overlap.csv

Rows of the file that are measured anew are replaced.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from embspace_helpers.classroom.reviews import EMBEDDED, HUB_NAME, load_reviews
from embspace_helpers.experiments.overlap import OVERLAP_RESULTS, overlap_table, readable_tokens
from embspace_helpers.experiments.statistics import replace_rows, save_table
from embspace_helpers.reading.activations import capture
from embspace_helpers.reading.model import load

KEY = ["model", "reading", "source"]  # of what is measured in one go, in the table of results
KEPT = ("states", "keys", "neurons", "subheads")  # of the activations
UNTRAINED_SEEDS = {"twin-b": 1}  # so that the two twins have two untrained controls; others 0


def measure(name: str, source: str, texts: int, positions: int, readings: Sequence[str],
            untrained: bool = False) -> pd.DataFrame:
    """The tables of a model on so many test reviews; columns model, reading, positions, source."""
    seed = UNTRAINED_SEEDS.get(name, 0)
    model = load(name, untrained=True, seed=seed) if untrained else load(name)
    reviews = load_reviews("test", texts, source=source)["text"].tolist()
    cache = capture(model, reviews, positions, KEPT, skip=1)
    label = f"{Path(name).name}, untrained" if untrained else Path(name).name
    tables = []
    for reading in readings:
        table = overlap_table(model, cache, model.space(reading, readable_tokens(model.vocabulary)))
        tables.append(table.assign(model=label, reading=reading, positions=len(cache),
                                   source=source if source == EMBEDDED else "imdb"))
    return pd.concat(tables)


def main(arguments: list[str] | None = None) -> None:
    """Measure the models named on the command line, trained and untrained."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.overlap",
        description="Measure the overlap of states and active parameters on IMDB's test reviews.")
    parser.add_argument("names", nargs="+", help="models; a large one needs memory for positions")
    parser.add_argument("--data", default=HUB_NAME, help="hub name or folder (default %(default)s)")
    parser.add_argument("--out", type=Path, default=OVERLAP_RESULTS,
                        help="file to write or to renew")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--positions", type=int, default=3000)
    parser.add_argument("--readings", nargs="+", default=["transpose", "orthogonal"])
    args = parser.parse_args(arguments)
    for name in args.names:
        tables = [measure(name, args.data, args.texts, args.positions, args.readings, untrained)
                  for untrained in (False, True)]
        save_table(replace_rows(pd.concat(tables).round(4), args.out, KEY), args.out)
        print(f"{name}: done", flush=True)
