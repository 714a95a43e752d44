"""Alignment of layers against the direct way: vectors over the vocabulary, written out."""

import itertools
import math

import numpy as np
import pytest
import torch
from tiny_models import Sizes, another, close, random, tiny_model

from embspace_helpers.experiments.alignment import (
    Kernels,
    alignment,
    hungarian,
    near_diagonal,
    rows_of,
    without_means,
)
from embspace_helpers.reading.shared_tokens import shared_tokens
from embspace_helpers.reading.spaces import READINGS


def directly(x, y, E, F):
    """Correlations of every row of x with every row of y, as vectors over the vocabulary."""
    n = len(x)
    return np.corrcoef((x @ E).numpy(), (y @ F).numpy())[:n, n:]


@pytest.fixture(scope="module")
def pair():
    """Two tiny models of different width, depth and family that share the tokens 1 to 38."""
    return tiny_model("gpt2"), another("llama")


# ---- correlations


def test_a_layer_pair_equals_vectors_over_the_vocabulary(pair):
    a, b = pair
    ids = torch.arange(1, 39)
    found = alignment(a, b, ("V", "V"), block=7)
    assert found.tokens == 38
    for i, j in itertools.product(range(2), range(2)):
        sizes = abs(directly(a.parameters.V(i), b.parameters.V(j), a.parameters.E[:, ids],
                             b.parameters.E[:, ids]))
        close(found.mean[i, j], sizes.mean())
        close(found.best[i, j], (sizes.max(0).mean() + sizes.max(1).mean()) / 2)


@pytest.mark.parametrize("group", ["K", "V", "W_Q", "W_K", "W_V", "W_O"])
@pytest.mark.parametrize("block", [1, 5, 1000])
def test_every_group_and_any_block(pair, group, block):
    a, b = pair
    ids, others = torch.tensor([3, 1, 30, 7, 8]), torch.tensor([4, 2, 1, 38, 9])
    found = alignment(a, b, group, tokens=(ids, others), block=block)
    x, y = rows_of(a, group, 1), rows_of(b, group, 0)
    sizes = abs(directly(x, y, a.parameters.E[:, ids], b.parameters.E[:, others]))
    close(found.mean[1, 0], sizes.mean())


@pytest.mark.parametrize("reading", READINGS)
def test_readings_equal_their_spaces(pair, reading):
    a, b = pair
    ids = torch.arange(1, 39)
    found = alignment(a, b, "V", reading=reading)
    E, F = (m.space(reading).columns(ids) for m in pair)
    sizes = abs(directly(a.parameters.V(0), b.parameters.V(1), E, F))
    close(found.mean[0, 1], sizes.mean(), 1e-7)  # inverses of E E.T


def test_dictionaries_equal_their_spaces(pair):
    a, b = pair
    ids, texts = torch.arange(1, 39), [" ".join(map(str, range(i, i + 9))) for i in range(1, 30)]
    for group, reads in (("K", "ff"), ("W_V", "attention")):
        found = alignment(a, b, group, reading="dictionary", texts=texts)
        E = a.dictionary(1, texts, reads).columns(ids)
        F = b.dictionary(0, texts, reads).columns(ids)
        sizes = abs(directly(rows_of(a, group, 1), rows_of(b, group, 0), E, F))
        close(found.mean[1, 0], sizes.mean())


def test_feature_space_correlates_numbers_of_the_vectors():
    a, b = tiny_model("gpt2"), another("gpt2")
    found = alignment(a, b, "W_O", "feature", block=3)
    sizes = abs(np.corrcoef(a.parameters.vectors("W_O", 0), b.parameters.vectors("W_O", 1)))
    close(found.mean[0, 1], sizes[:12, 12:].mean())
    assert found.tokens == 12


def test_a_model_with_itself_has_best_matches_of_one():
    a = tiny_model("gpt2")
    for space in ("embedding", "feature"):
        close(alignment(a, a, "K", space).best.diagonal(), torch.ones(2))


def test_norms_can_be_folded(pair):
    a, b = pair
    ids = torch.arange(1, 39)
    found = alignment(a, b, "K", fold_norm=True)
    x, y = a.parameters.K(0, fold_norm=True), b.parameters.K(1, "gate", fold_norm=True)
    sizes = abs(directly(x, y, a.parameters.E[:, ids], b.parameters.E[:, ids]))
    close(found.mean[0, 1], sizes.mean())


