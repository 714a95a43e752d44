"""Which numbers of a model's own forward pass do the views of its parameters reproduce?

The tests check every architecture on small random models. This checks the model in front of you:
one text runs through it, hooks keep what its modules take in and give out, and the paper's formulas
compute the same from `Parameters`. What does not agree must not be read.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor, nn

from embspace_helpers.reading.activations import Hook, hooked
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.patterns import attention_weights
from embspace_helpers.reading.precision import in_float32

LENGTH = 48  # tokens of the text, below every sliding window
Found = tuple[str, str, Tensor, Tensor]  # what, the formula, the model's numbers, the views'


@torch.no_grad()
def guarantees(model: Model, text: str) -> pd.DataFrame:
    """Agreement of the views with the model's own numbers on a text, a row for each formula.

    Agreement is 1 - |own - views|² / |own - mean|², of the layer where it is worst: 1 where the
    views are exact. `numbers`: how many were compared. Rows that a model cannot have are left
    out: logits of an encoder, attention of MPNet. Raises ValueError as `tokenize` does.
    """
    worst: dict[str, tuple[str, float, int]] = {}
    for what, formula, own, views in _compared(model, model.tokens([text], LENGTH)[0]):
        off = (own - views).double().square().sum() / (own - own.mean()).double().square().sum()
        _, before, n = worst.get(what, ("", 1.0, 0))
        worst[what] = formula, min(before, 1 - off.item()), n + own.numel()
    rows = [(what, *found) for what, found in worst.items()]
    return pd.DataFrame(rows, columns=["the model's own", "from the views", "agreement", "numbers"])


def _compared(model: Model, tokens: list[int]) -> Iterator[Found]:
    """Every layer's numbers, both ways, and the logits."""
    p, seen = model.parameters, {}

    def keeper(layer: int, name: str) -> Hook:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            seen[layer, name] = [x.detach().reshape(len(tokens), -1).to(p.E.dtype)
                                 for x in (inputs[0], output)]
        return hook

    hooks = [(module, keeper(layer, name), False) for layer in range(p.L)
             for name, module in _modules(model, layer).items()]
    device = next(model.model.parameters()).device
    with hooked(hooks):
        out = model.model(input_ids=torch.tensor([tokens], device=device))
    for layer in range(p.L):
        yield from _of_layer(model, layer, {name: x for (i, name), x in seen.items()
                                            if i == layer})
    if p.entry.causal and hasattr(out, "logits"):
        last = model.model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0]
        yield "logits", "h E_out + b", out.logits[0], p.logits(last)


def _modules(model: Model, layer: int) -> dict[str, nn.Module]:
    """The modules whose numbers are compared."""
    p = model.parameters
    kinds = {kind: p.keys_of(layer, kind)[0] for kind in p.key_kinds}
    block = p.blocks[layer]
    return kinds | {"V": p.entry.value(block), "W_V": p.values_of(layer)[0],
                    "W_O": p.entry.output(block)}


def _of_layer(model: Model, layer: int, seen: dict[str, list[Tensor]]) -> Iterator[Found]:
    """The numbers of one layer: what the modules gave, and what the formulas give."""
    p = model.parameters
    for kind in p.key_kinds:
        x, own = seen[kind]
        bias, columns = p.b_K(layer, kind), p.keys_of(layer, kind)[1]
        name = "K" if kind == "K" else f"K_{kind}"
        yield (f"pre-activations of neurons, {name}", f"x {name}.T + b",
               own[:, columns], x @ p.K(layer, kind).T + (0 if bias is None else bias))
    activations, own = seen["V"]
    bias = p.b_V(layer)
    yield ("what the FF block writes", "activations V + b", own,
           activations @ p.V(layer) + (0 if bias is None else bias))
    x, own = seen["W_V"]
    bias = p.queries_keys_values(layer)[2].bias
    values = x @ p.W_V(layer) + (0 if bias is None else in_float32(bias)[:, None])  # (H_kv, n, d_h)
    yield ("values of heads", "y W_V + b", own[:, p.values_of(layer)[1].flatten()],
           values.transpose(0, 1).flatten(1))
    mixed, own = seen["W_O"]
    if p.entry.position != "relative":
        weights = attention_weights(model, layer, x)  # (H, n, n)
        views = weights @ values.repeat_interleave(p.H // p.H_kv, 0)  # (H, n, d_h)
        yield ("what heads bring along", "softmax(x W_QK y.T + ...) (y W_V + b)", mixed,
               views.transpose(0, 1).flatten(1))
    bias = p.b_O(layer)
    yield ("what attention writes", "the same, W_O + b", own,
           mixed @ p.W_O(layer).flatten(0, 1) + (0 if bias is None else bias))
