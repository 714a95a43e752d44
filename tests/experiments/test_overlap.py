"""Overlap of states and active parameters against sets and loops, in float64."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_configs import BERT_KINDS, BOTH_SIGNS, DECODERS, GROUPED, PARALLEL
from tiny_models import close, tiny_model, vocabulary_of

from embspace_helpers.experiments.controls import random_directions, random_rotation, shuffled
from embspace_helpers.experiments.overlap import (
    MEAN,
    _uses,
    active_lists,
    curve_of,
    other_keys_lists,
    other_keys_table,
    overlap_groups,
    overlap_table,
    overlaps,
    readable_tokens,
    state_before,
    state_lists,
    summary,
)
from embspace_helpers.experiments.statistics import group_interval
from embspace_helpers.reading.activations import capture, hooked

ROWS = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [3, 1, 4, 1, 5, 9, 2, 6, 5]]
TEXTS = [" ".join(map(str, row)) for row in ROWS]
ACTIVE, K = 3, 4
ROTATED = 1e-5  # rotations are in float32: twelve numbers of 6e-8 each, and as much in a product


def run(kind, positions=None):
    """A tiny model, what happened on TEXTS, and a space to read it in."""
    model = tiny_model(kind)
    # not the first places: there, grouped heads have the same coefficients, and ties no order
    return model, capture(model, TEXTS, positions, skip=1), model.space("centred")


# ---- slow versions: one position, one vector, sets


def row_of(params, group, layer, i):
    """Row i of a group, a subhead of query head i // d_h, without `vectors`."""
    if group in params.key_kinds:
        return params.K(layer, group)[i]
    if group == "V":
        return params.V(layer)[i]
    head, sub = divmod(i, params.d_h)
    return params.W_O(layer, head)[sub] if group == "W_O" else params.W_V(layer, head)[:, sub]


def slow_active(cache, group, layer, position):
    """(row, sign) of the most active rows at one position."""
    used = cache.subheads if group in ("W_V", "W_O") else cache.neurons
    values = used[layer][position].tolist()
    best = sorted(range(len(values)), key=lambda i: -abs(values[i]))[:ACTIVE]
    signs = cache.keys[group][layer][position].tolist() if group in cache.keys else values
    return [(i, -1 if signs[i] < 0 else 1) for i in best]


def in_front(kind, cache):
    """The stream in front of attention ("W_O") and FF blocks ("K"): {(block, layer): (n, d)}."""
    model, found = tiny_model(kind), {}
    params = model.parameters
    enters = [(("W_O", layer), params.attention_norm(layer) or params.reader(layer, "attention"))
              for layer in (0, 1)]
    enters += [(("K", layer), params.ff_norm(layer) or params.reader(layer)) for layer in (0, 1)]
    hooks = [(module, lambda _, inputs, key=key: found.setdefault(key, []).append(
        inputs[0].reshape(-1, params.d)), True) for key, module in enters]
    with torch.no_grad(), hooked(hooks):
        for row in ROWS:
            model.model(torch.tensor([row]))
    at = list(zip(cache.text.tolist(), cache.position.tolist()))
    return {key: torch.stack([texts[t][p] for t, p in at]) for key, texts in found.items()}


def slow_top(model, x):
    E = model.parameters.E
    scores = (x @ (E - E.mean(1, keepdim=True))).tolist()
    kept = [i for i, keep in enumerate(model.vocabulary.keep().tolist()) if keep]
    return set(sorted(kept, key=lambda i: -scores[i])[:K])


def slow_union(model, cache, group, layer, position):
    used = slow_active(cache, group, layer, position)
    return set().union(*(slow_top(model, sign * row_of(model.parameters, group, layer, i))
                         for i, sign in used))


# ---- against them


def test_groups():
    assert overlap_groups(tiny_model("gpt2")) == ("K", "V", "W_V", "W_O")
    assert overlap_groups(tiny_model("llama")) == ("gate", "up", "V", "W_V", "W_O")


