"""Changes of logits against one forward pass at a time, and against sums by hand."""

from math import copysign

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from embspace_helpers.activations import capture, set_neurons, set_values
from embspace_helpers.cause import (Effects, effects, first_places, frequency_ranks, head_changes,
                                    matched_words, neuron_changes)
from embspace_helpers.parameters import Parameters
from embspace_helpers.vocabulary import Vocabulary
from tiny_models import NORM_FIRST, tiny

ROWS = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [3, 1, 4, 1, 5, 9, 2, 6, 5]]
IDS = torch.tensor([7, 39, 0, 22])


@pytest.fixture(params=NORM_FIRST)
def kind(request):
    return request.param


def run(kind, positions=None):
    """A tiny model, its parameters, and what happened on ROWS."""
    model = tiny(kind)
    return model, Parameters(model), record_of(model, positions)


def record_of(model, positions=None):
    return capture(model, tokenizer, ["text"] * len(ROWS), positions, batch=2)


def tokenizer(texts, **_):
    return {"input_ids": ROWS}


@torch.no_grad()
def logits(model, row):
    return model(torch.tensor([row])).logits[0]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def permutation(n, seed=0):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


# ---- words as frequent


def vocabulary(counts=None):
    model = models.WordLevel(vocab={f"item{i}": i for i in range(len(IDS) * 10)}, unk_token="item0")
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model)), counts=counts)


