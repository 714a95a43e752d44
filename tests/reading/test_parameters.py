"""Parameters against real forward passes of tiny random models, read through hooks.

The paths of the hooked modules are written here a second time, so that a wrong entry in the table
of architectures cannot agree with itself.
"""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from tiny_configs import (
    BERT,
    BERT_KINDS,
    DECODERS,
    ENCODERS,
    GROUPED,
    MODELS,
    NO_BIAS,
    POST_NORM,
    TWO_ROTATIONS,
    UNTIED,
)
from tiny_models import tiny
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model
from transformers.activations import ACT2FN

from embspace_helpers.reading.architectures import ARCHITECTURES, architecture_of
from embspace_helpers.reading.parameters import Parameters

LLAMA = {"ff": "layers.{}.mlp", "attention": "layers.{}.self_attn",
         "Q": "layers.{}.self_attn.q_proj", "K_att": "layers.{}.self_attn.k_proj",
         "attention_in": "layers.{}.input_layernorm",
         "ff_in": "layers.{}.post_attention_layernorm", "gate": "layers.{}.mlp.gate_proj",
         "up": "layers.{}.mlp.up_proj", "last": "layers.{}"}
GEMMA = LLAMA | {"ff_in": "layers.{}.pre_feedforward_layernorm"}
BERT_PATHS = {"ff": "encoder.layer.{}.output.dense",
              "attention": "encoder.layer.{}.attention.output.dense",
              "Q": "encoder.layer.{}.attention.self.query",
              "K_att": "encoder.layer.{}.attention.self.key",
              "attention_in": "encoder.layer.{}.attention.self",
              "ff_in": "encoder.layer.{}.intermediate", "K": "encoder.layer.{}.intermediate.dense",
              "last": "encoder.layer.{}"}
PATHS = {
    "gpt2": {"ff": "h.{}.mlp", "attention": "h.{}.attn", "QKV": "h.{}.attn.c_attn",
             "attention_in": "h.{}.ln_1", "ff_in": "h.{}.ln_2", "K": "h.{}.mlp.c_fc",
             "last": "h.{}"},
    "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA,
    "phi3": {key: LLAMA[key] for key in ("ff", "attention", "attention_in", "ff_in", "last")} | {
        "QKV": "layers.{}.self_attn.qkv_proj", "gate and up": "layers.{}.mlp.gate_up_proj"},
    "olmo2": LLAMA | {"attention_in": "layers.{}.self_attn", "ff_in": "layers.{}.mlp"},
    "smollm3": LLAMA, "gemma2": GEMMA, "gemma3_text": GEMMA,
    "opt": {"ff": "decoder.layers.{}.fc2", "attention": "decoder.layers.{}.self_attn",
            "Q": "decoder.layers.{}.self_attn.q_proj",
            "K_att": "decoder.layers.{}.self_attn.k_proj",
            "attention_in": "decoder.layers.{}.self_attn_layer_norm",
            "ff_in": "decoder.layers.{}.final_layer_norm", "K": "decoder.layers.{}.fc1",
            "last": "decoder.layers.{}"},
    "gpt_neo": {"ff": "h.{}.mlp", "attention": "h.{}.attn", "Q": "h.{}.attn.attention.q_proj",
                "K_att": "h.{}.attn.attention.k_proj", "attention_in": "h.{}.ln_1",
                "ff_in": "h.{}.ln_2", "K": "h.{}.mlp.c_fc", "last": "h.{}"},
    "gptj": {"ff": "h.{}.mlp", "attention": "h.{}.attn", "Q": "h.{}.attn.q_proj",
             "K_att": "h.{}.attn.k_proj", "attention_in": "h.{}.ln_1", "ff_in": "h.{}.ln_1",
             "K": "h.{}.mlp.fc_in", "last": "h.{}"},
    "gpt_neox": {"ff": "layers.{}.mlp", "attention": "layers.{}.attention",
                 "QKV by head": "layers.{}.attention.query_key_value",
                 "attention_in": "layers.{}.input_layernorm",
                 "ff_in": "layers.{}.post_attention_layernorm",
                 "K": "layers.{}.mlp.dense_h_to_4h", "last": "layers.{}"},
    "bert": BERT_PATHS, "roberta": BERT_PATHS, "electra": BERT_PATHS,
    "distilbert": {"ff": "transformer.layer.{}.ffn", "attention": "transformer.layer.{}.attention",
                   "Q": "transformer.layer.{}.attention.q_lin",
                   "K_att": "transformer.layer.{}.attention.k_lin",
                   "attention_in": "transformer.layer.{}.attention",
                   "ff_in": "transformer.layer.{}.ffn", "K": "transformer.layer.{}.ffn.lin1",
                   "last": "transformer.layer.{}"},
    "modernbert": {"ff": "layers.{}.mlp", "attention": "layers.{}.attn",
                   "QKV": "layers.{}.attn.Wqkv", "attention_in": "layers.{}.attn_norm",
                   "ff_in": "layers.{}.mlp_norm", "gate and up": "layers.{}.mlp.Wi",
                   "last": "layers.{}"},
    "mpnet": BERT_PATHS | {"attention": "encoder.layer.{}.attention.attn",
                           "Q": "encoder.layer.{}.attention.attn.q",
                           "K_att": "encoder.layer.{}.attention.attn.k",
                           "attention_in": "encoder.layer.{}.attention.attn"},
}
HEADS = {  # what makes of an encoder's last state what meets E_out
    "bert": lambda model, x: model.cls.predictions.transform(x),
    "roberta": lambda model, x: model.lm_head.layer_norm(gelu(model.lm_head.dense(x))),
    "distilbert": lambda model, x: model.vocab_layer_norm(gelu(model.vocab_transform(x))),
    "modernbert": lambda model, x: model.head(x),
    "electra": lambda model, x: model.generator_predictions(x),
    "mpnet": lambda model, x: model.lm_head.layer_norm(gelu(model.lm_head.dense(x))),
}
gelu = ACT2FN["gelu"]


