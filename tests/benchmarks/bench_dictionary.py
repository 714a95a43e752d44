"""What the dictionaries of all layers cost beyond the forward passes they are fitted on.

    python tests/benchmarks/bench_dictionary.py [smollm2] [--positions 10000] [--repeat 2]

Memory is that of the fit and its passes, beyond the model.
"""

import argparse
from functools import partial
from itertools import accumulate

import torch
from measuring import best_of, memory, report

from embspace_helpers import load, load_reviews
from embspace_helpers.reading.activations import run
from embspace_helpers.reading.dictionaries import fit_dictionaries

LENGTH, BATCH = 256, 8  # as `fit_dictionaries` has them


def texts_of(model, positions):
    """The first embedded reviews that have so many positions, the first of each left out."""
    texts = load_reviews("train")["text"].tolist()
    counts = accumulate(len(row) - 1 for row in model.tokens(texts, LENGTH))
    return texts[: 1 + next(i for i, n in enumerate(counts) if n >= positions)]


@torch.no_grad()
def forward_passes(model, texts):
    """The passes of `fit_dictionaries` alone: texts by length, in the same batches."""
    rows = sorted(model.tokens(texts, LENGTH), key=len)
    for start in range(0, len(rows), BATCH):
        run(model, rows[start : start + BATCH])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="smollm2")
    parser.add_argument("--positions", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=2)
    options = parser.parse_args()
    model = load(options.name)
    texts = texts_of(model, options.positions)
    forward_passes(model, texts[:BATCH])  # a first pass is slower
    mb = memory(fit_dictionaries, model, texts)
    raw, ours = best_of(options.repeat, partial(forward_passes, model, texts),
                        partial(fit_dictionaries, model, texts))
    report("dictionaries of all layers", f"{options.name}, {options.positions:,} positions", ours,
           against=raw, goal="≤ 1.3", mb=mb)


if __name__ == "__main__":
    main()
