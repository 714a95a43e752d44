"""What the alignment of two models costs beyond its matrix products, in seconds and in memory.

    python tests/benchmarks/bench_alignment.py [--layers 12] [--neurons 3072] [--width 768]

The default is the MultiBERTs' shape: 2 x 36,864 keys of 768 numbers, 30,522 tokens, random weights;
then the twins, whose products are so small that all else weighs more.
"""

import argparse
from functools import partial
from types import SimpleNamespace

import torch
from measuring import best_of, memory, memory_of_this_process, report

from embspace_helpers import load
from embspace_helpers.experiments.alignment import alignment


def made(options, seed):
    """What `alignment` needs of a model, random: E and the keys of all layers, in float32."""
    generator = torch.Generator().manual_seed(seed)
    d = options.width
    E = torch.randn(options.tokens, d, generator=generator).T
    keys = torch.randn(options.layers, options.neurons, d, generator=generator)
    parameters = SimpleNamespace(E=E, d=d, e=options.tokens, L=options.layers, key_kinds=("K",),
                                 vectors=lambda group, layer, fold_norm=False: keys[layer])
    return SimpleNamespace(parameters=parameters, vocabulary=(), sums=None, name="random",
                           keys=keys)


def products(a, b):
    """The matrix products alone: three kernels, the rows' variances, and every pair of layers."""
    E, F = a.parameters.E, b.parameters.E
    aa, bb, ab = E @ E.T, F @ F.T, E @ F.T
    for y in b.keys:
        y @ bb
    for x in a.keys:
        x @ aa
        left = x @ ab
        for y in b.keys:
            left @ y.T


def aligned(a, b):
    """The alignment over all tokens."""
    ids = torch.arange(a.parameters.e)
    alignment(a, b, "K", tokens=(ids, ids))


def compare(weights, a, b, repeat, goal=""):
    """Report the alignment of two models, against its products."""
    mb = memory_of_this_process("VmRSS") + memory(aligned, a, b)
    raw, ours = best_of(repeat, partial(products, a, b), partial(aligned, a, b))
    layers, neurons, d = a.keys.shape
    report("alignment of all keys", f"{weights}, 2 × {layers * neurons:,} × {d}", ours,
           against=raw, goal=goal, mb=mb)


def real(name):
    """A model as `made` gives it, with its own weights."""
    model = load(name)
    model.keys = model.parameters.vectors("K")
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 12), ("neurons", 3072), ("width", 768), ("tokens", 30_522),
                          ("repeat", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    compare("random", made(options, 0), made(options, 1), options.repeat,
            "≤ 1.2, ≤ 1,000 MB in all")
    compare("twins", real("twin-a"), real("twin-b"), options.repeat)


if __name__ == "__main__":
    main()