def test_readable_tokens_are_counted_or_whole_words():
    tokens = ["<unk>", "movie", "fil", "of", "x1y", "great", "ing", "bad"]
    counts = [900, 50, 49, 1000, 80, 0, 51, 12]
    counted, not_counted = vocabulary_of(tokens, counts), vocabulary_of(tokens)
    assert [tokens[i] for i in readable_tokens(counted).nonzero()] == ["movie", "of", "x1y", "ing"]
    assert [tokens[i] for i in readable_tokens(not_counted).nonzero()] == [
        "movie", "fil", "great", "ing", "bad"]


def test_every_group_is_read_with_its_own_sign():
    model, cache, space = run("llama")
    for group, row in (("gate", 7), ("up", 7), ("V", 7), ("W_V", 9), ("W_O", 9)):
        for signs in ((-1, 1), (1, -1), (-1, -1), (1, 1)):
            for values, sign in ((cache.keys["gate"], signs[0]), (cache.keys["up"], signs[1]),
                                 (cache.neurons, signs[0] * signs[1])):
                values[1, 4] = -sign  # all others: a little, and the other way round
                values[1, 4, 7] = 3 * sign
            cache.subheads[1, 4] = 0.5 * signs[1]
            cache.subheads[1, 4, 9] = 2 * signs[0]
            expected = {"gate": signs[0], "up": signs[1], "V": signs[0] * signs[1]}
            vector = expected.get(group, signs[0]) * row_of(model.parameters, group, 1, row)
            found = active_lists(model, cache, space, group, 1, 1, K)[4]
            assert set(found.tolist()) == slow_top(model, vector)


def test_active_lists_are_the_words_of_each_row_with_its_sign(kind):
    model, cache, space = run(kind)
    for group in overlap_groups(model):
        seen = set()
        for layer in (0, 1):
            found = active_lists(model, cache, space, group, layer, ACTIVE, K)
            assert found.shape == (15, ACTIVE * K)
            for position in range(15):
                used = slow_active(cache, group, layer, position)
                seen |= {sign for _, sign in used}
                for words, (i, sign) in zip(found[position].split(K), used):
                    expected = slow_top(model, sign * row_of(model.parameters, group, layer, i))
                    assert set(words.tolist()) == expected
        if kind in BOTH_SIGNS or group in ("up", "W_V", "W_O"):  # GELU is seldom far below 0
            assert seen == {-1, 1}


def test_a_row_with_coefficient_zero_is_read_as_it_is():
    model, cache, space = run("gpt2")
    cache.neurons[0] = 0
    found = active_lists(model, cache, space, "V", 0, model.parameters.d_ff, K)
    expected = sorted(sorted(slow_top(model, v)) for v in model.parameters.V(0))
    for words in found:
        assert sorted(sorted(part.tolist()) for part in words.split(K)) == expected


def test_a_turned_basis_of_every_head_writes_the_same(kind):
    model, cache, _ = run(kind)
    params = model.parameters
    for group in ("W_V", "W_O"):
        rows, used = _uses(model, cache, group, 1, None)
        for i, row in enumerate(rows):
            assert torch.equal(row, row_of(params, group, 1, i))
        assert torch.equal(used, cache.subheads[1])
        turned_rows, turned = _uses(model, cache, group, 1, basis=6)
        assert turned_rows.shape == rows.shape and turned.shape == used.shape
        bases = []
        for head in range(params.H):
            part = slice(head * params.d_h, (head + 1) * params.d_h)
            # heads stay apart: what each writes is the same, of coefficients as large
            close(turned[:, part] @ turned_rows[part], used[:, part] @ rows[part], ROTATED)
            close(turned[:, part].norm(dim=1), used[:, part].norm(dim=1), ROTATED)
            bases.append(turned_rows[part] @ torch.linalg.pinv(rows[part]))
            close(bases[-1] @ bases[-1].T, torch.eye(params.d_h), ROTATED)
        assert all((a - b).abs().max() > 0.1 for a, b in pairwise(bases))
        assert all((a - torch.eye(params.d_h)).abs().max() > 0.1 for a in bases)
    assert params.H_kv < params.H or kind not in GROUPED  # grouped heads were among them


