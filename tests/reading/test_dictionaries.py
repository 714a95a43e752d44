"""Dictionaries of layers against a plain regression, on tiny models of every type in the table.

The states are captured here by hooks whose paths are written a second time, so that a wrong entry
in the table of architectures cannot agree with itself.
"""

import pytest
import torch
from tiny_configs import MODELS
from tiny_models import tiny

from embspace_helpers.experiments.controls import mixtures, random_directions
from embspace_helpers.reading.dictionaries import dictionary_space, fit_dictionaries
from embspace_helpers.reading.model import Model

LLAMA = {"ff": "layers.{}.mlp.gate_proj", "attention": "layers.{}.self_attn.q_proj"}
BERT = {"ff": "encoder.layer.{}.intermediate.dense",
        "attention": "encoder.layer.{}.attention.self.query"}
PATHS = {"gpt2": {"ff": "h.{}.mlp.c_fc", "attention": "h.{}.attn.c_attn"},
         "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA,
         "gemma2": LLAMA, "gemma3_text": LLAMA,
         "olmo2": LLAMA, "smollm3": LLAMA,
         "phi3": {"ff": "layers.{}.mlp.gate_up_proj", "attention": "layers.{}.self_attn.qkv_proj"},
         "opt": {"ff": "decoder.layers.{}.fc1", "attention": "decoder.layers.{}.self_attn.q_proj"},
         "gpt_neo": {"ff": "h.{}.mlp.c_fc", "attention": "h.{}.attn.attention.q_proj"},
         "gptj": {"ff": "h.{}.mlp.fc_in", "attention": "h.{}.attn.q_proj"},
         "gpt_neox": {"ff": "layers.{}.mlp.dense_h_to_4h",
                      "attention": "layers.{}.attention.query_key_value"},
         "bert": BERT, "roberta": BERT, "electra": BERT,
         "distilbert": {"ff": "transformer.layer.{}.ffn.lin1",
                        "attention": "transformer.layer.{}.attention.q_lin"},
         "modernbert": {"ff": "layers.{}.mlp.Wi", "attention": "layers.{}.attn.Wqkv"},
         "mpnet": BERT | {"attention": "encoder.layer.{}.attention.attn.q"}}
TEXTS = [" ".join(str(i) for i in torch.randint(3, 40, (n,), generator=torch.Generator()
                  .manual_seed(n)).tolist()) for n in (9, 14, 20, 25)]
RIDGE = 0.01


class Numbers:
    """Numbers in a text are its token ids; every text may begin with token 0."""

    bos_token_id, cls_token_id, sep_token_id, eos_token_id = 0, None, None, None

    def __call__(self, texts, truncation, max_length):
        return {"input_ids": [[int(w) for w in text.split()][:max_length] for text in texts]}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    found = Model(tiny(request.param), Numbers(), request.param)
    found.__dict__["vocabulary"] = Words()
    return found


class Words:
    """A vocabulary of 40 tokens, all of which a list may show."""

    special, shown = {0}, [f"w{i}" for i in range(40)]

    def __len__(self):
        return 40

    def keep(self):
        return torch.ones(40, dtype=torch.bool)


def states(model, reads, layer, rows):
    """Tokens and what the block reads at every position but the first of each row."""
    seen = []
    module = model.model.base_model.get_submodule(PATHS[model.name][reads].format(layer))
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(
        inputs[0].reshape(-1, model.parameters.d)[1:]))
    with torch.no_grad():
        for row in rows:
            model.model.base_model(torch.tensor([row]))
    handle.remove()
    return torch.tensor([i for row in rows for i in row[1:]]), torch.cat(seen)


def plain_ridge(E_T, tokens, Y):
    """W and R² of the regression, written out."""
    X = E_T[tokens] - E_T[tokens].mean(0)
    Y = Y - Y.mean(0)
    weight = RIDGE * (X.T @ X).trace() / X.shape[1]
    W = torch.linalg.solve(X.T @ X + weight * torch.eye(X.shape[1], dtype=X.dtype), X.T @ Y)
    return W, 1 - (Y - X @ W).square().sum() / Y.square().sum()


def close(actual, expected):
    """In float64: sums of a hundred products in another order, solved for d directions."""
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("reads", ["ff", "attention"])
def test_it_is_the_plain_regression_in_every_layer(model, reads):
    rows = [[int(w) for w in text.split()] for text in TEXTS]
    found = fit_dictionaries(model, TEXTS, reads, batch=3, ridge=RIDGE)
    assert len(found) == model.parameters.L
    for layer, one in enumerate(found):
        tokens, Y = states(model, reads, layer, rows)
        W, r2 = plain_ridge(model.parameters.E.T, tokens, Y)
        assert one.n == len(tokens)
        close(one.W, W)
        assert one.r2 == pytest.approx(r2.item(), abs=1e-6)


def test_without_texts_every_token_stands_alone_behind_the_start(model):
    found = fit_dictionaries(model, ridge=RIDGE)[1]
    tokens, Y = states(model, "ff", 1, [[0, i] for i in range(1, 40)])
    close(found.W, plain_ridge(model.parameters.E.T, tokens, Y)[0])
    assert found.n == 39


