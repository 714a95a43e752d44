"""The developer's tool for notebooks and the nbval plugin, on small notebooks made here."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from embspace_helpers.workshop.notebooks import (
    main,
    peak_memory,
    read_exercises,
    to_text,
    write_stubs,
)

CONFIG = Path(__file__).parents[2] / "pyproject.toml"
SOLUTION = """<details><summary>Solution to exercise 1.2</summary>

Twice the number.

```python
def double(x: float) -> float:
    return 2 * x
```

</details>"""
STUB = """def double(x: float) -> float:
    raise NotImplementedError("Exercise 1.2: your code here")"""
CHECK = 'with check("Exercise 1.2"):\n    expect(double(3), 6)'


def code(source: str, *tags: str) -> nbformat.NotebookNode:
    return new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


def exercise(solution=SOLUTION, check=CHECK, title="### Exercise 1.2 — Twice"):
    return [
        new_markdown_cell(title),
        code("", "exercise"),
        code(check, "exercise-check"),
        new_markdown_cell(solution, metadata={"tags": ["solution"]}),
    ]


def save(folder: Path, *cells: nbformat.NotebookNode) -> Path:
    path = folder / "sample.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def run_pytest(path: Path, *options: str, **env: str) -> subprocess.CompletedProcess:
    """Run pytest as the project configures it on one notebook."""
    command = [sys.executable, "-m", "pytest", "-c", CONFIG, "--rootdir", path.parent, path]
    env = {"EMBSPACE_ENFORCE_BUDGET": "0", "EMBSPACE_CALIBRATION": "1", **env}  # says it takes 1 s
    return subprocess.run([*map(str, command), *options], env={**os.environ, **env},
                          cwd=path.parent, capture_output=True, text=True)


def test_a_stub_keeps_docstrings_imports_and_every_function():
    solved = ('import math\n\n\ndef one(x):\n    """Say what."""\n'
              "    y = math.sqrt(x)\n    return y\n\n\n"
              "def two(x,\n        y):\n    if x:\n        return y\n    return x")
    stub = 'raise NotImplementedError("Exercise 1.2: your code here")'
    nb = write_stubs(new_notebook(cells=exercise(
        SOLUTION.replace("def double(x: float) -> float:\n    return 2 * x", solved))))
    assert nb.cells[1].source == (
        f'import math\n\n\ndef one(x):\n    """Say what."""\n    {stub}\n\n\n'
        f"def two(x,\n        y):\n    {stub}")


def test_stub_is_made_from_the_solution():
    nb = write_stubs(new_notebook(cells=exercise()))
    assert nb.cells[1].source == STUB
    assert read_exercises(nb)[0].check == CHECK


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (exercise()[:3], "here are task, exercise, exercise-check"),
        (exercise()[1:], "cell -1: an exercise is a cell"),
        (exercise(title="### Exercise one"), "cell 0: an exercise is a cell"),
        (exercise(solution=SOLUTION.replace("1.2", "1.3")), "cell 3: it starts with <details>"),
        (exercise(solution=SOLUTION.replace("python", "")), "has one ```python block"),
        (exercise(check=CHECK.replace("1.2", "1.3")), 'cell 2: it should say: with check("Ex'),
        (exercise(solution=SOLUTION.replace("def double", "x = double")), "is no Python"),
        (exercise(solution=SOLUTION.replace("def double(x: float) -> float:\n    return",
                                            "double =")),
         "no function whose body"),
        (exercise(solution=SOLUTION.replace("return 2 * x", '"""Twice."""')), "has no body"),
    ],
)
def test_broken_exercise_is_refused(cells, message):
    with pytest.raises(ValueError, match="cell") as error:
        read_exercises(new_notebook(cells=cells))
    assert message in str(error.value)


def test_two_runs_leave_one_file_and_it_passes(tmp_path, capsys):
    path = save(
        tmp_path,
        new_markdown_cell("# Sample"),
        code("import time\nimport ipywidgets\nimport matplotlib.pyplot as plt\n"
             "from embspace_helpers.classroom.exercises import check, expect", "setup"),
        code("print('one')\nprint('two')"),
        code("plt.plot([1, 2]);"),
        code("ipywidgets.IntSlider()", "nbval-ignore-output", "reason-widget"),
        code("print(f'{time.perf_counter():.9f} s')", "nbval-ignore-output", "reason-timing"),
        *exercise(),
    )
    assert main([str(path)]) == 0
    first = path.read_bytes()
    assert main([str(path)]) == 0
    assert main(["--no-execute", str(tmp_path)]) == 0
    assert path.read_bytes() == first
    assert b"not done yet" in first and b"widget-view" not in first and STUB.encode()[:20] in first
    assert b"IntSlider(" in first and b"IntSlider(value" not in first  # the cell, not its raw text
    nb = nbformat.read(path, as_version=4)
    assert nb.cells[1].metadata.tags == ["setup"]
    assert len(nb.cells[2].outputs) == 1
    assert "sample.ipynb" in capsys.readouterr().out
    result = run_pytest(path)
    assert result.returncode == 0, result.stdout
    assert "wall time, peak memory" in result.stdout


def test_numbers_that_are_not_compared_are_kept_until_something_above_them_changes(tmp_path):
    first, value = tmp_path / "value", "print(open('value').read())"
    ignored = code("import uuid\nprint(uuid.uuid4().int)", "nbval-ignore-output", "reason-timing")
    path = save(tmp_path, code(value), ignored, code("print(len(open('value').read()))"))
    stored = []
    for text in ("a", "a", "b", "b"):
        first.write_text(text)
        assert main([str(path)]) == 0
        stored.append(nbformat.read(path, as_version=4).cells[1].outputs[0].text)
    assert stored[0] == stored[1] != stored[2] == stored[3]


def test_notebook_that_raises_is_not_written(tmp_path, capsys):
    path = save(tmp_path, new_markdown_cell("# A"), code("print(1)"), code("1 / 0"))
    before = path.read_bytes()
    assert main([str(path)]) == 1
    assert path.read_bytes() == before
    error = capsys.readouterr().err
    assert "not written. Cell 1:" in error and "ZeroDivisionError" in error


def test_notebook_whose_kernel_dies_is_not_written(tmp_path, capsys):
    path = save(tmp_path, code("import os; os._exit(1)"))
    assert main([str(path)]) == 1
    assert "Cell 0: Kernel died" in capsys.readouterr().err


def test_limits_changed_output_and_dead_kernel_fail(tmp_path):
    path = save(tmp_path, code("print(1)"), code("x = bytearray(90_000_000)"))
    assert main([str(path)]) == 0
    result = run_pytest(path, EMBSPACE_MAX_MIB="90")
    if peak_memory(os.getpid()) is not None:
        assert result.returncode == 1 and "over the limit of 90 MiB" in result.stdout

    nb = nbformat.read(path, as_version=4)
    nb.cells[0].source = "print(2)"
    nb.cells[1].source = "import os; os._exit(1)"
    path.write_text(to_text(nb))
    result = run_pytest(path)
    assert result.returncode == 1
    for text in ("Cell outputs differ", "The kernel died"):
        assert text in result.stdout