def test_lists_of_a_turned_basis(kind):
    model, cache, space = run(kind)
    for group in ("W_V", "W_O"):
        found = active_lists(model, cache, space, group, 0, ACTIVE, K, basis=3)
        rows, used = _uses(model, cache, group, 0, 3)
        for words, values in zip(found, used.tolist()):
            best = sorted(range(len(values)), key=lambda i: -abs(values[i]))[:ACTIVE]
            for part, i in zip(words.split(K), best):
                sign = -1 if values[i] < 0 else 1
                assert set(part.tolist()) == slow_top(model, sign * rows[i])
        lists = [found] + [active_lists(model, cache, space, group, 0, ACTIVE, K, basis=basis)
                           for basis in (3, 4, None)]
        assert torch.equal(lists[0], lists[1])
        for i, one in enumerate(lists[1:]):
            assert all((one != other).float().mean() > 0.1 for other in lists[i + 2 :])
    for group in (*model.parameters.key_kinds, "V"):  # a neuron has no basis to turn
        assert torch.equal(active_lists(model, cache, space, group, 0, ACTIVE, K, basis=3),
                           active_lists(model, cache, space, group, 0, ACTIVE, K))


@pytest.mark.parametrize("kind", DECODERS)
def test_the_state_before_is_what_stands_in_front_of_the_block(kind):
    model, cache, _ = run(kind)
    found = in_front(kind, cache)
    for layer in (0, 1):
        for group in overlap_groups(model):
            block = "W_O" if group in ("W_V", "W_O") else "K"
            state = state_before(model, cache, group, layer)
            close(state, found[block, layer])
        assert model.parameters.parallel == (kind in PARALLEL)
        between = (found["K", layer] - found["W_O", layer]).abs().mean()
        assert between == 0 if kind in PARALLEL else between > 0.1
        assert (cache.states[layer] - found["K", layer]).abs().mean() > 0.1


def other_keys(params, layer, how, seed):
    """Vectors in the keys' place, by hand."""
    keys, n = params.K(layer), params.d_ff
    if how == "own":
        return keys
    if how == "turned":
        Q = random_rotation(params.d, seed).double()
        other = torch.stack([k @ Q for k in keys])
        close(other @ other.T, keys @ keys.T, ROTATED)
        return other
    dice, mean = random_directions(n, n, seed).tolist(), sum(keys) / n
    return [mean + sum(dice[i][j] * (keys[j] - mean) for j in range(n)) / n**0.5 for i in range(n)]


@pytest.mark.parametrize("how", ["turned", "mixtures", "own"])
def test_lists_of_other_keys_against_a_loop(how):
    model, cache, space = run("gpt2")
    by_size = 0
    for layer, seed in ((0, 0), (1, 6)):
        found = other_keys_lists(model, cache, space, layer, how, seed, ACTIVE, K)
        other = other_keys(model.parameters, layer, how, seed)
        norm = model.parameters.ff_norm(layer)
        for words, state in zip(found, in_front("gpt2", cache)["K", layer]):
            with torch.no_grad():
                products = [float(norm(state) @ vector) for vector in other]
            best = sorted(range(model.parameters.d_ff), key=lambda i: -products[i])[:ACTIVE]
            by_size += max(map(abs, products)) > products[best[0]]
            for part, i in zip(words.split(K), best):
                assert set(part.tolist()) == slow_top(model, other[i])
    assert by_size  # the size alone would have chosen others
    again = other_keys_lists(model, cache, space, layer, how, seed, ACTIVE, K)
    assert torch.equal(again, found)
    again = other_keys_lists(model, cache, space, layer, how, seed + 1, ACTIVE, K)
    by_coefficient = active_lists(model, cache, space, "K", layer, ACTIVE, K)
    assert how == "own" or (again != found).float().mean() > 0.5
    assert how == "own" or (by_coefficient != found).float().mean() > 0.5


