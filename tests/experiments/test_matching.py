"""Single neurons and heads, matched: against all products written out."""

import numpy as np
import pytest
import torch
from tiny_models import Sizes, another, close, random, tiny_model

from embspace_helpers import capture
from embspace_helpers.experiments.alignment import Kernels
from embspace_helpers.experiments.matching import (
    attention_patterns,
    best_matches,
    head_cosines,
    mutual_matches,
    neuron_activity,
    neuron_rows,
    row_cosines,
    written,
    written_cosines,
)

TEXTS = ["1 2 3 4 5 6", "7 8 9", "10 11 12 13 14 15 16 17"]
SHARED = torch.arange(1, 39)


@pytest.fixture(scope="module")
def pair():
    return tiny_model("gpt2"), another("llama")


def over_words(model, rows):
    """Rows as vectors over the shared tokens, each at mean 0 and length 1."""
    x = rows @ model.parameters.E[:, SHARED]
    x = x - x.mean(1, keepdim=True)
    return x / x.norm(dim=1, keepdim=True)


# ---- neurons


def test_neurons_are_compared_by_key_and_value(pair):
    a, b = pair
    P, Q = neuron_rows(a, b, Kernels(a, b))
    p, q = a.parameters, b.parameters
    keys = over_words(a, p.vectors("K").flatten(0, 1)) @ over_words(
        b, q.vectors("gate").flatten(0, 1)).T
    values = over_words(a, p.vectors("V").flatten(0, 1)) @ over_words(
        b, q.vectors("V").flatten(0, 1)).T
    close(P @ Q.T, (keys + values) / 2)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_best_matches_equal_those_of_the_whole_product(block):
    P, Q = random(30, 5, seed=1), random(23, 5, seed=2)
    products = P @ Q.T
    place, score, source = best_matches(P, Q, block)
    assert torch.equal(place, products.argmax(1))
    assert torch.equal(source, products.argmax(0))
    close(score, products.amax(1))


def test_mutual_matches_are_each_others_best():
    P, Q = random(30, 5, seed=1), random(23, 5, seed=2)
    products = P @ Q.T
    rows, columns, scores = mutual_matches(P, Q, 4)
    expected = {(i, j) for i in range(30) for j in range(23)
                if products[i].argmax() == j and products[:, j].argmax() == i}
    assert set(zip(rows.tolist(), columns.tolist())) == expected
    assert (scores.diff() <= 0).all()
    close(scores, products[rows, columns])


def test_the_product_of_all_neurons_never_exists():
    P, Q = random(40, 3), random(50, 3)
    with Sizes() as sizes:
        best_matches(P, Q, 10)
    assert sizes.largest <= 150


def test_rows_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match=r"one length.*\(4, 3\) and \(4, 2\)"):
        best_matches(random(4, 3), random(4, 2))


def test_activity_gives_correlations(pair):
    one, two = (capture(m, TEXTS, None, keep="neurons") for m in pair)
    found = neuron_activity(one) @ neuron_activity(two).T
    x, y = (c.neurons.movedim(0, 1).flatten(1).T.numpy() for c in (one, two))
    close(found, np.corrcoef(x, y)[:len(x), len(x):], 1e-8)
    half = one.text == 2
    close(neuron_activity(one, half).norm(dim=1), torch.ones(40))
    with pytest.raises(ValueError, match="lacks neurons"):
        neuron_activity(capture(pair[0], TEXTS, keep="states"))


# ---- heads


@pytest.mark.parametrize("kind", ["VO", "QK"])
def test_heads_equal_matrices_over_the_vocabulary(pair, kind):
    a, b = pair
    found = head_cosines(a, b, kind)

    def matrices(model):
        p, C = model.parameters, model.parameters.E[:, SHARED]
        C = C - C.mean(1, keepdim=True)
        return [C.T @ getattr(p, f"W_{kind}")(i, h).dense() @ C
                for i in range(p.L) for h in range(p.H)]

    expected = [[((X * Y).sum() / X.norm() / Y.norm()).item() for Y in matrices(b)]
                for X in matrices(a)]
    close(found, expected)


def test_a_model_has_its_own_heads():
    a = tiny_model("gpt2")
    close(head_cosines(a, a).diagonal(), torch.ones(6))


def test_unknown_kinds_of_heads(pair):
    with pytest.raises(ValueError, match="'VO' and 'QK'"):
        head_cosines(*pair, "OV")


def test_attention_patterns_against_a_pass_by_hand():
    a = tiny_model("gpt2")
    found = attention_patterns(a, TEXTS, batch=2)
    expected = []
    a.model.set_attn_implementation("eager")
    for row in a.tokens(TEXTS):
        with torch.no_grad():
            layers = a.model.base_model(torch.tensor([row]), output_attentions=True).attentions
        looks = torch.cat([x[0] for x in layers])  # (L H, looking, looked at)
        for q in range(2, len(row)):
            part = looks[:, q, 1:q + 1]
            expected.append(part - part.mean(1, keepdim=True))
    close(found, torch.cat(expected, 1))


def test_attention_is_set_back():
    a = tiny_model("gpt2")
    a.model.set_attn_implementation("sdpa")
    attention_patterns(a, TEXTS)
    assert a.model.config._attn_implementation == "sdpa"


def test_what_heads_write_against_vectors_over_the_vocabulary(pair):
    a, b = pair
    x, y = (written(m, capture(m, TEXTS, None, keep="subheads")) for m in pair)
    assert x.shape == (6, 17, 12) and y.shape == (8, 17, 12)
    close(x.mean(1), torch.zeros(6, 12))
    found = written_cosines(x, y, Kernels(a, b))

    def words(model, z):
        scores = z @ model.parameters.E[:, SHARED]
        return (scores - scores.mean(-1, keepdim=True)).flatten(1)

    close(found, row_cosines(words(a, x), words(b, y)))
    with pytest.raises(ValueError, match="lacks subheads"):
        written(a, capture(a, TEXTS, keep="states"))


def test_all_heads_together_write_what_attention_writes():
    a = tiny_model("gpt2")
    cache = capture(a, TEXTS, None, keep="subheads")
    total = written(a, cache)[:3].sum(0)
    whole = cache.subheads[0] @ a.parameters.vectors("W_O", 0)
    close(total, whole - whole.mean(0))