def record(kind, model):
    """Run 2 x 7 items; return what the hooked modules took in and gave out, and the outputs."""
    seen, handles = {}, []
    for role, path in PATHS[kind].items():
        for layer in (0, 1):
            def keep(_, args, kwargs, out, key=(role, layer)):
                taken = args[0] if args else kwargs["hidden_states"]
                out = out[0] if isinstance(out, tuple) else out
                seen[key] = [x.reshape(2, 7, x.shape[-1]) for x in (taken, out)]
            module = model.base_model.get_submodule(path.format(layer))
            handles.append(module.register_forward_hook(keep, with_kwargs=True))
    ids = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(input_ids=ids, output_attentions=True, **{"use_cache": False} if
                    kind in DECODERS else {})
    for handle in handles:
        handle.remove()
    return seen, out


class Case:
    def __init__(self, kind):
        self.kind, self.model = kind, tiny(kind)
        self.p = Parameters(self.model)
        self.seen, self.out = record(kind, self.model)
        self.act = ACT2FN[activation(self.model.config)]

    def read(self, role, layer, norm):
        """What a block reads: its input, normed where a norm stands in front."""
        x = self.seen[role, layer][0]
        return x if norm is None else norm(x)

    def keys(self, layer, kind):
        """The model's own pre-activations of a kind of key, (2, 7, d_ff)."""
        if "gate and up" in PATHS[self.kind]:
            found = self.seen["gate and up", layer][1].chunk(2, -1)
            return found[0 if kind == "gate" else 1]
        return self.seen[kind, layer][1]

    def queries_keys(self, layer):
        """Its own queries (2, 7, H, d_h) and keys (2, 7, H_kv, d_h), before norm and rotation."""
        H, d_h = self.p.H, self.p.d_h
        if "Q" in PATHS[self.kind]:
            q, k = self.seen["Q", layer][1], self.seen["K_att", layer][1]
        elif "QKV by head" in PATHS[self.kind]:
            parts = self.seen["QKV by head", layer][1].unflatten(-1, (H, 3 * d_h))
            return parts[..., :d_h], parts[..., d_h : 2 * d_h]
        else:
            fused = self.seen["QKV", layer][1]
            q, k = fused[..., : H * d_h], fused[..., H * d_h :]
            k = k[..., : k.shape[-1] // 2]
        return q.unflatten(-1, (-1, d_h)), k.unflatten(-1, (-1, d_h))

    def met(self, layer, q, k):
        """Queries and keys (2, H, 7, d_h) as they meet: normed and turned as the model does."""
        block, config = self.p.blocks[layer], self.model.config
        norms = getattr(block, "self_attn", None)
        if hasattr(norms, "q_norm"):
            q, k = (of_heads(norm, x) for norm, x in ((norms.q_norm, q), (norms.k_norm, k)))
        if self.kind == "gptj":
            return tuple(interleaved(x) for x in (q, k))
        if getattr(norms, "use_rope", True) and hasattr(self.model.base_model, "rotary_emb"):
            turn = sys.modules[type(self.model).__module__].apply_rotary_pos_emb
            types = (config.layer_types[layer],) if self.kind in TWO_ROTATIONS else ()
            cos, sin = self.model.base_model.rotary_emb(q, torch.arange(7)[None], *types)
            q, k = turn(q, k, cos, sin)
        return q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)

    def masked(self, scores):
        """Scores (2, H, 7, 7) with what else enters before the softmax."""
        causal = torch.full((7, 7), -math.inf).triu(1) if self.kind in DECODERS else 0.0
        if self.kind == "mpnet":
            causal = self.model.base_model.encoder.compute_position_bias(torch.zeros(2, 7))
        return scores + causal


