"""Measure whether keys fire on the words of their lists, in every layer, for notebook 04.

    python -m embspace_helpers.firing smollm2 --out firing.csv

Dictionaries are fitted on reviews to train on, keys are tested on reviews to test on. Rows of the
file that are measured anew are replaced.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from embspace_helpers.classroom.reviews import EMBEDDED, load_reviews
from embspace_helpers.experiments.firing import FIRING_RESULTS, firing_table, read_states
from embspace_helpers.experiments.statistics import replace_rows, save_table
from embspace_helpers.reading.model import load

KEY = ["model", "source"]  # of what is measured in one go, in the table of results


def measure(name: str, source: str, fit: int, test: int, n: int,
            layers: Sequence[int] | None = None) -> pd.DataFrame:
    """The table of a model; columns model, positions, source beside those of `firing_table`."""
    model = load(name, dtype="float16" if Path(name).name == "smollm2" else "float32")
    texts = {split: load_reviews(split, count, source=source)["text"].tolist()
             for split, count in (("train", fit), ("test", test))}
    found = read_states(model, texts["test"], layers)
    table = firing_table(model, texts["train"], found, n)
    return table.assign(model=Path(name).name, positions=len(found.token),
                        source=source if source == EMBEDDED else "imdb")


def main(arguments: list[str] | None = None) -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.firing",
        description="Measure whether keys fire on the words of their lists, in other texts.")
    parser.add_argument("names", nargs="+", help="models")
    parser.add_argument("--data", default=EMBEDDED, help="reviews (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=FIRING_RESULTS,
                        help="file to write or to renew")
    parser.add_argument("--fit", type=int, default=256, help="reviews to fit on")
    parser.add_argument("--test", type=int, default=120, help="reviews to test on")
    parser.add_argument("--keys", type=int, default=100, help="keys of every layer and kind")
    args = parser.parse_args(arguments)
    for name in args.names:
        table = measure(name, args.data, args.fit, args.test, args.keys)
        save_table(replace_rows(table.round(4), args.out, KEY), args.out)
        print(f"{name}: done", flush=True)
