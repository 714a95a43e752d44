"""Where each family of Transformers keeps its weights: the one table of all peculiarities.

To teach the helper a new family, add one entry to `ARCHITECTURES`; the tests then check it against
a forward pass of the real `transformers` class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Affine(NamedTuple):
    """x -> x @ weight.T + bias: weight (out, in), bias (out,) or None."""

    weight: Tensor
    bias: Tensor | None


def affine(module: nn.Module) -> Affine:
    """View a torch Linear, which stores (out, in), or GPT-2's Conv1D, which stores (in, out)."""
    turned = isinstance(module, Conv1D)
    return Affine(module.weight.T if turned else module.weight, module.bias)


@dataclass(frozen=True)
class Architecture:
    """Where one family keeps its weights: functions of the base model `m` or of one layer `b`.

    `queries_keys_values(b)` gives three modules, or one that computes all three side by side, in
    this order; `keys(b)` one per kind of FF key; `positions(m)` how many tokens a text may have.
    `norm_first`: the norms stand in front of the blocks (GPT-2, Llama) or behind them, in the
    stream itself (BERT). `rotary`: queries and keys are turned by position before they meet.
    """

    model_types: tuple[str, ...]
    embedding: Callable[[nn.Module], Tensor]  # (e, d)
    layers: Callable[[nn.Module], nn.ModuleList]
    queries_keys_values: Callable[[nn.Module], tuple[nn.Module, ...]]
    output: Callable[[nn.Module], nn.Module]
    keys: Callable[[nn.Module], dict[str, nn.Module]]
    value: Callable[[nn.Module], nn.Module]
    attention_norm: Callable[[nn.Module], nn.Module]
    ff_norm: Callable[[nn.Module], nn.Module]
    final_norm: Callable[[nn.Module], nn.Module | None]
    norm_first: bool = True
    centred_norm: bool = True  # LayerNorm subtracts the mean, RMSNorm does not
    rotary: bool = False
    positions: Callable[[nn.Module], int] = lambda m: m.config.max_position_embeddings


ARCHITECTURES = {
    "GPT-2": Architecture(
        model_types=("gpt2",),
        embedding=lambda m: m.wte.weight,
        layers=lambda m: m.h,
        queries_keys_values=lambda b: (b.attn.c_attn,),
        output=lambda b: b.attn.c_proj,
        keys=lambda b: {"K": b.mlp.c_fc},
        value=lambda b: b.mlp.c_proj,
        attention_norm=lambda b: b.ln_1,
        ff_norm=lambda b: b.ln_2,
        final_norm=lambda m: m.ln_f,
    ),
    "Llama": Architecture(
        model_types=("llama", "mistral", "qwen2"),
        embedding=lambda m: m.embed_tokens.weight,
        layers=lambda m: m.layers,
        queries_keys_values=lambda b: (b.self_attn.q_proj, b.self_attn.k_proj, b.self_attn.v_proj),
        output=lambda b: b.self_attn.o_proj,
        keys=lambda b: {"gate": b.mlp.gate_proj, "up": b.mlp.up_proj},
        value=lambda b: b.mlp.down_proj,
        attention_norm=lambda b: b.input_layernorm,
        ff_norm=lambda b: b.post_attention_layernorm,
        final_norm=lambda m: m.norm,
        centred_norm=False,
        rotary=True,
    ),
    "BERT": Architecture(
        model_types=("bert", "roberta"),
        embedding=lambda m: m.embeddings.word_embeddings.weight,
        layers=lambda m: m.encoder.layer,
        queries_keys_values=lambda b: (b.attention.self.query, b.attention.self.key,
                                       b.attention.self.value),
        output=lambda b: b.attention.output.dense,
        keys=lambda b: {"K": b.intermediate.dense},
        value=lambda b: b.output.dense,
        attention_norm=lambda b: b.attention.output.LayerNorm,
        ff_norm=lambda b: b.output.LayerNorm,
        final_norm=lambda m: None,
        norm_first=False,
        positions=lambda m: _bert_positions(m.embeddings.position_embeddings),
    ),
}


def _bert_positions(table: nn.Embedding) -> int:
    """RoBERTa's positions begin behind that of the padding, BERT's at 0."""
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def architecture_of(model: nn.Module) -> tuple[str, Architecture]:
    """Return (name, table entry) for a `transformers` model; ValueError if the table has none."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    for name, entry in ARCHITECTURES.items():
        if kind in entry.model_types:
            return name, entry
    known = ", ".join(t for entry in ARCHITECTURES.values() for t in entry.model_types)
    raise ValueError(f"no architecture entry for model type {kind!r}: the table in "
                     f"embspace_helpers/reading/architectures.py knows {known}; a new family is "
                     "one entry")
