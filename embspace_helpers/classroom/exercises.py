"""Exercises in a notebook: `check` runs a learner's code and says what is wrong, `expect` compares.

    with check("Exercise 1.2"):
        expect(double(3), 6, hint="Twice the number, whatever the number.")
"""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

STUB = "your code here"  # how the NotImplementedError of an untouched exercise ends
_STRICT = ContextVar("strict", default=False)


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
    with its line. Under `strict()` the error is raised instead.
    """
    try:
        yield
    except Exception as error:
        if _STRICT.get():
            raise
        print(f"{name}: {_verdict(error)}")
    else:
        print(f"{name}: passed.")


def _verdict(error: Exception) -> str:
    """Say in a sentence what an error means for the exercise."""
    if isinstance(error, NotImplementedError) and str(error).endswith(STUB):
        return (
            "not done yet. Write your code in the cell above, run it, then run this cell again."
        )
    frame = _learners_frame(error)
    if isinstance(error, AssertionError):
        return f"not yet. {str(error) or f'This does not hold: {frame.line}'}"
    return (
        f"your code stopped with {type(error).__name__}: {error}\n"
        f"  in {frame.name}, line {frame.lineno}: {frame.line}"
    )


def _learners_frame(error: Exception) -> traceback.FrameSummary:
    """Return the innermost frame that is in a notebook cell: the code of a cell is in no file."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((f for f in reversed(frames) if not os.path.exists(f.filename)), frames[-1])


def expect(actual: object, expected: object, hint: str = "", atol: float = 1e-5) -> None:
    """Raise AssertionError, saying what differs and then `hint`, unless the two are the same.

    expected: a string, a set, a dictionary, a list of strings, a boolean, a number, or an array
    or tensor of any shape. Numbers agree when they differ by at most `atol`, or by 1e-5 of the expected one.
    """
    if actual is None:
        problem = "Your code returned nothing (None): is a `return` missing?"
    elif isinstance(expected, str | set | dict):
        problem = "" if actual == expected else f"The answer is {actual!r}, not {expected!r}."
    elif _is_strings(expected):
        problem = _strings_differ(actual, list(expected))
    else:
        problem = _numbers_differ(actual, _array(expected), atol)
    if problem:
        raise AssertionError(f"{problem} {hint}".strip())


def _is_strings(values: object) -> bool:
    """True for a list or tuple that holds strings, at least one, and nothing else."""
    return isinstance(values, list | tuple) and bool(values) and all(
        isinstance(value, str) for value in values
    )


def _array(values: object) -> np.ndarray:
    """Return numbers of any kind as an array: tensors of any type and device, lists, scalars."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    return np.asarray(values)


def _strings_differ(actual: object, expected: list[str]) -> str:
    """Name the first difference of two lists of strings, "" if there is none."""
    if not isinstance(actual, list | tuple):
        return f"The answer is of type {type(actual).__name__}, it should be a list of strings."
    for index, (mine, right) in enumerate(zip(actual, expected, strict=False)):
        if mine != right:
            return f"Item {index} is {mine!r}, it should be {right!r}."
    if len(actual) != len(expected):
        return f"The list has {len(actual)} items, it should have {len(expected)}."
    return ""


def _numbers_differ(actual: object, expected: np.ndarray, atol: float) -> str:
    """Name the first difference of two arrays of numbers or booleans, "" if there is none."""
    try:
        array = _array(actual)
    except ValueError:  # a ragged list
        array = np.asarray(None)
    kinds = "b" if expected.dtype.kind == "b" else "biuf"
    if array.dtype.kind not in kinds:
        wanted = "True or False" if kinds == "b" else "numbers"
        return f"The answer is {actual!r} ({type(actual).__name__}), it should be {wanted}."
    if array.shape != expected.shape:
        return f"The shape is {array.shape}, it should be {expected.shape}."
    close = np.isclose(array.astype(float), expected.astype(float), atol=atol, equal_nan=True)
    if close.all():
        return ""
    index = tuple(int(i) for i in np.argwhere(~close)[0])
    place = f"At index {index[0] if len(index) == 1 else index} the" if index else "The"
    return f"{place} value is {_show(array[index])}, it should be {_show(expected[index])}."


def _show(value: np.generic) -> str:
    """Write a number in at most seven digits."""
    return f"{value:.7g}" if value.dtype.kind == "f" else str(value)
