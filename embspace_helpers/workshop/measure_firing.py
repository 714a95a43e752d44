"""Measure whether keys fire on the words of their lists, in every layer, for notebook 04.

    python -m embspace_helpers.firing smollm2 --out firing.csv

Dictionaries are fitted on reviews to train on, keys are tested on reviews to test on. Rows of the
file that are measured anew are replaced.

    python -m embspace_helpers.firing smollm2 --heads 12 --out heads.csv

ablates every head alone, in 12 reviews to test on; see `experiments/head_effects.py`. Run again,
it goes on with the layers that the file does not have.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from embspace_helpers.classroom.reviews import EMBEDDED, load_reviews
from embspace_helpers.experiments.firing import FIRING_RESULTS, firing_table, read_states
from embspace_helpers.experiments.head_effects import HEAD_RESULTS, HeadTest
from embspace_helpers.experiments.statistics import replace_rows, save_table
from embspace_helpers.reading.model import load
from embspace_helpers.workshop.measure_readability import layers_in_turn

KEY = ["model", "source"]  # of what is measured in one go, in the table of results


def measure(name: str, source: str, fit: int, test: int, n: int,
            layers: Sequence[int] | None = None) -> pd.DataFrame:
    """The table of a model; columns model, positions, source beside those of `firing_table`."""
    model = load(name, dtype="float16" if Path(name).name == "smollm2" else "float32")
    fit_on, test_on = (texts_of(split, count, source)
                       for split, count in (("train", fit), ("test", test)))
    found = read_states(model, test_on, layers)
    table = firing_table(model, fit_on, found, n)
    return table.assign(model=Path(name).name, positions=len(found.token), source=label(source))


def measure_heads(name: str, source: str, fit: int, test: int, out: Path) -> None:
    """Ablate the heads of all layers that the file `out` does not have of a model."""
    model, key = load(name), ["model", "source", "layer"]
    old = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=key)
    done = set(old.loc[(old["model"] == Path(name).name) & (old["source"] == label(source)),
                       "layer"])
    heads = HeadTest(model, texts_of("train", fit, source), texts_of("test", test, source))
    for layer in layers_in_turn(model.parameters.L):
        if layer not in done:
            found = heads.layer(layer).assign(model=Path(name).name, source=label(source))
            found = found[[*key, *found.columns.drop(key)]].round(3)
            save_table(replace_rows(found, out, key), out)


def texts_of(split: str, count: int, source: str) -> list[str]:
    """Some reviews of a split."""
    return load_reviews(split, count, source=source)["text"].tolist()


def label(source: str) -> str:
    """What the table calls where its reviews come from."""
    return source if source == EMBEDDED else "imdb"


def main(arguments: list[str] | None = None) -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.firing",
        description="Measure whether keys fire on the words of their lists, in other texts, or "
                    "whether the words fall that ablated heads should write.")
    parser.add_argument("names", nargs="+", help="models")
    parser.add_argument("--data", default=EMBEDDED, help="reviews (default: %(default)s)")
    parser.add_argument("--heads", type=int, metavar="REVIEWS",
                        help="ablate all heads one by one, in so many reviews, in place of keys")
    parser.add_argument("--out", type=Path, help="file to write or to renew (default: the one "
                                                 "that ships)")
    parser.add_argument("--fit", type=int, default=256, help="reviews to fit on")
    parser.add_argument("--test", type=int, default=120, help="reviews to test on")
    parser.add_argument("--keys", type=int, default=100, help="keys of every layer and kind")
    args = parser.parse_args(arguments)
    out = args.out or (HEAD_RESULTS if args.heads else FIRING_RESULTS)
    for name in args.names:
        if args.heads:
            measure_heads(name, args.data, args.fit, args.heads, out)
        else:
            table = measure(name, args.data, args.fit, args.test, args.keys)
            save_table(replace_rows(table.round(4), out, KEY), out)
        print(f"{name}: done", flush=True)
