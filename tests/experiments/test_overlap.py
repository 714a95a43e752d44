"""Overlap of states and active parameters against sets and loops, and the command."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from embspace_helpers.reading.activations import capture, hooked
from embspace_helpers.reading.models import load_model, load_untrained
from embspace_helpers.experiments.overlap import (MEAN, _uses, active_lists, curve_of, main, measure, merge,
                                      other_keys_lists, other_keys_table, overlap_groups,
                                      overlap_table, overlaps, readable_items, state_before,
                                      state_lists, summary)
from embspace_helpers.reading.parameters import Parameters
from embspace_helpers.workshop.pretrain import Recipe, new_model, train_tokenizer
from embspace_helpers.reading.projection import EmbeddingSpace
from embspace_helpers.classroom.reviews import load_reviews
from embspace_helpers.experiments.statistics import (group_interval, random_directions, random_rotation,
                                         shuffled)
from embspace_helpers.reading.vocabulary import Vocabulary, load_vocabulary
from tiny_models import MODELS, NORM_FIRST, tiny

ROWS = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [3, 1, 4, 1, 5, 9, 2, 6, 5]]
GATED = ("llama", "mistral", "qwen2")
ACTIVE, K = 3, 4


def vocabulary_of(items, counts=None):
    model = models.WordLevel(vocab={item: i for i, item in enumerate(items)}, unk_token=items[0])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token=items[0])
    return Vocabulary(tokenizer, counts=counts)


@pytest.fixture(scope="module")
def vocabulary():
    return vocabulary_of([f"item{i}" for i in range(40)])


@pytest.fixture(scope="module", params=MODELS)
def kind(request):
    return request.param


def run(kind, vocabulary, positions=None):
    model = tiny(kind)
    # not the first places: there, grouped heads have the same coefficients, and ties no order
    record = capture(model, lambda texts, **_: {"input_ids": ROWS}, ["text"] * 3, positions, skip=1)
    params = Parameters(model)
    return record, params, EmbeddingSpace(params.E, vocabulary, "centred")


# ---- slow versions: one position, one vector, sets


def row_of(params, group, layer, i):
    """Row i of a group, a subhead of query head i // d_h, without `vectors`."""
    if group in params.key_kinds:
        return params.K(layer, group)[i]
    if group == "V":
        return params.V(layer)[i]
    head, sub = divmod(i, params.d_h)
    return params.W_O(layer, head)[sub] if group == "W_O" else params.W_V(layer, head)[:, sub]


def slow_active(record, group, layer, position):
    """(row, sign) of the most active rows at one position."""
    used = record.subheads if group in ("W_V", "W_O") else record.neurons
    values = used[layer][position].tolist()
    best = sorted(range(len(values)), key=lambda i: -abs(values[i]))[:ACTIVE]
    signs = record.keys[group][layer][position].tolist() if group in record.keys else values
    return [(i, -1 if signs[i] < 0 else 1) for i in best]


def in_front(kind, record):
    """The stream in front of attention ("W_O") and FF blocks ("K"): {(block, layer): (n, d)}."""
    model, found = tiny(kind), {}
    params = Parameters(model)
    norms = [(("W_O", layer), params.attention_norm(layer)) for layer in (0, 1)]
    norms += [(("K", layer), params.ff_norm(layer)) for layer in (0, 1)]
    hooks = [(norm, lambda _, inputs, key=key: found.setdefault(key, []).append(inputs[0][0]), True)
             for key, norm in norms]
    with torch.no_grad(), hooked(hooks):
        for row in ROWS:
            model(torch.tensor([row]))
    at = list(zip(record.text.tolist(), record.place.tolist()))
    return {key: torch.stack([texts[t][p] for t, p in at]) for key, texts in found.items()}


def slow_top(params, vocabulary, x):
    scores = (x @ (params.E - params.E.mean(1, keepdim=True))).tolist()
    kept = [i for i, keep in enumerate(vocabulary.keep().tolist()) if keep]
    return set(sorted(kept, key=lambda i: -scores[i])[:K])


def slow_union(record, params, vocabulary, group, layer, position):
    used = slow_active(record, group, layer, position)
    return set().union(*(slow_top(params, vocabulary, sign * row_of(params, group, layer, i))
                         for i, sign in used))


