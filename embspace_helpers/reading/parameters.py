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
from embspace_helpers.reading.precision import in_float32

GROUP_NAMES = {"K": "keys", "gate": "gate keys", "up": "up keys", "V": "values",
               "W_Q": "query subheads", "W_K": "key subheads", "W_V": "value subheads",
               "W_O": "output subheads"}  # what a reader calls the groups of `Parameters.vectors`


class Parameters:
    """The parameters of `model` in the paper's shapes.

    `E` (d, e) are the input embeddings, `E_out` (d, e) the output embeddings: the same tensor if
    `tied` (or if the model has none, as a bare encoder). E_out turns the last state, behind the
    final norm, into logits (see `logits`); but in encoders a masked-LM head, a dense layer, GELU
    and a norm that are not shown here, stands between the last state and E_out. Attributes: sizes
    `d`, `e`, `L`, `H`, `H_kv` (key-value heads), `d_h`, `d_ff`; `key_kinds`, ("K",) or ("gate",
    "up"); `groups`, every name that `vectors` takes; `blocks`, the L layers, modules to hook.
    `embedding_scale`: E times this enters the stream; `score_scale`: x W_QK y.T times this is the
    attention score; `score_cap`, `logit_cap`: the soft cap of scores and logits, or None;
    `parallel`: FF and attention read the same state.

    Raises ValueError for a model that the table does not have, and for weights that are not finite.
    """

    def __init__(self, model: nn.Module):
        """Find everything by the table of architectures, and check that all is finite."""
        self.architecture, self.entry = architecture_of(model)
        self._base, self._head_module = model.base_model, model.get_output_embeddings()
        self.blocks = list(self.entry.layers(self._base))
        self.tied = self._head_module is None or (
            self._head_module.weight.data_ptr() == self.entry.embedding(self._base).data_ptr())
        self.e, self.d = self.entry.embedding(self._base).shape
        config = model.config
        if self.d != config.hidden_size:
            raise ValueError(f"this {self.architecture} model's embeddings have {self.d} numbers "
                             f"and its stream has {config.hidden_size}: E is not in its space")
        self.L, self.H = len(self.blocks), config.num_attention_heads
        self.H_kv = getattr(config, "num_key_value_heads", None) or self.H
        first = self.entry.queries_keys_values(self.blocks[0])
        heads = self.H if len(first) > 1 else self.H + 2 * self.H_kv  # one module: Q, K and V
        self.d_h = affine(first[0]).weight.shape[0] // heads
        self.parallel = self.entry.parallel(config)
        self.embedding_scale = self.entry.embedding_scale(config)
        self.score_scale = self.entry.score_scale(config) or self.d_h**-0.5
        self.score_cap, self.logit_cap = self.entry.score_cap(config), self.entry.logit_cap(config)
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
        return in_float32(self.entry.embedding(self._base)).T

    @cached_property
    def E_out(self) -> Tensor:
        """Output embeddings, (d, e): E itself where they are tied or there are none."""
        return self.E if self.tied else in_float32(self._head_module.weight).T

    def logits(self, states: Tensor) -> Tensor:
        """The logits (..., e) of last states (..., d) behind the final norm: E_out, bias, cap.

        Of an encoder: of what its masked-LM head makes of the last states.
        """
        logits = states @ self.E_out
        if getattr(self._head_module, "bias", None) is not None:
            logits = logits + in_float32(self._head_module.bias)
        cap = self.logit_cap
        return logits if cap is None else cap * (logits / cap).tanh()

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
        weight = in_float32(self._keys(layer, kind).weight)
        return self.fold(weight, self.ff_norm(layer)) if fold_norm else weight

    def b_K(self, layer: int, kind: str | None = None) -> Tensor | None:
        """Bias of the FF keys (not of the attention keys, W_K), (d_ff,), or None."""
        return _bias(self._keys(layer, kind))

    def V(self, layer: int, fold_norm: bool = False) -> Tensor:
        """FF values, (d_ff, d): row i is what neuron i writes.

        With `fold_norm` the norm behind the block, where there is one, is folded in.
        """
        weight = in_float32(affine(self.entry.value(self._block(layer))).weight).T
        return self.fold_written(weight, self.ff_post_norm(layer)) if fold_norm else weight

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

    def W_O(self, layer: int, head: int | None = None, fold_norm: bool = False) -> Tensor:
        """Output weights, (H, d_h, d), or of one head, (d_h, d)."""
        weight = in_float32(affine(self.entry.output(self._block(layer))).weight).T  # (H d_h, d)
        if fold_norm:
            weight = self.fold_written(weight, self.attention_post_norm(layer))
        stacked = weight.unflatten(0, (self.H, self.d_h))
        return stacked if head is None else stacked[self._head(head)]

    def b_O(self, layer: int) -> Tensor | None:
        """Bias of the attention block's output, (d,), or None."""
        return _bias(self.entry.output(self._block(layer)))

    def W_QK(self, layer: int, head: int, fold_norm: bool = False) -> FactoredMatrix:
        """The interaction matrix W_Q W_K.T of a head, (d, d), factored.

        The attention score before position and softmax is x W_QK y.T / sqrt(d_h), biases aside
        (see `score_scale`). Where queries and keys are normed (Qwen3, Gemma 3, OLMo 2), it is that
        only with `fold_norm`, which folds in their gains, and up to one number for each of the two
        positions.
        """
        return FactoredMatrix(self.W_Q(layer, head, fold_norm), self.W_K(layer, head, fold_norm).T)

    def W_VO(self, layer: int, head: int, fold_norm: bool = False) -> FactoredMatrix:
        """What a head moves, W_V W_O, (d, d), factored: it reads y and writes y W_VO."""
        return FactoredMatrix(self.W_V(layer, head, fold_norm), self.W_O(layer, head, fold_norm))

    def kv_head(self, head: int) -> int:
        """Return the key-value head that query head `head` uses (itself if not grouped)."""
        return self._head(head) * self.H_kv // self.H

    # ---- any group, as rows of the stream

    def vectors(self, group: str, layer: int | None = None, fold_norm: bool = False) -> Tensor:
        """Rows (n, d) of one group in one layer; of all layers stacked, (L, n, d), a copy.

        `group`: a kind of FF key or "V" (n = d_ff), or a group of subheads, "W_Q", "W_K", "W_V",
        "W_O" (n = heads x d_h, head by head). With `fold_norm` readers have the norm in front
        folded in, writers ("V", "W_O") the norm behind; few models have one.
        """
        if layer is None:
            return torch.stack([self.vectors(group, i, fold_norm) for i in range(self.L)])
        if group in self.key_kinds:
            return self.K(layer, group, fold_norm)
        if group == "V":
            return self.V(layer, fold_norm)
        if group == "W_O":
            return self.W_O(layer, None, fold_norm).flatten(0, 1)
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
        """The norm in front of the attention block; None where it reads the stream as it is."""
        return self._norm("attention_norm", layer)

    def ff_norm(self, layer: int) -> nn.Module | None:
        """The norm in front of the FF block; None where it reads the stream as it is."""
        return self._norm("ff_norm", layer)

    def attention_post_norm(self, layer: int) -> nn.Module | None:
        """The norm of what the attention block writes, before it is added; None for most models."""
        return self._norm("attention_post_norm", layer)

    def ff_post_norm(self, layer: int) -> nn.Module | None:
        """The norm of what the FF block writes, before it is added; None for most models."""
        return self._norm("ff_post_norm", layer)

    def final_norm(self) -> nn.Module | None:
        """The norm behind the last state; None for BERT."""
        return self.entry.final_norm(self._base)

    def fold(self, readers: Tensor, norm: nn.Module | None) -> Tensor:
        """Fold a norm's gain (and LayerNorm's centring) into rows that read the stream, (n, d).

        With g the gain, r · norm(x) = fold(r) · x / scale(x) + constant, where fold(r) = r * g,
        less its mean for LayerNorm; scale(x) is one number for a whole state. `norm` None (BERT,
        OLMo 2: a block reads the stream itself): the rows unchanged, and no number to divide by.
        """
        if norm is None:
            return readers
        folded = readers * self._gain(norm)
        return folded - folded.mean(-1, keepdim=True) if self.entry.centred_norm else folded

    def fold_written(self, writers: Tensor, norm: nn.Module | None) -> Tensor:
        """Rows (n, d) times the gain of the RMSNorm behind them, which also divides their sum."""
        return writers if norm is None else writers * self._gain(norm)

    def _gain(self, norm: nn.Module) -> Tensor:
        return in_float32(norm.weight) + self.entry.gain_offset

    def _norm(self, name: str, layer: int) -> nn.Module | None:
        """A norm of the table; None for what is none, and for those that stand in the stream."""
        norm = getattr(self.entry, name)(self._block(layer))
        return None if self.entry.normed_stream or isinstance(norm, nn.Identity) else norm

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

    def keys_of(self, layer: int, kind: str) -> tuple[nn.Module, Tensor]:
        """The module that computes x K.T + b of a kind, and which of its outputs, (d_ff,)."""
        modules = self.entry.keys(self._block(layer))
        fused = list(modules.values()).count(modules[kind]) > 1
        start = self.key_kinds.index(kind) * self.d_ff if fused else 0
        return modules[kind], torch.arange(start, start + self.d_ff)

    def values_of(self, layer: int) -> tuple[nn.Module, Tensor]:
        """The module that computes x W_V + b, and which of its outputs, (H_kv, d_h)."""
        modules = self.entry.queries_keys_values(self._block(layer))
        if len(modules) > 1:
            return modules[-1], torch.arange(self.H_kv * self.d_h).view(self.H_kv, self.d_h)
        heads = torch.arange((self.H + 2 * self.H_kv) * self.d_h).view(-1, self.d_h)
        return modules[0], self._fused(heads)[2]

    def written(self, block: str, layer: int, coefficients: Tensor) -> Tensor:
        """What a block adds to the stream, (n, d), from the coefficients of its rows of V or W_O.

        `block` "ff": coefficients (n, d_ff) of neurons; "attention": (n, H d_h) of subheads. With
        bias, and behind the norm that stands behind the block, if there is one.
        """
        ff = block == "ff"
        found = coefficients @ self.vectors("V" if ff else "W_O", layer)
        bias = self.b_V(layer) if ff else self.b_O(layer)
        found = found if bias is None else found + bias
        norm = self.ff_post_norm(layer) if ff else self.attention_post_norm(layer)
        return found if norm is None else norm(found)

    # ---- checks

    def _block(self, layer: int) -> nn.Module:
        return self.blocks[as_index(layer, self.L, "layer")]

    def _head(self, head: int) -> int:
        return as_index(head, self.H, "head")

    def _keys(self, layer: int, kind: str | None) -> Affine:
        if kind is not None and kind not in self.key_kinds:
            raise ValueError(f"no FF keys of kind {kind!r} in this model: there are "
                             f"{', '.join(self.key_kinds)}")
        module, rows = self.keys_of(layer, kind or self.key_kinds[0])
        weight, bias = affine(module)
        rows = slice(int(rows[0]), int(rows[-1]) + 1)  # a slice is a view
        return Affine(weight[rows], None if bias is None else bias[rows])

    def _fused(self, heads: Tensor) -> tuple[Tensor, ...]:
        """Rows (H + 2 H_kv, d_h, ...) of one module, by head: those of queries, keys and values."""
        if self.entry.head_by_head:
            return heads.unflatten(0, (self.H, 3)).unbind(1)
        return heads.split((self.H, self.H_kv, self.H_kv))

    def queries_keys_values(self, layer: int) -> tuple[Affine, ...]:
        """Three maps by head: weights (heads, d_h, d) and biases (heads, d_h), views."""
        maps = [affine(m) for m in self.entry.queries_keys_values(self._block(layer))]
        weights, biases = ([None if x is None else x.unflatten(0, (-1, self.d_h)) for x in part]
                           for part in zip(*maps))
        if len(maps) == 1:
            weights = self._fused(weights[0])
            biases = (None,) * 3 if biases[0] is None else self._fused(biases[0])
        return tuple(map(Affine, weights, biases))

    def _heads(self, which: int, layer: int, head: int | None, fold_norm: bool) -> Tensor:
        weight = self.queries_keys_values(layer)[which].weight  # (heads, d_h, d)
        chosen = None if head is None else self._head(head) if which == 0 else self.kv_head(head)
        weight = in_float32(weight if chosen is None else weight[chosen])
        if fold_norm:
            weight = self.fold(weight, self.attention_norm(layer))
            norm = (self.entry.query_norm, self.entry.key_norm, lambda b: None)[which](
                self._block(layer))
            if norm is not None:  # one gain for every head, or one of each
                gain = self._gain(norm).view(-1, self.d_h, 1)
                weight = weight * (gain if chosen is None else gain[chosen % len(gain)])
        return weight.transpose(-1, -2)  # (heads, d, d_h) or (d, d_h)


def _bias(module: nn.Module | Affine) -> Tensor | None:
    """The bias of a module, to be read, or None."""
    return None if module.bias is None else in_float32(module.bias)
