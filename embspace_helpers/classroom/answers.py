"""How a learner's answer differs from the expected one, in a sentence."""

import numbers
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import numpy as np


class Difference(NamedTuple):
    """What differs, in a sentence; `of_value`: the answer is of the right kind, its value wrong."""

    text: str
    of_value: bool = True


def difference(actual: object, expected: object, atol: float = 1e-5) -> Difference | None:
    """The first difference between two answers, None if there is none.

    Strings, sets and dictionaries are compared with their like; sequences of numbers, arrays and
    tensors with one another; other sequences item by item.
    """
    if actual is None and expected is not None:
        return Difference(f"Your code returned nothing (None), it should be {short(expected)}: is "
                          "a `return` missing?", of_value=False)
    if expected is None or isinstance(expected, str):
        return _unless(_same(actual, expected), actual, expected)
    if isinstance(expected, Mapping):
        return _mappings_differ(actual, expected, atol)
    if isinstance(expected, Set):
        items = {_plain(item) for item in actual} if isinstance(actual, Set) else actual
        return _unless(_same(items, {_plain(item) for item in expected}), actual, expected)
    array = _array(expected)
    if array is None or (isinstance(expected, list | tuple) and not expected):
        return _sequences_differ(actual, expected, atol)
    return _numbers_differ(actual, array, atol)


def short(value: object) -> str:
    """A value in at most some 80 characters; arrays and tensors as the lists they hold."""
    array = _array(value) if hasattr(value, "__array__") else None
    if array is not None and array.size > 20:
        return f"{type(value).__name__} of shape {tuple(array.shape)}"
    if array is not None:
        value = np.round(array, 6).tolist() if array.dtype.kind == "f" else array.tolist()
    text = f"{value:.7g}" if isinstance(value, float) else " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-16:]}"


# ---- kinds of answers


def _same(actual: object, expected: object) -> bool:
    """Equality that is a boolean for arrays and tensors as well: these equal no other kind."""
    plain = _plain(actual)
    return not hasattr(plain, "__array__") and bool(plain == expected)


def _unless(same: bool, actual: object, expected: object) -> Difference | None:
    if same:
        return None
    alike = isinstance(actual, type(expected)) or isinstance(expected, type(actual))
    return Difference(f"The answer is {short(actual)}, not {short(expected)}.", of_value=alike)


def _mappings_differ(actual: object, expected: Mapping, atol: float) -> Difference | None:
    """The first key that is missing, too many, or has another value."""
    if not isinstance(actual, Mapping):
        return _kind(actual, "a dictionary", expected)
    for key in expected:
        if key not in actual:
            return Difference(f"The key {short(key)} is missing, its value should be "
                              f"{short(expected[key])}.")
        if found := difference(actual[key], expected[key], atol):
            return found._replace(text=f"At the key {short(key)}: {found.text}")
    more = [key for key in actual if key not in expected]
    return Difference(f"The key {short(more[0])} should not be there; the keys should be "
                      f"{short(list(expected))}.") if more else None


def _sequences_differ(actual: object, expected: object, atol: float) -> Difference | None:
    """The first item that differs, of sequences that are no arrays of numbers."""
    wanted = _items(expected)
    if wanted is None:
        return _unless(_same(actual, expected), actual, expected)
    mine, strings = _items(actual), bool(wanted) and all(isinstance(w, str) for w in wanted)
    if mine is None:
        return _kind(actual, "a list of strings" if strings else "a list", expected)
    for index, (one, right) in enumerate(zip(mine, wanted, strict=False)):
        found = difference(one, right, atol)
        if found and isinstance(right, str):
            return Difference(f"Item {index} is {short(one)}, it should be {short(right)}.")
        if found:
            return found._replace(text=f"Item {index}: {found.text}")
    if len(mine) != len(wanted):
        return Difference(f"The list has {len(mine)} items, it should have {len(wanted)}: it is "
                          f"{short(mine)}, it should be {short(wanted)}.")
    return None


def _numbers_differ(actual: object, expected: np.ndarray, atol: float) -> Difference | None:
    """The first place where two arrays of numbers or booleans differ."""
    array, kinds = _array(actual), "b" if expected.dtype.kind == "b" else "biuf"
    if array is None or (array.dtype.kind not in kinds and array.size):
        wanted = "True or False" if kinds == "b" else "numbers" if expected.ndim else "a number"
        return _kind(actual, wanted, expected)
    if array.shape != expected.shape:
        return Difference(f"The shape is {array.shape}, it should be {expected.shape}: the answer "
                          f"is {short(actual)}, it should be {short(expected)}.")
    close = np.isclose(array.astype(float), expected.astype(float), atol=atol, equal_nan=True)
    if close.all():
        return None
    index = tuple(int(i) for i in np.argwhere(~close)[0])
    place = f"At index {index[0] if len(index) == 1 else index} the" if index else "The"
    return Difference(f"{place} value is {_digits(array[index])}, it should be "
                      f"{_digits(expected[index])}.")


def _kind(actual: object, wanted: str, expected: object) -> Difference:
    """The answer is of another kind than it should be."""
    return Difference(f"The answer is {short(actual)} ({type(actual).__name__}), it should be "
                      f"{wanted}: {short(expected)}.", of_value=False)


# ---- values of any library


def _plain(value: object) -> object:
    """A number of NumPy or torch as one of Python; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _items(values: Any) -> list | None:
    """The items of a list, tuple or array; None for what is no sequence."""
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    is_array = hasattr(values, "tolist") and getattr(values, "ndim", 0) > 0
    return list(values.tolist()) if is_array else None


def _array(values: Any) -> np.ndarray | None:
    """Numbers of any kind as an array: tensors of any type and device, lists of them, scalars.

    None for a ragged list and for what holds something else than numbers.
    """
    if isinstance(values, list | tuple) and any(
            isinstance(value, list | tuple) or hasattr(value, "detach") for value in values):
        values = [_array(value) for value in values]
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):
        return None
    if array.dtype.kind == "O" and all(isinstance(x, numbers.Real) for x in array.flat):
        array = array.astype(float)  # whole numbers beyond 64 bits, fractions
    return array if array.dtype.kind in "biuf" else None


def _digits(value: np.generic) -> str:
    """Write a number in at most seven digits."""
    return f"{value:.7g}" if value.dtype.kind == "f" else str(value)