def test_a_turned_model_moves_in_feature_space_only():
    """All of b in another basis: what it is over the vocabulary stays, its numbers do not."""
    a, b = tiny_model("gpt2"), another("gpt2")
    before = {space: alignment(a, b, "V", space).mean for space in ("embedding", "feature")}
    R = torch.linalg.qr(random(12, 12))[0]
    with torch.no_grad():
        b.parameters.E.copy_(R.T @ b.parameters.E)
        for layer in range(2):
            b.parameters.V(layer).copy_(b.parameters.V(layer) @ R)
    close(alignment(a, b, "V").mean, before["embedding"])
    assert (alignment(a, b, "V", "feature").mean - before["feature"]).abs().max() > 0.01


@pytest.mark.parametrize("control", ["mixtures", "random"])
def test_controls_take_the_rows_place_and_go_through_the_same_reading(pair, control):
    a, b = pair
    ids = torch.arange(1, 39)
    found = alignment(a, b, "K", reading="orthogonal", control=control)
    x, y = (rows_of(m, "K", 1, control=control, seed=seed) for m, seed in ((a, 0), (b, 1)))
    assert x.shape == a.parameters.K(1).shape and not torch.equal(x, a.parameters.K(1))
    E, F = (m.space("orthogonal").columns(ids) for m in pair)
    close(found.mean[1, 1], abs(directly(x, y, E, F)).mean(), 1e-7)
    again = alignment(a, b, "K", reading="orthogonal", control=control)
    assert torch.equal(found.mean, again.mean)


def test_controls_of_two_layers_and_models_differ():
    a = tiny_model("gpt2")
    drawn = [rows_of(a, "V", layer, control="random", seed=s) for layer in (0, 1) for s in (0, 1)]
    assert len({x.sum().item() for x in drawn}) == 4
    mixed = rows_of(a, "V", 0, control="mixtures")
    rank = torch.linalg.matrix_rank(torch.cat([mixed, a.parameters.V(0)]))
    assert rank == torch.linalg.matrix_rank(a.parameters.V(0))


def test_a_row_of_zeros_correlates_with_nothing():
    a, b = tiny_model("gpt2"), another("gpt2")
    kernels = Kernels(a, b)
    P, Q = kernels.pair(torch.zeros(1, 12, dtype=torch.float64), b.parameters.V(0))
    assert (P @ Q.T == 0).all()


def test_no_more_than_a_block_is_in_memory():
    """Layers have 20 neurons: 400 pairs never stand beside each other, nor 10 x 40 scores."""
    a, b = tiny_model("gpt2"), another("gpt2")
    kernels = Kernels(a, b)
    with Sizes() as sizes:
        alignment(a, b, "V", block=6, kernels=kernels)
    assert sizes.largest <= 20 * 12


# ---- wrong input


@pytest.mark.parametrize(("arguments", "message"), [
    ({"group": "X"}, "no group 'X'.*there are K, V"),
    ({"group": "K", "space": "words"}, "'embedding' and 'feature'"),
    ({"group": "K", "space": "feature", "reading": "orthogonal"}, "embedding space"),
    ({"group": "K", "reading": "magic"}, "no reading 'magic': there are transpose"),
    ({"group": "V", "reading": "dictionary"}, "only readers"),
    ({"group": "K", "block": 0}, "block = 0"),
    ({"group": "K", "control": "noise"}, "no control 'noise': there are mixtures, random"),
    ({"group": "K", "tokens": torch.arange(4)}, "must be a pair"),
    ({"group": "K", "tokens": (torch.arange(4), torch.arange(5))}, "as many in a as in b"),
    ({"group": "K", "tokens": (torch.arange(4), torch.arange(40, 44))}, "ids 0 to 39"),
])
def test_wrong_input_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        alignment(tiny_model("gpt2"), another("gpt2"), **arguments)


def test_feature_spaces_of_two_widths(pair):
    wide = tiny_model("qwen2")
    with pytest.raises(ValueError, match="12 and 16 wide"):
        alignment(pair[0], wide, "V", "feature")
    with pytest.raises(ValueError, match="load"):
        alignment("twin-a", wide, "V")


