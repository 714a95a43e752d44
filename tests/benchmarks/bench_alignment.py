"""What the alignment of two models costs beyond its matrix products, in seconds and in memory.

    python tests/benchmarks/bench_alignment.py [--layers 12] [--neurons 3072] [--width 768]

The default is the MultiBERTs' shape: 2 x 36,864 keys of 768 numbers, 30,522 tokens, random weights.
Goals on a quiet machine: at most 1.2 times the products, at most 1 GB for the process as a whole.
On a busy one, OMP_NUM_THREADS=1 and the processor's seconds tell more than the clock.
"""

import argparse
import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace

import torch

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


def seconds(task, *arguments):
    """Seconds that a task takes: on the clock, and of the processor."""
    start = time.perf_counter(), time.process_time()
    task(*arguments)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def aligned(a, b):
    """The alignment over all tokens."""
    ids = torch.arange(a.parameters.e)
    alignment(a, b, "K", tokens=(ids, ids))


def measure_memory(options, results):
    """Put the peak of this process, in MB (Linux only)."""
    aligned(made(options, 0), made(options, 1))
    lines = Path("/proc/self/status").read_text().splitlines()
    results.put(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000)


def main():
    """Print seconds, their ratio, and memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 12), ("neurons", 3072), ("width", 768), ("tokens", 30_522),
                          ("repeat", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    context.Process(target=measure_memory, args=(options, results)).start()
    peak = results.get()
    a, b = made(options, 0), made(options, 1)
    times = [(*seconds(products, a, b), *seconds(aligned, a, b)) for _ in range(options.repeat)]
    wall, cpu, aligned_wall, aligned_cpu = (min(column) for column in zip(*times))
    print(f"2 x {options.layers * options.neurons:,} x {options.width}, e = {options.tokens:,}, "
          f"{torch.get_num_threads()} threads, best of {options.repeat}")
    print(f"products alone {wall:8.1f} s on the clock {cpu:8.1f} s of the processor")
    print(f"alignment      {aligned_wall:8.1f} s              {aligned_cpu:8.1f} s")
    print(f"ratio          {aligned_wall / wall:8.2f}                {aligned_cpu / cpu:8.2f}")
    print(f"peak of the process {peak:,.0f} MB")


if __name__ == "__main__":
    main()
