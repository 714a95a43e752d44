"""Dictionaries of layers against least squares on states that the tests capture themselves.

What a block reads is caught here at the output of the norm in front of it, by paths written out a
second time, one text at a time; the helper catches it at the input of what reads, in batches.
"""

from functools import partial

import numpy as np
import pytest
import torch
from tiny_models import (
    BERT_KINDS,
    EXACT,
    MODELS,
    close,
    in_float64,
    numbers,
    random,
    tiny,
    tiny_in_float32,
    tiny_model,
    word_level,
)

from embspace_helpers.experiments.controls import mixtures, random_directions
from embspace_helpers.reading.dictionaries import RIDGE, Dictionary, fit_dictionaries
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.spaces import reading_space

# The module that gives out what the block of layer 0 and of layer 1 reads.
GPT2 = {"ff": ("h.0.ln_2", "h.1.ln_2"), "attention": ("h.0.ln_1", "h.1.ln_1")}
LLAMA = {"ff": ("layers.0.post_attention_layernorm", "layers.1.post_attention_layernorm"),
         "attention": ("layers.0.input_layernorm", "layers.1.input_layernorm")}
BERT = {"ff": ("encoder.layer.0.attention.output", "encoder.layer.1.attention.output"),
        "attention": ("embeddings", "encoder.layer.0")}
PATHS = {"gpt2": GPT2, **dict.fromkeys(("llama", "mistral", "qwen2"), LLAMA),
         **dict.fromkeys(BERT_KINDS, BERT)}
READS = ("ff", "attention")
RMS = ("llama", "mistral", "qwen2")  # whose norm is no LayerNorm


def random_texts(n, seed=0):
    """n texts of 2 to 20 numbers from 1 to 38."""
    dice = np.random.default_rng(seed)
    return [" ".join(map(str, dice.integers(1, 39, dice.integers(2, 21)))) for _ in range(n)]


TEXTS = random_texts(40)
FIVES = torch.arange(40) % 5 != 0  # a mask that holds every fifth token out


