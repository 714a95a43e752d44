"""Agreement of word lists, and the intervals of what is measured."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from embspace_helpers.reading.files import whole_file

LEVEL = 0.95


def overlap_at_k(first: Tensor, second: Tensor) -> Tensor:
    """Share of the k tokens of each list in `first` (n, k) that are in `second` (n, m): (n,)."""
    return _hits(first, second).float().mean(1)


def jaccard_at_k(first: Tensor, second: Tensor) -> Tensor:
    """Jaccard overlap |a & b| / |a | b| of paired lists, (n, k) and (n, m): (n,).

    No list may have a token twice.
    """
    both = _hits(first, second).float().sum(1)
    return both / (first.shape[1] + second.shape[1] - both)


def _hits(first: Tensor, second: Tensor, chunk: int = 256) -> Tensor:
    """Which tokens of each list in `first` (n, k), ids, are in `second` (n, m): (n, k)."""
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError("expected lists (n, k) and (n, m) with the same n, got "
                         f"{tuple(first.shape)} and {tuple(second.shape)}")
    if first.is_floating_point() or second.is_floating_point():
        raise ValueError("lists hold token ids, whole numbers, as Space.top gives them second; "
                         f"got {first.dtype} and {second.dtype}")
    if not first.numel() or not second.numel():
        return torch.zeros(first.shape, dtype=torch.bool)
    size = int(max(first.max(), second.max())) + 1
    return torch.cat([torch.zeros(len(a), size, dtype=torch.bool).scatter_(1, b, True).gather(1, a)
                      for a, b in zip(first.split(chunk), second.split(chunk))])


def bootstrap_interval(values: Tensor, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values` (n,)."""
    data = _finite(values)
    if data.ndim != 1 or len(data) < 2:
        raise ValueError(f"an interval needs at least 2 values in one row, got shape {data.shape}")
    if data.min() == data.max():
        return float(data[0]), float(data[0])
    found = stats.bootstrap((data,), np.mean, n_resamples=resamples, confidence_level=LEVEL,
                            method="percentile", rng=np.random.default_rng(seed),
                            batch=max(1, min(200, 10**6 // len(data))))  # 16 MB at a time
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def group_interval(values: Tensor, groups: Tensor, resamples: int = 1000,
                   seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `values` (n,) that resamples whole groups.

    `groups` (n,): to which each value belongs, such as the text of a position. Values of one text
    are not independent, texts are. Raises ValueError for fewer than 2 groups.
    """
    data = _finite(values)
    _, which = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(which, data), np.bincount(which)
    if len(counts) < 2:
        raise ValueError(f"an interval needs at least 2 groups, got {len(counts)}")
    return ratio_interval(sums, counts, resamples, seed)[1:]


def ratio_interval(top: Tensor, bottom: Tensor, resamples: int = 1000,
                   seed: int = 0) -> tuple[float, float, float]:
    """sum(top) / sum(bottom) of paired values (n,), and its 95 % bootstrap interval over pairs.

    Raises ValueError for values that are not paired or fewer than 2.
    """
    top, bottom = _finite(top), _finite(bottom)
    if top.ndim != 1 or top.shape != bottom.shape or len(top) < 2:
        raise ValueError("a ratio's interval needs at least 2 pairs of values, got shapes "
                         f"{top.shape} and {bottom.shape}")
    drawn = np.random.default_rng(seed).integers(len(top), size=(resamples, len(top)))
    ratios = top[drawn].sum(1) / bottom[drawn].sum(1)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(top.sum() / bottom.sum()), float(low), float(high)


def mean_text(values: Tensor, resamples: int = 500) -> str:
    """Mean and 95 % interval of all `values`, for tables: "0.14 (0.13 to 0.15)"."""
    values = values.float().flatten()
    low, high = bootstrap_interval(values, resamples)
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})".replace("-", "−")


def count_text(hits: Tensor) -> str:
    """How many of `hits` (n,) are true, with Wilson's 95 % interval: "9 of 10 (0.60 to 0.98)"."""
    k, n = int(hits.sum()), len(hits)
    found = stats.binomtest(k, n).proportion_ci(LEVEL, method="wilson")
    return f"{k} of {n} ({found.low:.2f} to {found.high:.2f})"


def permutation_p_value(first: Tensor, second: Tensor, resamples: int = 2000,
                        seed: int = 0) -> float:
    """p-value that the mean of `first` (n,) exceeds that of `second` (m,) by chance of grouping."""
    found = stats.permutation_test(
        (_finite(first), _finite(second)),
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis), vectorized=True,
        n_resamples=resamples, alternative="greater", rng=np.random.default_rng(seed), batch=200)
    return float(found.pvalue)


def _finite(values: Tensor) -> np.ndarray:
    data = np.asarray(values, dtype=float)
    if not np.isfinite(data).all():
        raise ValueError(f"{(~np.isfinite(data)).sum()} of {data.size} values are NaN or infinite")
    return data


# ---------------------------------------------------------------- tables of results


def save_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write results as CSV, whole or not at all."""
    with whole_file(path) as part:
        table.to_csv(part, index=False)


def replace_rows(new: pd.DataFrame, path: str | Path, key: Sequence[str]) -> pd.DataFrame:
    """The rows of the CSV file `path`, if it is there, with those measured anew replaced.

    Replaced are all rows that have the same values as a row of `new` in the columns `key`. The
    result is sorted by these; rows with the same key keep their order.
    """
    if Path(path).exists():
        old = pd.read_csv(path)
        again = pd.MultiIndex.from_frame(old[[*key]]).isin(pd.MultiIndex.from_frame(new[[*key]]))
        if not again.all():
            new = pd.concat([old[~again], new])
    return new.sort_values([*key], kind="stable", ignore_index=True)
