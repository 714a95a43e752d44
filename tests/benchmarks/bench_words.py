"""What the 50 top words of 2,048 vectors cost.

    python tests/benchmarks/bench_words.py [--repeat 3]

Against the products of the vectors with E alone, in the better of two sizes of batch, and against
the authors' way: vector by vector, each time with a filter over the whole vocabulary. Random
weights have GPT-2 medium's shape. Real ones: SmolLM2's first 2,048 gate keys.
"""

import argparse
from functools import partial

import torch
from bench_atlas import random_medium
from measuring import best_of, memory, report

from embspace_helpers import load

N, K, FEW = 2_048, 50, 8  # vectors, words of each, vectors for the authors' way


def products(x, E, batch):
    """The products alone, each into the same memory."""
    out = torch.empty(batch, E.shape[1])
    for rows in x.split(batch):
        torch.mm(rows, E, out=out[: len(rows)])


def authors_way(model, x):
    """One vector at a time: score all tokens, filter the vocabulary, take the best."""
    for row in x:
        scores = row @ model.parameters.E
        out = [i for i, text in enumerate(model.vocabulary.texts) if not text.strip().isalnum()]
        scores[out] = -torch.inf
        [model.vocabulary.texts[i] for i in scores.topk(K).indices.tolist()]


def compare(name, model, x, repeat):
    """Report one set of weights."""
    space, E = model.space("transpose"), model.parameters.E
    mb = memory(space.top, x, K)
    *raw, ours = best_of(repeat, *(partial(products, x, E, batch) for batch in (128, 512)),
                         partial(space.top, x, K))
    slow = best_of(1, partial(authors_way, model, x[:FEW]))[0] * len(x) / FEW
    report(f"top {K} words of {N:,} vectors", f"{name}, {len(E):,} × {E.shape[1]:,}", ours,
           against=min(raw), goal="≤ 1.1", mb=mb, other=f"authors' way {slow / ours:.0f} × as long")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    model = random_medium(1)[0]
    x = torch.randn(N, model.parameters.d, generator=torch.Generator().manual_seed(0))
    compare("random", model, x, options.repeat)
    model = load("smollm2")
    gates = torch.cat([model.parameters.vectors("gate", layer) for layer in (10, 11)])[:N]
    compare("smollm2", model, gates, options.repeat)


if __name__ == "__main__":
    main()