def test_the_two_kinds_of_other_keys_differ():
    model, cache, space = run("gpt2")
    turned = other_keys_lists(model, cache, space, 1, active=ACTIVE, k=K)
    assert torch.equal(turned, other_keys_lists(model, cache, space, 1, "turned", 0, ACTIVE, K))
    mixed = other_keys_lists(model, cache, space, 1, "mixtures", active=ACTIVE, k=K)
    assert (turned != mixed).float().mean() > 0.5


def test_words_of_states_with_and_without_the_final_norm(kind):
    model, cache, space = run(kind)
    norm = model.parameters.final_norm()
    with torch.no_grad():
        for given in (None, norm):
            found = state_lists(cache.states[0], space, K, given)
            for words, state in zip(found, cache.states[0]):
                state = state if given is None else norm(state)
                assert set(words.tolist()) == slow_top(model, state)


def test_overlaps_are_shares_of_the_words_at_the_same_and_at_another_position():
    rng = np.random.default_rng(0)
    words = torch.tensor([rng.permutation(30)[:6].tolist() for _ in range(12)])
    lists = torch.from_numpy(rng.integers(0, 30, (12, 20)))  # with repeats
    partner = shuffled(torch.arange(12)[:, None]).flatten().tolist()
    found = overlaps(words, lists)
    assert list(found) == ["real", "permuted"]
    for i in range(12):
        for values, other in ((found["real"], i), (found["permuted"], partner[i])):
            both = set(words[i].tolist()) & set(lists[other].tolist())
            assert values[i].item() == pytest.approx(len(both) / 6)
    assert all(i != other for i, other in enumerate(partner))
    assert not torch.equal(*found.values())


@pytest.mark.parametrize("normed", [True, False])
def test_the_table_against_sets(kind, normed):
    n = 8
    model, cache, space = run(kind, positions=n)
    norm = model.parameters.final_norm() if normed else None
    partner = shuffled(torch.arange(n)[:, None]).flatten().tolist()

    @torch.no_grad()
    def words(states):
        return [slow_top(model, x if norm is None else norm(x)) for x in states]

    after = [words(states) for states in cache.states]
    before = in_front(kind, cache) if kind in DECODERS else {}
    before = {key: words(states) for key, states in before.items()}
    targets = ("last", "before", "this") if before else ("last", "this")
    shares = {}
    for group in overlap_groups(model):
        block = "W_O" if group in ("W_V", "W_O") else "K"
        for layer in (0, 1):
            union = [slow_union(model, cache, group, layer, i) for i in range(n)]
            for target in targets:
                top = {"this": after[layer], "last": after[1],
                       "before": before.get((block, layer))}[target]
                for name, others in (("real", range(n)), ("permuted", partner)):
                    shares[group, layer, target, name] = torch.tensor(
                        [len(a & union[j]) / K for a, j in zip(top, others)])
    for group, layer, target, name in list(shares):
        if layer == 0:  # at every position the mean over layers
            shares[group, -1, target, name] = torch.tensor(
                [(a + b) / 2 for a, b in zip(shares[group, 0, target, name].tolist(),
                                             shares[group, 1, target, name].tolist())])
    expected = [(*key, x.mean().item(), *group_interval(x, cache.text))
                for key, x in shares.items()]
    table = overlap_table(model, cache, space, targets=targets, active=ACTIVE, k=K, normed=normed)
    columns = ["group", "layer", "target", "kind", "mean", "low", "high"]
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected, columns=columns), atol=1e-6)
    assert table["mean"].nunique() > 8 and table["mean"].between(0.01, 0.99).any()
    means = table.set_index(["target", "kind"]).groupby(level=[0, 1])["mean"].apply(tuple)
    assert means.nunique() == len(targets) * 2


