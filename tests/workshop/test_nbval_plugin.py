"""The plugin under pytest itself, on small notebooks made here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from embspace_helpers.workshop.notebooks import peak_memory

TABLE = "from embspace_helpers.reading.tables import WordTable\nWordTable({'key': [%s]})"
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
FIGURE = "<Figure size 640x480 with 1 Axes>"


def stream(text: str) -> nbformat.NotebookNode:
    return new_output("stream", name="stdout", text=text + "\n")


def shown(**data: str) -> nbformat.NotebookNode:
    return new_output("display_data", {key.replace("_", "/"): text for key, text in data.items()})


def save(folder: Path, *cells: tuple, name: str = "sample.ipynb") -> Path:
    """A notebook of cells, each a source and its stored outputs."""
    path = folder / name
    nbformat.write(new_notebook(cells=[
        new_code_cell(source, execution_count=number + 1, outputs=list(outputs))
        for number, (source, *outputs) in enumerate(cells)
    ]), path)
    return path


def run_pytest(path: Path, *options: str, **env: str) -> subprocess.CompletedProcess:
    """Run pytest with the plugin and nothing else; the calibration loop is said to take 1 s."""
    command = [sys.executable, "-m", "pytest", "-p", "embspace_helpers.workshop.nbval_plugin",
               "--nbval", "--nbval-current-env", "--color=no", "-v", *options, path]
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("EMBSPACE_", "PYTEST_"))}
    return subprocess.run(command, env={**outside, "EMBSPACE_CALIBRATION": "1", **env},
                          cwd=path if path.is_dir() else path.parent,
                          capture_output=True, text=True)


# What a cell prints now, the stored output, and what pytest says of it: None when it holds.
CELLS = {
    "same": ("print('a 0.31')", stream("a 0.31"), None),
    "one step": ("print('a 0.31, 38%, 1e-06')", stream("a 0.32, 39%, 2e-06"), None),
    "zero": ("print('-0.00 and −0.01')", stream("0.00 and 0.00"), None),
    "padding": ("print('a   -0.00')", stream("a    0.00"), None),
    "figure": (PLOT, shown(image_png="b2xk", text_plain=FIGURE), None),
    "tie": (TABLE % "('b', 4.2), ('a', 4.2)", shown(text_plain="key\na 4.2\nb 4.2"), None),
    "stderr": ("import sys\nprint('warning', file=sys.stderr)", None),
    "ignored": ("# NBVAL_IGNORE_OUTPUT\nprint(1)", stream("2"), shown(image_png="b2xk"), None),
    "word": ("print('a 0.31')", stream("b 0.31"), "the words differ"),
    "two steps": ("print('a 0.31')", stream("a 0.33"), "more than one step of 0.01, 0.33 → 0.31"),
    "missing row": ("print('a')", stream("a\nb"), "3 lines are stored, 2 are printed now"),
    "added row": ("print('a\\nb')", stream("a"), "2 lines are stored, 3 are printed now"),
    "moved rows": (TABLE % "('b', 4.3), ('a', 4.2)", shown(text_plain="key\na 4.3\nb 4.2"),
                   "words of different scores changed places"),
    "sign": ("print('-0.31')", stream("0.31"), "a sign changed, 0.31 → -0.31"),
    "error": ("1 / 0", "Cell execution caused an exception"),
    "missing output": ("None", stream("a"), "stdout: 1 stored, 0 now"),
    "extra output": ("print('a')", "stdout: 0 stored, 1 now"),
    "no figure": ("print(1)", stream("1"), shown(image_png="b2xk"), "image/png: 1 stored, 0 now"),
    "new figure": (PLOT, shown(text_plain=FIGURE), "image/png: 0 stored, 1 now"),
    "whole number": ("print('60 blocks')", stream("61 blocks"), "a whole number changed, 61 → 60"),
    "name": ("print('L3N12')", stream("L3N13"), "the words differ\n  stored: L3N13\n  new:    L3N"),
}


def with_html(source: str, *outputs: nbformat.NotebookNode) -> tuple:
    """A cell's row of `CELLS`; the stored table gets the HTML that the plain text stands for."""
    for output in outputs:
        text = output.get("data", {}).get("text/plain", "")
        if text.startswith("key"):
            rows = [(line.split()[0], float(line.split()[1])) for line in text.splitlines()[1:]]
            scope: dict = {}
            exec(TABLE.replace("WordTable({", "html = WordTable({") % str(rows)[1:-1], scope)
            output.data["text/html"] = scope["html"]._repr_html_()
    return source, *outputs


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    """What pytest says of a notebook with all of `CELLS`."""
    path = save(tmp_path_factory.mktemp("cells"), *(with_html(*row[:-1]) for row in CELLS.values()))
    done = run_pytest(path)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", CELLS)
