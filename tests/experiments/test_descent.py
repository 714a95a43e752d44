"""Descent: the order of a model's parts as the trace of a common origin."""

import numpy as np
import pytest
import torch
from tiny_models import another, close, random, tiny_model

from embspace_helpers import load
from embspace_helpers.experiments.alignment import Kernels, alignment
from embspace_helpers.experiments.descent import (
    PARTS,
    _orders,
    descent,
    descent_table,
    distance,
    likeness,
    permuted,
    turned,
)
from embspace_helpers.reading.activations import run


@pytest.fixture(scope="module")
def a():
    return tiny_model("gpt2")


def test_likeness_against_vectors_over_the_vocabulary(a):
    b, ids = another("gpt2"), torch.arange(1, 39)
    found = likeness(a, b, "neurons", Kernels(a, b))
    E, F = a.parameters.E[:, ids], b.parameters.E[:, ids]
    expected = sum(np.corrcoef(a.parameters.K(i) @ E, b.parameters.K(i) @ F)[:20, 20:]
                   for i in range(2))
    close(found, expected)
    close(likeness(a, b, "dimensions", Kernels(a, b)), np.corrcoef(E, F)[:12, 12:])
    queries = sum(np.corrcoef(a.parameters.vectors("W_Q", i) @ E,
                              b.parameters.vectors("W_Q", i) @ F)[:12, 12:] for i in range(2))
    close(likeness(a, b, "subheads", Kernels(a, b)), queries)
    with pytest.raises(ValueError, match="neurons, subheads, dimensions"):
        likeness(a, b, "heads", Kernels(a, b))


def test_p_is_the_share_of_orders_that_fit_as_well(a):
    b = another("gpt2")
    found = descent(a, b, draws=400, seed=3)
    table = likeness(a, b, "neurons", Kernels(a, b)).numpy()
    orders = _orders(20, 1, 400, 3)
    scores = [sum(table[i, j] for i, j in enumerate(order)) for order in orders.tolist()]
    close(found.p["neurons"], (1 + sum(s >= table.trace() - 1e-9 for s in scores)) / 401)
    close(found.z["neurons"], (table.trace() - np.mean(scores)) / np.std(scores, ddof=1))
    close(found.together, min(1, 3 * min(found.p.values())))


def test_orders_keep_subheads_with_their_head():
    orders = _orders(12, 4, 500, 0).long()
    assert (orders.sort(1).values == torch.arange(12)).all()
    heads = (orders // 4).unflatten(1, (3, 4))
    assert (heads == heads[..., :1]).all()
    assert len(orders.unique(dim=0)) > 490
    plain = _orders(5, 1, 20_000, 0).long()
    close(plain.double().mean(0), torch.full((5,), 2.0), 0.05)


def test_without_a_common_origin_p_is_uniform():
    """Random weights of other seeds; and they may know the same words, as shared E makes them."""
    found = []
    for seed in range(40):
        one, two = tiny_model("gpt2"), tiny_model("gpt2")
        for model, number in ((one, 2 * seed), (two, 2 * seed + 1)):
            with torch.no_grad():
                for place, p in enumerate(model.model.parameters()):
                    p.copy_(random(*p.shape, seed=1000 * number + place))
        with torch.no_grad():
            order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
            two.parameters.E.copy_(one.parameters.E[order])
        found.append(descent(one, two, draws=199, seed=seed).p)
    for part in PARTS:
        p = torch.tensor([x[part] for x in found])
        assert 0.3 < p.mean() < 0.7
        assert (p < 0.05).sum() <= 7


def test_copies_are_found_in_any_disguise(a):
    for copied in (a, permuted(a), turned(a), permuted(turned(a, 1), 2)):
        assert descent(a, copied, draws=999).together <= 0.01
    assert descent(a, permuted(a), draws=999).p["neurons"] > 0.01
    assert descent(a, turned(a), draws=999).p["dimensions"] > 0.01


def test_models_of_two_sizes_and_families():
    one, two = tiny_model("gpt2"), tiny_model("qwen2")
    found = descent(one, two, draws=99)
    assert set(found.p) == {"neurons", "subheads", "dimensions"}
    other = descent(tiny_model("llama"), one, draws=99)  # heads of 6 and of 4
    assert set(other.p) == {"neurons", "dimensions"}


def test_a_permuted_model_computes_the_same(kind):
    model = tiny_model(kind)
    tokens = [[1, 2, 3, 4, 5]]
    with torch.no_grad():
        close(run(permuted(model), tokens), run(model, tokens))
    assert not torch.equal(permuted(model).parameters.K(0), model.parameters.K(0))


def test_a_turned_model_reads_the_same_and_looks_different(kind):
    model = tiny_model(kind)
    other = turned(model)
    for group in ("V", "W_Q", "W_K", "W_V", "W_O"):
        x, y = model.parameters, other.parameters
        close(y.vectors(group, 1) @ y.E, x.vectors(group, 1) @ x.E, 1e-5)
    assert (other.parameters.E - model.parameters.E).abs().max() > 0.1
    close(alignment(model, other, "V").best.diagonal(), torch.ones(2), 1e-5)


def test_distance_is_zero_for_copies_and_root_two_for_strangers(a):
    assert distance(a, a) == 0
    one, two = load("twin-a"), load("twin-b")
    close(distance(one, two), 2**0.5, 0.01)
    with pytest.raises(ValueError, match="one shape"):
        distance(a, one)


def test_the_twins_do_not_descend_from_each_other_but_from_their_seeds():
    models = {"A": load("twin-a"), "B": load("twin-b"),
              "start of A": load("twin-a", untrained=True, seed=1)}
    table = descent_table(models, draws=999).set_index(["one", "two"])
    assert table.loc[("A", "start of A"), "p"] < 0.01
    assert table.loc[("A", "B"), "p"] > 0.01
    assert table.loc[("B", "start of A"), "p"] > 0.01
