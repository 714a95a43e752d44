"""Changes of logits against one forward pass at a time, and against sums by hand; in float64."""

from dataclasses import replace
from itertools import combinations_with_replacement, pairwise

import pytest
import torch
from tiny_configs import DECODERS, ENCODERS, GATED, PARALLEL, POST_NORM
from tiny_models import close, random, tiny_model, vocabulary_of

from embspace_helpers.experiments.ablation import (
    Effects,
    ablate_moves,
    ablate_neurons,
    activate_neurons,
    effects,
    frequency_ranks,
    matched_words,
    used_signs,
)
from embspace_helpers.reading.activations import capture, hooked, set_neurons, set_values

ROWS = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [3, 1, 4, 1, 5, 9, 2, 6, 5]]
TEXTS = [" ".join(map(str, row)) for row in ROWS]
IDS = torch.tensor([7, 39, 0, 22])


@pytest.fixture(scope="module", params=DECODERS)
def kind(request):
    return request.param


def run(kind, positions=None):
    """A tiny model, and what happened on ROWS."""
    model = tiny_model(kind)
    return model, capture(model, TEXTS, positions, batch=2)


@torch.no_grad()
def logits(model, row):
    model.model.config.final_logit_softcapping = None  # effects are in front of it
    return model.model(torch.tensor([row])).logits[0]


def permutation(n, seed=0):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


# ---- words as frequent


def vocabulary(counts=None):
    return vocabulary_of([f"token{i}" for i in range(40)], counts)


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


@pytest.mark.parametrize("m, near, k", [(40, 4, 4), (8, 4, 3), (9, 2, 2), (2, 1, 1)])
def test_matched_words_are_all_others_near_by_and_none_of_the_row(m, near, k):
    ranks = permutation(m)
    rows = torch.stack([permutation(m, seed)[:k] for seed in range(1, 13)])
    by_rank = ranks.argsort()
    rows = torch.cat([rows, by_rank[:k][None], by_rank[m - k :][None]])  # neighbours, at the ends
    found = matched_words(rows.repeat(400, 1), ranks, near, seed=2)
    assert found.shape == (400 * len(rows), k)
    for row, drawn in zip(rows.tolist(), found.unflatten(0, (400, -1)).transpose(0, 1)):
        for place, word in enumerate(row):
            possible = {w for w in range(m) if abs(ranks[w] - ranks[word]) <= near and w not in row}
            assert set(drawn[:, place].tolist()) == possible


def test_matched_words_are_drawn_evenly_and_again_with_the_same_seed():
    ranks = permutation(100)
    others = ranks.argsort()[ranks[33] + torch.tensor([-1, 3])]
    columns = torch.tensor([33, *others]).repeat(4200, 1)
    found = matched_words(columns, ranks)
    assert int(ranks[33]) in range(15, 85)
    counts = (ranks[found[:, 0]] - ranks[33] + 15).bincount(minlength=31)
    none = torch.tensor([14, 15, 18])  # itself and the others of its row
    assert not counts[none].any() and counts.sum() == 4200
    allowed = ~torch.isin(torch.arange(31), none)
    assert (counts[allowed] - 150).abs().max() < 60  # five standard deviations
    for rank in (3, 96):  # the word at the end is not drawn for all that would lie beyond it
        drawn = ranks[matched_words(ranks.argsort()[rank].repeat(3600, 1), ranks)].flatten()
        counts = drawn.unique(return_counts=True)[1]
        assert len(counts) == 18 and (counts - 200).abs().max() < 70
    assert torch.equal(found, matched_words(columns, ranks, seed=0))
    assert not torch.equal(found, matched_words(columns, ranks, seed=1))


@pytest.mark.parametrize("m, near, row", [(1, 15, [0]), (5, 15, [4, 0, 2, 1, 3]), (9, 1, [0, 1]),
                                          (9, 2, [3, 4, 5, 6, 7])])