def test_intervals_resample_texts():
    """With all positions of a text copied, resampled texts are the same, positions would not be."""
    model, cache, space = run("gpt2")
    tables = []
    for times in (1, 5):
        index = torch.arange(15).repeat(times)
        many = replace(cache, text=cache.text[index], position=cache.position[index],
                       token=cache.token[index], states=cache.states[:, index],
                       keys={"K": cache.keys["K"][:, index]}, neurons=cache.neurons[:, index],
                       subheads=cache.subheads[:, index])
        table = overlap_table(model, many, space, active=ACTIVE, k=K)
        tables.append(table[table["kind"] == "real"].reset_index(drop=True))
    pd.testing.assert_frame_equal(*tables, atol=1e-6)
    assert (tables[0]["high"] - tables[0]["low"]).min() > 0.01


def test_a_table_of_some_layers_and_targets():
    model, cache, space = run("llama")
    options = {"active": ACTIVE, "k": K}
    whole = overlap_table(model, cache, space, **options)
    assert set(whole["target"]) == {"this", "last"} and MEAN == -1
    assert (whole["low"] <= whole["mean"]).all() and (whole["mean"] <= whole["high"]).all()
    for layers, targets in (([1], ("last",)), ([0], ("last",)), ([0], ("this",))):
        part = overlap_table(model, cache, space, layers, targets, **options)
        rows = whole[whole["layer"].isin(layers) & whole["target"].isin(targets)]
        rows = rows.reset_index(drop=True)
        assert len(part) == 2 * 5 * 2
        pd.testing.assert_frame_equal(part[:10], rows)
        pd.testing.assert_frame_equal(part[10:].reset_index(drop=True), rows.assign(layer=MEAN))


def test_errors_of_the_table():
    model, cache, space = run("gpt2")
    with pytest.raises(ValueError, match="no target next, or: there are this, last, before"):
        overlap_table(model, cache, space, targets=("or", "this", "next"), k=K)
    with pytest.raises(ValueError, match="no layer 2: layers are 0 to 1"):
        active_lists(model, cache, space, "V", 2, ACTIVE, K)
    one_text = replace(cache, text=torch.zeros_like(cache.text))
    with pytest.raises(ValueError, match="at least 2 groups, got 1"):
        overlap_table(model, one_text, space, active=ACTIVE, k=K)
    model, cache, space = run("gpt2", positions=1)
    with pytest.raises(ValueError, match="1 row cannot be shuffled"):
        overlap_table(model, cache, space, active=ACTIVE, k=K)


@pytest.mark.parametrize("how", ["turned", "mixtures", "own"])
def test_the_table_of_other_keys_is_a_mean_over_seeds(how):
    model, cache, space = run("gpt2")
    table, expected = other_keys_table(model, cache, space, how, seeds=(2, 5), k=K), []
    for layer in (0, 1):
        words = state_lists(cache.states[layer], space, K, model.parameters.final_norm())
        found = [overlaps(words, other_keys_lists(model, cache, space, layer, how, seed, k=K))
                 for seed in (2, 5)]
        for kind, label in (("real", how), ("permuted", f"{how}, permuted")):
            shares = (found[0][kind] + found[1][kind]) / 2
            interval = group_interval(shares, cache.text)
            expected.append(("K", layer, "this", label, shares.mean().item(), *interval))
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected, columns=table.columns), atol=1e-6)
    assert table["mean"].nunique() > 2


