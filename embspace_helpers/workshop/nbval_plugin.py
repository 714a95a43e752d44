"""pytest plugin, loaded by pyproject.toml: how this project runs notebooks under nbval.

Outputs are compared by the rules of `comparison`, which hold on every processor. Beyond nbval
itself: kernels run offline, a trailing `;` hides a cell's value as in Jupyter, a dead kernel is
noticed at once, and a table tells each notebook's wall time, its multiple of the calibration loop
(see `cost`) and the peak memory of its kernel. A slow machine fails nothing. Environment:

- EMBSPACE_MAX_MIB: the most memory a kernel may take, 1400 MiB by default
- EMBSPACE_THREADS: the threads of a kernel, 2 by default, as on Binder
- EMBSPACE_ENFORCE_BUDGET=1: hold the multiples against the budget, as .ci/run does
- EMBSPACE_WRITE_BUDGET=1: write the budget anew, unless something fails
- EMBSPACE_CALIBRATION, EMBSPACE_BUDGET: see `cost`

With pytest-xdist (`make test` has two workers, each with a whole file at a time) the threads are
shared out among the workers, and each times the loop for itself, beside the others' work.
"""

import os
import time
from collections.abc import Generator
from queue import Empty
from typing import Any
from unittest.mock import patch

import pytest
from nbformat import NotebookNode
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile

from embspace_helpers.workshop.comparison import settle
from embspace_helpers.workshop.cost import (
    calibrate,
    kernel_env,
    over_budget,
    read_budget,
    write_budget,
)
from embspace_helpers.workshop.notebooks import peak_memory, show_cost

MAX_MIB = 1400  # the goal is 1331, 1.3 GiB; the rest is for what other machines need
LOOP = pytest.StashKey[float]()  # seconds of the calibration loop
COSTS = pytest.StashKey[dict[str, tuple[float, float | None, float]]]()  # seconds, MiB, loop


class Kernel(RunningKernel):
    """nbval's kernel, two of its habits mended."""

    def execute_cell_input(self, cell_input: str, allow_stdin: bool | None = None) -> str:
        """Run a cell as Jupyter does: IPython heeds a trailing `;` only with its history on."""
        return self.kc.execute(
            cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False
        )

    def await_reply(self, msg_id: str, timeout: float | None = None) -> None:
        """Wait in steps of a second, so that a dead kernel does not use up the timeout."""
        end = time.monotonic() + (timeout or float("inf"))
        while True:
            try:
                return super().await_reply(msg_id, timeout=min(1, max(end - time.monotonic(), 0)))
            except Empty:
                if not self.is_alive():
                    raise RuntimeError("The kernel died in this cell: out of memory?") from None
                if time.monotonic() >= end:
                    raise


class Cell(IPyNbCell):
    """nbval's cell, compared by the rules of `comparison`."""

    def compare_outputs(self, test: list[NotebookNode], ref: list[NotebookNode],
                        skip_compare: tuple[str, ...] | None = None) -> bool:
        """Compare as nbval does once `settle` has evened out what may differ; tell the rules."""
        ref, test, differences = settle(ref, test)
        same = super().compare_outputs(test, ref, skip_compare)
        self.comparison_traceback[:0] = differences
        return same


class Notebook(IPyNbFile):
    """nbval's notebook: measured, and its kernel in the environment that Binder has."""

    skip_compare: tuple[str, ...]

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Leave out of the comparison what another machine may write differently."""
        super().__init__(*args, **kwargs)
        figures = ("image/png", "image/jpeg")  # `settle` has taken their bytes out
        self.skip_compare = (*(key for key in self.skip_compare if key not in figures), "stderr")

    def collect(self) -> list[Cell]:
        """Collect the code cells, a `Cell` in the place of nbval's own class."""
        return [
            Cell.from_parent(self, name=item.name, cell_num=item.cell_num, cell=item.cell,
                             options=item.options)
            for item in super().collect()
        ]

    def setup(self) -> None:
        """Time the calibration loop once a session, then start the kernel and the clock."""
        if LOOP not in self.config.stash:
            self.config.stash[LOOP] = calibrate()
        self.start = time.perf_counter()
        with patch.dict(os.environ, kernel_env()), patch("nbval.plugin.RunningKernel", Kernel):
            super().setup()

    def teardown(self) -> None:
        """Stop both, note what the notebook took, and fail when that is over a limit."""
        seconds, mib = time.perf_counter() - self.start, None
        if self.kernel is not None and self.kernel.is_alive():
            mib = peak_memory(self.kernel.km.provisioner.pid)
        super().teardown()
        name, most = self.path.name, float(os.environ.get("EMBSPACE_MAX_MIB", MAX_MIB))
        loop = self.config.stash[LOOP]
        if over_budget(name, seconds / loop):  # the machine may have become slower since
            loop = max(loop, calibrate())
        self.config.stash[COSTS][name] = seconds, mib, loop
        problems = [over_budget(name, seconds / loop)]
        if mib is not None and mib > most:
            problems.append(f"{name} took {mib:.0f} MiB, over the limit of {most:.0f} MiB "
                            "(EMBSPACE_MAX_MIB)")
        if any(problems):
            pytest.fail("\n".join(filter(None, problems)), pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    """Make room for the measurements."""
    config.stash[COSTS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    parent: pytest.Collector,
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Put `Notebook` in the place of nbval's own class."""
    collected = yield
    return [
        Notebook.from_parent(parent, path=file.path) if isinstance(file, IPyNbFile) else file
        for file in collected
    ]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the budget anew where that is asked for and nothing failed; a worker reports."""
    costs = session.config.stash[COSTS]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["costs"] = costs
    elif os.environ.get("EMBSPACE_WRITE_BUDGET") == "1" and costs and exitstatus == 0:
        write_budget({name: seconds / loop for name, (seconds, _, loop) in costs.items()})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Gather what a worker of pytest-xdist measured; one that crashed says nothing."""
    node.config.stash[COSTS] |= getattr(node, "workeroutput", {}).get("costs", {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of times, multiples of the calibration loop and peak memory."""
    costs = terminalreporter.config.stash[COSTS]
    if not costs:
        return
    terminalreporter.section("notebooks: wall time, peak memory of the kernel, multiple, budget")
    loops = sorted({f"{loop:.2f} s" for _, _, loop in costs.values()})
    terminalreporter.write_line(f"the calibration loop took {', '.join(loops)}")
    budget = read_budget()
    for name, (seconds, mib, loop) in sorted(costs.items()):
        multiple, known = f"{seconds / loop:.1f} x", budget.get(name)
        line = f"{name:<32} {show_cost(seconds, mib)} {multiple:>9} {known or 'none':>8}"
        terminalreporter.write_line(line)
