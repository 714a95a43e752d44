"""Rotary positions: what W_QK becomes when query and key stand some positions apart.

A rotary model turns queries and keys, pair of numbers by pair, by angles that grow with the
position. W_QK alone is the score of a token with itself, distance 0. With R the rotation by the
distance, the score is x W_Q R W_K.T y.T times `Parameters.score_scale` (Su et al., 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embspace_helpers.reading.factored import FactoredMatrix

if TYPE_CHECKING:
    from embspace_helpers.reading.model import Model


def at_distance(model: Model, layer: int, head: int, distance: int,
                fold_norm: bool = False) -> FactoredMatrix:
    """The interaction matrix of a head, (d, d), for a query `distance` positions behind the key.

    0 gives `W_QK`; a negative distance is that of a key behind the query, which encoders see.
    Raises ValueError for a model without rotary positions.
    """
    p = model.parameters
    if p.entry.position != "rotary":
        raise ValueError(f"{p.architecture} has {p.entry.position} positions, which do not turn "
                         "queries and keys: its W_QK is the same at any distance")
    W_Q, W_K = p.W_Q(layer, head, fold_norm), p.W_K(layer, head, fold_norm)  # (d, d_h)
    left = turned(model, layer, W_Q, max(distance, 0))
    return FactoredMatrix(left, turned(model, layer, W_K, max(-distance, 0)).T)


@torch.no_grad()
def turned(model: Model, layer: int, rows: Tensor, position: int) -> Tensor:
    """Queries or keys (n, d_h) as a rotary model turns them at a position, counted from 0.

    Numbers of a head beyond those that are turned stay as they are.
    """
    entry, base = model.parameters.entry, model.model.base_model
    cos, sin = entry.rotation(base, layer, rows, torch.tensor([[position]]))  # (pairs,)
    if cos is None:
        return rows
    n = 2 * len(cos)
    first, second = ((slice(0, n, 2), slice(1, n, 2)) if entry.interleaved else
                     (slice(0, n // 2), slice(n // 2, n)))  # the numbers of a pair
    found = rows.clone()
    found[:, first] = rows[:, first] * cos - rows[:, second] * sin
    found[:, second] = rows[:, second] * cos + rows[:, first] * sin
    return found