def test_ranks_by_counts_with_ties_in_the_order_given():
    counts = (permutation(40, 1) // 3).tolist()
    ids = permutation(40)[:25]
    found = frequency_ranks(vocabulary(counts), ids)
    amount = [(counts[i], place) for place, i in enumerate(ids.tolist())]
    assert found.tolist() == [sum(other < one for other in amount) for one in amount]


def test_ranks_without_counts_are_those_of_the_ids_the_last_one_rarest():
    ids = permutation(40)[:25]
    found = frequency_ranks(vocabulary(), ids)
    assert found.tolist() == [sum(other > one for other in ids.tolist()) for one in ids.tolist()]


@pytest.mark.parametrize("m, near", [(40, 4), (8, 4), (2, 1)])
def test_matched_words_are_others_near_by_on_both_sides(m, near):
    ranks = permutation(m)
    columns = torch.arange(m).repeat(300, 1)
    found = matched_words(columns, ranks, near, seed=2)
    assert found.shape == columns.shape
    steps = ranks[found] - ranks[columns]
    for column, rank in enumerate(ranks.tolist()):
        possible = {s for s in range(-near, near + 1) if s and 0 <= rank + s < m}
        assert set(steps[:, column].tolist()) == possible


def test_matched_words_are_drawn_evenly_and_again_with_the_same_seed():
    columns, ranks = torch.full((70, 60), 33), permutation(100)
    found = matched_words(columns, ranks)
    assert int(ranks[33]) in range(15, 85)
    counts = (ranks[found] - ranks[33] + 15).flatten().bincount(minlength=31)
    assert counts[15] == 0 and counts.sum() == 4200
    assert (counts[torch.arange(31) != 15] - 140).abs().max() < 60  # five standard deviations
    assert torch.equal(found, matched_words(columns, ranks, seed=0))
    assert not torch.equal(found, matched_words(columns, ranks, seed=1))


@pytest.mark.parametrize("m", [1, 5, 29])
def test_too_few_words_to_match(m):
    with pytest.raises(ValueError, match=f"{m} words, but matching within 15 ranks needs 30"):
        matched_words(torch.zeros(1, 1, dtype=torch.long), torch.arange(m))


# ---- effects


def test_effects_against_a_loop():
    change, ranks = random(5, 50) * torch.arange(1, 6)[:, None] + 3, permutation(50)
    columns = torch.stack([permutation(50, seed)[:4] for seed in range(5)])
    found = effects(change, columns, ranks, seed=3)
    matched = matched_words(columns, ranks, seed=3)
    for i, row in enumerate(change.tolist()):
        mean = sum(row) / 50
        deviation = (sum((x - mean) ** 2 for x in row) / 49) ** 0.5
        for actual, chosen in ((found.own, columns[i]), (found.matched, matched[i]),
                               (found.other, columns[i - 1])):
            expected = sum(row[c] for c in chosen.tolist()) / 4 / deviation
            assert actual[i].item() == pytest.approx(expected)


def test_effects_of_words_that_alone_rise_or_fall():
    ranks = torch.arange(100)
    columns = torch.tensor([[5, 45], [20, 70], [35, 95]])  # more than 15 ranks apart
    change = torch.zeros(3, 100)
    for i, amount in enumerate((-1.0, 2.0, 0.5)):
        change[i, columns[i]] = amount
    found = effects(change, columns, ranks)
    deviation = (2 * (1 - 2 / 100) / 99) ** 0.5  # of two ones among 98 zeros
    expected = torch.tensor([-1.0, 1.0, 1.0]) / deviation
    torch.testing.assert_close(found.own, expected)
    assert found.matched.tolist() == found.other.tolist() == [0, 0, 0]
    assert torch.equal(found.size, found.own) and found.other_size.tolist() == [0, 0, 0]


def test_sizes_are_what_matched_words_do_not_have():
    found = Effects(*torch.tensor([[3.0, -1.0], [0.5, 0.25], [1.0, -2.0]]))
    assert found.size.tolist() == [2.5, -1.25] and found.other_size.tolist() == [0.5, -2.25]


# ---- neurons


@pytest.mark.parametrize("layer, times", [(0, 0.0), (1, 2.5)])
def test_neuron_changes_against_one_pass_at_a_time(kind, layer, times):
    model, p, record = run(kind, positions=14)
    neurons = permutation(p.d_ff)[:9]  # 36 cases: more than one batch
    found = neuron_changes(model, p, ROWS, record, layer, neurons, IDS, times)
    plain = [logits(model, row) for row in ROWS]
    for neuron, actual in zip(neurons.tolist(), found):
        coefficients = record.neurons[layer][:, neuron].tolist()
        best = sorted(range(14), key=lambda i: -abs(coefficients[i]))[:4]
        changes = []
        for i in best:
            text, place = record.text[i].item(), record.place[i : i + 1]
            with set_neurons(p, layer, torch.tensor([0]), place, torch.tensor([neuron]),
                             times * coefficients[i]):
                moved = (logits(model, ROWS[text]) - plain[text])[place.item()]
            changes.append(moved[IDS] * copysign(1, coefficients[i]))
        close(actual, sum(changes) / 4)
    assert found.abs().amax(1).min() > 1e-6


def test_a_neuron_of_the_last_layer_by_hand_whatever_its_sign(kind):
    model, p, record = run(kind, positions=3)
    found = neuron_changes(model, p, ROWS, record, 1, torch.arange(p.d_ff), IDS, contexts=1)
    norm, signs = p.final_norm(), set()
    for neuron in range(p.d_ff):
        i = record.neurons[1][:, neuron].abs().argmax()
        c, state = record.neurons[1][i, neuron], record.states[1][i]
        with torch.no_grad():
            moved = norm(state - c * p.V(1)[neuron]) - norm(state)
        signs.add(c.sign().item())
        close(found[neuron], c.sign() * (moved @ p.E_out[:, IDS]))
    assert signs == {-1.0, 1.0}


def test_the_words_of_a_value_fall_whatever_the_sign_of_its_coefficient(kind):
    """All write the same small v; a final norm without gain turns it by less than 90 degrees."""
    model, p, _ = run(kind)
    v = random(p.d)
    v -= v.mean()
    with torch.no_grad():
        p.final_norm().weight.fill_(1.0)
        p.V(1)[:] = 1e-3 * v  # small, but RMSNorm computes in float32
    record = record_of(model, positions=3)
    found = neuron_changes(model, p, ROWS, record, 1, torch.arange(p.d_ff), torch.arange(p.e),
                           contexts=1)
    most = record.neurons[1].gather(0, record.neurons[1].abs().argmax(0, keepdim=True))
    assert (most < 0).any() and (most > 0).any()
    moved = found @ torch.linalg.pinv(p.E_out)  # back from logits to states, (d_ff, d)
    assert (torch.cosine_similarity(moved, v[None]) < -0.1).all()


def test_a_coefficient_left_as_it_is_changes_nothing(kind):
    model, p, record = run(kind)
    for layer in (0, 1):
        found = neuron_changes(model, p, ROWS, record, layer, torch.arange(5), IDS, times=1.0)
        close(found, torch.zeros(5, 4, dtype=torch.float64))


# ---- heads


def test_head_changes_against_one_pass_at_a_time(kind):
    model, p, _ = run(kind)
    reach = 2
    every = [(t, place) for t, row in enumerate(ROWS) for place in range(len(row) - reach)]
    at = [every[i % 12] for i in permutation(36).tolist()]  # more than one batch, no order
    plain = [logits(model, row) for row in ROWS]
    for layer, head in ((0, 0), (1, p.H_kv - 1)):
        found = head_changes(model, p, ROWS, layer, head, at, IDS, reach)
        assert found.shape == (36, 4) and found.abs().amax(1).min() > 1e-6
        for text, place in every:
            with set_values(p, layer, torch.tensor([0]), torch.tensor([place]), head):
                moved = logits(model, ROWS[text]) - plain[text]
            assert not moved[:place].any()  # nothing changes before the place
            expected = sum(moved[i][IDS] for i in range(place, place + reach + 1))
            for actual, case in zip(found, at):
                if case == (text, place):
                    close(actual, expected)


def test_how_far_a_head_is_followed():
    model, p, _ = run("llama")
    at = [(2, 1), (0, 0)]
    sums = [head_changes(model, p, ROWS, 0, 1, at, IDS, reach) for reach in (0, 1, 5)]
    assert all((a - b).abs().min() > 1e-6 for a, b in zip(sums, sums[1:]))
    with pytest.raises(ValueError, match="2 rows, 2 places, of which 1 lie outside"):
        head_changes(model, p, ROWS, 0, 1, at, IDS, reach=6)


@pytest.mark.parametrize("room", [0, 2, 4, 8])
def test_first_places_with_room_behind_them(room):
    ids = torch.tensor([9, 1, 30, 5, 7, 3])
    rows = [ROWS[1], *ROWS, [5] * 12]  # the first has less than `room` items
    expected = {}
    for column, item in enumerate(ids.tolist()):
        places = [(text, place) for text, row in enumerate(rows) for place in range(len(row))
                  if row[place] == item and place > 0 and len(row[place + 1 :]) >= room]
        if places:
            expected[column] = places[0]
    assert first_places(rows, ids, room) == expected and 3 in expected


# ---- models whose last states give no logits


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_no_changes_without_a_final_norm(kind):
    model, p, record = run(kind)
    with pytest.raises(ValueError, match="BERT has no final norm"):
        neuron_changes(model, p, ROWS, record, 0, torch.arange(2), IDS)
    with pytest.raises(ValueError, match="BERT has no final norm"):
        head_changes(model, p, ROWS, 0, 0, [(0, 0)], IDS, 1)
