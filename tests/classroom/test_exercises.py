"""Exercises: what `check` and `expect` say, and every exercise of every notebook."""

import linecache
from fractions import Fraction
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from embspace_helpers.classroom.exercises import check, expect, strict
from embspace_helpers.workshop.notebooks import read_exercises, tags

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

AGREE = [
    (2, 2.000001),
    (True, True),
    (np.bool_(True), True),
    (True, np.bool_(True)),
    (torch.tensor(True), True),
    (None, None),
    ("a", "a"),
    (np.str_("a"), "a"),
    (["a", "b"], ("a", "b")),
    (np.array(["a", "b"]), ["a", "b"]),
    (["a", "b"], np.array(["a", "b"])),
    (pd.Series(["a", "b"]), ["a", "b"]),
    ([], []),
    (torch.empty(0), []),
    ([], np.empty(0)),
    (set(), set()),
    ({np.int64(1), 2}, {1, 2}),
    ({torch.tensor(1)}, {1}),
    (frozenset("a"), {"a"}),
    ({"a": torch.ones(2)}, {"a": [1, 1]}),
    ({"a": {"b": [1, 2]}}, {"a": {"b": np.array([1, 2])}}),
    (torch.tensor([1.0, 2.0]), [1, 2]),
    ([1, 2], torch.tensor([1.0, 2.0])),
    ((1, 2), torch.Size([1, 2])),
    ([torch.tensor(1.0), torch.tensor(2.0)], [1, 2]),
    ([torch.tensor(1.0, requires_grad=True)], [1]),
    ([[torch.tensor(1), 2], [3, 4]], torch.tensor([[1, 2], [3, 4]])),
    ([torch.ones(2), torch.zeros(2)], np.array([[1, 1], [0, 0]])),
    ((torch.ones(2), torch.ones(3)), ([1, 1], [1, 1, 1])),
    (torch.ones(2, dtype=torch.bfloat16, requires_grad=True), np.ones(2)),
    (torch.tensor([True, False]), [True, False]),
    (pd.Series([1, 2]), [1, 2]),
    (float("nan"), float("nan")),
    (1e6 + 1, 1e6),
    (10**30, 1e30),
    (Fraction(1, 2), 0.5),
    (["a", 1.0], ["a", np.float32(1)]),
]
DIFFER = [
    (3, 2.5, "The value is 3, it should be 2.5."),
    (False, True, "The value is False, it should be True."),
    ("a", "b", "The answer is 'a', not 'b'."),
    ({1}, {2}, "The answer is {1}, not {2}."),
    ({torch.tensor(1)}, {2}, "The answer is {tensor(1)}, not {2}."),
    (["a", "c"], ["a", "b"], "Item 1 is 'c', it should be 'b'."),
    (np.array(["a", "c"]), ["a", "b"], "Item 1 is 'c', it should be 'b'."),
    (["a", None], ["a", "b"], "Item 1 is None, it should be 'b'."),
    (["a"], ["a", "b"], "has 1 items, it should have 2: it is ['a'], it should be ['a', 'b']."),
    (["a"], [], "The list has 1 items, it should have 0: it is ['a'], it should be []."),
    (torch.ones(3), torch.ones(2, 3), "The shape is (3,), it should be (2, 3): the answer is "
     "[1.0, 1.0, 1.0], it should be [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]."),
    (torch.ones(3), 1, "The shape is (3,), it should be (): the answer is [1.0, 1.0, 1.0], it "),
    (torch.ones(50), 1, "the answer is Tensor of shape (50,), it should be 1."),
    ([1, 2, 4, 9], [1, 2, 3, 4], "At index 2 the value is 4, it should be 3."),
    (torch.eye(2), torch.ones(2, 2), "At index (0, 1) the value is 0, it should be 1."),
    ((torch.ones(2), torch.ones(3)), ([1, 1], [1, 2, 1]), "Item 1: At index 1 the value is 1, it"),
    (float("nan"), 1.0, "The value is nan, it should be 1."),
    (1.0001, 1.0, "The value is 1.0001, it should be 1."),
    ({"a": 1}, {"a": 2}, "At the key 'a': The value is 1, it should be 2."),
    ({}, {"a": [2]}, "The key 'a' is missing, its value should be [2]."),
    ({"a": 1, "b": 2}, {"a": 1}, "The key 'b' should not be there; the keys should be ['a']."),
    ("x" * 500, "b", "The answer is 'xxxxx"),
]
OTHER_KINDS = [
    (None, 2, "returned nothing (None), it should be 2: is a `return` missing?"),
    (None, 1 / 3, "returned nothing (None), it should be 0.3333333: is a `return` missing?"),
    (None, ["a"], "returned nothing (None), it should be ['a']: is a `return` missing?"),
    (1, True, "The answer is 1 (int), it should be True or False: True."),
    ("a", 1, "The answer is 'a' (str), it should be a number: 1."),
    ([[1], [1, 2]], [1, 2], "The answer is [[1], [1, 2]] (list), it should be numbers: [1, 2]."),
    ([1, None], [1, 2], "The answer is [1, None] (list), it should be numbers: [1, 2]."),
    (print, 1, "(builtin_function_or_method), it should be a number: 1."),
    (1, "a", "The answer is 1, not 'a'."),
    (torch.ones(2), "a", "The answer is [1.0, 1.0], not 'a'."),
    (0, None, "The answer is 0, not None."),
    ([1], {1}, "The answer is [1], not {1}."),
    ("ab", ["a", "b"], "'ab' (str), it should be a list of strings: ['a', 'b']."),
    (1, {"a": 1}, "The answer is 1 (int), it should be a dictionary: {'a': 1}."),
    (1, ([1], [1, 2]), "The answer is 1 (int), it should be a list: ([1], [1, 2])."),
    (1j, 1, "The answer is 1j (complex), it should be a number: 1."),
]


