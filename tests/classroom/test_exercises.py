"""Exercises: what `check` and `expect` say, and every exercise of every notebook."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from embspace_helpers.classroom.exercises import check, expect, strict
from embspace_helpers.workshop.notebooks import read_exercises, tags

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

AGREE = [
    (2, 2.000001),
    (True, True),
    (np.bool_(True), True),
    ("a", "a"),
    (["a", "b"], ("a", "b")),
    ([], []),
    (set(), set()),
    (torch.tensor([1.0, 2.0]), [1, 2]),
    (torch.ones(2, dtype=torch.bfloat16, requires_grad=True), np.ones(2)),
    (torch.tensor([True, False]), [True, False]),
    (float("nan"), float("nan")),
    (1e6 + 1, 1e6),
]
DIFFER = [
    (None, 2, "returned nothing (None)"),
    (3, 2.5, "The value is 3, it should be 2.5."),
    (1, True, "1 (int), it should be True or False"),
    (False, True, "The value is False, it should be True."),
    ("a", 1, "'a' (str), it should be numbers"),
    ([[1], [1, 2]], [1, 2], "it should be numbers"),
    (1, "a", "The answer is 1, not 'a'."),
    ({1}, {2}, "The answer is {1}, not {2}."),
    ("ab", ["a", "b"], "of type str, it should be a list of strings"),
    (["a", "c"], ["a", "b"], "Item 1 is 'c', it should be 'b'."),
    (["a"], ["a", "b"], "The list has 1 items, it should have 2."),
    (torch.ones(3), torch.ones(2, 3), "The shape is (3,), it should be (2, 3)."),
    (torch.ones(3), 1, "The shape is (3,), it should be ()."),
    ([1, 2, 4, 9], [1, 2, 3, 4], "At index 2 the value is 4, it should be 3."),
    (torch.eye(2), torch.ones(2, 2), "At index (0, 1) the value is 0, it should be 1."),
    (float("nan"), 1.0, "The value is nan, it should be 1."),
    (1.0001, 1.0, "The value is 1.0001, it should be 1."),
]


@pytest.mark.parametrize(("actual", "expected"), AGREE)
def test_expect_accepts(actual, expected):
    expect(actual, expected)


@pytest.mark.parametrize(("actual", "expected", "message"), DIFFER)
def test_expect_names_the_first_difference_then_the_hint(actual, expected, message):
    with pytest.raises(AssertionError) as error:
        expect(actual, expected, hint="Look again.")
    assert message in str(error.value)
    assert str(error.value).endswith("Look again.")


def test_expect_atol():
    expect(1.01, 1.0, atol=0.1)
    with pytest.raises(AssertionError):
        expect(1.2, 1.0, atol=0.1)


def stub():
    raise NotImplementedError("Exercise 9.9: your code here")


def half_precision_gap():
    raise NotImplementedError('"addmm" not implemented for \'Half\'')


def wrong():
    raise AssertionError


def broken():
    return [][3]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: None, "Exercise 9.9: passed."),
        (stub, "Exercise 9.9: not done yet. Write your code"),
        (half_precision_gap, "stopped with NotImplementedError: \"addmm\" not implemented"),
        (lambda: expect(1, 2), "Exercise 9.9: not yet. The value is 1, it should be 2."),
        (wrong, "not yet. This does not hold: raise AssertionError"),
        (broken, "stopped with IndexError: list index out of range\n  in broken, line "),
    ],
)
def test_check_prints_the_verdict_and_goes_on(function, message, capsys):
    with check("Exercise 9.9"):
        function()
    assert message in capsys.readouterr().out


def test_check_shows_the_learners_line_not_the_library_s(capsys):
    namespace = {"np": np, "check": check}
    cell = compile("def f():\n    return np.zeros(2) @ np.zeros(3)", "cell of a notebook", "exec")
    exec(cell, namespace)
    with check("Exercise 9.9"):
        namespace["f"]()
    assert "in f, line 2" in capsys.readouterr().out


@pytest.mark.parametrize("function", [stub, wrong, broken])
def test_strict_check_raises(function):
    with pytest.raises((NotImplementedError, AssertionError, IndexError)), strict():
        with check("Exercise 9.9"):
            function()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_has_exercises_and_their_stubs_are_current(path):
    nb = nbformat.read(path, as_version=4)
    exercises = read_exercises(nb)
    assert len(exercises) >= 2
    assert len({exercise.name for exercise in exercises}) == len(exercises)
    for exercise in exercises:
        assert nb.cells[exercise.stub].source == exercise.source(), (
            f"{exercise.name}: the stub is not the solution's; run make notebooks"
        )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_solutions_pass_their_checks_and_nothing_less_does(path, capsys, monkeypatch):
    """One fresh namespace: the `setup` cells, then each exercise as stub, as None, and solved."""
    monkeypatch.chdir(path.parent)
    nb = nbformat.read(path, as_version=4)
    namespace = {"__name__": "__main__"}

    def run(source: str, name: str) -> str:
        capsys.readouterr()
        exec(compile(source, f"<{path.name}, {name}>", "exec"), namespace)
        return capsys.readouterr().out

    for cell in nb.cells:
        if "setup" in tags(cell):
            run(cell.source, "setup")
    for exercise in read_exercises(nb):
        run(exercise.source(), exercise.name)
        assert f"{exercise.name}: not done yet." in run(exercise.check, exercise.name)
        run(exercise.source(body="return None"), exercise.name)
        assert f"{exercise.name}: passed." not in run(exercise.check, exercise.name)
        run(exercise.solution, exercise.name)
        with strict():
            assert f"{exercise.name}: passed." in run(exercise.check, exercise.name)
