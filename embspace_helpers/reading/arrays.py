"""Numbers in and out: vectors of any kind become tensors, counts are checked, sums are exact."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from inspect import getattr_static
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: small operations on several stall where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def gram(E: Tensor, chunk: int = 4096) -> Tensor:
    """E E.T, (d, d), summed in float64 over chunks of columns: exact enough to be inverted."""
    zero = torch.zeros(len(E), len(E), dtype=torch.float64, device=E.device)
    return sum(((part := c.double()) @ part.T for c in E.split(chunk, dim=1)), zero)


def row_sums(E: Tensor, chunk: int = 4096) -> Tensor:
    """The sums of E's rows, (d,), in float64, without a copy of E in it."""
    return torch.stack([c.sum(1, dtype=torch.float64) for c in E.split(chunk, dim=1)]).sum(0)


def all_finite(x: Tensor, chunk: int = 2**20) -> bool:
    """Whether no entry is NaN or infinite; `x.isfinite()` takes memory for copies of x."""
    x = x.T if x.ndim == 2 and x.T.is_contiguous() else x
    parts = (c.float() if c.element_size() < 4 else c for c in x.flatten().split(chunk) if len(c))
    return all(bool(end.isfinite()) for part in parts for end in part.aminmax())


def as_vectors(x: Any, d: int, dtype: torch.dtype = torch.float32, name: str = "") -> Tensor:
    """Return x as a tensor (d,) or (n, d) of `dtype`: a tensor, numpy array or lists of numbers.

    Raises ValueError, which names what was given, for other kinds and shapes, NaN and infinity.
    """
    if not isinstance(x, Tensor):
        try:
            x = torch.from_numpy(np.array(x))  # a copy: pandas' arrays may be locked
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"expected vectors of numbers, (d,) or (n, d) with d = {d}, got{name} "
                             f"{type(x).__name__} {str(x)[:40]!r}") from None
    if x.is_complex():
        raise ValueError(f"the vectors{name} have complex entries: take their real part")
    x = x.detach().to(dtype)
    if x.ndim not in (1, 2) or x.shape[-1] != d:
        raise ValueError(f"expected vectors (d,) or (n, d) with d = {d}, got{name} of shape "
                         f"{tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError(f"the vectors{name} have NaN or infinite entries")
    return x


def as_vector(x: Any, d: int, dtype: torch.dtype = torch.float32, name: str = "") -> Tensor:
    """Return x as one vector (d,); ValueError as `as_vectors`, and for more than one."""
    x = as_vectors(x, d, dtype, name)
    if x.ndim != 1:
        raise ValueError(f"expected one vector (d,), got{name} of shape {tuple(x.shape)}: "
                         "choose a row")
    return x


def as_count(k: Any, most: int | None = None, name: str = "k", things: str = "tokens",
             least: int = 1) -> int:
    """Return k as an int from `least` to `most` (None: no limit); 5.0 counts as 5.

    Raises ValueError that says what was given and how many `things` there are.
    """
    whole = isinstance(k, Integral) or (isinstance(k, float) and k.is_integer()) or (
        isinstance(k, Tensor) and k.ndim == 0 and float(k).is_integer())
    wanted = f"at least {least}" if most is None else (
        f"between {least} and the {most} {things} there are")
    if isinstance(k, bool) or not whole:
        raise ValueError(f"{name} = {k!r}, but it must be a whole number, {wanted}")
    if int(k) < least or (most is not None and int(k) > most):
        raise ValueError(f"{name} = {int(k)}, but it must be {wanted}")
    return int(k)


def as_index(i: Any, n: int, thing: str, where: str = "") -> int:
    """Return i as an int from 0 to n - 1. Raises ValueError that says which there are."""
    whole = (isinstance(i, Integral) and not isinstance(i, bool)) or (
        isinstance(i, Tensor) and i.ndim == 0 and not i.is_floating_point())
    if not whole or not 0 <= int(i) < n:
        given = int(i) if whole else repr(i)
        raise ValueError(f"no {thing} {given}{where}: {thing}s are 0 to {n - 1}")
    return int(i)


def as_mask(mask: Any, e: int, name: str = "keep") -> Tensor:
    """Return a mask of e tokens as a tensor of bool. Raises ValueError for what is none."""
    known = isinstance(mask, Tensor | np.ndarray)
    if not known or tuple(mask.shape) != (e,) or "bool" not in str(mask.dtype):
        given = f"{mask.dtype} of shape {tuple(mask.shape)}" if known else type(mask).__name__
        raise ValueError(f"{name} must be a mask of shape ({e},), got {given}: "
                         "Vocabulary.keep(...) makes one, of words with only=[...]")
    return mask if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))


def as_texts(texts: Sequence[str] | str) -> list[str]:
    """Return texts as a list; one text alone as a list of one. Raises ValueError for all else."""
    texts = [texts] if isinstance(texts, str) else texts
    texts = list(texts) if isinstance(texts, Iterable) else texts
    if not texts or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"expected texts, a list of strings, got {str(texts)[:60]!r}")
    return texts


def as_model(x: Any) -> Any:
    """Return x if it is a `Model`; ValueError that says how to get one from what was given."""
    if all(getattr_static(x, name, None) is not None for name in ("parameters", "vocabulary")):
        return x  # looked up without being made
    if isinstance(x, str):
        raise ValueError(f"expected a loaded model, got the name {x!r}: model = load({x!r})")
    raise ValueError(f"expected a Model, as load(name) gives it, got {type(x).__name__}: of a "
                     "`transformers` model and its tokenizer, Model(model, tokenizer) makes one")