def test_no_words_left_to_match(m, near, row):
    columns = torch.tensor([row])
    with pytest.raises(ValueError, match=f"have no other one within {near} ranks: raise `near`"):
        matched_words(columns, torch.arange(m), near)
    if len(row) < m:
        assert matched_words(columns, torch.arange(m), near + 1).shape == columns.shape


# ---- effects


def test_effects_against_a_loop():
    change, ranks = random(5, 50) * torch.arange(1, 6)[:, None] + 3, permutation(50)
    columns = torch.stack([permutation(50, seed)[:4] for seed in range(5)])
    found = effects(change, columns, ranks, seed=3)
    matched = matched_words(columns, ranks, seed=3)
    for i, row in enumerate(change.tolist()):
        mean = sum(row) / 50
        deviation = (sum((x - mean) ** 2 for x in row) / 49) ** 0.5
        close(found.spread[i], deviation)
        for actual, chosen in ((found.own, columns[i]), (found.matched, matched[i]),
                               (found.other, columns[i - 1]),
                               (found.other_matched, matched[i - 1])):
            close(actual[i], sum(row[c] for c in chosen.tolist()) / 4)
    assert len(set(torch.stack([found.own, found.matched, found.other]).flatten().tolist())) == 15


def test_effects_of_words_that_alone_rise_or_fall():
    ranks = torch.arange(100)
    columns = torch.tensor([[5, 45], [20, 70], [35, 95]])  # more than 15 ranks apart
    change = torch.zeros(3, 100, dtype=torch.float64)
    for i, amount in enumerate((-1.0, 2.0, 0.5)):
        change[i, columns[i]] = amount
    found = effects(change, columns, ranks)
    assert found.own.tolist() == found.size.tolist() == [-1.0, 2.0, 0.5]
    assert found.matched.tolist() == found.other.tolist() == [0, 0, 0]
    deviation = (2 * (1 - 2 / 100) / 99) ** 0.5  # of two ones among 98 zeros
    close(found.spread, [deviation, 2 * deviation, 0.5 * deviation])


def test_sizes_are_what_matched_words_do_not_have():
    found = Effects(*torch.tensor([[3.0, -1.0], [0.5, 0.25], [1.0, -2.0], [4.0, 0.5], [9.0, 9.0]]))
    assert found.size.tolist() == [2.5, -1.25] and found.other_size.tolist() == [-3.0, -2.5]


# ---- neurons


def test_used_signs_are_those_of_the_largest_coefficients():
    cache = run("gpt2")[1]
    neurons = torch.tensor([[[9.0, -9.0, 9.0], [9.0, 9.0, -9.0]],
                            [[1.0, -2.0, 0.1], [-0.5, 1.5, 0.2]]])
    cache = replace(cache, neurons=neurons)
    assert used_signs(cache, 1).tolist() == [1, -1, 1]
    assert used_signs(replace(cache, neurons=-neurons), 1).tolist() == [-1, 1, -1]


def one_at_a_time(model, cache, layer, neuron, i, value):
    """Changes of logits at position i of the cache, of a pass and by hand, (4,) and (4,)."""
    p, text, position = model.parameters, cache.text[i].item(), cache.position[i].item()
    with set_neurons(model, layer, 0, position, neuron, value):
        moved = logits(model, ROWS[text])
    actual = (moved - logits(model, ROWS[text]))[position, IDS]
    norm, state, used = p.final_norm(), cache.states[1, i], cache.neurons[layer, i]
    more = (value - used[neuron]) * p.V(layer)[neuron]
    if (behind := p.ff_post_norm(layer)) is not None:
        with torch.no_grad():
            plain = used @ p.V(layer)
            more = behind(plain + more) - behind(plain)
    with torch.no_grad():
        return actual, (norm(state + more) - norm(state)) @ p.E_out[:, IDS]


