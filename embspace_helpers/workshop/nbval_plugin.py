"""pytest plugin, loaded by pyproject.toml: how this project runs notebooks under nbval.

Strict comparison, and beyond nbval itself: kernels run offline, a trailing `;` hides a cell's
value as in Jupyter, a dead kernel is noticed at once, and each notebook's wall time and peak
memory are printed in a table and held against Binder's limits. For a slow machine:
EMBSPACE_MAX_SECONDS=600 (and --nbval-cell-timeout=600), EMBSPACE_MAX_MIB=4096.
"""

import os
import time
from queue import Empty
from unittest.mock import patch

import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbFile

from embspace_helpers.workshop.notebooks import KERNEL_ENV, peak_memory, show_cost

COSTS = pytest.StashKey[dict[str, str]]()


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


class Notebook(IPyNbFile):
    """nbval's notebook: measured, and its kernel in the environment that Binder has."""

    def __init__(self, *args, **kwargs) -> None:
        """Leave out of the comparison what another machine may write differently."""
        super().__init__(*args, **kwargs)
        self.skip_compare += ("stderr", "image/svg+xml")

    def setup(self) -> None:
        """Start the kernel and the clock."""
        self.start = time.perf_counter()
        with patch.dict(os.environ, KERNEL_ENV), patch("nbval.plugin.RunningKernel", Kernel):
            super().setup()

    def teardown(self) -> None:
        """Stop both, note what the notebook took, and fail when that is over a limit."""
        seconds, mib = time.perf_counter() - self.start, None
        if self.kernel is not None and self.kernel.is_alive():
            mib = peak_memory(self.kernel.km.provisioner.pid)
        super().teardown()
        self.config.stash[COSTS][self.path.name] = show_cost(seconds, mib)
        for name, value, limit, unit in (
            ("EMBSPACE_MAX_SECONDS", seconds, 120, "s"),
            ("EMBSPACE_MAX_MIB", mib or 0, 2048, "MiB"),
        ):
            limit = float(os.environ.get(name, limit))
            if value > limit:
                pytest.fail(f"{self.path.name} took {value:.0f} {unit}, over the limit of "
                            f"{limit:.0f} {unit} ({name})", pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    """Make room for the measurements."""
    config.stash[COSTS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(parent: pytest.Collector):
    """Put `Notebook` in the place of nbval's own class."""
    collected = yield
    return [
        Notebook.from_parent(parent, path=file.path) if isinstance(file, IPyNbFile) else file
        for file in collected
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of times and peak memory."""
    costs = terminalreporter.config.stash[COSTS]
    if costs:
        terminalreporter.section("notebooks: wall time, peak memory of the kernel")
    for name, cost in costs.items():
        terminalreporter.write_line(f"{name:<28} {cost}")