# ---- against them


def test_groups():
    assert overlap_groups(Parameters(tiny("gpt2"))) == ("K", "V", "W_V", "W_O")
    assert overlap_groups(Parameters(tiny("llama"))) == ("gate", "up", "V", "W_V", "W_O")


def test_readable_items_are_counted_or_whole_words():
    items = ["<unk>", "movie", "fil", "of", "x1y", "great", "ing", "bad"]
    counts = [900, 50, 49, 1000, 80, 0, 51, 12]
    counted, not_counted = vocabulary_of(items, counts), vocabulary_of(items)
    assert [items[i] for i in readable_items(counted).nonzero()] == ["movie", "of", "x1y", "ing"]
    assert [items[i] for i in readable_items(not_counted).nonzero()] == [
        "movie", "fil", "great", "ing", "bad"]


def test_every_group_is_read_with_its_own_sign(vocabulary):
    record, params, space = run("llama", vocabulary)
    for group, row in (("gate", 7), ("up", 7), ("V", 7), ("W_V", 9), ("W_O", 9)):
        for signs in ((-1, 1), (1, -1), (-1, -1), (1, 1)):
            for values, sign in ((record.keys["gate"], signs[0]), (record.keys["up"], signs[1]),
                                 (record.neurons, signs[0] * signs[1])):
                values[1, 4] = -sign  # all others: a little, and the other way round
                values[1, 4, 7] = 3 * sign
            record.subheads[1, 4] = 0.5 * signs[1]
            record.subheads[1, 4, 9] = 2 * signs[0]
            expected = {"gate": signs[0], "up": signs[1], "V": signs[0] * signs[1]}
            vector = expected.get(group, signs[0]) * row_of(params, group, 1, row)
            found = active_lists(record, params, space, group, 1, 1, K)[4]
            assert set(found.tolist()) == slow_top(params, vocabulary, vector)


def test_active_lists_are_the_words_of_each_row_with_its_sign(kind, vocabulary):
    record, params, space = run(kind, vocabulary)
    for group in overlap_groups(params):
        seen = set()
        for layer in (0, 1):
            found = active_lists(record, params, space, group, layer, ACTIVE, K)
            assert found.shape == (15, ACTIVE * K)
            for position in range(15):
                used = slow_active(record, group, layer, position)
                seen |= {sign for _, sign in used}
                for words, (i, sign) in zip(found[position].split(K), used):
                    expected = slow_top(params, vocabulary, sign * row_of(params, group, layer, i))
                    assert set(words.tolist()) == expected
        if kind in GATED or group in ("W_V", "W_O"):
            assert seen == {-1, 1}


def test_a_row_with_coefficient_zero_is_read_as_it_is(vocabulary):
    record, params, space = run("gpt2", vocabulary)
    record.neurons[0] = 0
    found = active_lists(record, params, space, "V", 0, params.d_ff, K)
    expected = sorted(sorted(slow_top(params, vocabulary, v)) for v in params.V(0))
    for words in found:
        assert sorted(sorted(part.tolist()) for part in words.split(K)) == expected