# ---- which layer goes with which


def test_hungarian_against_all_matches():
    table = random(5, 5, seed=3)
    best = max(itertools.permutations(range(5)), key=lambda m: sum(table[i, j] for i, j in
                                                                   enumerate(m)))
    found = hungarian(table)
    assert tuple(found.columns) == best
    assert found.hits == sum(i == j for i, j in enumerate(best))


@pytest.mark.parametrize("columns", [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [1, 2, 3, 4, 0]])
def test_p_value_counts_permutations_with_as_many_hits(columns):
    found = hungarian(torch.eye(5)[:, columns].T)
    hits = [sum(i == j for i, j in enumerate(m)) for m in itertools.permutations(range(5))]
    close(found.p, np.mean([h >= found.hits for h in hits]))
    assert found.columns == torch.eye(5)[:, columns].T.argmax(1).tolist()


def test_one_of_720_for_six_layers():
    close(hungarian(torch.eye(6)).p, 1 / 720)
    assert hungarian(torch.eye(6)).distance == 0


@pytest.mark.parametrize("turned", [False, True])
def test_a_band_for_unequal_depths(turned):
    table = torch.zeros(3, 5)
    table[0, 0] = table[1, 2] = table[2, 3] = 1.0
    found = hungarian(table.T if turned else table)
    distances = [np.abs(np.arange(3) / 2 - np.array(m) / 4).mean()
                 for m in itertools.permutations(range(5), 3)]
    close(found.distance, 0.25 / 3)
    close(found.p, np.mean([x <= 0.25 / 3 + 1e-12 for x in distances]))
    pairs = zip(found.columns, found.rows) if turned else zip(found.rows, found.columns)
    assert sorted(pairs) == [(0, 0), (1, 2), (2, 3)]


def test_many_matches_are_drawn():
    table = torch.zeros(6, 30)
    table[torch.arange(6), torch.tensor([0, 6, 12, 17, 23, 29])] = 1.0
    found = hungarian(table, draws=999)
    assert math.isclose(found.p, 1 / 1000)
    table = table[:, torch.randperm(30, generator=torch.Generator().manual_seed(1))]
    assert hungarian(table, draws=999).p > 0.05


def test_means_off_and_the_same_match():
    table = random(6, 6, seed=5) + 3 * random(6, 1, seed=6) + 3 * random(1, 6, seed=7)
    left = without_means(table)
    close(left.sum(0), torch.zeros(6))
    close(left.sum(1), torch.zeros(6))
    assert hungarian(left).columns == hungarian(table).columns


def test_only_tables_are_matched():
    for wrong in (torch.ones(3), torch.ones(1, 4), torch.full((3, 3), math.nan)):
        with pytest.raises(ValueError, match="table of numbers"):
            hungarian(wrong)


# ---- real models


def test_twins_lie_on_the_diagonal_over_words_and_not_over_features(twin):
    from embspace_helpers import load

    b = load("twin-b")
    assert hungarian(alignment(twin, b, "V").mean).hits == 6
    assert hungarian(alignment(twin, b, "V", "feature").mean).hits <= 3
    ids, others = shared_tokens(twin, b)
    shuffled = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))]
    assert alignment(twin, b, "V", tokens=(ids, shuffled)).best.mean() < 0.1


@pytest.mark.parametrize("turned", [False, True])
def test_near_diagonal_against_all_orders(turned):
    table = random(4, 6, seed=9)
    near = -np.abs(np.linspace(0, 1, 4)[:, None] - np.linspace(0, 1, 6))

    def correlation(values):
        left, right = (without_means(torch.tensor(x)).numpy().ravel() for x in (values, near))
        return left @ right / np.linalg.norm(left) / np.linalg.norm(right)

    others = [correlation(table.numpy()[list(m)]) for m in itertools.permutations(range(4))]
    r, p = near_diagonal(table.T if turned else table)
    close(r, others[0])
    close(p, np.mean([x >= others[0] - 1e-12 for x in others]))


def test_near_diagonal_draws_orders_of_deep_models():
    table = -(torch.arange(12.0)[:, None] / 11 - torch.arange(20.0) / 19).abs()
    r, p = near_diagonal(table, draws=999)
    close(r, 1.0)
    assert math.isclose(p, 1 / 1000)
