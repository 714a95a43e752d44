"""Every parameter of a Transformer in the paper's shapes, whatever the architecture.

`Parameters(model)` gives E, K, V, W_Q, W_K, W_V, W_O and the norms' gains as views of the model's
own weights, without gradient; weights kept in 16 bits are given in float32, a copy. How a family
stores them is said in one place, the table of `architectures`.

Shapes follow Dar et al. (2023), section 2: d hidden size, e vocabulary size, L layers, H heads,
d_h = head size, d_ff = FF size; vectors are rows.
"""

from functools import cached_property

import torch
from torch import Tensor, nn

from embspace_helpers.reading.architectures import Affine, affine, architecture_of
from embspace_helpers.reading.arrays import all_finite, as_index
from embspace_helpers.reading.factored import FactoredMatrix
from embspace_helpers.reading.files import release

GROUP_NAMES = {"K": "keys", "gate": "gate keys", "up": "up keys", "V": "values",
               "W_Q": "query subheads", "W_K": "key subheads", "W_V": "value subheads",
               "W_O": "output subheads"}  # what a reader calls the groups of `Parameters.vectors`


class Parameters:
    """The parameters of `model` in the paper's shapes.

    `E` (d, e) are the input embeddings, `E_out` (d, e) the output embeddings: the same tensor if
    `tied` (or if the model has none, as a bare encoder). E_out turns the last state, behind the
    final norm, into logits; but BERT's masked-LM head, a dense layer, GELU and a norm that are not
    shown here, stands between the last state and E_out. Attributes: sizes `d`, `e`, `L`, `H`,
    `H_kv` (key-value heads), `d_h`, `d_ff`; `key_kinds`, ("K",) or ("gate", "up"); `groups`, every
    name that `vectors` takes; `blocks`, the L layers, modules to hook.

    Raises ValueError for an architecture outside the table or for weights that are not finite.
    """

    def __init__(self, model: nn.Module):
        """Find everything by the table of architectures, and check that all is finite."""
        self.architecture, self.entry = architecture_of(model)
        self._base, self._head_module = model.base_model, model.get_output_embeddings()
        self.blocks = list(self.entry.layers(self._base))
        self.tied = self._head_module is None or (
            self._head_module.weight.data_ptr() == self.entry.embedding(self._base).data_ptr())
        self.e, self.d = self.entry.embedding(self._base).shape
        self.L, self.H = len(self.blocks), model.config.num_attention_heads
        q, k, _ = self._queries_keys_values(0)
        self.d_h = q.weight.shape[0] // self.H
        self.H_kv = k.weight.shape[0] // self.d_h
        self.d_ff = affine(self.entry.value(self.blocks[0])).weight.shape[1]
        self.key_kinds = tuple(self.entry.keys(self.blocks[0]))
        self.groups = (*self.key_kinds, "V", "W_Q", "W_K", "W_V", "W_O")
        bad = []
        for name, weights in model.named_parameters():
            bad += [] if all_finite(weights) else [name]
            release(weights)
        if bad:
            raise ValueError(f"weights are not finite (NaN or infinity) in {', '.join(bad[:3])}"
                             f"{' and more' if len(bad) > 3 else ''}: the file may be damaged")

    @cached_property
    def E(self) -> Tensor:
        """Input embeddings, (d, e), one column per token."""
        return _float32(self.entry.embedding(self._base)).T

    @cached_property
    def E_out(self) -> Tensor:
        """Output embeddings, (d, e): E itself where they are tied or there are none."""
        return self.E if self.tied else _float32(self._head_module.weight).T

    def __repr__(self) -> str:
        """Sizes at a glance."""
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
        weight = _float32(self._keys(layer, kind).weight)
        return self.fold(weight, self.ff_norm(layer)) if fold_norm else weight

    def b_K(self, layer: int, kind: str | None = None) -> Tensor | None:
        """Bias of the FF keys (not of the attention keys, W_K), (d_ff,), or None."""
        return _bias(self._keys(layer, kind))

    def V(self, layer: int) -> Tensor:
        """FF values, (d_ff, d): row i is what neuron i writes."""
        return _float32(affine(self.entry.value(self._block(layer))).weight).T

    def b_V(self, layer: int) -> Tensor | None:
        """Bias of the FF values, (d,), or None: what the FF block writes whatever it reads."""
        return _bias(self.entry.value(self._block(layer)))

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
        weight = _float32(affine(self.entry.output(self._block(layer))).weight).T  # (H d_h, d)
        stacked = weight.unflatten(0, (self.H, self.d_h))
        return stacked if head is None else stacked[self._head(head)]

    def b_O(self, layer: int) -> Tensor | None:
        """Bias of the attention block's output, (d,), or None."""
        return _bias(self.entry.output(self._block(layer)))

    def W_QK(self, layer: int, head: int, fold_norm: bool = False) -> FactoredMatrix:
        """The interaction matrix W_Q W_K.T of a head, (d, d), factored.

        The attention score before position and softmax is x W_QK y.T / sqrt(d_h), biases aside.
        """
        return FactoredMatrix(self.W_Q(layer, head, fold_norm), self.W_K(layer, head, fold_norm).T)

    def W_VO(self, layer: int, head: int, fold_norm: bool = False) -> FactoredMatrix:
        """What a head moves, W_V W_O, (d, d), factored: it reads y and writes y W_VO."""
        return FactoredMatrix(self.W_V(layer, head, fold_norm), self.W_O(layer, head))

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
        rows = len(self.vectors(group, layer))
        index = as_index(index, rows, "row", f" in {group}, layer {layer}")
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
        folded = readers * _float32(norm.weight)
        return folded - folded.mean(-1, keepdim=True) if self.entry.centred_norm else folded

    # ---- where a block reads and writes, for hooks

    @property
    def positions(self) -> int:
        """How many tokens a text may have."""
        return self.entry.positions(self._base)

    def reader(self, layer: int, reads: str = "ff") -> nn.Module:
        """The module whose input is what the FF ("ff") or attention block ("attention") reads.

        Its input is the state behind the block's norm, (batch, positions, d).
        """
        if reads not in ("ff", "attention"):
            raise ValueError(f"reads = {reads!r}: there are 'ff' and 'attention'")
        block = self._block(layer)
        if reads == "ff":
            return next(iter(self.entry.keys(block).values()))
        return self.entry.queries_keys_values(block)[0]

    def values_of(self, layer: int) -> tuple[nn.Module, slice]:
        """The module that computes x W_V + b of all key-value heads, and where in its output."""
        modules, width = self.entry.queries_keys_values(self._block(layer)), self.H_kv * self.d_h
        start = 0 if len(modules) > 1 else (self.H + self.H_kv) * self.d_h  # fused: Q, K, V
        return modules[-1], slice(start, start + width)

    # ---- checks

    def _block(self, layer: int) -> nn.Module:
        return self.blocks[as_index(layer, self.L, "layer")]

    def _head(self, head: int) -> int:
        return as_index(head, self.H, "head")

    def _keys(self, layer: int, kind: str | None) -> Affine:
        if kind is not None and kind not in self.key_kinds:
            raise ValueError(f"no FF keys of kind {kind!r} in this model: there are "
                             f"{', '.join(self.key_kinds)}")
        return affine(self.entry.keys(self._block(layer))[kind or self.key_kinds[0]])

    def _queries_keys_values(self, layer: int) -> tuple[Affine, ...]:
        maps = tuple(map(affine, self.entry.queries_keys_values(self._block(layer))))
        if len(maps) > 1:
            return maps
        weights, bias = maps[0].weight.chunk(3), maps[0].bias
        return tuple(map(Affine, weights, (None,) * 3 if bias is None else bias.chunk(3)))

    def _heads(self, which: int, layer: int, head: int | None, fold_norm: bool) -> Tensor:
        weight = self._queries_keys_values(layer)[which].weight.unflatten(0, (-1, self.d_h))
        if head is not None:
            weight = weight[self._head(head) if which == 0 else self.kv_head(head)]
        weight = _float32(weight)
        if fold_norm:
            weight = self.fold(weight, self.attention_norm(layer))
        return weight.transpose(-1, -2)  # (heads, d, d_h) or (d, d_h)


def _bias(module: nn.Module | Affine) -> Tensor | None:
    """The bias of a module, as `_float32` gives it, or None."""
    return None if module.bias is None else _float32(module.bias)


def _float32(tensor: Tensor) -> Tensor:
    """The tensor without gradient; 16-bit numbers in float32, a copy."""
    if tensor.element_size() >= 4:
        return tensor.detach()
    copy = tensor.detach().float()
    release(tensor)
    return copy