def interleaved(x):
    """GPT-J's rotation of heads (2, H, 7, d_h): the first two numbers, as one complex number."""
    turned = torch.view_as_complex(x[..., :2].contiguous()) * torch.exp(
        1j * torch.arange(7, dtype=torch.float64))
    return torch.cat([torch.view_as_real(turned), x[..., 2:]], -1)


def of_heads(norm, x):
    """A norm of heads (2, H, 7, d_h), of each alone or of all side by side."""
    if norm.weight.numel() == x.shape[-1]:
        return norm(x)
    return norm(x.transpose(1, 2).flatten(2)).unflatten(-1, (-1, x.shape[-1])).transpose(1, 2)


def activation(config):
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    return next(getattr(config, name) for name in names if getattr(config, name, None))


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    with torch.no_grad():
        yield Case(request.param)


@pytest.fixture(scope="module")
def gpt2():
    return Parameters(tiny("gpt2"))


@pytest.fixture(scope="module")
def llama():
    return Parameters(tiny("llama"))


def close(actual, expected):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-9, atol=1e-9)


def bias(affine):
    return 0.0 if affine.bias is None else affine.bias.detach()


# ---- against the forward pass


def test_every_model_type_of_the_table_is_tested_here():
    assert set(MODELS) == {t for entry in ARCHITECTURES.values() for t in entry.model_types}


