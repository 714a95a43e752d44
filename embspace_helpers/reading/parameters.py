"""Every parameter of a Transformer in the paper's shapes, whatever the architecture.

`Parameters(model)` gives E, K, V, W_Q, W_K, W_V, W_O and the norms' gains as views of the model's
own weights (no copy unless said so, no gradient). How a family of models stores them is said in
one place: the table `ARCHITECTURES`. To teach the helper a new family, add one entry.

Shapes follow Dar et al. (2023), section 2: d hidden size, e vocabulary size, L layers, H heads,
d_h = head size, d_ff = FF size; vectors are rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
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


def thirds(fused: Affine) -> tuple[Affine, Affine, Affine]:
    """Cut a fused query-key-value map (3 d, d) into its three (d, d) parts."""
    return tuple(Affine(*part) for part in zip(fused.weight.chunk(3), fused.bias.chunk(3)))


@dataclass(frozen=True)
class Architecture:
    """Where one family keeps its weights: functions of the base model `m` or of one layer `b`.

    `queries_keys_values(b)` gives three modules, or one that computes all three side by side;
    `keys(b)` one per kind of FF key.
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
    ),
}


def architecture_of(model: nn.Module) -> tuple[str, Architecture]:
    """Return (name, table entry) for a `transformers` model; ValueError if the table has none."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    for name, entry in ARCHITECTURES.items():
        if kind in entry.model_types:
            return name, entry
    known = ", ".join(t for entry in ARCHITECTURES.values() for t in entry.model_types)
    raise ValueError(f"no architecture entry for model type {kind!r}: the table in "
                     f"embspace_helpers/reading/parameters.py knows {known}; a new family is one entry")


class Parameters:
    """The parameters of `model` in the paper's shapes.

    Attributes: `E` (d, e) input embeddings, one column per vocabulary item; `E_out` (d, e) output
    embeddings, the same tensor if `tied` (or if the model has none, as a bare encoder). It turns
    the last state, behind the final norm, into logits; but BERT's masked-LM head, a dense layer,
    GELU and a norm that are not shown here, stands between the last state and E_out. Sizes `d`,
    `e`, `L`, `H`, `H_kv` (key-value heads), `d_h`, `d_ff`; `key_kinds`, ("K",) or ("gate", "up");
    `groups`, every name that `vectors` takes; `blocks`, the L layers, modules to hook.

    Raises ValueError for an architecture outside the table or for weights that are not finite.
    """

    def __init__(self, model: nn.Module):
        self.architecture, self.entry = architecture_of(model)
        base, config = model.base_model, model.config
        self._base, self.blocks = base, list(self.entry.layers(base))
        self.E = self.entry.embedding(base).detach().T  # (d, e)
        head = model.get_output_embeddings()
        self.E_out = self.E if head is None else head.weight.detach().T  # (d, e)
        self.tied = self.E_out.data_ptr() == self.E.data_ptr()
        self.d, self.e = self.E.shape
        self.L, self.H = len(self.blocks), config.num_attention_heads
        q, k, _ = self._queries_keys_values(0)
        self.d_h = q.weight.shape[0] // self.H
        self.H_kv = k.weight.shape[0] // self.d_h
        self.d_ff = affine(self.entry.value(self.blocks[0])).weight.shape[1]
        self.key_kinds = tuple(self.entry.keys(self.blocks[0]))
        self.groups = (*self.key_kinds, "V", "W_Q", "W_K", "W_V", "W_O")
        bad = [name for name, p in model.named_parameters() if not p.isfinite().all()]
        if bad:
            raise ValueError(f"weights are not finite (NaN or infinity) in {', '.join(bad[:3])}"
                             f"{' and more' if len(bad) > 3 else ''}: the file may be damaged")

    def __repr__(self) -> str:
        kv = f" ({self.H_kv} key-value heads)" if self.H_kv != self.H else ""
        return (f"{self.architecture}: L={self.L} layers, H={self.H} heads{kv}, d={self.d}, "
                f"d_h={self.d_h}, d_ff={self.d_ff}, e={self.e}, FF keys: "
                f"{' and '.join(self.key_kinds)}, embeddings {'' if self.tied else 'not '}tied")

    # ---- feed-forward

    def K(self, layer: int, kind: str | None = None, fold_norm: bool = False) -> Tensor:
        """FF keys, (d_ff, d): row i is what neuron i looks for.

        A gated FF has two, `kind` "gate" and "up"; without `kind` the first. With `fold_norm`
        the norm in front is folded in (see `fold`).
        """
        weight = self._keys(layer, kind).weight.detach()
        return self.fold(weight, self.ff_norm(layer)) if fold_norm else weight

    def b_K(self, layer: int, kind: str | None = None) -> Tensor | None:
        """Bias of the FF keys, (d_ff,), or None. (Not that of attention keys, of W_K.)"""
        return _detached(self._keys(layer, kind).bias)

    def V(self, layer: int) -> Tensor:
        """FF values, (d_ff, d): row i is what neuron i writes."""
        return affine(self.entry.value(self._block(layer))).weight.detach().T

    def b_V(self, layer: int) -> Tensor | None:
        """Bias of the FF values, (d,), or None: what the FF block writes whatever it reads."""
        return _detached(self.entry.value(self._block(layer)).bias)

    # ---- attention

    def W_Q(self, layer: int, head: int | None = None, fold_norm: bool = False) -> Tensor:
        """Query weights, (H, d, d_h), or of one head, (d, d_h)."""
        return self._heads(0, layer, head, fold_norm)

    def W_K(self, layer: int, head: int | None = None, fold_norm: bool = False) -> Tensor:
        """Key weights, (H_kv, d, d_h), or those that query head `head` meets, (d, d_h)."""
        return self._heads(1, layer, head, fold_norm)

    def W_V(self, layer: int, head: int | None = None, fold_norm: bool = False) -> Tensor:
        """Value weights, (H_kv, d, d_h), or those that query head `head` moves, (d, d_h)."""
        return self._heads(2, layer, head, fold_norm)

    def W_O(self, layer: int, head: int | None = None) -> Tensor:
        """Output weights, (H, d_h, d), or of one head, (d_h, d)."""
        weight = affine(self.entry.output(self._block(layer))).weight.detach().T  # (H d_h, d)
        stacked = weight.unflatten(0, (self.H, self.d_h))
        return stacked if head is None else stacked[self._head(head)]

    def b_O(self, layer: int) -> Tensor | None:
        """Bias of the attention block's output, (d,), or None."""
        return _detached(self.entry.output(self._block(layer)).bias)

    def W_QK(self, layer: int, head: int, fold_norm: bool = False) -> tuple[Tensor, Tensor]:
        """Factors (W_Q, W_K), each (d, d_h), of the interaction matrix W_Q W_K.T, (d, d).

        The attention score before position and softmax is x W_QK y.T / sqrt(d_h), biases aside.
        """
        return self.W_Q(layer, head, fold_norm), self.W_K(layer, head, fold_norm)

    def W_VO(self, layer: int, head: int, fold_norm: bool = False) -> tuple[Tensor, Tensor]:
        """Factors (W_V, W_O), (d, d_h) and (d_h, d), of what a head moves, W_V W_O, (d, d)."""
        return self.W_V(layer, head, fold_norm), self.W_O(layer, head)

    def kv_head(self, head: int) -> int:
        """Return the key-value head that query head `head` uses (itself if not grouped)."""
        return self._head(head) * self.H_kv // self.H

    # ---- any group, as rows of the stream

    def vectors(self, group: str, layer: int | None = None, fold_norm: bool = False) -> Tensor:
        """Rows (n, d) of one group in one layer; of all layers stacked, (L, n, d), a copy.

        `group`: a kind of FF key or "V" (n = d_ff), or a group of subheads, "W_Q", "W_K", "W_V",
        "W_O" (n = heads x d_h, head by head). Writers ("V", "W_O") have no norm to fold.
        """
        if layer is None:
            return torch.stack([self.vectors(group, i, fold_norm) for i in range(self.L)])
        if group in self.key_kinds:
            return self.K(layer, group, fold_norm)
        if group == "V":
            return self.V(layer)
        if group == "W_O":
            return self.W_O(layer).flatten(0, 1)
        if group in ("W_Q", "W_K", "W_V"):
            heads = getattr(self, group)(layer, fold_norm=fold_norm)  # (heads, d, d_h)
            return heads.transpose(1, 2).flatten(0, 1)
        raise ValueError(f"no group {group!r} in this model: there are {', '.join(self.groups)}")

    def label(self, group: str, layer: int, index: int) -> str:
        """Name one row of `vectors`: L23N907 for a neuron, L9H6S12 for a subhead.

        Of grouped heads, H counts key-value heads for "W_K" and "W_V", else query heads.
        """
        n = len(self.vectors(group, layer))
        if not 0 <= index < n:
            raise ValueError(f"no row {index} in {group}, layer {layer}: rows are 0 to {n - 1}")
        if group in (*self.key_kinds, "V"):
            return f"L{layer}N{index}"
        return f"L{layer}H{index // self.d_h}S{index % self.d_h}"

    # ---- norms

    def attention_norm(self, layer: int) -> nn.Module | None:
        """The norm in front of the attention block; None where the stream is normed already."""
        return self.entry.attention_norm(self._block(layer)) if self.entry.norm_first else None

    def ff_norm(self, layer: int) -> nn.Module | None:
        """The norm in front of the FF block; None where the stream is normed already."""
        return self.entry.ff_norm(self._block(layer)) if self.entry.norm_first else None

    def final_norm(self) -> nn.Module | None:
        """The norm between the last state and E_out; None for BERT."""
        return self.entry.final_norm(self._base)

    def fold(self, readers: Tensor, norm: nn.Module | None) -> Tensor:
        """Fold a norm's gain (and LayerNorm's centring) into rows that read the stream, (n, d).

        With g the gain, r · norm(x) = fold(r) · x / scale(x) + constant, where fold(r) = r * g,
        less its mean for LayerNorm; scale(x) is one number for a whole state. `norm` None (BERT:
        what a block reads is normed already): the rows unchanged.
        """
        if norm is None:
            return readers
        folded = readers * norm.weight.detach()
        return folded - folded.mean(-1, keepdim=True) if self.entry.centred_norm else folded

    # ---- checks

    def _block(self, layer: int) -> nn.Module:
        if not 0 <= layer < self.L:
            raise ValueError(f"no layer {layer}: layers are 0 to {self.L - 1}")
        return self.blocks[layer]

    def _head(self, head: int) -> int:
        if not 0 <= head < self.H:
            raise ValueError(f"no head {head}: heads are 0 to {self.H - 1}")
        return head

    def _keys(self, layer: int, kind: str | None) -> Affine:
        if kind is not None and kind not in self.key_kinds:
            raise ValueError(f"no FF keys of kind {kind!r} in this model: there are "
                             f"{', '.join(self.key_kinds)}")
        return affine(self.entry.keys(self._block(layer))[kind or self.key_kinds[0]])

    def _queries_keys_values(self, layer: int) -> tuple[Affine, Affine, Affine]:
        maps = tuple(map(affine, self.entry.queries_keys_values(self._block(layer))))
        return thirds(*maps) if len(maps) == 1 else maps

    def _heads(self, which: int, layer: int, head: int | None, fold_norm: bool) -> Tensor:
        weight = self._queries_keys_values(layer)[which].weight.detach()
        if fold_norm:
            weight = self.fold(weight, self.attention_norm(layer))
        stacked = weight.unflatten(0, (-1, self.d_h)).transpose(1, 2)  # (heads, d, d_h)
        if head is None:
            return stacked
        return stacked[self._head(head) if which == 0 else self.kv_head(head)]


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
