"""Run all tests as on other processors, one setting after another.

    python -m embspace_helpers.machines [setting …] [-- pytest arguments]

A setting tells a library to leave out the faster instructions that this processor has, or sets
the number of threads: additions then come in another order, as on another machine. What this
processor lacks, no setting can add. A name chooses every setting that has it as a part: `avx2` is
aten-avx2 and onednn-avx2. Two files run at a time; with threads-2 one does. Logs go to
build/machines/. Exit code 1 if any setting failed.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from embspace_helpers.workshop.cost import APART

LOGS = Path("build/machines")


def _threads(number: int) -> dict[str, str]:
    """Set the threads of the tests and of the notebooks' kernels, see `cost.kernel_env`."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "EMBSPACE_THREADS")
    return dict.fromkeys(names, str(number))


SETTINGS: dict[str, dict[str, str]] = {
    "threads-1": _threads(1),
    "threads-2": _threads(2),
    "aten-default": {"ATEN_CPU_CAPABILITY": "default"},  # torch's own loops
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "onednn-sse41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},  # torch's layers
    "onednn-avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},  # torch's matrix products
    "all-off": {
        **_threads(1),
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Haswell",  # numpy's and scipy's matrix products
        # numpy's loops: the names since 2.4, then older ones; it passes over those it lacks.
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR "
                                    "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX",
    },
}
VARIABLES = {name for setting in SETTINGS.values() for name in setting}


@dataclass(frozen=True)
class Outcome:
    """What the tests said under one setting; `failed` counts errors too."""

    name: str
    passed: int
    failed: int
    code: int
    minutes: float

    def __str__(self) -> str:
        note = f"  exit code {self.code}" if self.code and not self.failed else ""
        return f"{self.name:<16}{self.passed:>8}{self.failed:>8}{self.minutes:>9.1f}{note}"


def choose(names: list[str]) -> list[str]:
    """Return the settings that have one of the names as a part; all for no names.

    Raises ValueError for a name that no setting has.
    """
    for name in names:
        if not any(name in setting for setting in SETTINGS):
            raise ValueError(f"no setting has {name!r} in its name: there are "
                             f"{', '.join(SETTINGS)}")
    return [setting for setting in SETTINGS if not names or any(n in setting for n in names)]


def run(name: str, arguments: list[str]) -> Outcome:
    """Run pytest under one setting, its output in a log."""
    outside = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    LOGS.mkdir(parents=True, exist_ok=True)
    log, start = LOGS / f"{name}.log", time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, "-m", "pytest", *arguments], stdout=file,
                              stderr=subprocess.STDOUT, env=outside | SETTINGS[name], check=False)
    counts = read_counts(log.read_text(encoding="utf-8", errors="replace"))
    return Outcome(name, *counts, done.returncode, (time.monotonic() - start) / 60)


def read_counts(log: str) -> tuple[int, int]:
    """Return how many tests passed, and failed or broke, by pytest's last line; 0 without one."""
    last = next((x for x in reversed(log.splitlines()) if re.search(r" in [\d.]+s", x)), "")
    found = re.findall(r"(\d+) (passed|failed|error)", last)
    counts = {word: int(number) for number, word in found}
    return counts.get("passed", 0), counts.get("failed", 0) + counts.get("error", 0)


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen settings and print the table; return 1 if one failed."""
    given = sys.argv[1:] if arguments is None else arguments
    split = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.machines",
        usage="%(prog)s [-h] [--list] [setting ...] [-- pytest arguments]",
        description="Run all tests as on other processors, one setting after another.",
    )
    parser.add_argument("settings", nargs="*", help="parts of names; default: all settings")
    parser.add_argument("--list", action="store_true", help="list the settings and stop")
    options = parser.parse_args(given[:split])
    if options.list:
        for name, setting in SETTINGS.items():
            print(f"{name:<16}" + " ".join(f"{key}={value!r}" for key, value in setting.items()))
        return 0
    try:
        names = choose(options.settings)
    except ValueError as error:
        parser.error(str(error))
    print(f"{'setting':<16}{'passed':>8}{'failed':>8}{'minutes':>9}", flush=True)
    worst = 0
    for name in names:
        outcome = run(name, given[split + 1 :] or ([] if name == "threads-2" else APART))
        print(outcome, flush=True)
        worst = max(worst, int(outcome.code != 0))
    if worst:
        print(f"the logs are in {LOGS}/")
    return worst
