"""Attention weights from the paper's parameters: where a head looks, given what its block reads.

With W_Q, W_K, their biases and the rotation of positions they are the model's own. Without biases
and without positions they are what W_QK alone says (Dar et al., 2023, section 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embspace_helpers.reading.activations import Hook, hooked, run
from embspace_helpers.reading.arrays import as_vectors
from embspace_helpers.reading.precision import in_float32
from embspace_helpers.reading.rotation import turned

if TYPE_CHECKING:
    from embspace_helpers.reading.model import Model


@torch.no_grad()
def attention_reads(model: Model, text: str, length: int = 256) -> list[Tensor]:
    """What the attention block of every layer reads at all positions of a text: L of (n, d).

    At most `length` tokens. Raises ValueError as `tokenize` does.
    """
    p, found = model.parameters, []

    def keep(module: torch.nn.Module, inputs: tuple) -> None:
        found.append(inputs[0][0].detach().to(p.E.dtype))

    hook: Hook = keep
    with hooked([(p.reader(layer, "attention"), hook, True) for layer in range(p.L)]):
        run(model, [model.tokens([text], length)[0]])
    return found


@torch.no_grad()
def attention_weights(model: Model, layer: int, states: Tensor, *, biases: bool = True,
                      positions: bool = True) -> Tensor:
    """Attention weights (H, n, n) of a layer's heads over one text: rows look, columns are seen.

    `states` (n, d): what the attention block reads at all n positions, behind its norm; n must be
    below a sliding window. Without `biases` queries and keys are x W_Q and x W_K. Without
    `positions` those of a rotary model are not turned: every pair meets at distance 0. Raises
    ValueError for MPNet, which adds a number for each distance to the scores.
    """
    p = model.parameters
    if p.entry.position == "relative":
        raise ValueError(f"{p.architecture} adds a number for each distance to its scores: they "
                         "cannot be had from W_Q and W_K alone")
    states = as_vectors(states, p.d, p.E.dtype)
    block, parts = p.blocks[layer], p.queries_keys_values(layer)
    norms = p.entry.query_norm(block), p.entry.key_norm(block)
    q, k = (_met(model, layer, states, which, parts[which].bias if biases else None, norms[which],
                 positions) for which in (0, 1))  # (H, n, d_h), (H_kv, n, d_h)
    scores = p.score_scale * q @ k.repeat_interleave(p.H // p.H_kv, 0).mT
    if p.score_cap is not None:
        scores = p.score_cap * (scores / p.score_cap).tanh()
    if p.entry.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1)


def _met(model: Model, layer: int, states: Tensor, which: int, bias: Tensor | None,
         norm: torch.nn.Module | None, positions: bool) -> Tensor:
    """Queries (`which` 0) or keys (1) as they meet, (heads, n, d_h)."""
    p = model.parameters
    rows = states @ (p.W_Q, p.W_K)[which](layer)  # (heads, n, d_h)
    rows = rows if bias is None else rows + in_float32(bias)[:, None]
    if norm is not None:  # of each head alone, or of all side by side
        alone = norm.weight.numel() == p.d_h
        rows = norm(rows) if alone else norm(rows.transpose(0, 1).flatten(1)).unflatten(
            -1, (-1, p.d_h)).transpose(0, 1)
    if positions and p.entry.position == "rotary":
        rows = torch.stack([turned(model, layer, rows[:, i], i) for i in range(len(states))], 1)
    return rows
