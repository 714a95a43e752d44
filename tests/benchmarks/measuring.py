"""What the benchmarks share: seconds and memory of a task, and the figures for the table."""

import json
import os
import time
from pathlib import Path

import torch


def seconds(task, *arguments):
    """Seconds that a task takes: on the clock, and of the processor."""
    start = time.perf_counter(), time.process_time()
    task(*arguments)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def best_of(repeat, *tasks):
    """The processor's seconds of each task (a function without arguments), the best of `repeat`.

    The tasks come in turn, so that all meet the machine as busy as it is.
    """
    times = [[seconds(task)[1] for task in tasks] for _ in range(repeat)]
    return [min(column) for column in zip(*times)]


def memory_of_this_process(kind):
    """Memory in MB, now ("VmRSS") or at the peak ("VmHWM"); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1000


def memory(task, *arguments):
    """How far the peak of this process, in MB, rises while it does a task (Linux only).

    To be asked before anything else has left free memory behind.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_of_this_process("VmRSS")
    task(*arguments)
    return memory_of_this_process("VmHWM") - before


def report(what, weights, ours, *, against=None, goal="", mb=None, other=""):
    """Print a figure, and hand it to `run.py`: seconds, their ratio to `against`, memory.

    `goal`: what course or issue ask of it. `other`: the same in another way, as text.
    """
    figure = {"what": what, "weights": weights, "goal": goal, "seconds": ours, "mb": mb,
              "ratio": against and ours / against, "other": other}
    ratio = f", {figure['ratio']:.2f} × {against:.2f} s" if against else ""
    print(f"{what}, {weights}: {ours:.2f} s of the processor{ratio} (goal {goal or 'none'})"
          + (f", {mb:,.0f} MB" if mb is not None else "") + (f"; {other}" if other else "")
          + f"; {torch.get_num_threads()} threads", flush=True)
    if path := os.environ.get("BENCH_FIGURES"):
        with Path(path).open("a") as file:
            file.write(json.dumps(figure) + "\n")