@torch.no_grad()
def states(m, kind, rows, reads, places):
    """What layers 0 and 1 read at some places of each row, (2, n, d), and the tokens there."""
    seen, handles = [[], []], []
    for layer, path in enumerate(PATHS[kind][reads]):
        def keep(module, inputs, out, layer=layer):
            seen[layer].append((out[0] if isinstance(out, tuple) else out)[0])
        handles.append(m.model.base_model.get_submodule(path).register_forward_hook(keep))
    for row in rows:
        m.model.base_model(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    at = [list(places(row)) for row in rows]
    found = [torch.cat([y[p] for y, p in zip(layer, at)]) for layer in seen]
    return torch.stack(found).numpy(), [row[i] for row, p in zip(rows, at) for i in p]


def regress(x, y, ridge):
    """Ridge regression by least squares with d more rows: W, b and R²."""
    x_c, y_c = x - x.mean(0), y - y.mean(0)
    weight = (ridge * x_c.var(0).mean() * len(x)) ** 0.5
    more = np.concatenate([x_c, weight * np.eye(x.shape[1])])
    W = np.linalg.lstsq(more, np.concatenate([y_c, np.zeros_like(more[len(x):])]))[0]
    b = y.mean(0) - x.mean(0) @ W
    return W, b, 1 - ((y - x @ W - b) ** 2).sum() / (y_c**2).sum()


def check(found, m, y, tokens, ridge=RIDGE):
    """Assert that the dictionaries of all layers are the regressions of y (2, n, d)."""
    x = m.parameters.E.T.numpy()[tokens]
    assert len(found) == m.parameters.L == 2
    for layer, dictionary in enumerate(found):
        W, _, r2 = regress(x, y[layer], ridge)
        assert dictionary.W.dtype == torch.float64 and dictionary.n == len(tokens)
        close(dictionary.W, W)
        close(dictionary.r2, r2)


def behind_the_first(row):
    return range(1, len(row))


# ---- the regression


@pytest.mark.parametrize("reads", READS)
def test_dictionaries_are_ridge_regressions_on_what_a_block_reads(kind, reads):
    m = tiny_model(kind)
    y, tokens = states(m, kind, m.tokens(TEXTS), reads, behind_the_first)
    assert len(tokens) > 300
    check(m.dictionaries(TEXTS, reads), m, y, tokens)
    for ridge in (0.0, 1e-4, 0.5):
        check(m.dictionaries(TEXTS, reads, ridge=ridge), m, y, tokens, ridge)


def test_with_nothing_but_embeddings_to_read_nothing_is_left_to_explain():
    """GPT-2 without positions: layer 0 attends to the norm of the embedding, a constant length."""
    m = tiny_model("gpt2")
    with torch.no_grad():
        m.model.transformer.wpe.weight.zero_()
        E = m.model.transformer.wte.weight
        E -= E.mean(1, keepdim=True)  # so that the norm divides by one number for each token
        E /= E.norm(dim=1, keepdim=True)
    first, second = fit_dictionaries(m, TEXTS, "attention", ridge=0.0)
    assert first.r2 == pytest.approx(1, abs=1e-4) and second.r2 < 0.99  # 1e-5 is in the norm


@pytest.mark.parametrize("reads", READS)
def test_without_texts_every_token_stands_alone(kind, reads):
    m = tiny_model(kind)
    end = [39] if kind in BERT_KINDS else []
    rows = [[0, i, *end] for i in range(1, 39)]
    y, tokens = states(m, kind, rows, reads, lambda row: [1])
    assert tokens == [*range(1, 39)]
    check(m.dictionaries(reads=reads), m, y, tokens)


def test_tokens_are_held_out(kind):
    m = tiny_model(kind)
    y, tokens = states(m, kind, m.tokens(TEXTS), "ff",
                       lambda row: [p for p in behind_the_first(row) if row[p] % 5])
    for mask in (FIVES, FIVES.numpy()):
        check(m.dictionaries(TEXTS, only=mask), m, y, tokens)
    y, tokens = states(m, kind, [[0, i, *([39] if kind in BERT_KINDS else [])]
                                 for i in range(1, 39) if i % 5], "ff", lambda row: [1])
    check(m.dictionaries(only=FIVES), m, y, tokens)


def test_batches_and_lengths(kind):
    m = tiny_model(kind)
    whole = m.dictionaries(TEXTS)
    for batch in (1, 3, 64):
        for found, expected in zip(fit_dictionaries(m, TEXTS, batch=batch), whole):
            close(found.W, expected.W)
            close(found.r2, expected.r2)
    y, tokens = states(m, kind, [row[:6] for row in m.tokens(TEXTS)], "ff", behind_the_first)
    check(m.dictionaries(TEXTS, length=6), m, y, tokens)


def test_one_text_may_be_given_alone_and_texts_in_any_order():
    m = tiny_model("llama")
    close(m.dictionaries(TEXTS[0])[1].W, m.dictionaries([TEXTS[0]])[1].W)
    close(m.dictionaries(TEXTS)[1].W, m.dictionaries(TEXTS[::-1])[1].W)


def test_states_and_tokens_paired_at_random_have_nothing_in_common(kind):
    m = tiny_model(kind)
    trained = m.dictionaries(TEXTS)
    for seed in range(3):
        for found, true in zip(m.dictionaries(TEXTS, shuffle=seed), trained):
            assert found.n == true.n
            assert found.r2 < 3 * m.parameters.d / found.n < true.r2  # d / n by chance
            assert found.W.norm() < true.W.norm()
    one, same, other = (fit_dictionaries(m, TEXTS, shuffle=seed)[0].W for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_float32_and_16_bits_are_fitted_in_float32():
    """Two passes of a tiny model differ by 2e-5 in float32, where the conditioning is 1e2."""
    exact = Model(in_float64(tiny_in_float32("gpt2")), numbers()).dictionaries(TEXTS)
    single = Model(tiny_in_float32("gpt2"), numbers()).dictionaries(TEXTS)
    half = Model(tiny_in_float32("gpt2").bfloat16(), numbers()).dictionaries(TEXTS)
    for found, coarse, expected in zip(single, half, exact):
        assert found.W.dtype == coarse.W.dtype == torch.float32
        close(found.W, expected.W, 2e-3)
        close(found.r2, expected.r2, 1e-4)
        close(coarse.r2, expected.r2, 0.1)


# ---- the space


@pytest.mark.parametrize("reads", READS)
def test_the_space_of_a_dictionary_reads_by_the_states_of_tokens(kind, reads):
    m = tiny_model(kind)
    y, tokens = states(m, kind, m.tokens(TEXTS), reads, behind_the_first)
    E, x = m.parameters.E.T.numpy(), random(5, m.parameters.d)
    for layer in (0, 1):
        W, b, _ = regress(E[tokens], y[layer], RIDGE)
        of_tokens = E @ W + b  # (e, d): the state that stands for each token
        scores = x.numpy() @ (of_tokens - of_tokens.mean(0)).T
        space = m.dictionary(layer, TEXTS, reads)
        close(space.scores(x), scores)
        close(space.project(x), scores[:, 1:39])  # all but <s> and </s>
        close(m.dictionary(layer, TEXTS, reads, FIVES).project(x), scores[:, FIVES])
        assert space.name == f"dictionary of layer {layer}"
        assert space.E is m.parameters.E


def test_whitened_states_are_orthonormal_but_in_directions_that_are_nearly_empty(kind):
    m = tiny_model(kind)
    everything = torch.ones(40, dtype=torch.bool)
    for layer in (0, 1):
        plain = m.dictionary(layer, TEXTS, keep=everything)
        u, s, vt = np.linalg.svd(plain.columns().numpy(), full_matrices=False)
        full = s > 1e-3 * s[0]
        assert m.parameters.d - 1 <= full.sum()
        assert kind in RMS or s[-1] < EXACT  # a LayerNorm leaves a direction empty
        found = m.dictionary(layer, TEXTS, keep=everything, whitened=True).columns().numpy()
        # Variances are right to 1e-16 of the largest, the smallest that counts is 1e-6 of it.
        close(found, u * np.where(full, 1, s / s[0] / 1e-3) @ vt, 10 * EXACT)
        close(u.T[full] @ found @ found.T @ u.T[full].T, np.eye(full.sum()), 10 * EXACT)


def test_a_direction_that_no_state_has_is_not_blown_up():
    m = tiny_model("gpt2")
    W = m.dictionaries(TEXTS)[0].W.clone()
    W[:, 3] = 0
    m._dictionaries[next(iter(m._dictionaries))][0] = Dictionary(W, 0.5, 99)
    space = m.dictionary(0, TEXTS, whitened=True)
    assert space.columns().isfinite().all() and space.columns().abs().max() < 2


def test_keys_of_a_layer_and_their_controls_go_through_the_same_map(kind):
    m, layer = tiny_model(kind), 1
    keys = m.parameters.K(layer)
    space, paired_at_random = (m.dictionary(layer, TEXTS, **options)
                               for options in ({}, {"shuffle": 0}))
    vectors = {"keys": keys, "mixtures": mixtures(keys)[0],
               "random": random_directions(len(keys), m.parameters.d)}
    columns = space.columns().numpy()
    lists = {name: space.top(x, 5)[1] for name, x in vectors.items()}
    for name, x in vectors.items():
        best = np.argsort(-(x.double().numpy() @ columns))[:, :5]
        assert torch.equal(lists[name], space.ids[best])
    lists["shuffled"] = paired_at_random.top(keys, 5)[1]
    lists["E"] = m.space("centred").top(keys, 5)[1]
    assert len({str(found.tolist()) for found in lists.values()}) == 5
    assert len(space.table({"key": keys[0]}, 5).columns["key"]) == 5


def test_a_dictionary_s_space_is_as_small_as_any_other(kind):
    m = tiny_model(kind)
    space = m.dictionary(0, TEXTS)
    assert space.sums is m.sums and space.map.shape == (m.parameters.d,) * 2
    plain = reading_space(m.parameters.E, m.vocabulary, "centred")
    close(space.columns(), space.map @ plain.columns())


# ---- once


def test_the_model_runs_once_for_all_layers_of_the_same_texts():
    m, passes = tiny_model("gpt2"), []
    m.model.base_model.register_forward_hook(lambda *_: passes.append(1))

    def cost(ask):
        before = len(passes)
        ask()
        return len(passes) - before

    assert cost(lambda: m.dictionary(0, TEXTS)) == 5  # 40 texts, 8 at a time
    for again in (lambda: m.dictionary(1, TEXTS), lambda: m.dictionary(0, tuple(TEXTS)),
                  lambda: m.dictionary(0, iter(TEXTS), keep=FIVES, whitened=True),
                  lambda: m.dictionaries(TEXTS)):
        assert cost(again) == 0
    for options in ({"reads": "attention"}, {"length": 5}, {"only": FIVES}, {"only": ~FIVES},
                    {"shuffle": 0}, {"shuffle": 1}, {"ridge": 1.0}):
        assert cost(partial(m.dictionary, 0, TEXTS, **options)) == 5, options
        assert cost(partial(m.dictionary, 1, TEXTS, **options)) == 0, options
    assert cost(lambda: m.dictionary(0, TEXTS[1:])) == 5
    assert cost(lambda: m.dictionary(0)) == 1  # 38 tokens, 64 at a time
    assert cost(lambda: m.dictionary(1)) == 0


def test_nothing_is_left_in_the_model():
    m = tiny_model("gpt2")
    m.dictionaries(TEXTS)
    with pytest.raises(ValueError):
        m.dictionaries(["1"])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in m.model.modules())


# ---- errors


@pytest.mark.parametrize("ask, said", [
    (lambda m: m.dictionary(2, TEXTS), "no layer 2: layers are 0 to 1"),
    (lambda m: m.dictionary("last", TEXTS), "no layer 'last': layers are 0 to 1"),
    (lambda m: m.dictionary(0, TEXTS, "head"), "reads = 'head': there are 'ff' and 'attention'"),
    (lambda m: m.dictionary(0, []), "expected texts, a list of strings, got '[]'"),
    (lambda m: m.dictionary(0, [1, 2]), "expected texts, a list of strings, got '[1, 2]'"),
    (lambda m: m.dictionary(0, 7), "expected texts, a list of strings, got '7'"),
    (lambda m: m.dictionary(0, TEXTS, only=[3]), "only must be a mask of shape (40,), got list: "
     "Vocabulary.keep(...) makes one, of words with only=[...]"),
    (lambda m: m.dictionary(0, TEXTS, keep=FIVES[:3]), "keep must be a mask of shape (40,), got "
     "torch.bool of shape (3,): Vocabulary.keep(...) makes one, of words with only=[...]"),
    (lambda m: m.dictionary(0, TEXTS, batch=0), "batch = 0, but it must be at least 1"),
    (lambda m: m.dictionary(0, TEXTS, length=0), "length = 0, but it must be at least 1"),
    (lambda m: m.dictionary(0, "1 2 3", ridge=0.0), "2 positions do not fix 12 directions with "
     "ridge = 0.0: more text or a larger ridge does"),
])
def test_what_cannot_be_fitted_is_told(ask, said):
    with pytest.raises(ValueError) as error:
        ask(tiny_model("gpt2"))
    assert str(error.value) == said


@pytest.mark.parametrize("texts, n, tokens", [(["1", "2"], 0, 0), (["1 2"], 1, 1),
                                              (["1 7 7 7", "3 7"], 4, 1)])
def test_a_dictionary_needs_two_tokens(texts, n, tokens):
    with pytest.raises(ValueError, match=f"at least 2 positions with different tokens, there "
                                         f"are {n} with {tokens} .the first position of a text"):
        tiny_model("gpt2").dictionary(0, texts)


def test_every_token_alone_needs_one_to_start_with():
    m = Model(tiny("gpt2"), word_level([f"item{i}" for i in range(40)]))
    with pytest.raises(ValueError, match="has no token that starts a text: give texts"):
        m.dictionary(0)
    ended = Model(tiny("gpt2"), word_level([f"item{i}" for i in range(40)], eos_token="item3"))
    assert ended.dictionaries()[0].n == 39  # the end of one text stands before the next


def test_every_architecture_is_tested_here():
    assert set(PATHS) == set(MODELS)