def test_curves_and_summaries_of_a_table():
    rows = [("K", 0, "this", "real", 0.3, 0.2, 0.4), ("K", 1, "this", "real", 0.5, 0.4, 0.6),
            ("K", 0, "last", "real", 0.7, 0.6, 0.8), ("K", 0, "this", "permuted", 0.1, 0.0, 0.2),
            ("V", 0, "this", "real", 0.9, 0.8, 1.0), ("K", -1, "this", "real", 0.4, 0.31, 0.5),
            ("K", -1, "this", "permuted", 0.16, 0.1, 0.2), ("K", -1, "last", "real", 0.7, 0.6, 0.8),
            ("K", -1, "last", "permuted", 0.7, 0.6, 0.8), ("V", -1, "this", "real", 0.9, 0.8, 1.0),
            ("V", -1, "this", "permuted", 0.3, 0.2, 0.4)]
    table = pd.DataFrame(rows, columns=["group", "layer", "target", "kind", "mean", "low", "high"])
    assert curve_of(table, group="K")["mean"].tolist() == [0.3, 0.5]
    assert curve_of(table, "permuted", group="K")["mean"].tolist() == [0.1]
    assert curve_of(table, target="last", group="K")["mean"].tolist() == [0.7]
    assert curve_of(table)["mean"].tolist() == [0.3, 0.5, 0.9]  # of all groups
    assert curve_of(table)["group"].tolist() == ["K", "K", "V"]
    found = summary(table)
    assert found.loc["keys", "real"] == "0.400 (0.310 to 0.500)"
    assert found.loc["keys", "permuted"] == "0.160 (0.100 to 0.200)"
    assert found["ratio"].to_dict() == {"keys": "2.5", "values": "3.0"}


def test_a_summary_is_of_one_reading():
    model, cache, space = run("gpt2")
    table = overlap_table(model, cache, space, active=ACTIVE, k=K)
    assert list(summary(table).index) == ["keys", "values", "value subheads", "output subheads"]
    with pytest.raises(ValueError, match="of one model in one reading"):
        summary(pd.concat([table, table]))


@pytest.mark.parametrize("lacking", ["states", "keys", "neurons", "subheads"])
def test_a_cache_must_have_what_is_asked_of_it(lacking):
    model, cache, space = run("llama")
    less = replace(cache, **{lacking: {} if lacking == "keys" else None})
    with pytest.raises(ValueError, match="needs states and keys and neurons and subheads, and "
                                         rf"lacks {lacking}: capture\(\.\.\., keep="):
        overlap_table(model, less, space, k=K)
    needed = {"gate": "keys and neurons", "V": "neurons", "W_O": "subheads", "W_V": "subheads"}
    for group, names in needed.items():
        if lacking in names:
            with pytest.raises(ValueError, match=f"for the group {group} the cache needs {names}, "
                                                 f"and lacks {lacking}"):
                active_lists(model, less, space, group, 0)
        else:
            assert len(active_lists(model, less, space, group, 0, ACTIVE, K)) == len(cache)
    if lacking in ("states", "neurons"):
        for call in (lambda: state_before(model, less, "K", 0),
                     lambda: other_keys_table(model, less, space, "turned", k=K)):
            with pytest.raises(ValueError, match=f"the cache needs {lacking}"):
                call()


def test_no_more_rows_are_active_than_there_are():
    model, cache, space = run("gpt2")
    with pytest.raises(ValueError, match="active = 21, .* 20 rows there are"):
        active_lists(model, cache, space, "V", 0, 21, K)
    with pytest.raises(ValueError, match="active = 0"):
        other_keys_lists(model, cache, space, 0, active=0, k=K)


def test_before_a_block_only_where_the_norm_comes_first():
    for kind in BERT_KINDS:
        model, cache, _ = run(kind)
        with pytest.raises(ValueError, match="norms the stream after each block"):
            state_before(model, cache, "K", 0)


def test_an_unknown_control():
    with pytest.raises(ValueError, match="no control 'random': there are turned, mixtures, own"):
        other_keys_lists(None, None, None, 0, "random")
