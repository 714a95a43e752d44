"""Align real models with the twins and with each other, for notebook 06.

    python -m embspace_helpers.alignment smollm2 twin-a --out alignment.csv

Rows of the file that are measured anew are replaced.
"""

import argparse
from itertools import product
from pathlib import Path

import pandas as pd

from embspace_helpers.classroom.reviews import load_reviews
from embspace_helpers.experiments.alignment import (
    ALIGNMENT_RESULTS,
    DICTIONARY,
    WRITERS,
    Alignment,
    Kernels,
    alignment,
)
from embspace_helpers.experiments.statistics import replace_rows, save_table
from embspace_helpers.reading.model import load

GROUPS = ("K", "V", "W_Q", "W_K", "W_V", "W_O")
KEY = ["a", "b"]  # what is measured in one go, in the table of results


def rows(found: Alignment, reading: str, control: str = "given") -> pd.DataFrame:
    """A row for every pair of layers."""
    places = [(i, j) for i in range(len(found.mean)) for j in range(found.mean.shape[1])]
    return pd.DataFrame({"group": found.group, "reading": reading, "control": control,
                         "tokens": found.tokens, "layer_a": [i for i, _ in places],
                         "layer_b": [j for _, j in places], "mean": found.mean.flatten(),
                         "best": found.best.flatten()})


def measure(one: str, two: str, texts: int) -> pd.DataFrame:
    """All groups through E, and the readers through dictionaries of so many embedded reviews.

    Random vectors through the same dictionaries are the control.
    """
    a, b = load(one), load(two)
    kernels, reviews = Kernels(a, b), load_reviews("train", texts)["text"].tolist()
    tables = [rows(alignment(a, b, group, kernels=kernels), "transpose") for group in GROUPS]
    for group, control in product((g for g in GROUPS if g not in WRITERS), (None, "random")):
        found = alignment(a, b, group, reading=DICTIONARY, texts=reviews, kernels=kernels,
                          control=control)
        tables.append(rows(found, DICTIONARY, control or "given"))
    return pd.concat(tables).assign(a=Path(one).name, b=Path(two).name)


def main(arguments: list[str] | None = None) -> None:
    """Align the two models named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.alignment",
        description="Align the layers of two models over the tokens that they share.")
    parser.add_argument("one", help="a model's name or folder")
    parser.add_argument("two", help="another's")
    parser.add_argument("--out", type=Path, default=ALIGNMENT_RESULTS,
                        help="file to write or to renew")
    parser.add_argument("--texts", type=int, default=100, help="reviews to fit dictionaries on")
    args = parser.parse_args(arguments)
    found = measure(args.one, args.two, args.texts).round(7)  # fewer digits: ties
    save_table(replace_rows(found, args.out, KEY), args.out)
    print(f"{args.one}, {args.two}: done", flush=True)
