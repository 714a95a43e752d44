"""What a dictionary costs beyond the forward passes it is fitted on, in seconds and in memory.

    python tests/benchmarks/bench_dictionary.py [smollm2] [--positions 10000] [--repeat 3]

Goals on a quiet machine: at most 1.3 times the forward passes, at most 300 MB beyond the model.
On a busy one, OMP_NUM_THREADS=1 and the processor's seconds tell more than the clock.
"""

import argparse
import multiprocessing
import time
from itertools import accumulate
from pathlib import Path

import torch

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


def seconds(task, *arguments):
    """Seconds that a task takes: on the clock, and of the processor."""
    start = time.perf_counter(), time.process_time()
    task(*arguments)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def memory_of_this_process(kind):
    """Memory in MB, now ("VmRSS") or at the peak ("VmHWM"); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1000


def measure_memory(name, positions, task, results):
    """Put how far the peak, in MB, lies above a loaded model with nothing run yet."""
    model = load(name)
    texts = texts_of(model, positions)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_of_this_process("VmRSS")
    {"passes": forward_passes, "fit": fit_dictionaries}[task](model, texts)
    results.put(memory_of_this_process("VmHWM") - before)


def memory(name, positions, task):
    """What `measure_memory` finds, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    context.Process(target=measure_memory, args=(name, positions, task, results)).start()
    return results.get()


def main():
    """Print seconds, their ratio, and memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="smollm2")
    parser.add_argument("--positions", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    model = load(options.name)
    texts = texts_of(model, options.positions)
    forward_passes(model, texts[:BATCH])  # a first pass is slower
    times = [(*seconds(forward_passes, model, texts), *seconds(fit_dictionaries, model, texts))
             for _ in range(options.repeat)]
    wall, cpu, fit_wall, fit_cpu = (min(column) for column in zip(*times))
    del model
    mb, fit_mb = (memory(options.name, options.positions, task) for task in ("passes", "fit"))
    print(f"{options.name}, {len(texts)} reviews, {torch.get_num_threads()} threads, best of "
          f"{options.repeat}: seconds on the clock, of the processor, MB beyond the model")
    print(f"forward passes alone       {wall:8.1f} s {cpu:8.1f} s {mb:6.0f} MB")
    print(f"dictionaries of all layers {fit_wall:8.1f} s {fit_cpu:8.1f} s {fit_mb:6.0f} MB")
    print(f"ratio                      {fit_wall / wall:8.2f}   {fit_cpu / cpu:8.2f}")


if __name__ == "__main__":
    main()
