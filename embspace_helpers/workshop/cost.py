"""What a notebook costs: wall time against a calibration loop, peak memory, and the budget.

    python -m embspace_helpers.cost                       time the loop on this machine
    python -m embspace_helpers.cost --write [notebook …]  run notebooks, write what they took

A second is another second on every machine, so a notebook's wall time is given as a multiple of a
loop that runs in the same pytest session. The loop multiplies and decomposes matrices, sorts,
gathers rows and counts words: torch, numpy and plain Python, about a third of it each. It runs in
a fresh process with the kernels' environment and threads, once to warm up and up to three times
more; the median counts. It takes about a second each time on a laptop, so starting pytest on
notebooks takes some seconds longer. EMBSPACE_CALIBRATION=1.2 gives its seconds instead.

`budget.json` beside this file holds each notebook's multiple, null where none is measured yet.
With EMBSPACE_ENFORCE_BUDGET=1, as in .ci/run, a notebook that takes more than twice its budget
fails, and so does one without a budget. Before it fails the loop is timed again, and the slower
of the two counts: the machine may have become slower since. EMBSPACE_BUDGET names another file.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from embspace_helpers.workshop.notebooks import KERNEL_ENV

BUDGET = Path(__file__).with_name("budget.json")
# As `make test`: two files at a time, on one thread each.
APART = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
SLACK = 2  # times its budget, and a notebook is over it
LOOP = "from embspace_helpers.workshop.cost import time_loop; print(time_loop())"


def kernel_env() -> dict[str, str]:
    """Return what a notebook's kernel gets; EMBSPACE_THREADS overrides the number of threads.

    Workers of pytest-xdist share the usual number: two kernels with two threads each on two cores
    wait for one another.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    usual = max(1, int(KERNEL_ENV["OMP_NUM_THREADS"]) // workers)
    return {**KERNEL_ENV, "OMP_NUM_THREADS": os.environ.get("EMBSPACE_THREADS", str(usual))}


def loop() -> None:
    """Do a fixed piece of the work that the notebooks do."""
    import numpy as np  # here, so that pytest, which loads this module, does not load torch
    import torch

    torch.manual_seed(0)
    states, words = torch.randn(512, 512), torch.randn(512, 16384)  # (n, d), (d, e)
    for _ in range(6):
        (states @ words).topk(50)  # (n, e)
    torch.linalg.svd(states)
    numbers = np.random.default_rng(0).standard_normal(1_000_000)
    table = numbers.reshape(-1, 50)  # (20000, 50)
    for _ in range(25):
        np.sort(numbers)
        table[np.argsort(table[:, 0])] @ table.T[:, :200]
    counts: dict[str, int] = {}
    for number in range(2_000_000):
        word = f"w{number % 5000}"
        counts[word] = counts.get(word, 0) + 1


def time_loop(repeats: int = 3, enough: float = 5) -> float:
    """Return the median seconds of the loop in this process, after one run to warm up.

    A slow machine stops repeating once `enough` seconds have been timed.
    """
    loop()
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < enough:
        start = time.perf_counter()
        loop()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def calibrate() -> float:
    """Return the seconds of the loop in a fresh process; RuntimeError when that fails."""
    given = os.environ.get("EMBSPACE_CALIBRATION")
    if given:
        return float(given)
    done = subprocess.run([sys.executable, "-c", LOOP], env={**os.environ, **kernel_env()},
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the calibration loop failed:\n{done.stderr}")
    return float(done.stdout)


def budget_file() -> Path:
    """Return the file of the budget."""
    return Path(os.environ.get("EMBSPACE_BUDGET", BUDGET))


def read_budget() -> dict[str, float | None]:
    """Return each notebook's multiple of the loop, None where none is measured yet."""
    return json.loads(budget_file().read_text(encoding="utf-8"))


def write_budget(multiples: dict[str, float]) -> None:
    """Write new multiples, rounded up to a tenth; other notebooks keep theirs."""
    known = read_budget() if budget_file().exists() else {}
    known |= {name: math.ceil(10 * multiple) / 10 for name, multiple in multiples.items()}
    text = json.dumps(dict(sorted(known.items())), indent=2) + "\n"
    budget_file().write_text(text, encoding="utf-8", newline="\n")


def over_budget(name: str, multiple: float) -> str | None:
    """Return what is wrong with a notebook's time, None when nothing is or none is enforced."""
    if os.environ.get("EMBSPACE_ENFORCE_BUDGET") != "1":
        return None
    budget = read_budget().get(name)
    if budget is None:
        return f"{name} has no budget: run python -m embspace_helpers.cost --write"
    if multiple <= SLACK * budget:
        return None
    return (f"{name} took {multiple:.1f} times the calibration loop, more than {SLACK} times "
            f"its budget of {budget:.1f}")


def main(arguments: list[str] | None = None) -> int:
    """Time the loop, or write the budget anew from a run; return pytest's exit code."""
    parser = argparse.ArgumentParser(prog="python -m embspace_helpers.cost",
                                     description="Time the calibration loop, or write the budget.")
    parser.add_argument("--write", action="store_true",
                        help="run the notebooks under pytest and write what each took")
    parser.add_argument("notebooks", nargs="*", default=["notebooks"], help="default: notebooks")
    options = parser.parse_args(arguments)
    if not options.write:
        print(f"calibration loop: {calibrate():.2f} s")
        return 0
    environment = {**os.environ, "EMBSPACE_WRITE_BUDGET": "1"}
    return subprocess.run([sys.executable, "-m", "pytest", *APART, *options.notebooks],
                          env=environment, check=False).returncode
