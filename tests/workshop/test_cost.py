"""Times as multiples of a loop, and the file of the budget."""

import json
import subprocess
from pathlib import Path

import pytest

from embspace_helpers.workshop import cost

ROOT = Path(__file__).parents[2]


@pytest.fixture
def budget(tmp_path, monkeypatch):
    path = tmp_path / "budget.json"
    path.write_text('{"a.ipynb": 10.0, "b.ipynb": null}')
    monkeypatch.setenv("EMBSPACE_BUDGET", str(path))
    return path


def test_loop_is_timed_in_a_process_of_its_own_or_given(monkeypatch, capsys):
    monkeypatch.delenv("EMBSPACE_CALIBRATION", raising=False)
    monkeypatch.setattr(cost, "LOOP", "import os; print(os.environ['OMP_NUM_THREADS'], end='.5')")
    monkeypatch.setenv("EMBSPACE_THREADS", "3")
    assert cost.calibrate() == 3.5
    monkeypatch.setattr(cost, "LOOP", "1 / 0")
    with pytest.raises(RuntimeError, match=r"the calibration loop failed(.|\n)*ZeroDivisionError"):
        cost.calibrate()
    monkeypatch.setenv("EMBSPACE_CALIBRATION", "1.25")
    assert cost.main([]) == 0
    assert capsys.readouterr().out == "calibration loop: 1.25 s\n"


@pytest.mark.parametrize(
    ("ticks", "median", "runs"),
    [([0, 2, 10, 11, 20, 23], 2, 4), ([0, 4, 10, 12], 3, 3), ([0, 9], 9, 2)],
)
def test_time_loop_repeats_while_there_is_time(monkeypatch, ticks, median, runs):
    clock, ran = iter(ticks), []
    monkeypatch.setattr(cost, "loop", lambda: ran.append(1))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    assert cost.time_loop() == median
    assert len(ran) == runs  # one of them to warm up


def test_loop_runs():
    cost.loop()


@pytest.mark.parametrize(
    ("name", "multiple", "message"),
    [
        ("a.ipynb", 19.9, None),
        ("a.ipynb", 20.1, "a.ipynb took 20.1 times the calibration loop, more than 2 times its"),
        ("b.ipynb", 0.1, "b.ipynb has no budget"),
        ("c.ipynb", 0.1, "c.ipynb has no budget"),
    ],
)
def test_budget_is_held_only_where_it_is_enforced(budget, monkeypatch, name, multiple, message):
    monkeypatch.setenv("EMBSPACE_ENFORCE_BUDGET", "0")
    assert cost.over_budget(name, multiple) is None
    monkeypatch.setenv("EMBSPACE_ENFORCE_BUDGET", "1")
    found = cost.over_budget(name, multiple)
    assert found is None if message is None else found.startswith(message)


def test_written_budget_is_sorted_rounded_up_and_keeps_the_others(budget):
    cost.write_budget({"c.ipynb": 1.01, "0.ipynb": 2.0, "b.ipynb": 0.3})
    assert list(cost.read_budget().items()) == [
        ("0.ipynb", 2.0), ("a.ipynb", 10.0), ("b.ipynb", 0.3), ("c.ipynb", 1.1)
    ]
    budget.unlink()
    cost.write_budget({"a.ipynb": 1.0})
    assert budget.read_text() == '{\n  "a.ipynb": 1.0\n}\n'


def test_write_runs_the_notebooks(monkeypatch):
    def run(command, env, check):
        assert command[1:] == ["-m", "pytest", *cost.APART, "notebooks"]
        assert " ".join(cost.APART[2:]) in (ROOT / "Makefile").read_text()  # as `make test` does
        assert env["EMBSPACE_WRITE_BUDGET"] == "1"
        return subprocess.CompletedProcess(command, 5)

    monkeypatch.setattr(cost.subprocess, "run", run)
    assert cost.main(["--write"]) == 5


def test_committed_budget_names_notebooks_that_exist():
    folder = cost.BUDGET.parents[2] / "notebooks"
    names = {path.name for path in folder.glob("*.ipynb")}
    assert set(json.loads(cost.BUDGET.read_text())) == names