@pytest.mark.parametrize(("actual", "expected"), AGREE)
def test_expect_accepts(actual, expected):
    expect(actual, expected)


@pytest.mark.parametrize(
    ("actual", "expected", "message", "hinted"),
    [(*row, "Look again.") for row in DIFFER] + [(*row, "") for row in OTHER_KINDS],
)
def test_expect_names_the_first_difference(actual, expected, message, hinted):
    with pytest.raises(AssertionError) as error:
        expect(actual, expected, hint="Look again.")
    text, _, hint = str(error.value).partition("\n  Hint: ")
    assert message in text and len(text) < 250 and "\n" not in text
    assert hint == hinted  # none where the answer is of another kind


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


def asserting():
    raise AssertionError("the rows must be sorted")


def broken():
    items = []
    return items[3]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: None, "Exercise 9.9: passed."),
        (stub, "Exercise 9.9: not done yet. Write your code"),
        (half_precision_gap, "stopped with NotImplementedError: \"addmm\" not implemented"),
        (lambda: expect(1, 2), "Exercise 9.9: not yet. The value is 1, it should be 2."),
        (lambda: expect(1, 2, "twice"), "it should be 2.\n  Hint: twice\n"),
        (lambda: expect(None, 2, "twice"), "is a `return` missing?\n"),
        (wrong, "not yet. This does not hold: raise AssertionError"),
        (asserting, "not yet. the rows must be sorted\n"),
        (broken, "stopped with IndexError: list index out of range\n  in broken, line "),
    ],
)
def test_check_prints_the_verdict_and_goes_on(function, message, capsys):
    with check("Exercise 9.9"):
        function()
    assert message in capsys.readouterr().out


def run_cells(*cells):
    """Run cells one after the other in one namespace, as a notebook does."""
    namespace = {"np": np, "check": check, "expect": expect}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number} of a notebook", "exec"), namespace)


