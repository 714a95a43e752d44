"""What a result is held against: shuffled pairs, random directions, rotations and mixtures."""

import torch
from torch import Tensor

from embspace_helpers.reading.arrays import as_count, one_thread


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
    n, d = as_count(n, name="n", least=0), as_count(d, name="d")
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


def share_above(values: Tensor, control: Tensor, quantile: float = 0.95) -> Tensor:
    """Which of `values` (n,) lie above the quantile of `control` (m,): (n,) of 0 and 1.

    Its mean is the readable share; 1 - quantile is chance.
    """
    if not len(control):
        raise ValueError("the control is empty: there is nothing to be above of")
    return (values > torch.quantile(control.float(), quantile)).float()