def test_a_turned_basis_of_every_head_writes_the_same(kind, vocabulary):
    record, params, _ = run(kind, vocabulary)
    for group in ("W_V", "W_O"):
        rows, used = _uses(record, params, group, 1, None)
        for i, row in enumerate(rows):
            assert torch.equal(row, row_of(params, group, 1, i))
        assert torch.equal(used, record.subheads[1])
        turned_rows, turned = _uses(record, params, group, 1, basis=6)
        assert turned_rows.shape == rows.shape and turned.shape == used.shape
        bases = []
        for head in range(params.H):
            part = slice(head * params.d_h, (head + 1) * params.d_h)
            # heads stay apart: what each writes is the same, of coefficients as large
            torch.testing.assert_close(turned[:, part] @ turned_rows[part],
                                       used[:, part] @ rows[part], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(turned[:, part].norm(dim=1), used[:, part].norm(dim=1),
                                       rtol=1e-5, atol=1e-5)
            bases.append(turned_rows[part] @ torch.linalg.pinv(rows[part]))
            torch.testing.assert_close(bases[-1] @ bases[-1].T, torch.eye(params.d_h).double(),
                                       rtol=1e-4, atol=1e-4)
        assert all((a - b).abs().max() > 0.1 for a, b in zip(bases, bases[1:]))
        assert all((a - torch.eye(params.d_h)).abs().max() > 0.1 for a in bases)
    assert params.H_kv < params.H or kind not in GATED  # grouped heads were among them


def test_lists_of_a_turned_basis(kind, vocabulary):
    record, params, space = run(kind, vocabulary)
    for group in ("W_V", "W_O"):
        found = active_lists(record, params, space, group, 0, ACTIVE, K, basis=3)
        rows, used = _uses(record, params, group, 0, 3)
        for words, values in zip(found, used.tolist()):
            best = sorted(range(len(values)), key=lambda i: -abs(values[i]))[:ACTIVE]
            for part, i in zip(words.split(K), best):
                sign = -1 if values[i] < 0 else 1
                assert set(part.tolist()) == slow_top(params, vocabulary, sign * rows[i])
        lists = [found] + [active_lists(record, params, space, group, 0, ACTIVE, K, basis=basis)
                           for basis in (3, 4, None)]
        assert torch.equal(lists[0], lists[1])
        for i, one in enumerate(lists[1:]):
            assert all((one != other).float().mean() > 0.1 for other in lists[i + 2 :])
    for group in (*params.key_kinds, "V"):  # a neuron has no basis to turn
        assert torch.equal(active_lists(record, params, space, group, 0, ACTIVE, K, basis=3),
                           active_lists(record, params, space, group, 0, ACTIVE, K))


@pytest.mark.parametrize("kind", NORM_FIRST)
def test_the_state_before_is_what_stands_in_front_of_the_block(kind, vocabulary):
    record, params, _ = run(kind, vocabulary)
    found = in_front(kind, record)
    for layer in (0, 1):
        for group in overlap_groups(params):
            block = "W_O" if group in ("W_V", "W_O") else "K"
            state = state_before(record, params, group, layer)
            torch.testing.assert_close(state, found[block, layer], rtol=1e-6, atol=1e-6)
        assert (found["K", layer] - found["W_O", layer]).abs().mean() > 0.1
        assert (record.states[layer] - found["K", layer]).abs().mean() > 0.1


def other_keys(params, layer, how, seed):
    """Vectors in the keys' place, by hand."""
    keys, n = params.K(layer), params.d_ff
    if how == "turned":
        Q = random_rotation(params.d, seed).double()
        other = torch.stack([k @ Q for k in keys])
        torch.testing.assert_close(other @ other.T, keys @ keys.T, rtol=1e-5, atol=1e-5)
        return other
    dice, mean = random_directions(n, n, seed).tolist(), sum(keys) / n
    return [mean + sum(dice[i][j] * (keys[j] - mean) for j in range(n)) / n**0.5 for i in range(n)]


@pytest.mark.parametrize("how", ["turned", "mixtures"])
def test_lists_of_other_keys_against_a_loop(how, vocabulary):
    record, params, space = run("gpt2", vocabulary)
    by_size = 0
    for layer, seed in ((0, 0), (1, 6)):
        found = other_keys_lists(record, params, space, layer, how, seed, ACTIVE, K)
        other, norm = other_keys(params, layer, how, seed), params.ff_norm(layer)
        for words, state in zip(found, in_front("gpt2", record)["K", layer]):
            with torch.no_grad():
                products = [float(norm(state) @ vector) for vector in other]
            best = sorted(range(params.d_ff), key=lambda i: -products[i])[:ACTIVE]
            by_size += max(map(abs, products)) > products[best[0]]
            for part, i in zip(words.split(K), best):
                assert set(part.tolist()) == slow_top(params, vocabulary, other[i])
    assert by_size  # the size alone would have chosen others
    again = other_keys_lists(record, params, space, layer, how, seed, ACTIVE, K)
    assert torch.equal(again, found)
    for others in (other_keys_lists(record, params, space, layer, how, seed + 1, ACTIVE, K),
                   active_lists(record, params, space, "K", layer, ACTIVE, K)):
        assert (others != found).float().mean() > 0.5


def test_the_two_kinds_of_other_keys_differ(vocabulary):
    record, params, space = run("gpt2", vocabulary)
    turned = other_keys_lists(record, params, space, 1, active=ACTIVE, k=K)
    assert torch.equal(turned, other_keys_lists(record, params, space, 1, "turned", 0, ACTIVE, K))
    mixed = other_keys_lists(record, params, space, 1, "mixtures", active=ACTIVE, k=K)
    assert (turned != mixed).float().mean() > 0.5


def test_words_of_states_with_and_without_the_final_norm(kind, vocabulary):
    record, params, space = run(kind, vocabulary)
    norm = params.final_norm()
    with torch.no_grad():
        for given in (None, norm):
            found = state_lists(record.states[0], space, K, given)
            for words, state in zip(found, record.states[0]):
                state = state if given is None else norm(state)
                assert set(words.tolist()) == slow_top(params, vocabulary, state)


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
def test_the_table_against_sets(kind, vocabulary, normed):
    n = 8
    record, params, space = run(kind, vocabulary, positions=n)
    norm = params.final_norm() if normed else None
    partner = shuffled(torch.arange(n)[:, None]).flatten().tolist()

    @torch.no_grad()
    def words(states):
        return [slow_top(params, vocabulary, x if norm is None else norm(x)) for x in states]

    after = [words(states) for states in record.states]
    before = in_front(kind, record) if kind in NORM_FIRST else {}
    before = {key: words(states) for key, states in before.items()}
    targets = ("last", "before", "this") if before else ("last", "this")
    shares = {}
    for group in overlap_groups(params):
        block = "W_O" if group in ("W_V", "W_O") else "K"
        for layer in (0, 1):
            union = [slow_union(record, params, vocabulary, group, layer, i) for i in range(n)]
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
    expected = [(*key, x.mean().item(), *group_interval(x, record.text))
                for key, x in shares.items()]
    table = overlap_table(record, params, space, targets=targets, active=ACTIVE, k=K, normed=normed)
    columns = ["group", "layer", "target", "kind", "mean", "low", "high"]
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected, columns=columns), atol=1e-6)
    assert table["mean"].nunique() > 8 and table["mean"].between(0.01, 0.99).any()
    means = table.set_index(["target", "kind"]).groupby(level=[0, 1])["mean"].apply(tuple)
    assert means.nunique() == len(targets) * 2


