"""Agreement of word lists, coherence, and the controls and intervals that go with them."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from embspace_helpers.reading.projection import one_thread

LEVEL = 0.95


def overlap_at_k(first: Tensor, second: Tensor) -> Tensor:
    """Share of the k items of each list in `first` (n, k) that stand in `second` (n, m): (n,)."""
    return _hits(first, second).float().mean(1)


def jaccard_at_k(first: Tensor, second: Tensor) -> Tensor:
    """Jaccard overlap |a & b| / |a | b| of paired lists without repeats, (n, k) and (n, m): (n,)."""
    both = _hits(first, second).float().sum(1)
    return both / (first.shape[1] + second.shape[1] - both)


def _hits(first: Tensor, second: Tensor, chunk: int = 256) -> Tensor:
    """Which items of each list in `first` (n, k), ids from 0 on, stand in `second` (n, m): (n, k)."""
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError("expected lists (n, k) and (n, m) with the same n, got "
                         f"{tuple(first.shape)} and {tuple(second.shape)}")
    if not first.numel() or not second.numel():
        return torch.zeros(first.shape, dtype=torch.bool)
    size = int(max(first.max(), second.max())) + 1
    return torch.cat([torch.zeros(len(a), size, dtype=torch.bool).scatter_(1, b, True).gather(1, a)
                      for a, b in zip(first.split(chunk), second.split(chunk))])


def shuffled(lists: Tensor, seed: int = 0) -> Tensor:
    """The rows of `lists` (n, k) in another order, none in its own place: the pairing control."""
    n = len(lists)
    if n < 2:
        raise ValueError(f"{n} row cannot be shuffled: at least 2 are needed")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shift = torch.empty_like(order)
    shift[order] = order.roll(1)  # one cycle through all rows: nobody stays
    return lists[shift]


def random_directions(n: int, d: int, seed: int = 0) -> Tensor:
    """n standard normal vectors (n, d): the control of every reading."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def random_rotation(d: int, seed: int = 0) -> Tensor:
    """A rotation (d, d), uniformly drawn: orthogonal, determinant 1."""
    with one_thread():
        Q, R = torch.linalg.qr(random_directions(d, d, seed))
        Q = Q * R.diagonal().sign()  # a QR decomposition alone leans towards -I (Mezzadri, 2007)
        if torch.linalg.det(Q) < 0:
            Q[:, 0] *= -1
    return Q


def mixtures(*rows: Tensor, seed: int = 1) -> list[Tensor]:
    """The same n random linear combinations of the rows of each matrix (n, d): [(n, d)].

    In expectation they have the rows' mean and covariance, and lose which row is which: what they
    show belongs to the layer, not to the single vector.
    """
    dice = random_directions(len(rows[0]), len(rows[0]), seed)  # (n, n)
    return [x.mean(0) + dice.to(x.dtype) @ (x - x.mean(0)) / len(x) ** 0.5 for x in rows]


class Judge:
    """Scores how much the words of a list belong together, in an embedding of *another* model.

    `E` (d, e) embeds the judge's items; `ids` (m,) are the ids, in the vocabulary under test, of
    the words the judge knows, `judge_ids` (m,) their ids in the judge's own (default: the same
    vocabulary). Columns are centred over these words, rid of the `remove` leading principal
    directions (frequency rather than meaning: Mu and Viswanath, 2018), and scaled to length 1.
    `keep` is the mask (size,) of the words it can judge: read with the same mask.
    """

    def __init__(self, E: Tensor, ids: Tensor, size: int, judge_ids: Tensor | None = None,
                 remove: int = 3):
        judge_ids = ids if judge_ids is None else judge_ids
        if ids.shape != judge_ids.shape:
            raise ValueError(f"{len(ids)} words under test but {len(judge_ids)} of the judge's")
        most = min(len(E), len(ids) - 1)  # directions that centred words can span
        if not 0 <= remove < most:
            raise ValueError(f"remove = {remove}, but it must be at least 0 and below {most}: "
                             f"the directions that {len(ids)} words in d = {len(E)} span")
        vectors = E.T[judge_ids]  # (m, d)
        vectors = vectors - vectors.mean(0)
        if remove:
            with one_thread():
                _, directions = torch.linalg.eigh(vectors.T @ vectors)
            top = directions[:, -remove:]
            vectors = vectors - (vectors @ top) @ top.T
        self.vectors = torch.nn.functional.normalize(vectors, dim=1)
        self.row = torch.full((size,), -1)
        self.row[ids] = torch.arange(len(ids))
        self.keep = self.row >= 0

    def coherence(self, lists: Tensor) -> Tensor:
        """Mean cosine over all pairs of each list's words; lists (n, k) of ids -> (n,).

        Raises ValueError if a list has a word the judge does not know, or fewer than 2 words.
        """
        k = lists.shape[-1]
        if lists.ndim != 2 or k < 2:
            raise ValueError(f"lists must be (n, k) with k >= 2, got {tuple(lists.shape)}")
        rows = self.row[lists]
        if (rows < 0).any():
            raise ValueError("a list has words this judge does not know: read with keep=judge.keep")
        total = torch.nn.functional.embedding_bag(rows, self.vectors, mode="sum")  # (n, d)
        return (total.square().sum(1) - k) / (k * (k - 1))


def share_above(values: Tensor, control: Tensor, quantile: float = LEVEL) -> Tensor:
    """Which of `values` (n,) lie above the quantile of `control` (m,): (n,) of 0 and 1.

    Its mean is the readable share; 1 - quantile is chance.
    """
    return (values > torch.quantile(control.float(), quantile)).float()


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
    drawn = np.random.default_rng(seed).integers(len(counts), size=(resamples, len(counts)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


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


def permutation_p_value(first: Tensor, second: Tensor, resamples: int = 2000, seed: int = 0) -> float:
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


def save_table(table: pd.DataFrame, path: Path) -> None:
    """Write results as CSV, to a neighbour first: a stop in between loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    table.to_csv(part, index=False)
    part.replace(path)