@pytest.mark.parametrize("layer", [0, 1])
def test_feed_forward(case, layer):
    p = case.p
    x = case.read("ff_in", layer, p.ff_norm(layer))
    reads = [x @ p.K(layer, kind).T + (0 if p.b_K(layer, kind) is None else p.b_K(layer, kind))
             for kind in p.key_kinds]
    active = case.act(reads[0]) * (reads[1] if len(reads) == 2 else 1)
    out = active @ p.V(layer) + (0 if p.b_V(layer) is None else p.b_V(layer))
    assert out.std() > 0.05
    close(out, case.seen["ff", layer][1])


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_scores_and_weights(case, layer):
    p = case.p
    x = case.read("attention_in", layer, p.attention_norm(layer))
    b_q, b_k, _ = (bias(part) for part in p.queries_keys_values(layer))
    model_q, model_k = case.queries_keys(layer)
    q, k = (torch.einsum("bnd,hdk->bnhk", x, W) + b for W, b in
            ((p.W_Q(layer), b_q), (p.W_K(layer), b_k)))
    close(q, model_q)
    close(k, model_k)
    for head in range(p.H):
        W = p.W_QK(layer, head)
        assert torch.equal(W.left, p.W_Q(layer)[head])
        assert torch.equal(W.right.T, p.W_K(layer)[p.kv_head(head)])
    q, k = case.met(layer, q.transpose(1, 2), k.transpose(1, 2))
    scores = p.score_scale * q @ k.mT
    if p.score_cap is not None:
        assert (scores.abs() > 0.3 * p.score_cap).any()
        scores = p.score_cap * (scores / p.score_cap).tanh()
    close(torch.softmax(case.masked(scores), -1), case.out.attentions[layer])


@pytest.mark.parametrize("layer", [0, 1])
def test_heads_sum_to_the_attention_block(case, layer):
    p = case.p
    x = case.read("attention_in", layer, p.attention_norm(layer))
    b_v = bias(p.queries_keys_values(layer)[2])
    b_v = torch.zeros(p.H_kv, p.d_h) if isinstance(b_v, float) else b_v
    total = 0.0 if p.b_O(layer) is None else p.b_O(layer)
    for head in range(p.H):
        W_V, W_O = p.W_VO(layer, head).left, p.W_VO(layer, head).right
        v = x @ W_V + b_v[head * p.H_kv // p.H]
        total = total + case.out.attentions[layer][:, head] @ v @ W_O
    assert total.std() > 0.05
    close(total, case.seen["attention", layer][1])


def test_logits(case):
    p, last = case.p, case.seen["last", 1][1]
    assert (p.final_norm() is None) == (case.kind in BERT_KINDS)
    last = last if p.final_norm() is None else p.final_norm()(last)
    if case.kind in ENCODERS:
        last = HEADS[case.kind](case.model, last)
    if p.logit_cap is not None:
        assert case.out.logits.abs().max() > 0.5 * p.logit_cap
    close(p.logits(last), case.out.logits)


def test_the_first_state_is_E_where_no_position_is_added(case):
    p = case.p
    if p.entry.position == "rotary" and case.kind in DECODERS:
        ids = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(1))
        first = next(x[0] for (role, layer), x in case.seen.items() if (role, layer) == ("last", 0))
        close(p.embedding_scale * p.E.T[ids], first)


@pytest.mark.parametrize("layer", [0, 1])
def test_folded_norm_gives_the_preactivations(case, layer):
    p, x = case.p, case.seen["ff_in", layer][0]
    norm = p.ff_norm(layer)
    for kind in p.key_kinds:
        b = 0.0 if p.b_K(layer, kind) is None else p.b_K(layer, kind)
        shift = p.K(layer, kind) @ norm.bias if has_bias(norm) else 0.0
        read = x @ p.K(layer, kind, fold_norm=True).T / scale(norm, x) + shift + b
        close(read, case.keys(layer, kind))


@pytest.mark.parametrize("layer", [0, 1])
def test_folded_norm_gives_the_queries_and_keys(case, layer):
    """Where these are normed themselves: times their gain, which the model does afterwards."""
    p, x = case.p, case.seen["attention_in", layer][0]
    norm, model = p.attention_norm(layer), case.queries_keys(layer)
    own = getattr(p.blocks[layer], "self_attn", None)
    for which, part in enumerate(p.queries_keys_values(layer)[:2]):
        W = (p.W_Q, p.W_K)[which](layer, fold_norm=True)  # (heads, d, d_h)
        constant = part.weight @ norm.bias if has_bias(norm) else torch.zeros(part.weight.shape[:2])
        constant = constant + bias(part)
        gain = torch.ones(1, p.d_h)
        if hasattr(own, "q_norm"):
            gain = (own.q_norm, own.k_norm)[which].weight.view(-1, p.d_h) + (
                1 if case.kind.startswith("gemma") else 0)
        read = torch.einsum("bnd,hdk->bnhk", x / scale(norm, x), W) + constant * gain
        close(read, model[which] * gain)
        assert all(torch.equal((p.W_Q, p.W_K)[which](layer, head, fold_norm=True),
                               W[head if which == 0 else p.kv_head(head)]) for head in range(p.H))