def test_intervals_resample_texts(vocabulary):
    """With all positions of a text copied, resampled texts are the same, positions would not be."""
    record, params, space = run("gpt2", vocabulary)
    tables = []
    for times in (1, 5):
        index = torch.arange(15).repeat(times)
        many = replace(record, text=record.text[index], place=record.place[index],
                       token=record.token[index], states=record.states[:, index],
                       keys={"K": record.keys["K"][:, index]}, neurons=record.neurons[:, index],
                       subheads=record.subheads[:, index])
        table = overlap_table(many, params, space, active=ACTIVE, k=K)
        tables.append(table[table["kind"] == "real"].reset_index(drop=True))
    pd.testing.assert_frame_equal(*tables, atol=1e-6)
    assert (tables[0]["high"] - tables[0]["low"]).min() > 0.01


def test_a_table_of_some_layers_and_targets(vocabulary):
    record, params, space = run("llama", vocabulary)
    options = {"active": ACTIVE, "k": K}
    whole = overlap_table(record, params, space, **options)
    assert set(whole["target"]) == {"this", "last"} and MEAN == -1
    assert (whole["low"] <= whole["mean"]).all() and (whole["mean"] <= whole["high"]).all()
    for layers, targets in (([1], ("last",)), ([0], ("last",)), ([0], ("this",))):
        part = overlap_table(record, params, space, layers, targets, **options)
        rows = whole[whole["layer"].isin(layers) & whole["target"].isin(targets)]
        rows = rows.reset_index(drop=True)
        assert len(part) == 2 * 5 * 2
        pd.testing.assert_frame_equal(part[:10], rows)
        pd.testing.assert_frame_equal(part[10:].reset_index(drop=True), rows.assign(layer=MEAN))