@pytest.mark.parametrize("layer", [0, 1])
def test_ablated_neurons_against_one_pass_at_a_time(kind, layer):
    if kind in PARALLEL and not layer:
        pytest.skip("its first FF sees single tokens: alike wherever they stand, and ties")
    model, cache = run(kind, positions=14)
    neurons, contexts = permutation(model.parameters.d_ff)[:15], 3  # 45 cases: more than one batch
    found = ablate_neurons(model, cache, layer, neurons, IDS, contexts)
    signs, by_size = set(), 0
    for case, neuron in enumerate(neurons.tolist()):
        used = cache.neurons[layer, :, neuron].tolist()
        largest = max(used, key=abs)
        sign = 1 if largest > 0 else -1
        best = sorted(range(14), key=lambda i: -sign * used[i])[:contexts]
        signs.add(sign)
        by_size += set(best) != set(sorted(range(14), key=lambda i: -abs(used[i]))[:contexts])
        each = [one_at_a_time(model, cache, layer, neuron, i, 0.0) for i in best]
        for actual, expected in zip(found, zip(*each)):
            close(actual[case], sum(expected) / contexts)
    assert by_size or kind not in GATED  # the size alone would have chosen other positions
    assert signs == {-1, 1} or kind not in GATED  # GELU is seldom far below 0
    assert all(x.shape == (15, 4) and x.abs().amax(1).min() > 1e-6 for x in found)
    if layer == 1:  # nobody reads what was written
        close(*found)
    else:
        assert (found[0] - found[1]).abs().amax(1).min() > 1e-6


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "gptj"])  # what differs in it
@pytest.mark.parametrize("layer", [0, 1])
def test_activated_neurons_have_their_largest_coefficient_where_they_were_silent(kind, layer):
    model, cache = run(kind, positions=9)
    neurons = permutation(model.parameters.d_ff)[:3]
    cases = []  # per neuron, of every position where it may be activated
    for neuron in neurons.tolist():
        used = cache.neurons[layer, :, neuron].tolist()
        silent = sorted(range(9), key=lambda i: abs(used[i]))[:4]
        value = max(used, key=abs)
        cases.append([torch.stack(one_at_a_time(model, cache, layer, neuron, i, value))
                      for i in silent])
    for contexts in (1, 2):
        reached = [set() for _ in neurons]
        for seed in range(25):
            found = activate_neurons(model, cache, layer, neurons, IDS, contexts, seed)
            for case, both in enumerate(torch.stack(found, 1)):  # (2, 4): actual, direct
                means = {drawn: sum(cases[case][i] for i in drawn) / contexts
                         for drawn in combinations_with_replacement(range(4), contexts)}
                near = {drawn: (both - mean).abs().max() for drawn, mean in means.items()}
                drawn = min(near, key=near.get)
                close(both, means[drawn])
                reached[case].add(drawn)
            if layer == 1:
                close(*found)
        assert all({i for drawn in every for i in drawn} == set(range(4)) for every in reached)
        assert contexts == 1 or any(a != b for every in reached for a, b in every)
    assert (found[0] - found[1]).abs().max() > 1e-6 or layer == 1


def test_neurons_are_activated_at_the_same_positions_with_the_same_seed():
    model, cache = run("llama")
    a, b, c = (activate_neurons(model, cache, 0, torch.arange(8), IDS, seed=seed)
               for seed in (4, 4, 5))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert (a[0] - c[0]).abs().max() > 1e-6 and (a[1] - c[1]).abs().max() > 1e-6


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind not in POST_NORM])
def test_the_words_that_a_neuron_writes_fall_and_rise(kind):
    """All write the same small v; a final norm without gain turns it by less than 90 degrees."""
    model = tiny_model(kind)
    p = model.parameters
    v = random(p.d)
    v -= v.mean()
    with torch.no_grad():
        p.final_norm().weight.fill_(1.0)
        p.V(1)[:] = 1e-3 * v
    cache = capture(model, TEXTS, 3)
    signs = used_signs(cache, 1)
    assert set(signs.tolist()) == {-1, 1}
    given = model, cache, 1, torch.arange(p.d_ff), torch.arange(p.e)
    for found, side in ((ablate_neurons(*given, contexts=1), -1), (activate_neurons(*given), 1)):
        for change in found:
            moved = change @ torch.linalg.pinv(p.E_out)  # back from logits to states, (d_ff, d)
            written = signs[:, None] * v  # by a neuron of negative coefficients: -v
            assert (side * torch.cosine_similarity(moved, written) > 0.1).all()