CHECK = "with check('Exercise 9.9'):\n    one, other = f()"
LINES = [
    ("def f():\n    return np.zeros(2) @ np.zeros(3)", "your code stopped with ValueError: ",
     "in f, line 2: return np.zeros"),
    ("def f():\n    assert False, 'no'", "not yet. no", ""),
    ("f = None", "What your code returned cannot be used as it should (TypeError: 'NoneType'",
     "in <module>, line 2: one, other = f()"),
    ("def f():\n    return 1", "cannot be used as it should (TypeError: cannot unpack",
     "in <module>, line 2: one, other = f()"),
    ("def g(): pass", "not yet. name 'f' is not defined: run the cells above, then run this", ""),
    ("def f():\n    return g()", "your code stopped with NameError: name 'g'", "in f, line 2"),
    ("def f():\n    return f()", "your code stopped with RecursionError", "in f, line 2"),
    ("def f():\n    raise ValueError('x' * 9999)", " ...\n", "in f, line 2"),
]


@pytest.mark.parametrize(("cell", "said", "line"), LINES)
def test_check_shows_the_learners_line_not_the_library_s(cell, said, line, capsys, monkeypatch):
    lines = {f"cell {number} of a notebook": text.splitlines(keepends=True)
             for number, text in enumerate((cell, CHECK))}
    find = linecache.getline
    monkeypatch.setattr(linecache, "getline", lambda file, number, *rest: (
        lines[file][number - 1] if file in lines else find(file, number, *rest)))
    run_cells(cell, CHECK)
    printed = capsys.readouterr().out
    assert said in printed and line in printed and len(printed) < 500


@pytest.fixture
def shell():
    """An IPython shell whose history is in memory."""
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"hist_file": ":memory:"}}))
    shell.run_cell("from embspace_helpers.classroom.exercises import check, expect", True)
    yield shell
    InteractiveShell.clear_instance()


GOOD = "def f(x):\n    return 2 * x"
STUBBED = "def f(x):\n    raise NotImplementedError('your code here')"
JUDGE = "with check('Exercise 9.9'):\n    expect(f(1), 2)\n    expect(len([1]), 1)"
SESSIONS = [
    ([GOOD], "passed."),
    ([STUBBED], "not done yet. "),
    ([STUBBED, GOOD], "passed."),
    ([GOOD, "1 +", "x = 1"], "passed."),
    ([GOOD, "f(1 2)"], "passed."),
    ([GOOD, "assert f(1) == 2", "print(f(3))"], "passed."),
    ([GOOD, "assert f(1) == 3"], "passed."),
    ([GOOD, "%timeit -n1 -r1 f(1)\n!true"], "passed."),
    (["import functools", "@functools.lru_cache\n" + GOOD], "passed."),
    ([GOOD, "def f(x):\n    return (2 * x"], "Python cannot read your cell, so it was not run "
     "(SyntaxError: '(' was never closed); mend it, run it, then run this cell again.\n"
     "  line 2: return (2 * x\n"),
    ([STUBBED, "def f(x):\nreturn 2 * x"], "(IndentationError: expected an indented block"),
    ([STUBBED, "deff f(x):\n    return 2 * x"], "Python cannot read your cell"),
    ([STUBBED, "def f(x)\n    return 2 * x"], "(SyntaxError: expected ':')"),
    ([STUBBED, "def f(x)\n    return 2 * x", "y = 1"], "(SyntaxError: expected ':')"),
    ([STUBBED, "def f(x)\n    return 2 * x", GOOD], "passed."),
    ([STUBBED, "import nonsense\n" + GOOD], "Your cell stopped before it reached f, so an older"),
    ([STUBBED, GOOD + "\nprint(f('a') + 1)"], "passed."),
    ([], "not yet. name 'f' is not defined: run the cells above, then run this cell again."),
]


@pytest.mark.parametrize(("cells", "said"), SESSIONS)
def test_the_last_version_of_a_cell_is_judged_or_said_to_be_unread(cells, said, shell, capsys):
    for cell in cells:
        shell.run_cell(cell, store_history=True)
    capsys.readouterr()
    shell.run_cell(JUDGE, store_history=True)
    out = capsys.readouterr().out
    assert said in out
    assert ("passed" in out) is (said == "passed.")


@pytest.mark.parametrize("function", [stub, wrong, broken])
def test_strict_check_raises(function):
    errors = NotImplementedError, AssertionError, IndexError
    with pytest.raises(errors), strict(), check("Exercise 9.9"):
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
