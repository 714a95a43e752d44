"""For developers: execute notebooks in place with stable output, write exercise stubs.

    python -m embspace_helpers.notebooks [--no-execute] [notebook or folder ...]

An exercise is four cells in a row: a markdown cell `### Exercise 1.2 — title`; a code cell tagged
`exercise`, the stub; a code cell tagged `exercise-check`; a markdown cell tagged `solution` with
the solved cell in a ```python block. Only the solution is written by hand: the stub is made from
it, with the body of each function, but not its docstring, taken out.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

from embspace_helpers.classroom.exercises import STUB
from embspace_helpers.workshop.comparison import without_bars

# Offline: a notebook must not need a network. Two threads: what Binder has, so that a machine
# with many cores adds up in the same order and measures a comparable time. The threshold (see
# binder/start): glibc returns freed blocks above 1 MB to the system.
KERNEL_ENV = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "MALLOC_MMAP_THRESHOLD_": "1048576"}
# What JupyterLab would write, so that opening a notebook does not change it.
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {"codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py",
            "mimetype": "text/x-python", "name": "python", "nbconvert_exporter": "python",
            "pygments_lexer": "ipython3", "version": "3.11.7"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
HEADING = re.compile(r"### (Exercise (\d+\.\d+)) — \S")
FENCE = re.compile(r"^```python\n(.*?)\n```$", re.M | re.S)
NO_KERNEL = "(run this cell to use the controls that it shows)"


@dataclass(frozen=True)
class Exercise:
    """One exercise: its name and the sources of its three cells; `stub` is the cell's index."""

    name: str
    stub: int
    solution: str  # the solved cell
    check: str

    def source(self, body: str | None = None) -> str:
        """Return the cell with each function's body replaced by `body`, by default the stub's."""
        body = body or f'raise NotImplementedError("{self.name}: {STUB}")'
        lines = self.solution.split("\n")
        for function in reversed(_functions(self.solution)):
            first = function.body[bool(ast.get_docstring(function))]
            lines[first.lineno - 1 : function.end_lineno] = [" " * first.col_offset + body]
        return "\n".join(lines)


def _functions(source: str) -> list[ast.FunctionDef]:
    """The functions that a cell defines, in order."""
    return [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]


def tags(cell: NotebookNode) -> list[str]:
    """Return a cell's tags, [] when it has none."""
    return cell.metadata.get("tags", [])


def find(paths: list[str]) -> list[Path]:
    """Return the notebooks that the paths name, those of a folder in order of their names."""
    found = []
    for path in map(Path, paths):
        found += sorted(path.glob("*.ipynb")) if path.is_dir() else [path]
    return found


def read_exercises(nb: NotebookNode) -> list[Exercise]:
    """Return a notebook's exercises in order; ValueError says which cell breaks the convention."""
    roles = {"exercise": 1, "exercise-check": 2, "solution": 3}
    starts = {i for i, c in enumerate(nb.cells) if c.source.startswith("### Exercise")}
    for index, cell in enumerate(nb.cells):
        starts |= {index - place for tag, place in roles.items() if tag in tags(cell)}
    return [_read_exercise(nb.cells, start) for start in sorted(starts)]


def _read_exercise(cells: list[NotebookNode], start: int) -> Exercise:
    """Read the four cells of the exercise whose heading is cell `start`."""
    four = cells[max(start, 0) : start + 4]
    kinds = [next((t for t in tags(c) if t in ("exercise", "exercise-check", "solution")), "task")
             for c in four]
    heading = HEADING.match(four[0].source) if four else None
    if kinds != ["task", "exercise", "exercise-check", "solution"] or not heading:
        raise ValueError(
            f"cell {start}: an exercise is a cell '### Exercise 1.2 — title', then cells tagged "
            f"exercise, exercise-check and solution; here are {', '.join(kinds)}"
        )
    name, number = heading.groups()
    summary = f"<details><summary>Solution to exercise {number}</summary>"
    fences = FENCE.findall(four[3].source)
    if not four[3].source.startswith(summary) or len(fences) != 1:
        raise ValueError(f"cell {start + 3}: it starts with {summary} and has one ```python block")
    if f'check("{name}")' not in four[2].source:
        raise ValueError(f'cell {start + 2}: it should say: with check("{name}"):')
    _refuse_no_function(fences[0], start + 3)
    return Exercise(name, start + 1, fences[0], four[2].source)


def _refuse_no_function(solution: str, index: int) -> None:
    """Raise ValueError unless a solution defines functions: their bodies are to be written."""
    try:
        functions = _functions(solution)
    except SyntaxError as error:
        raise ValueError(f"cell {index}: the solution is no Python: {error}") from None
    if not functions:
        raise ValueError(f"cell {index}: the solution defines no function whose body to leave out")
    if any(len(f.body) <= bool(ast.get_docstring(f)) for f in functions):
        raise ValueError(f"cell {index}: a function of the solution has no body")


