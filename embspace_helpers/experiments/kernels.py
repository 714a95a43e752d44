"""Translations of one model's stream into another's: the paper's kernel and what mends it.

Dar et al. (2023), section 5.2: a state h of the host B is taken into the vocabulary with B's
embeddings and back out with the pseudo-inverse of A's, h E_B E_A^+. States are rows, so the kernel
K = E_B E_A^+ is (d_B, d_A). The other recipes also take states: of any text, or paired ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embspace_helpers.reading.arrays import as_model, one_thread
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.shared_tokens import shared_tokens


@dataclass(frozen=True)
class Translation:
    """An affine map of states, h -> h @ matrix + offset: `matrix` (d_B, d_A), `offset` (d_A,)."""

    matrix: Tensor
    offset: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """The states (..., d_B) in the other model's space, (..., d_A), in their own precision."""
        if states.shape[-1] != len(self.matrix):
            raise ValueError(f"states of size {states.shape[-1]} and a kernel for size "
                             f"{len(self.matrix)}: they belong to different hosts")
        return states @ self.matrix.to(states) + self.offset.to(states)


def common_embeddings(host: Model, guest: Model) -> tuple[Tensor, Tensor, Tensor]:
    """E_B (d_B, m) and E_A (d_A, m) over the m tokens that both have, and A's ids of these (m,).

    The output embeddings, as the stream is written towards these. Raises ValueError where no token
    is shared.
    """
    host, guest = as_model(host), as_model(guest)
    E_B, E_A = host.parameters.E_out, guest.parameters.E_out
    if host.vocabulary.shown == guest.vocabulary.shown:
        return E_B, E_A, torch.arange(E_A.shape[1])
    ids_B, ids_A = shared_tokens(host, guest)
    return E_B[:, ids_B], E_A[:, ids_A], ids_A


def embedding_kernel(host: Model, guest: Model, weights: Tensor | None = None) -> Translation:
    """The paper's kernel E_B E_A^+: through the vocabulary of `host` B into `guest` A's space.

    h E_B E_A^+ is the state of A whose scores over the vocabulary are nearest to those of h.
    `weights` (e_A,), of A's tokens: how much each counts in that distance, such as its frequency.
    """
    E_B, E_A, ids = common_embeddings(host, guest)
    w = torch.ones(len(ids)) if weights is None else weights[ids]
    return _plain(solve(E_A, w, E_B).T)


def word_kernel(host: Model, guest: Model, weights: Tensor | None = None) -> Translation:
    """The linear map that takes every token's embedding in B nearest to its embedding in A.

    Another reading of "through the vocabulary": E_B.T K is fitted to E_A.T by least squares.
    """
    E_B, E_A, ids = common_embeddings(host, guest)
    w = torch.ones(len(ids)) if weights is None else weights[ids]
    return _plain(solve(E_B, w, E_A))


def solve(E: Tensor, weights: Tensor, target: Tensor, chunk: int = 4096) -> Tensor:
    """(E W E.T)^-1 E W target.T, (d, d'), for E (d, m), weights (m,) and target (d', m).

    Sums run in float64 over chunks of columns: exact enough, without copies of E in it.
    """
    left = E.new_zeros(len(E), len(E), dtype=torch.float64)
    right = E.new_zeros(len(E), len(target), dtype=torch.float64)
    weights = weights.to(E.device)
    for e, w, t in zip(E.split(chunk, 1), weights.split(chunk), target.split(chunk, 1)):
        weighted = e.double() * w.double()
        left += weighted @ e.double().T
        right += weighted @ t.double().T
    with one_thread():
        return torch.linalg.solve(left, right)


def _plain(matrix: Tensor) -> Translation:
    return Translation(matrix.float(), matrix.new_zeros(matrix.shape[1], dtype=torch.float32))


# ---------------------------------------------------------------- with states


def matched(kernel: Translation, host_states: Tensor, guest_states: Tensor) -> Translation:
    """The kernel, then one scale and a shift that give the translated states A's mean and size.

    `host_states` (n, d_B) and `guest_states` (m, d_A) may come from different texts. Size is the
    root of the mean squared distance from the mean.
    """
    here = kernel(host_states.double())
    there = guest_states.double()
    scale = (there - there.mean(0)).norm() / len(there) ** 0.5
    scale = scale / ((here - here.mean(0)).norm() / len(here) ** 0.5)
    matrix = kernel.matrix.double() * scale
    offset = there.mean(0) + (kernel.offset.double() - here.mean(0)) * scale
    return Translation(matrix.float(), offset.float())


def fitted(host_states: Tensor, guest_states: Tensor, ridge: float = 1e-4,
           chunk: int = 4096) -> Translation:
    """The affine map of least squares between paired states, (n, d_B) onto (n, d_A).

    Sums run in float64 over chunks of states. `ridge` is a share of the host states' mean
    variance. Raises ValueError for unpaired states.
    """
    if len(host_states) != len(guest_states):
        raise ValueError(f"{len(host_states)} states of the host and {len(guest_states)} of the "
                         "guest: they must be of the same positions, pair by pair")
    x, y = (states.mean(0, dtype=torch.float64) for states in (host_states, guest_states))
    gram, cross = x.new_zeros(len(x), len(x)), x.new_zeros(len(x), len(y))
    for X, Y in zip(host_states.split(chunk), guest_states.split(chunk)):
        X = X - x  # in float64
        gram += X.T @ X
        cross += X.T @ (Y - y)
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    with one_thread():
        matrix = torch.linalg.solve(gram, cross)
    return Translation(matrix.float(), (y - x @ matrix).float())


# ---------------------------------------------------------------- controls


def shuffled_kernel(host: Model, guest: Model, seed: int = 0) -> Translation:
    """The paper's kernel with the vocabulary shuffled: every word is taken for another one."""
    E_B, E_A, ids = common_embeddings(host, guest)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    return _plain(solve(E_A, torch.ones(len(ids)), E_B[:, order]).T)


def random_kernel(like: Translation, seed: int = 0) -> Translation:
    """A kernel of independent normal entries with the Frobenius norm of `like`'s."""
    drawn = torch.randn(like.matrix.shape, generator=torch.Generator().manual_seed(seed))
    drawn = drawn.to(like.matrix)
    return Translation(drawn * like.matrix.norm() / drawn.norm(), torch.zeros_like(like.offset))