def test_cell_holds_or_says_why_not(name, report):
    number, message = list(CELLS).index(name), CELLS[name][-1]
    found = re.search(rf"::Cell {number} (PASSED|FAILED)", report)
    assert found[1] == ("FAILED" if message else "PASSED"), report
    if message:
        section = report.split(f"sample.ipynb::Cell {number} __")[1].split("\n____")[0]
        assert message in section


def test_slow_notebook_fails_only_where_the_budget_is_enforced(tmp_path):
    save(tmp_path, ("x = 1",), name="unknown.ipynb")
    path, budget = save(tmp_path, ("import time; time.sleep(1)",)), tmp_path / "budget.json"
    budget.write_text('{"sample.ipynb": 0.1, "unknown.ipynb": null}')
    done = run_pytest(path, EMBSPACE_BUDGET=str(budget))
    assert done.returncode == 0
    assert re.search(r"sample\.ipynb +\d+\.\d s +\S+ MiB +\d+\.\d x +0\.1\n", done.stdout)
    assert "the calibration loop took 1.00 s" in done.stdout

    done = run_pytest(tmp_path, EMBSPACE_BUDGET=str(budget), EMBSPACE_ENFORCE_BUDGET="1")
    assert done.returncode == 1 and "2 passed, 2 errors" in done.stdout
    assert "more than 2 times its budget of 0.1" in done.stdout
    assert "unknown.ipynb has no budget: run python -m embspace_helpers.cost" in done.stdout


def test_workers_report_what_their_notebooks_took(tmp_path):
    threads = "import os; print('threads', os.environ['OMP_NUM_THREADS'])"
    for name in ("a", "b"):
        save(tmp_path, (threads, stream("threads 1")), name=f"{name}.ipynb")
    budget = tmp_path / "budget.json"
    budget.write_text("{}")
    done = run_pytest(tmp_path, "-n", "2", "--dist", "loadfile", EMBSPACE_BUDGET=str(budget),
                      EMBSPACE_WRITE_BUDGET="1")
    assert done.returncode == 0 and "2 passed" in done.stdout
    assert re.search(r"\na\.ipynb .+ MiB .+\nb\.ipynb .+ MiB ", done.stdout)
    assert list(json.loads(budget.read_text())) == ["a.ipynb", "b.ipynb"]


def test_budget_is_written_from_a_run_that_passes(tmp_path):
    budget = tmp_path / "budget.json"
    budget.write_text('{"z.ipynb": 7.0}')
    write = {"EMBSPACE_BUDGET": str(budget), "EMBSPACE_WRITE_BUDGET": "1"}
    assert run_pytest(save(tmp_path, ("1 / 0",)), **write).returncode == 1
    assert json.loads(budget.read_text()) == {"z.ipynb": 7.0}
    assert run_pytest(save(tmp_path, ("x = 1",)), **write).returncode == 0
    written = json.loads(budget.read_text())
    assert list(written) == ["sample.ipynb", "z.ipynb"] and 0.1 <= written["sample.ipynb"] < 60


def test_kernel_gets_the_threads_that_are_asked_for(tmp_path):
    source = "import os; print('threads', os.environ['OMP_NUM_THREADS'])"
    path = save(tmp_path, (source, stream("threads 2")))
    assert run_pytest(path, OMP_NUM_THREADS="7").returncode == 0
    assert "2 → 1" in run_pytest(path, EMBSPACE_THREADS="1").stdout


def test_memory_over_the_limit_and_a_dead_kernel_fail(tmp_path):
    path = save(tmp_path, ("x = bytearray(90_000_000)",))
    if peak_memory(os.getpid()) is not None:
        done = run_pytest(path, EMBSPACE_MAX_MIB="90")
        assert done.returncode == 1 and "over the limit of 90 MiB" in done.stdout
    path = save(tmp_path, ("import os; os._exit(1)",))
    assert "The kernel died" in run_pytest(path).stdout