def write_stubs(nb: NotebookNode) -> NotebookNode:
    """Write each exercise's stub from its solution, in place."""
    for exercise in read_exercises(nb):
        nb.cells[exercise.stub].source = exercise.source()
    return nb


def normalise(nb: NotebookNode) -> NotebookNode:
    """Keep only metadata that does not change from run to run, in place."""
    nb.metadata = nbformat.from_dict(
        {"kernelspec": KERNELSPEC, "language_info": LANGUAGE}
    )
    nb.nbformat_minor = 5
    for index, cell in enumerate(nb.cells):
        cell.id = f"cell-{index:03d}"
        cell.metadata = nbformat.from_dict({"tags": tags(cell)} if tags(cell) else {})
        cell.pop("attachments", None)
        if "outputs" in cell:
            cell["outputs"] = without_bars(cell["outputs"])
        for output in cell.get("outputs", []):
            if WIDGET_VIEW in output.get("data", {}):
                output["data"] = {"text/plain": NO_KERNEL}
    return nb


def to_text(nb: NotebookNode) -> str:
    """Return a notebook as it is written to its file."""
    return nbformat.writes(nb) + "\n"


def peak_memory(pid: int) -> float | None:
    """Return the most memory a process ever held, in MiB; None where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found.group(1)) / 1024 if found else None


def show_cost(seconds: float, mib: float | None) -> str:
    """Write wall time and peak memory in columns."""
    return f"{seconds:6.1f} s  {'n/a' if mib is None else format(mib, '.0f'):>5} MiB"


def execute(nb: NotebookNode, folder: Path) -> tuple[float, float | None]:
    """Run all cells in a new kernel, in place; return wall time (s) and peak memory (MiB).

    Raises RuntimeError that names the cell, numbered as pytest does: code cells from 0.
    """
    client = NotebookClient(nb, kernel_name="python3", record_timing=False, coalesce_streams=True,
                            resources={"metadata": {"path": str(folder)}})
    start = time.perf_counter()
    client.reset_execution_trackers()
    quiet = {"env": {**os.environ, **KERNEL_ENV}, "stderr": subprocess.DEVNULL}  # the kernel's log
    with client.setup_kernel(**quiet):
        for number, (index, cell) in enumerate(
            (i, c) for i, c in enumerate(nb.cells) if c.cell_type == "code"
        ):
            try:
                client.execute_cell(cell, index, execution_count=number + 1)
            except (CellExecutionError, DeadKernelError) as error:
                raise RuntimeError(f"Cell {number}: {error}") from error
        pid = getattr(client.km and client.km.provisioner, "pid", None)
        mib = None if pid is None else peak_memory(pid)
    return time.perf_counter() - start, mib


def keep_unchecked(nb: NotebookNode, before: NotebookNode) -> None:
    """Keep the stored output of a cell that is not compared, if only its numbers changed.

    A time is another each run: without this no two runs would leave the same file. Kept only as
    long as every compared output above is as it was: behind a change the old numbers are stale.
    """
    stored = {c.source: c.outputs for c in before.cells if c.cell_type == "code"}
    for cell in (c for c in nb.cells if c.cell_type == "code"):
        old = stored.get(cell.source)
        if "nbval-ignore-output" not in tags(cell):
            if old != cell.outputs:
                return
        elif old and _shape(old) == _shape(cell.outputs):
            cell.outputs = old


def _shape(outputs: list[NotebookNode]) -> str:
    """Return outputs with every number, and the space around it, masked."""
    return re.sub(r"\s*\d[\d.,e+-]*", "#", json.dumps(outputs, sort_keys=True))


def rewrite(path: Path, run: bool = True) -> str:
    """Write a notebook's stubs, run it, store it; return a line on what it cost.

    The file is left alone when a cell fails: RuntimeError says which.
    """
    before = normalise(nbformat.read(path, as_version=4))
    nb = write_stubs(normalise(nbformat.read(path, as_version=4)))
    cost = ""
    if run:
        cost = show_cost(*execute(nb, path.parent))
        normalise(nb)
        keep_unchecked(nb, before)
    nbformat.validate(nb)
    path.write_text(to_text(nb), encoding="utf-8", newline="\n")
    return f"{path.name:<28} {cost}".rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Rewrite the notebooks named on the command line; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m embspace_helpers.notebooks",
                                     description="Write stubs, execute in place, store stably.")
    parser.add_argument("paths", nargs="*", default=["notebooks"], help="notebooks or folders")
    parser.add_argument("--no-execute", action="store_true", help="stubs and metadata only")
    options = parser.parse_args(arguments)
    failed = 0
    for path in find(options.paths):
        try:
            print(rewrite(path, run=not options.no_execute), flush=True)
        except (RuntimeError, ValueError, OSError) as error:
            print(f"{path}: not written. {error}", file=sys.stderr, flush=True)
            failed = 1
    return failed