def test_tokens_can_be_held_out(model):
    only = torch.arange(40) % 2 == 0
    rows = [[int(w) for w in text.split()] for text in TEXTS]
    tokens, Y = states(model, "ff", 0, rows)
    found = fit_dictionaries(model, TEXTS, only=only, ridge=RIDGE)[0]
    kept = only[tokens]
    close(found.W, plain_ridge(model.parameters.E.T, tokens[kept], Y[kept])[0])
    assert found.n == int(kept.sum())


def test_the_token_that_comes_next_may_take_the_place_of_the_one_that_stands_there(model):
    rows = [[int(w) for w in text.split()] for text in TEXTS]
    tokens, Y = states(model, "ff", 1, rows)
    ends = torch.tensor([len(row) - 1 for row in rows]).cumsum(0) - 1  # nothing comes next
    kept = torch.ones(len(tokens), dtype=torch.bool).index_fill(0, ends, False)
    found = fit_dictionaries(model, TEXTS, batch=3, offset=1, ridge=RIDGE)[1]
    close(found.W, plain_ridge(model.parameters.E.T, tokens.roll(-1)[kept], Y[kept])[0])
    assert found.n == int(kept.sum())
    only = torch.arange(40) % 2 == 0  # of the tokens that come next
    some = fit_dictionaries(model, TEXTS, batch=3, offset=1, only=only, ridge=RIDGE)[1]
    kept &= only[tokens.roll(-1)]
    close(some.W, plain_ridge(model.parameters.E.T, tokens.roll(-1)[kept], Y[kept])[0])


def test_shuffled_tokens_explain_less(model):
    texts = TEXTS * 8  # enough positions that a chance fit explains little
    real, control = (fit_dictionaries(model, texts, shuffle=seed)[0].r2 for seed in (None, 0))
    assert control < 0.5 * real


def test_all_controls_go_through_the_same_map(model):
    p, found = model.parameters, fit_dictionaries(model, TEXTS)[1]
    space = dictionary_space(model, found)
    by_token = p.E.T @ found.W  # (e, d), less b
    by_token = by_token - by_token.mean(0)
    for x in (p.K(1), mixtures(p.K(1))[0], random_directions(7, p.d).double()):
        close(space.project(x), x @ by_token.T)


def test_whitened_states_have_no_leading_directions(model):
    found = fit_dictionaries(model, TEXTS, ridge=1e-6)[0]
    R = dictionary_space(model, found, whitened=True).columns()
    sizes = torch.linalg.eigvalsh(R @ R.T)  # ascending
    # States behind a LayerNorm lie in a plane: one direction in which nothing differs stays out.
    torch.testing.assert_close(sizes[1:], torch.ones(len(R) - 1, dtype=R.dtype), rtol=1e-4, atol=0)
    assert -1e-6 < sizes[0] < 1 + 1e-4


def test_the_second_call_runs_nothing(model):
    space, runs = model.dictionary(1, TEXTS), []
    handle = model.model.base_model.register_forward_hook(lambda *_: runs.append(1))
    again = model.dictionary(1, tuple(TEXTS))
    model.dictionary(0, TEXTS)
    assert not runs and torch.equal(space.map, again.map)
    model.dictionary(1, TEXTS, reads="attention")
    handle.remove()
    assert runs


def test_errors(model):
    with pytest.raises(ValueError, match="no layer 2: layers are 0 to 1"):
        model.dictionary(2, TEXTS)
    with pytest.raises(ValueError, match="reads = 'keys': there are 'ff' and 'attention'"):
        model.dictionary(0, TEXTS, reads="keys")
    with pytest.raises(ValueError, match="at least 2 positions"):
        fit_dictionaries(model, ["5"])
    with pytest.raises(ValueError, match="offset = 1 needs texts"):
        fit_dictionaries(model, offset=1)


def test_a_head_is_read_by_the_dictionary_on_one_side_and_written_by_E_on_the_other(model):
    p, found = model.parameters, fit_dictionaries(model, TEXTS, "attention")[1]
    read, W = dictionary_space(model, found), p.W_VO(1, 0)
    states_of_tokens = p.E.T @ found.W  # (e, d), less b
    states_of_tokens = states_of_tokens - states_of_tokens.mean(0)
    pairs = read.over_words(W, model.space("transpose"))
    close(pairs.dense(), states_of_tokens @ W.dense() @ p.E)
    matched = read.over_words(p.W_QK(1, 0))
    close(matched.dense(), states_of_tokens @ p.W_QK(1, 0).dense() @ states_of_tokens.T)


def test_a_whitened_dictionary_is_F_turned(model):
    found = fit_dictionaries(model, TEXTS, "attention", ridge=1e-6)[0]
    F, M = (space.columns() for space in (model.space("orthogonal"),
                                          dictionary_space(model, found, whitened=True)))
    P = F @ M.T  # (d, d)
    rank = int(torch.linalg.matrix_rank(M, rtol=1e-6))  # a LayerNorm leaves a direction empty
    assert rank >= model.parameters.d - 1
    values = torch.linalg.svdvals(P)
    torch.testing.assert_close(values[:rank], torch.ones(rank, dtype=P.dtype), rtol=0, atol=1e-3)
    torch.testing.assert_close(P.T @ F, M, rtol=0, atol=1e-3)