# ---- heads


def test_ablated_moves_against_one_pass_at_a_time(kind):
    """Where heads share no values, no value at all is the same; else many cases against one."""
    model, reach = tiny_model(kind), 2
    p = model.parameters
    every = [(t, position) for t, row in enumerate(ROWS) for position in range(len(row) - reach)]
    at = [every[i % 12] for i in permutation(36).tolist()]  # more than one batch, no order
    plain = [logits(model, row) for row in ROWS]
    for layer, head in ((0, 0), (1, p.H - 1)):
        found = ablate_moves(model, ROWS, layer, head, at, IDS, reach)
        assert found.shape == (36, 4) and found.abs().amax(1).min() > 1e-6
        for text, position in every:
            if p.H_kv == p.H:
                with set_values(model, layer, 0, position, head):
                    moved = logits(model, ROWS[text]) - plain[text]
                assert not moved[:position].any()  # nothing changes before it
                expected = sum(moved[i][IDS] for i in range(position, position + reach + 1))
            else:
                alone = ablate_moves(model, ROWS, layer, head, [(text, position)], IDS, reach)
                expected = alone[0]
            for actual, case in zip(found, at):
                if case == (text, position):
                    close(actual, expected)


def test_a_query_head_alone_loses_attention_times_value(kind):
    """Against the attention weights of an eager pass: its output loses alpha v at each position."""
    model = tiny_model(kind)
    model.model.set_attn_implementation("eager")
    model.model.config.final_logit_softcapping = None
    p, row, layer, place, head, reach = model.parameters, ROWS[2], 1, 3, 1, 4
    ids = torch.tensor([row])
    with torch.no_grad():
        usual = model.model(ids, output_attentions=True)
    alpha = usual.attentions[layer][0, head, :, place].double()  # (positions,)
    value = capture(model, [" ".join(map(str, row))], None, "values").values[layer, place]
    value = value.unflatten(0, (p.H_kv, p.d_h))[p.kv_head(head)]  # (d_h,)

    def lose(module, inputs):
        z = inputs[0].clone()
        z[0, :, head * p.d_h : (head + 1) * p.d_h] -= alpha[:, None] * value
        return (z,)

    with hooked([(p.entry.output(p.blocks[layer]), lose, True)]), torch.no_grad():
        moved = model.model(ids).logits[0] - usual.logits[0]
    found = ablate_moves(model, [row], layer, head, [(0, place)], IDS, reach)
    close(found[0], moved[place : place + reach + 1].sum(0)[IDS], 1e-5)  # a softmax in float32
    assert found.abs().min() > 1e-4


def test_query_heads_are_ablated_one_by_one(kind):
    """Also those that share a key-value head; all differ from what the group does."""
    model, at = tiny_model(kind), [(2, 1), (0, 0), (2, 5)]
    p, layer = model.parameters, model.parameters.L - 1
    alone = [ablate_moves(model, ROWS, layer, head, at, IDS, 2) for head in range(p.H)]
    assert all((a - b).abs().min() > 1e-6 for a, b in pairwise(alone))
    if p.H_kv < p.H:
        plain = logits(model, ROWS[2])
        with set_values(model, layer, 0, 1, 0):
            whole = (logits(model, ROWS[2]) - plain)[1:4].sum(0)[IDS]
        heads = [head for head in range(p.H) if p.kv_head(head) == 0]
        assert all((alone[head][0] - whole).abs().min() > 1e-6 for head in heads)


