"""Measure all the course's figures of speed and memory, and write the table of the README.

    python tests/benchmarks/run.py [words in names of scripts …]

Runs every bench_*.py beside this file, each in a process of its own, on one thread: once as this
processor is, once as if it had AVX2 only. With names: those scripts only, and the README stays. A
script hands over what it measured by `report` of measuring.py.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from embspace_helpers.workshop.machines import SETTINGS

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
BEGIN, END = "<!-- figures: make bench -->", "<!-- figures: end -->"
AVX2 = {**SETTINGS["aten-avx2"], **SETTINGS["onednn-avx2"], "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
COLUMNS = ("what", "weights", "goal", "ratio", "with AVX2 only", "seconds", "MB", "beside it")


def measured(script, setting):
    """Figures of a script in one setting: a list. Raises CalledProcessError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures"
        threads = {"OMP_NUM_THREADS": "1", "EMBSPACE_THREADS": "1"}
        subprocess.run([sys.executable, script], check=True,
                       env=os.environ | threads | setting | {"BENCH_FIGURES": str(path)})
        return [json.loads(line) for line in path.read_text().splitlines()]


def row(here, avx2):
    """One row of the table: strings."""
    ratios = [f"{x['ratio']:.2f}" if x["ratio"] else "" for x in (here, avx2)]
    size = "" if here["mb"] is None else f"{here['mb']:,.0f}"
    return [here["what"], here["weights"], here["goal"], *ratios, f"{here['seconds']:.3g}", size,
            here["other"]]


def table(rows):
    """The rows in markdown, with a line on the machine."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().split("\n")
                if line.startswith("model name")), "")
    return "\n".join([f"{cpu}, one thread, torch {torch.__version__}:", "",
                      *(f"| {' | '.join(line)} |" for line in lines)])


def main(names):
    """Measure, print, write; 1 if a script failed."""
    start, rows, failed = time.monotonic(), [], []
    for script in sorted(HERE.glob("bench_*.py")):
        if names and not any(name in script.name for name in names):
            continue
        print(f"---- {script.name}", flush=True)
        try:
            rows += map(row, *(measured(script, setting) for setting in ({}, AVX2)))
        except subprocess.CalledProcessError:
            failed.append(script.name)
    text = table(rows)
    print(f"\n{text}\n\n{(time.monotonic() - start) / 60:.0f} minutes")
    if failed:
        print(f"failed: {', '.join(failed)}")
    elif not names:
        before, rest = README.read_text(encoding="utf-8").split(BEGIN)
        README.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