def test_errors_of_the_table(vocabulary):
    record, params, space = run("gpt2", vocabulary)
    with pytest.raises(ValueError, match="no target next, or: there are this, last, before"):
        overlap_table(record, params, space, targets=("or", "this", "next"), k=K)
    with pytest.raises(ValueError, match="no layer 2: layers are 0 to 1"):
        active_lists(record, params, space, "V", 2, ACTIVE, K)
    one_text = replace(record, text=torch.zeros_like(record.text))
    with pytest.raises(ValueError, match="at least 2 groups, got 1"):
        overlap_table(one_text, params, space, active=ACTIVE, k=K)
    record, params, space = run("gpt2", vocabulary, positions=1)
    with pytest.raises(ValueError, match="1 row cannot be shuffled"):
        overlap_table(record, params, space, active=ACTIVE, k=K)


@pytest.mark.parametrize("how", ["turned", "mixtures"])
def test_the_table_of_other_keys_is_a_mean_over_seeds(how, vocabulary):
    record, params, space = run("gpt2", vocabulary)
    table, expected = other_keys_table(record, params, space, how, seeds=(2, 5), k=K), []
    for layer in (0, 1):
        words, shares = state_lists(record.states[layer], space, K, params.final_norm()), 0
        for seed in (2, 5):
            lists = other_keys_lists(record, params, space, layer, how, seed, k=K)
            shares = shares + overlaps(words, lists)["real"] / 2
        interval = group_interval(shares, record.text)
        expected.append(("K", layer, "this", how, shares.mean().item(), *interval))
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected, columns=table.columns), atol=1e-6)
    assert table["mean"].nunique() == 2


def test_curves_and_summaries_of_a_table():
    rows = [("K", 0, "this", "real", 0.3, 0.2, 0.4), ("K", 1, "this", "real", 0.5, 0.4, 0.6),
            ("K", 0, "last", "real", 0.7, 0.6, 0.8), ("K", 0, "this", "permuted", 0.1, 0.0, 0.2),
            ("V", 0, "this", "real", 0.9, 0.8, 1.0), ("K", -1, "this", "real", 0.4, 0.31, 0.5),
            ("K", -1, "this", "permuted", 0.16, 0.1, 0.2), ("K", -1, "last", "real", 0.7, 0.6, 0.8),
            ("K", -1, "last", "permuted", 0.7, 0.6, 0.8), ("V", -1, "this", "real", 0.9, 0.8, 1.0),
            ("V", -1, "this", "permuted", 0.3, 0.2, 0.4)]
    table = pd.DataFrame(rows, columns=["group", "layer", "target", "kind", "mean", "low", "high"])
    assert curve_of(table, "K")["mean"].tolist() == [0.3, 0.5]
    assert curve_of(table, "K", "permuted")["mean"].tolist() == [0.1]
    assert curve_of(table, "K", target="last")["mean"].tolist() == [0.7]
    found = summary(table)
    assert found.loc["keys", "real"] == "0.400 (0.310 to 0.500)"
    assert found.loc["keys", "permuted"] == "0.160 (0.100 to 0.200)"
    assert found["ratio"].to_dict() == {"keys": "2.5", "values": "3.0"}


# ---- the command

COUNTS = [50 if i % 4 else 49 for i in range(300)]  # of every item of the vocabulary
WORDS = ("the film is fine", "a dull plot", "what an actor", "we saw it twice", "it was long")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 with a tokenizer, and beside it reviews in IMDB's layout."""
    path = tmp_path_factory.mktemp("overlap")
    recipe = Recipe(seed=1, d=16, layers=2, heads=2, vocabulary=300, context=40)
    model = new_model(recipe)
    with torch.no_grad():  # so that it differs from the untrained one more than by its seed
        model.transformer.wte.weight.mul_(20)
    model.save_pretrained(path / "tiny")
    train_tokenizer([*WORDS] * 20, recipe.vocabulary).save_pretrained(path / "tiny")
    (path / "tiny" / "token_counts.json").write_text(json.dumps(COUNTS))
    (path / "imdb" / "plain_text").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = [(" ".join(rng.choice(WORDS, 3)) + f" {i}", i % 2) for i in range(20)]
    frame = pd.DataFrame(rows, columns=["text", "label"])
    frame.to_parquet(path / "imdb" / "plain_text" / "test-00000-of-00001.parquet")
    return path


