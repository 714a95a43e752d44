"""Where each family of Transformers keeps its weights: the one table of all peculiarities.

To teach the helper a new family, add one entry to `ARCHITECTURES`; the tests then check it against
a forward pass of the real `transformers` class (a tiny configuration in `tests/tiny_configs.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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


Rotation = Callable[[nn.Module, int, Tensor, Tensor], tuple[Tensor | None, Tensor | None]]


def _rotation(m: nn.Module, layer: int, like: Tensor, position: Tensor,
              typed: bool = False) -> tuple[Tensor | None, Tensor | None]:
    """Cosines and sines (pairs,) from a model's `rotary_emb`, which gives all of them twice.

    None for a layer that turns nothing (some of SmolLM3's). `typed`: other ones by type of layer.
    """
    if not getattr(getattr(m.layers[layer], "self_attn", None), "use_rope", True):
        return None, None
    types = (m.config.layer_types[layer],) if typed else ()
    cos, sin = (x.flatten() for x in m.rotary_emb(like, position, *types))
    return cos[: len(cos) // 2], sin[: len(sin) // 2]


def _typed_rotation(m: nn.Module, layer: int, like: Tensor, position: Tensor
                    ) -> tuple[Tensor | None, Tensor | None]:
    """As `_rotation`, for Gemma 3 and ModernBERT."""
    return _rotation(m, layer, like, position, typed=True)


def _old_rotation(m: nn.Module, layer: int, like: Tensor, position: Tensor
                  ) -> tuple[Tensor, Tensor]:
    """Cosines and sines from GPT-J's table, sines first."""
    sin, cos = m.h[layer].attn.embed_positions[position.item()].to(like.dtype).chunk(2)
    return cos, sin


@dataclass(frozen=True)
class Architecture:
    """Where one family keeps its weights: functions of the base model `m`, a layer `b`, a config.

    `queries_keys_values(b)` gives three modules, or one that computes all three side by side, in
    this order (`head_by_head`: query, key and value of the first head, then of the second, ...).
    `keys(b)` gives one module per kind of FF key, the one under the activation first; named twice,
    it computes both side by side. `positions(m)`: how many tokens a text may have.

    Norms: `attention_norm` and `ff_norm` stand in front of a block, `attention_post_norm` and
    `ff_post_norm` behind it, before what it writes is added; `query_norm` and `key_norm` are of
    queries and keys, of each head alone or of all. With `normed_stream` they stand in the stream
    itself, behind each sum (BERT). `centred_norm`: LayerNorm subtracts the mean, RMSNorm does not.
    `gain_offset` is added to a norm's weight to make its gain (Gemma: 1).

    `causal`: a position sees those before it; else a head of several layers stands in front of
    E_out. `parallel(config)`: FF and attention read the same state. `position`: how position
    enters; "rotary" turns queries and keys before they meet, "learned" adds to E, "relative" adds
    to scores. `rotation(m, layer, like, position)`: cosines and sines, in the kind of number of
    `like`, of the pairs (i, i + n / 2) of n numbers that are turned, or `interleaved` (2 i, 2 i +
    1). `score_scale(config)`: the factor of scores, if it is not 1 / sqrt(d_h); `score_cap` and
    `logit_cap`: x becomes cap · tanh(x / cap). `embedding_scale(config)`: E times this enters the
    stream. `refused(config)`: why a variant cannot be read, or "".
    """

    model_types: tuple[str, ...]
    embedding: Callable[[nn.Module], Tensor]  # (e, d)
    layers: Callable[[nn.Module], nn.ModuleList]
    queries_keys_values: Callable[[nn.Module], tuple[nn.Module, ...]]
    output: Callable[[nn.Module], nn.Module]
    keys: Callable[[nn.Module], dict[str, nn.Module]]
    value: Callable[[nn.Module], nn.Module]
    attention_norm: Callable[[nn.Module], nn.Module | None]
    ff_norm: Callable[[nn.Module], nn.Module | None]
    final_norm: Callable[[nn.Module], nn.Module | None]
    attention_post_norm: Callable[[nn.Module], nn.Module | None] = lambda b: None
    ff_post_norm: Callable[[nn.Module], nn.Module | None] = lambda b: None
    query_norm: Callable[[nn.Module], nn.Module | None] = lambda b: None
    key_norm: Callable[[nn.Module], nn.Module | None] = lambda b: None
    normed_stream: bool = False
    centred_norm: bool = True
    gain_offset: float = 0.0
    head_by_head: bool = False
    causal: bool = True
    position: str = "learned"
    rotation: Rotation = _rotation
    interleaved: bool = False
    parallel: Callable[[Any], bool] = lambda c: False
    score_scale: Callable[[Any], float | None] = lambda c: None
    score_cap: Callable[[Any], float | None] = lambda c: None
    logit_cap: Callable[[Any], float | None] = lambda c: None
    embedding_scale: Callable[[Any], float] = lambda c: 1.0
    positions: Callable[[nn.Module], int] = lambda m: m.config.max_position_embeddings
    refused: Callable[[Any], str] = lambda c: ""


def _bert_positions(table: nn.Embedding) -> int:
    """RoBERTa's positions begin behind that of the padding, BERT's at 0."""
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


GPT2 = Architecture(
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
)
LLAMA = Architecture(
    model_types=("llama", "mistral", "qwen2", "smollm3"),
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
    position="rotary",
)
QWEN3 = replace(
    LLAMA,
    model_types=("qwen3",),
    query_norm=lambda b: b.self_attn.q_norm,
    key_norm=lambda b: b.self_attn.k_norm,
)
GEMMA2 = replace(
    LLAMA,
    model_types=("gemma2",),
    ff_norm=lambda b: b.pre_feedforward_layernorm,
    attention_post_norm=lambda b: b.post_attention_layernorm,
    ff_post_norm=lambda b: b.post_feedforward_layernorm,
    gain_offset=1.0,
    embedding_scale=lambda c: c.hidden_size**0.5,
    score_scale=lambda c: c.query_pre_attn_scalar**-0.5,
    score_cap=lambda c: c.attn_logit_softcapping,
    logit_cap=lambda c: c.final_logit_softcapping,
    refused=lambda c: "it sees what follows" * bool(getattr(c, "use_bidirectional_attention", 0)),
)
GEMMA3 = replace(
    GEMMA2,
    model_types=("gemma3_text",),
    query_norm=lambda b: b.self_attn.q_norm,
    key_norm=lambda b: b.self_attn.k_norm,
    rotation=_typed_rotation,
    score_cap=lambda c: None,  # in its configuration, and not in its code
)
PHI3 = replace(
    LLAMA,
    model_types=("phi3",),
    queries_keys_values=lambda b: (b.self_attn.qkv_proj,),
    keys=lambda b: {"gate": b.mlp.gate_up_proj, "up": b.mlp.gate_up_proj},
)
OLMO2 = replace(
    QWEN3,  # but its norms of queries and keys are of all heads side by side
    model_types=("olmo2",),
    attention_norm=lambda b: None,
    ff_norm=lambda b: None,
    attention_post_norm=lambda b: b.post_attention_layernorm,
    ff_post_norm=lambda b: b.post_feedforward_layernorm,
)
OPT = replace(
    GPT2,
    model_types=("opt",),
    embedding=lambda m: m.decoder.embed_tokens.weight,
    layers=lambda m: m.decoder.layers,
    queries_keys_values=LLAMA.queries_keys_values,
    output=lambda b: b.self_attn.out_proj,
    keys=lambda b: {"K": b.fc1},
    value=lambda b: b.fc2,
    attention_norm=lambda b: b.self_attn_layer_norm,
    ff_norm=lambda b: b.final_layer_norm,
    final_norm=lambda m: m.decoder.final_layer_norm,
    refused=lambda c: "" if c.do_layer_norm_before else "its norms stand behind each sum",
)
GPT_NEO = replace(
    GPT2,
    model_types=("gpt_neo",),
    queries_keys_values=lambda b: (b.attn.attention.q_proj, b.attn.attention.k_proj,
                                   b.attn.attention.v_proj),
    output=lambda b: b.attn.attention.out_proj,
    score_scale=lambda c: 1.0,
)
GPT_J = replace(
    GPT2,
    model_types=("gptj",),
    queries_keys_values=lambda b: (b.attn.q_proj, b.attn.k_proj, b.attn.v_proj),
    output=lambda b: b.attn.out_proj,
    keys=lambda b: {"K": b.mlp.fc_in},
    value=lambda b: b.mlp.fc_out,
    ff_norm=lambda b: b.ln_1,  # the norm in front of both
    parallel=lambda c: True,
    position="rotary",
    rotation=_old_rotation,
    interleaved=True,
)
GPT_NEOX = replace(
    GPT2,  # the names are others
    model_types=("gpt_neox",),
    embedding=lambda m: m.embed_in.weight,
    layers=lambda m: m.layers,
    queries_keys_values=lambda b: (b.attention.query_key_value,),
    output=lambda b: b.attention.dense,
    keys=lambda b: {"K": b.mlp.dense_h_to_4h},
    value=lambda b: b.mlp.dense_4h_to_h,
    attention_norm=lambda b: b.input_layernorm,
    ff_norm=lambda b: b.post_attention_layernorm,
    final_norm=lambda m: m.final_layer_norm,
    head_by_head=True,
    parallel=lambda c: c.use_parallel_residual,
    position="rotary",
)
BERT = Architecture(
    model_types=("bert", "roberta", "electra"),
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
    normed_stream=True,
    causal=False,
    positions=lambda m: _bert_positions(m.embeddings.position_embeddings),
)
DISTILBERT = replace(
    BERT,
    model_types=("distilbert",),
    layers=lambda m: m.transformer.layer,
    queries_keys_values=lambda b: (b.attention.q_lin, b.attention.k_lin, b.attention.v_lin),
    output=lambda b: b.attention.out_lin,
    keys=lambda b: {"K": b.ffn.lin1},
    value=lambda b: b.ffn.lin2,
    attention_norm=lambda b: b.sa_layer_norm,
    ff_norm=lambda b: b.output_layer_norm,
    positions=lambda m: m.config.max_position_embeddings,
)
MPNET = replace(
    BERT,
    model_types=("mpnet",),
    queries_keys_values=lambda b: (b.attention.attn.q, b.attention.attn.k, b.attention.attn.v),
    output=lambda b: b.attention.attn.o,
    attention_norm=lambda b: b.attention.LayerNorm,
    position="relative",  # and learned as well
)
MODERNBERT = replace(
    GPT2,
    model_types=("modernbert",),
    embedding=lambda m: m.embeddings.tok_embeddings.weight,  # a norm stands behind it
    layers=lambda m: m.layers,
    queries_keys_values=lambda b: (b.attn.Wqkv,),
    output=lambda b: b.attn.Wo,
    keys=lambda b: {"gate": b.mlp.Wi, "up": b.mlp.Wi},
    value=lambda b: b.mlp.Wo,
    attention_norm=lambda b: b.attn_norm,  # the first layer has none
    ff_norm=lambda b: b.mlp_norm,
    final_norm=lambda m: m.final_norm,
    causal=False,
    position="rotary",
    rotation=_typed_rotation,
)

ARCHITECTURES = {
    "GPT-2": GPT2,
    "Llama": LLAMA,
    "Qwen3": QWEN3,
    "Gemma 2": GEMMA2,
    "Gemma 3": GEMMA3,
    "Phi-3": PHI3,
    "OLMo 2": OLMO2,
    "GPT-NeoX": GPT_NEOX,
    "OPT": OPT,
    "GPT-Neo": GPT_NEO,
    "GPT-J": GPT_J,
    "BERT": BERT,
    "DistilBERT": DISTILBERT,
    "MPNet": MPNET,
    "ModernBERT": MODERNBERT,
}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def architecture_of(model: nn.Module) -> tuple[str, Architecture]:
    """Return (name, table entry) for a `transformers` model; ValueError if the table has none."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    for name, entry in ARCHITECTURES.items():
        if kind in entry.model_types:
            if why := entry.refused(config):
                raise ValueError(f"this {name} model cannot be read: {why}")
            return name, entry
    if any(getattr(config, name, None) for name in EXPERTS):
        raise ValueError(f"{kind!r} is a mixture-of-experts model: which of its neurons run "
                         "depends on the token, and the table of architectures has none such")
    known = ", ".join(t for entry in ARCHITECTURES.values() for t in entry.model_types)
    raise ValueError(f"no architecture entry for model type {kind!r}: the table in "
                     f"embspace_helpers/reading/architectures.py knows {known}; a new family is "
                     "one entry there, and a tiny configuration in tests/tiny_configs.py that "
                     "checks it")
