"""Parameters against real forward passes of tiny random models, read through hooks.

The paths of the hooked modules are written here a second time, so that a wrong entry in the table
of architectures cannot agree with itself.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_models import BERT, MODELS, NORM_FIRST, tiny
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from embspace_helpers.reading.architectures import ARCHITECTURES, architecture_of
from embspace_helpers.reading.parameters import Parameters

GPT2_PATHS = {"ff": "h.{}.mlp", "attention": "h.{}.attn", "fused": "h.{}.attn.c_attn",
              "attention_in": "h.{}.ln_1", "ff_in": "h.{}.ln_2", "K": "h.{}.mlp.c_fc",
              "last": "h.1"}
LLAMA_PATHS = {"ff": "layers.{}.mlp", "attention": "layers.{}.self_attn",
               "Q": "layers.{}.self_attn.q_proj", "K_att": "layers.{}.self_attn.k_proj",
               "attention_in": "layers.{}.input_layernorm",
               "ff_in": "layers.{}.post_attention_layernorm", "gate": "layers.{}.mlp.gate_proj",
               "up": "layers.{}.mlp.up_proj", "last": "layers.1"}
BERT_PATHS = {"ff": "encoder.layer.{}.output.dense",
              "attention": "encoder.layer.{}.attention.output.dense",
              "Q": "encoder.layer.{}.attention.self.query",
              "K_att": "encoder.layer.{}.attention.self.key",
              "attention_in": "encoder.layer.{}.attention.self",
              "ff_in": "encoder.layer.{}.intermediate", "K": "encoder.layer.{}.intermediate.dense",
              "last": "encoder.layer.1"}
PATHS = {"gpt2": GPT2_PATHS, "bert": BERT_PATHS, "roberta": BERT_PATHS}


def record(kind, model):
    """Run 2 x 7 items; return what the hooked modules took in and gave out, and the outputs."""
    seen, handles = {}, []
    for role, path in PATHS.get(kind, LLAMA_PATHS).items():
        for layer in (0, 1):
            def keep(_, args, kwargs, out, key=(role, layer)):
                taken = args[0] if args else kwargs["hidden_states"]
                seen[key] = taken, out[0] if isinstance(out, tuple) else out
            module = model.base_model.get_submodule(path.format(layer))
            handles.append(module.register_forward_hook(keep, with_kwargs=True))
    ids = torch.randint(3, 40, (2, 7))
    with torch.no_grad():
        out = model(input_ids=ids, output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen, out


class Case:
    def __init__(self, kind):
        self.kind, self.model = kind, tiny(kind)
        self.p = Parameters(self.model)
        self.seen, self.out = record(kind, self.model)
        config = self.model.config
        self.act = ACT2FN[getattr(config, "hidden_act", None) or config.activation_function]

    def read(self, role, layer, norm):
        """What a block reads: its input, normed where a norm stands in front."""
        x = self.seen[role, layer][0]
        return x if norm is None else norm(x)

    def queries_keys(self, layer):
        """The model's own queries (2, 7, H, d_h) and keys (2, 7, H_kv, d_h), before rotation."""
        if self.kind == "gpt2":
            q, k, _ = self.seen["fused", layer][1].chunk(3, -1)
        else:
            q, k = self.seen["Q", layer][1], self.seen["K_att", layer][1]
        return q.unflatten(-1, (self.p.H, -1)), k.unflatten(-1, (-1, self.p.d_h))


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
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


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
    b_q, b_k, _ = (bias(part) for part in p._queries_keys_values(layer))
    model_q, model_k = case.queries_keys(layer)
    causal = torch.full((7, 7), -math.inf).triu(1) if case.kind in NORM_FIRST else 0.0
    for head in range(p.H):
        own, other = p.W_QK(layer, head).left, p.W_QK(layer, head).right.T
        kv = head // (p.H // p.H_kv)
        q = x @ own + (b_q if isinstance(b_q, float) else b_q[head * p.d_h :][: p.d_h])
        k = x @ other + (b_k if isinstance(b_k, float) else b_k[kv * p.d_h :][: p.d_h])
        close(q @ k.mT, model_q[:, :, head] @ model_k[:, :, kv].mT)
        if p.entry.rotary:
            cos, sin = case.model.base_model.rotary_emb(x, torch.arange(7)[None])
            q, k = (part[:, 0] for part in apply_rotary_pos_emb(q[:, None], k[:, None], cos, sin))
        weights = torch.softmax(q @ k.mT / math.sqrt(p.d_h) + causal, -1)
        close(weights, case.out.attentions[layer][:, head])