def test_the_command_measures_trained_and_untrained_in_every_reading(folder, tmp_path, capsys):
    name, data = str(folder / "tiny"), str(folder / "imdb")
    out = tmp_path / "results" / "overlap.csv"
    main([name, "--data", data, "--out", str(out), "--texts", "6", "--positions", "30"])
    assert capsys.readouterr().out == f"{name}: done\n"
    table = pd.read_csv(out)
    assert set(table["positions"]) == {30} and set(table["source"]) == {"imdb"}
    assert len(table) == 4 * (4 * 3 * 2 * 2)  # groups, layers and their mean, targets, kinds
    reviews = load_reviews("test", 6, source=data)["text"].tolist()
    for label, load in (("tiny", load_model), ("tiny, untrained", load_untrained)):
        model, tokenizer = load(name)
        params, record = Parameters(model), capture(model, tokenizer, reviews, 30, skip=1)
        vocabulary = load_vocabulary(model, tokenizer)
        readable = vocabulary.keep() & (torch.tensor(COUNTS) == 50)
        for reading in ("transpose", "orthogonal"):
            space = EmbeddingSpace(params.E, vocabulary, reading, readable)
            part = table[(table["model"] == label) & (table["reading"] == reading)]
            expected = overlap_table(record, params, space).round(4)
            pd.testing.assert_frame_equal(part[list(expected)].reset_index(drop=True), expected)
    means = table.groupby(["model", "reading"])["mean"].mean()
    assert means.nunique() == 4 and means.between(0.01, 0.99).all()


def test_a_model_measured_again_replaces_its_rows(tmp_path):
    out = tmp_path / "overlap.csv"
    rows = [{"model": m, "reading": r, "source": s, "mean": 0.5}
            for m in ("b", "a") for r in ("x", "y") for s in ("imdb", "embedded")]
    pd.DataFrame(rows).to_csv(out, index=False)
    new = pd.DataFrame([{"model": "b", "reading": "y", "source": "imdb", "mean": 0.1}])
    found = merge(new, out)
    assert len(found) == 8  # all other readings and sources stay
    assert found.set_index(["model", "reading", "source"])["mean"]["b", "y", "imdb"] == 0.1
    assert (found["mean"] == 0.5).sum() == 7 and found["model"].is_monotonic_increasing
    pd.testing.assert_frame_equal(merge(new, tmp_path / "none.csv"), new)


def test_a_summary_is_of_one_reading(vocabulary):
    record, params, space = run("gpt2", vocabulary)
    table = overlap_table(record, params, space, active=ACTIVE, k=K)
    assert list(summary(table).index) == ["keys", "values", "value subheads", "output subheads"]
    with pytest.raises(ValueError, match="of one model in one reading"):
        summary(pd.concat([table, table]))


def test_lists_need_what_the_record_lacks(vocabulary):
    _, params, _ = run("llama", vocabulary)
    record = replace(run("llama", vocabulary)[0], keys={}, subheads=None)
    with pytest.raises(ValueError, match="for the group gate the record needs keys"):
        active_lists(record, params, None, "gate", 0)
    with pytest.raises(ValueError, match="for the group W_O the record needs subheads"):
        active_lists(record, params, None, "W_O", 0)


def test_the_reviews_that_ship_are_named_as_such(folder):
    table = measure(str(folder / "tiny"), "embedded", 4, 5, ["transpose"])
    assert set(table["source"]) == {"embedded"} and set(table["positions"]) == {5}


def test_before_a_block_only_where_the_norm_comes_first(vocabulary):
    for model in ("bert", "roberta"):
        record, params, _ = run(model, vocabulary)
        with pytest.raises(ValueError, match="norms the stream after each block"):
            state_before(record, params, "K", 0)


def test_an_unknown_control():
    with pytest.raises(ValueError, match="no control 'random': there are turned, mixtures"):
        other_keys_lists(None, None, None, 0, "random")