def test_how_far_a_head_is_followed():
    model, at = tiny_model("llama"), [(2, 1), (0, 0)]
    sums = [ablate_moves(model, ROWS, 0, 1, at, IDS, reach) for reach in (0, 1, 5)]
    assert all((a - b).abs().min() > 1e-6 for a, b in pairwise(sums))
    with pytest.raises(ValueError, match="1 of 2 positions lie outside"):
        ablate_moves(model, ROWS, 0, 1, at, IDS, reach=6)


# ---- what is refused


@pytest.mark.parametrize("kind", ENCODERS)
def test_no_changes_without_a_final_norm(kind):
    model, cache = run(kind)
    for change in (ablate_neurons, activate_neurons):
        with pytest.raises(ValueError, match="a head of several layers in front of E_out"):
            change(model, cache, 0, torch.arange(2), IDS)
    with pytest.raises(ValueError, match="a head of several layers in front of E_out"):
        ablate_moves(model, ROWS, 0, 0, [(0, 0)], IDS, 1)


@pytest.mark.parametrize("lacking, kept", [("states", "neurons"), ("neurons", "states")])
def test_a_cache_must_have_states_and_neurons(lacking, kept):
    model = tiny_model("gpt2")
    cache = capture(model, TEXTS, keep=kept)
    for change in (ablate_neurons, activate_neurons):
        with pytest.raises(ValueError, match=f"needs states and neurons, and lacks {lacking}: "
                                             r"capture\(..., keep=\('states', 'neurons'\)\)"):
            change(model, cache, 0, torch.arange(2), IDS)
    if lacking == "neurons":
        with pytest.raises(ValueError, match="the cache needs neurons, and lacks neurons: "):
            used_signs(cache, 0)
    else:
        assert len(used_signs(cache, 0)) == 20


def test_what_is_not_there_is_refused():
    model, cache = run("gpt2")
    for change in (ablate_neurons, activate_neurons):
        with pytest.raises(ValueError, match="no layer 2: layers are 0 to 1"):
            change(model, cache, 2, torch.arange(2), IDS)
        with pytest.raises(ValueError, match="no neuron 20: neurons are 0 to 19"):
            change(model, cache, 0, torch.tensor([3, 20]), IDS)
        with pytest.raises(ValueError, match="contexts = 0, but it must be "):
            change(model, cache, 0, torch.tensor([3]), IDS, contexts=0)
    with pytest.raises(ValueError, match="contexts = 19, .* 18 positions there are"):
        ablate_neurons(model, cache, 0, torch.tensor([3]), IDS, contexts=19)
    single = capture(model, TEXTS, 1)
    with pytest.raises(ValueError, match="one position has none where a neuron was silent"):
        activate_neurons(model, single, 0, torch.tensor([3]), IDS)
    with pytest.raises(ValueError, match="no layer 2"):
        used_signs(cache, 2)
    with pytest.raises(ValueError, match="heads are 0 to 2"):
        ablate_moves(model, ROWS, 0, 3, [(0, 0)], IDS, 1)


def test_numbers_of_neurons_may_be_a_list():
    model, cache = run("gpt2")
    for change in (ablate_neurons, activate_neurons):
        for first, second in zip(change(model, cache, 1, [3, 5], IDS),
                                 change(model, cache, 1, torch.tensor([3, 5]), IDS)):
            assert torch.equal(first, second)


def test_a_single_case_has_no_control():
    with pytest.raises(ValueError, match="1 case: effects need at least 2"):
        effects(torch.zeros(1, 40), torch.tensor([[1, 2]]), torch.arange(40))


def test_a_neuron_that_is_never_active_is_read_as_it_is():
    cache = run("gpt2")[1]
    silent = replace(cache, neurons=torch.zeros_like(cache.neurons))
    assert (used_signs(silent, 0) == 1).all()