@pytest.mark.parametrize("layer", [0, 1])
def test_heads_sum_to_the_attention_block(case, layer):
    p = case.p
    x = case.read("attention_in", layer, p.attention_norm(layer))
    b_v = bias(p._queries_keys_values(layer)[2])
    total = bias(p.entry.output(p._block(layer)))
    for head in range(p.H):
        W_V, W_O = p.W_VO(layer, head).left, p.W_VO(layer, head).right
        kv = p.kv_head(head)
        v = x @ W_V + (b_v if isinstance(b_v, float) else b_v[kv * p.d_h :][: p.d_h])
        total = total + case.out.attentions[layer][:, head] @ v @ W_O
    assert total.std() > 0.05
    close(total, case.seen["attention", layer][1])


def test_logits(case):
    p, last = case.p, case.seen["last", 1][1]
    if case.kind in NORM_FIRST:
        logits = p.final_norm()(last) @ p.E_out
    else:  # BERT's head: a dense layer, GELU and a norm stand between the state and E_out
        assert p.final_norm() is None
        head = case.model.cls.predictions if case.kind == "bert" else case.model.lm_head
        if case.kind == "bert":
            logits = head.transform(last) @ p.E_out + head.bias
        else:
            logits = head.layer_norm(ACT2FN["gelu"](head.dense(last))) @ p.E_out + head.bias
    close(logits, case.out.logits)


@pytest.mark.parametrize("layer", [0, 1])
def test_folded_norm_gives_the_preactivations(case, layer):
    p, x = case.p, case.seen["ff_in", layer][0]
    norm = p.ff_norm(layer)
    for kind in p.key_kinds:
        b = 0.0 if p.b_K(layer, kind) is None else p.b_K(layer, kind)
        shift = p.K(layer, kind) @ norm.bias if hasattr(norm, "bias") else 0.0
        read = x @ p.K(layer, kind, fold_norm=True).T / scale(norm, x) + shift + b
        close(read, case.seen[kind, layer][1])


@pytest.mark.parametrize("layer", [0, 1])
def test_folded_norm_gives_the_queries_and_keys(case, layer):
    p, x = case.p, case.seen["attention_in", layer][0]
    norm, model = p.attention_norm(layer), case.queries_keys(layer)
    for which, part in enumerate(p._queries_keys_values(layer)[:2]):
        W = (p.W_Q, p.W_K)[which](layer, fold_norm=True)  # (heads, d, d_h)
        shift = part.weight @ norm.bias if hasattr(norm, "bias") else torch.zeros(len(part.weight))
        constant = (shift + bias(part)).unflatten(0, (-1, p.d_h))
        read = torch.einsum("bnd,hdk->bnhk", x / scale(norm, x), W) + constant
        close(read, model[which])


def scale(norm, x):
    """The one number by which a norm divides a state, (..., 1); 1 where there is no norm."""
    if norm is None:
        return torch.ones(x.shape[:-1])[..., None]
    if isinstance(norm, nn.LayerNorm):
        return (x.var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    return (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()


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
    H_kv = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
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
    views |= {f"vectors {group}": p.vectors(group, 1) for group in p.groups}
    for name, view in views.items():
        assert view.untyped_storage().data_ptr() in owned, name
        assert not view.requires_grad, name
    assert not any(p.vectors(group, fold_norm=True).requires_grad for group in p.groups)
    biases = [p.b_V(0), *(p.b_K(0, k) for k in p.key_kinds)]
    assert all(b is None or not b.requires_grad for b in biases)


def test_bias_of_the_values(case):
    b = case.p.b_V(1)
    assert (b is None) == (case.kind in ("mistral", "qwen2"))
    assert b is None or b.shape == (case.p.d,)


def test_tied_and_untied_output_embeddings():
    assert {kind: Parameters(MODELS[kind]()).tied for kind in MODELS} == {
        "gpt2": True, "llama": False, "mistral": True, "qwen2": False, "bert": True,
        "roberta": True}


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
    with pytest.raises(ValueError, match="'Linear'.*gpt2, llama, mistral, qwen2, bert, roberta"):
        Parameters(model)
    model.config = SimpleNamespace(model_type="opt")
    with pytest.raises(ValueError, match="'opt'.*one entry"):
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
