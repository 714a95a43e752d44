"""Exercises in a notebook: `check` runs a learner's code and says what is wrong, `expect` compares.

Example:
    with check("Exercise 1.2"):
        expect(double(3), 6, hint="Twice the number, whatever the number.")
"""

import ast
import inspect
import keyword
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from embspace_helpers.classroom.answers import difference

STUB = "your code here"  # how the NotImplementedError of an untouched exercise ends
NOT_CELLS = ("<frozen ", "<string>", "<__array_function__", "<eval_with_key>")  # nor files
_STRICT = ContextVar("strict", default=False)


class WrongAnswer(AssertionError):
    """An answer that `expect` does not accept; the message says what it is and should be."""


@contextmanager
def strict() -> Iterator[None]:
    """Inside this block `check` raises what it would otherwise print: for the project's tests."""
    token = _STRICT.set(True)
    try:
        yield
    finally:
        _STRICT.reset(token)


@contextmanager
def check(name: str) -> Iterator[None]:
    """Run the block, print how the exercise stands, and never stop a notebook's "Run All".

    Prints one of: passed; not done yet; not yet, with what is wrong; the learner's own error,
    with its line; that the cell as it was last run could not be read, so that the block ran an
    older function. Under `strict()` the error is raised instead.
    """
    problem = None if _STRICT.get() else _unread_cell()
    try:
        yield
    except Exception as error:
        if _STRICT.get():
            raise
        print(f"{name}: {problem or _verdict(error)}")
    else:
        print(f"{name}: {problem or 'passed.'}")


def expect(actual: object, expected: object, hint: str = "", atol: float = 1e-5) -> None:
    """Raise WrongAnswer, saying what differs and then `hint`, unless the two are the same.

    Each may be a string, a number, a boolean, a list, tuple, set or dictionary of these, or an
    array or tensor of any shape; a list, an array and a tensor of the same numbers are the same.
    Numbers agree when they differ by at most `atol`, or by 1e-5 of the expected one. The hint is
    about the value: it is left out where the answer is of another kind.
    """
    found = difference(actual, expected, atol)
    if found is not None:
        raise WrongAnswer(found.text + (f"\n  Hint: {hint}" if hint and found.of_value else ""))


# ---- what went wrong


def _verdict(error: Exception) -> str:
    """Say in a sentence what an error means for the exercise."""
    if isinstance(error, NotImplementedError) and str(error).endswith(STUB):
        return (
            "not done yet. Write your code in the cell above, run it, then run this cell again."
        )
    if isinstance(error, WrongAnswer):
        return f"not yet. {error}"
    frame, in_check = _learners_frame(error)
    if isinstance(error, AssertionError):
        return f"not yet. {str(error) or f'This does not hold: {frame.line}'}"
    if in_check and isinstance(error, NameError):
        return f"not yet. {error}: run the cells above, then run this cell again."
    place = f"\n  in {frame.name}, line {frame.lineno}: {frame.line}"
    what = f"{type(error).__name__}: {_cut(str(error))}"
    if in_check:
        return f"not yet. What your code returned cannot be used as it should ({what}){place}"
    return f"your code stopped with {what}{place}"


def _learners_frame(error: Exception) -> tuple[traceback.FrameSummary, bool]:
    """The innermost frame in a notebook cell, and whether it is the block of `check` itself.

    The code of a cell is in no file. The first frame is that of `check`, the second its block.
    """
    frames = traceback.extract_tb(error.__traceback__)
    cells = [i for i, frame in enumerate(frames) if not os.path.exists(frame.filename)
             and not frame.filename.startswith(NOT_CELLS)]
    return (frames[cells[-1]], cells[-1] == 1) if cells else (frames[-1], False)


def _cut(text: str) -> str:
    """At most 300 characters of a message."""
    return text if len(text) <= 300 else f"{text[:300]} ..."


# ---- the cell that was run last


def _unread_cell() -> str | None:
    """What keeps the last version of the learner's cell from being the one that is checked.

    A cell that Python cannot read, or that stops above its function, leaves an older function in
    force: without a word about it, that one would be judged. None outside of IPython.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    *cells, this = shell.history_manager.input_hist_raw if shell else [""]
    for name in dict.fromkeys(re.findall(r"\b([^\W\d]\w*)\s*\(", this)):
        function = inspect.unwrap(shell.user_ns.get(name)) if shell else None
        is_of_cell = inspect.isfunction(function) and not os.path.exists(_file(function))
        problem = _why_not_read(function, name, cells, shell) if is_of_cell else None
        if problem:
            return problem
    return None


def _why_not_read(function: Any, name: str, cells: list[str], shell: Any) -> str | None:
    """Why a function of a cell is not the one in the last cell that defines it; None if it is."""
    again = "run it, then run this cell again."
    for cell in reversed(cells):
        try:
            tree = ast.parse(shell.transform_cell(cell))
        except SyntaxError as error:
            if _means_to_define(cell, name):
                place = f"\n  line {error.lineno}: {(error.text or '').strip()}"
                return (f"not yet. Python cannot read your cell, so it was not run "
                        f"({type(error).__name__}: {error.msg}); mend it, {again}{place}")
            continue
        if any(isinstance(part, ast.FunctionDef) and part.name == name for part in tree.body):
            return None if _source(function) in cell else (
                f"not yet. Your cell stopped before it reached {name}, so an older one was asked; "
                f"mend what its error message names, {again}")
    return None


def _file(function: Any) -> str:
    """The name of the file a function is from, which for a cell is a made-up one."""
    return function.__code__.co_filename


def _source(function: Any) -> str:
    """The source of a function, "" where it cannot be had."""
    try:
        return inspect.getsource(function).strip()
    except (OSError, TypeError):
        return ""


def _means_to_define(cell: str, name: str) -> bool:
    """True for a cell with a line that defines a function, if in a misspelt way ("deff f(x):")."""
    words = re.findall(rf"^\s*(\w+)\s+{name}\b", cell, re.MULTILINE)
    return any(word == "def" or not keyword.iskeyword(word) for word in words)
