"""Agreement of word lists, coherence, and the controls and intervals that go with them."""

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from embspace_helpers.projection import one_thread

LEVEL = 0.95


def overlap_at_k(first: Tensor, second: Tensor) -> Tensor:
    """Share of the k items of each list in `first` (n, k) that stand in `second` (n, m): (n,)."""
    _check_lists(first, second)
    return (first[:, :, None] == second[:, None, :]).any(2).float().mean(1)


def jaccard_at_k(first: Tensor, second: Tensor) -> Tensor:
    """Jaccard overlap |a & b| / |a | b| of paired lists without repeats, (n, k) and (n, m): (n,)."""
    _check_lists(first, second)
    both = (first[:, :, None] == second[:, None, :]).any(2).float().sum(1)
    return both / (first.shape[1] + second.shape[1] - both)


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


def mixtures(*rows: Tensor, seed: int = 1) -> list[Tensor]:
    """The same n random linear combinations of the rows of each matrix (n, d): [(n, d)].

    They keep the rows' mean and covariance, and lose which row is which: what they show belongs
    to the layer, not to the single vector.
    """
    dice = random_directions(len(rows[0]), len(rows[0]), seed)  # (n, n)
    return [x.mean(0) + dice @ (x - x.mean(0)) / len(x) ** 0.5 for x in rows]


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


def mean_text(values: Tensor, resamples: int = 500) -> str:
    """Mean and 95 % interval of all `values`, for tables: "0.14 (0.13–0.15)"."""
    values = values.float().flatten()
    low, high = bootstrap_interval(values, resamples)
    return f"{values.mean():.2f} ({low:.2f}–{high:.2f})"


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


def _check_lists(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError("expected lists (n, k) and (n, m) with the same n, got "
                         f"{tuple(first.shape)} and {tuple(second.shape)}")