def scale(norm, x):
    """The one number by which a norm divides a state, (..., 1); 1 where there is no norm."""
    if norm is None:
        return torch.ones(x.shape[:-1])[..., None]
    if isinstance(norm, nn.LayerNorm):
        return (x.var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    epsilon = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return (x.square().mean(-1, keepdim=True) + epsilon).sqrt()


def has_bias(norm):
    return getattr(norm, "bias", None) is not None


@pytest.mark.parametrize("layer", [0, 1])
def test_what_a_block_writes_with_and_without_a_norm_behind_it(case, layer):
    p = case.p
    for block, group, out in (("ff", "V", p.entry.value), ("attention", "W_O", p.entry.output)):
        norm = (p.ff_post_norm if block == "ff" else p.attention_post_norm)(layer)
        assert (norm is not None) == (case.kind in POST_NORM)
        module, role = out(p.blocks[layer]), block
        used = torch.linalg.lstsq(module_weight(module).T, (case.seen[role, layer][1]
                                  - bias(module)).flatten(0, 1).T).solution.T
        y = case.seen[role, layer][1].flatten(0, 1)
        expected = y if norm is None else norm(y)
        close(p.written(block, layer, used), expected)
        if norm is not None and not has_bias(module):
            close(used @ p.vectors(group, layer, fold_norm=True) / scale(norm, y), expected)


def module_weight(module):
    """Rows (in, out) of a Linear or of GPT-2's Conv1D."""
    return module.weight.detach() if type(module).__name__ == "Conv1D" else module.weight.detach().T


def test_nothing_to_fold_in_bert():
    p = Parameters(tiny("bert"))
    assert p.attention_norm(0) is None and p.ff_norm(1) is None
    for group in p.groups:
        assert torch.equal(p.vectors(group, 0, fold_norm=True), p.vectors(group, 0))


def test_fold_norm_changes_readers_only(gpt2):
    for group in gpt2.groups:
        same = torch.equal(gpt2.vectors(group, 1), gpt2.vectors(group, 1, fold_norm=True))
        assert same == (group in ("V", "W_O")), group


# ---- shapes and views


def test_sizes_and_shapes(case):
    p, config = case.p, case.model.config
    H_kv = config.num_key_value_heads if case.kind in GROUPED else config.num_attention_heads
    d_h = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert (p.L, p.H, p.H_kv, p.d, p.d_h, p.d_ff, p.e) == (
        2, config.num_attention_heads, H_kv, config.hidden_size, d_h, 20, 40)
    assert p.E.shape == p.E_out.shape == (p.d, 40)
    assert p.K(0).shape == p.V(0).shape == (20, p.d)
    assert p.W_Q(0).shape == (p.H, p.d, d_h) and p.W_O(0).shape == (p.H, d_h, p.d)
    assert p.W_K(0).shape == p.W_V(0).shape == (H_kv, p.d, d_h)
    assert p.W_Q(0, 1).shape == p.W_K(0, 1).shape == p.W_V(0, 1).shape == (p.d, d_h)
    assert p.W_O(0, 1).shape == (d_h, p.d)


def test_head_size_need_not_be_d_over_H(llama):
    assert (llama.d, llama.H, llama.d_h, llama.H_kv) == (12, 4, 6, 2)
    assert [llama.kv_head(head) for head in range(4)] == [0, 0, 1, 1]


def test_views_share_storage_and_need_no_gradient(case):
    p = case.p
    owned = {w.untyped_storage().data_ptr() for w in case.model.parameters()}
    views = {"E": p.E, "E_out": p.E_out, "V": p.V(1), **{k: p.K(1, k) for k in p.key_kinds}}
    views |= {f.__name__: f(1) for f in (p.W_Q, p.W_K, p.W_V, p.W_O)}
    views |= {f"{f.__name__}[1]": f(1, 1) for f in (p.W_Q, p.W_K, p.W_V, p.W_O)}
    rows = p.groups if not p.entry.head_by_head else (*p.key_kinds, "V", "W_O")
    views |= {f"vectors {group}": p.vectors(group, 1) for group in rows}
    for name, view in views.items():
        assert view.untyped_storage().data_ptr() in owned, name
        assert not view.requires_grad, name
    assert not any(p.vectors(group, fold_norm=True).requires_grad for group in p.groups)
    biases = [p.b_V(0), *(p.b_K(0, k) for k in p.key_kinds)]
    assert all(b is None or not b.requires_grad for b in biases)


def test_bias_of_the_values(case):
    b = case.p.b_V(1)
    assert (b is None) == (case.kind in NO_BIAS)
    assert b is None or b.shape == (case.p.d,)


def test_tied_and_untied_output_embeddings():
    assert {kind for kind in MODELS if not Parameters(MODELS[kind]()).tied} == set(UNTIED)


def test_untied_output_embeddings_are_the_head(llama):
    model = tiny("llama")
    p = Parameters(model)
    assert torch.equal(p.E_out, model.lm_head.weight.T) and not torch.equal(p.E_out, p.E)
    assert "not tied" in repr(p) and "not tied" not in repr(Parameters(tiny("mistral")))


@pytest.mark.parametrize("bare", [
    lambda: BertModel(BertConfig(**BERT)),
    lambda: GPT2Model(GPT2Config(vocab_size=40, n_embd=12, n_layer=2, n_head=3)),
])
def test_bare_model_without_a_head(bare):
    p = Parameters(bare())
    assert p.tied and p.E_out is p.E and p.E.shape == (12, 40)
    assert p.K(1).shape[1] == 12


# ---- groups, vectors, labels


def test_groups(gpt2, llama):
    assert gpt2.groups == ("K", "V", "W_Q", "W_K", "W_V", "W_O")
    assert llama.groups == ("gate", "up", "V", "W_Q", "W_K", "W_V", "W_O")
    assert torch.equal(llama.K(0), llama.K(0, "gate"))
    assert not torch.equal(llama.K(0), llama.K(0, "up"))


def test_vectors_are_rows_of_the_stream(llama):
    p = llama
    assert torch.equal(p.vectors("up", 1), p.K(1, "up"))
    assert torch.equal(p.vectors("V", 1), p.V(1))
    assert p.vectors("W_Q", 1).shape == p.vectors("W_O", 1).shape == (4 * 6, 12)
    assert p.vectors("W_K", 1).shape == p.vectors("W_V", 1).shape == (2 * 6, 12)
    head, sub = 3, 4  # subhead: column of W_V, row of W_O
    assert torch.equal(p.vectors("W_Q", 1)[head * 6 + sub], p.W_Q(1, head)[:, sub])
    assert torch.equal(p.vectors("W_O", 1)[head * 6 + sub], p.W_O(1, head)[sub])
    row = p.vectors("W_V", 1)[p.kv_head(head) * 6 + sub]
    assert torch.equal(row, p.W_V(1, head)[:, sub])


def test_vectors_of_all_layers_are_a_stacked_copy(gpt2):
    stacked = gpt2.vectors("K")
    assert stacked.shape == (2, 20, 12)
    assert torch.equal(stacked[1], gpt2.K(1)) and stacked.data_ptr() != gpt2.K(0).data_ptr()


def test_labels(gpt2, llama):
    assert gpt2.label("K", 1, 19) == gpt2.label("V", 1, 19) == "L1N19"
    assert gpt2.label("W_Q", 0, 2 * 4 + 3) == "L0H2S3"
    assert llama.label("gate", 0, 7) == "L0N7"
    assert llama.label("W_K", 1, 11) == "L1H1S5"


# ---- errors


@pytest.mark.parametrize("call, parts", [
    (lambda p: p.K(2), ("no layer 2", "0 to 1")),
    (lambda p: p.V(-1), ("no layer -1", "0 to 1")),
    (lambda p: p.b_V(2), ("no layer 2", "0 to 1")),
    (lambda p: p.W_O(0, 3), ("no head 3", "0 to 2")),
    (lambda p: p.W_Q(0, -1), ("no head -1", "0 to 2")),
    (lambda p: p.W_K(0, 3), ("no head 3", "0 to 2")),
    (lambda p: p.kv_head(9), ("no head 9", "0 to 2")),
    (lambda p: p.K(0, "gate"), ("'gate'", "there are K")),
    (lambda p: p.b_K(0, "up"), ("'up'", "there are K")),
    (lambda p: p.vectors("W_X", 0), ("'W_X'", "K, V, W_Q, W_K, W_V, W_O")),
    (lambda p: p.vectors("gate"), ("'gate'", "K, V, W_Q, W_K, W_V, W_O")),
    (lambda p: p.label("K", 0, 20), ("no row 20 in K", "0 to 19")),
    (lambda p: p.label("W_V", 0, -1), ("no row -1 in W_V", "0 to 11")),
])
def test_errors_name_what_was_given_and_what_is_possible(gpt2, call, parts):
    with pytest.raises(ValueError) as error:
        call(gpt2)
    assert all(part in str(error.value) for part in parts), error.value


def test_grouped_heads_are_counted_by_query_heads(llama):
    assert torch.equal(llama.W_K(0, 3), llama.W_K(0)[1])
    with pytest.raises(ValueError, match="no head 4: heads are 0 to 3"):
        llama.W_V(0, 4)


def test_unknown_architecture():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'Linear'.*gpt2, llama, mistral, .*bert, roberta"):
        Parameters(model)
    model.config = SimpleNamespace(model_type="falcon", num_experts=None)
    with pytest.raises(ValueError, match="'falcon'.*one entry"):
        architecture_of(model)


@pytest.mark.parametrize("name, config, why", [
    ("Electra", {"embedding_size": 8}, "embeddings have 8 numbers and its stream has 12"),
    ("OPT", {"word_embed_proj_dim": 8}, "embeddings have 8 numbers and its stream has 12"),
    ("OPT", {"do_layer_norm_before": False}, "this OPT model .*norms stand behind each sum"),
])
def test_variants_that_are_refused(name, config, why):
    sizes = {key: size for key, size in BERT.items() if key != "intermediate_size"}
    model = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(**sizes | {"embedding_size": 12} | config))
    with pytest.raises(ValueError, match=why):
        Parameters(model)


def test_an_electra_that_discriminates_has_no_output_embeddings():
    p = Parameters(transformers.ElectraForPreTraining(transformers.ElectraConfig(
        **BERT, embedding_size=12)))
    assert p.tied and p.E_out is p.E and p.final_norm() is None


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_mixtures_of_experts_are_refused_by_name(name):
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(model_type="mixtral", **{name: 8})
    with pytest.raises(ValueError, match="'mixtral' is a mixture-of-experts model"):
        architecture_of(model)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_damaged_weights_are_named(value):
    model = tiny("gpt2")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight: ") as error:
        Parameters(model)
    assert "more" not in str(error.value)
    with torch.no_grad():
        for p in model.parameters():
            p.view(-1)[0] = value
    with pytest.raises(ValueError, match="and more"):
        Parameters(model)
