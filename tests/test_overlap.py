"""Overlap of states and active parameters against sets and loops, and the command."""

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from embspace_helpers.activations import Record, capture
from embspace_helpers.models import load_model, load_untrained
from embspace_helpers.overlap import (active_lists, main, measure, merge, most_active,
                                      overlap_groups, overlap_table, overlaps, state_lists)
from embspace_helpers.parameters import Parameters
from embspace_helpers.pretrain import Recipe, new_model, train_tokenizer
from embspace_helpers.projection import EmbeddingSpace
from embspace_helpers.reviews import load_reviews
from embspace_helpers.statistics import bootstrap_interval, shuffled
from embspace_helpers.vocabulary import Vocabulary, load_vocabulary
from tiny_models import MODELS, tiny

ROWS = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [3, 1, 4, 1, 5, 9, 2, 6, 5]]
GATED = ("llama", "mistral", "qwen2")
ACTIVE, K = 3, 4


@pytest.fixture(scope="module")
def vocabulary():
    items = {f"item{i}": i for i in range(40)}
    model = models.WordLevel(vocab=items, unk_token="item0")
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="item0"))


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


def test_most_active_by_magnitude_and_the_signs_of_each_group():
    neurons = torch.tensor([[[0.1, -3.0, 2.0], [1.0, 0.5, -0.7]]])
    keys = {"gate": torch.tensor([[[9.0, -1.0, 1.0], [1.0, 8.0, 1.0]]]),
            "up": torch.tensor([[[9.0, 3.0, 2.0], [-1.0, 8.0, -0.7]]])}
    subheads = torch.tensor([[[0.0, -0.5], [-2.0, 1.0]]])
    none = torch.zeros(2)
    record = Record(none, none, none, None, keys, neurons, subheads)
    for group, signs in (("gate", [[-1, 1], [1, 1]]), ("up", [[1, 1], [-1, -1]]),
                         ("V", [[-1, 1], [1, -1]])):
        index, sign = most_active(record, group, 0, 2)
        assert index.tolist() == [[1, 2], [0, 2]] and sign.tolist() == signs
    for group in ("W_V", "W_O"):
        index, sign = most_active(record, group, 0, 1)
        assert index.tolist() == [[1], [0]] and sign.tolist() == [[-1], [-1]]


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
    index, sign = most_active(record, "V", 0, params.d_ff)
    assert not sign.any()
    for words, i in zip(found[0].split(K), index[0].tolist()):
        assert set(words.tolist()) == slow_top(params, vocabulary, params.V(0)[i])


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
    with torch.no_grad():
        words = [[slow_top(params, vocabulary, x if norm is None else norm(x)) for x in states]
                 for states in record.states]
    expected = []
    for group in overlap_groups(params):
        for layer in (0, 1):
            union = [slow_union(record, params, vocabulary, group, layer, i) for i in range(n)]
            for target, top in (("this", words[layer]), ("last", words[1])):
                for name, others in (("real", range(n)), ("permuted", partner)):
                    shares = torch.tensor([len(a & union[j]) / K for a, j in zip(top, others)])
                    interval = bootstrap_interval(shares, 500)
                    expected.append((group, layer, target, name, shares.mean().item(), *interval))
    table = overlap_table(record, params, space, active=ACTIVE, k=K, normed=normed)
    columns = ["group", "layer", "target", "kind", "mean", "low", "high"]
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected, columns=columns), atol=1e-6)
    assert table["mean"].nunique() > 8 and table["mean"].between(0.01, 0.99).any()


def test_a_table_of_some_layers_and_targets(vocabulary):
    record, params, space = run("llama", vocabulary)
    options = {"active": ACTIVE, "k": K}
    whole = overlap_table(record, params, space, **options)
    assert (whole["low"] <= whole["mean"]).all() and (whole["mean"] <= whole["high"]).all()
    for layers, targets in (([1], ("last",)), ([0], ("last",)), ([0], ("this",))):
        part = overlap_table(record, params, space, layers, targets, **options)
        rows = whole[whole["layer"].isin(layers) & whole["target"].isin(targets)]
        pd.testing.assert_frame_equal(part, rows.reset_index(drop=True))
        assert len(part) == 5 * 2


def test_errors_of_the_table(vocabulary):
    record, params, space = run("gpt2", vocabulary)
    with pytest.raises(ValueError, match="no target next, or: there are this, last"):
        overlap_table(record, params, space, targets=("or", "this", "next"), k=K)
    with pytest.raises(ValueError, match="no layer 2: layers are 0 to 1"):
        active_lists(record, params, space, "V", 2, ACTIVE, K)
    record, params, space = run("gpt2", vocabulary, positions=1)
    with pytest.raises(ValueError, match="1 row cannot be shuffled"):
        overlap_table(record, params, space, active=ACTIVE, k=K)


# ---- the command

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
    assert len(table) == 4 * (4 * 2 * 2 * 2)  # groups, layers, targets, kinds
    reviews = load_reviews("test", 6, source=data)["text"].tolist()
    for label, load in (("tiny", load_model), ("tiny, untrained", load_untrained)):
        model, tokenizer = load(name)
        params, record = Parameters(model), capture(model, tokenizer, reviews, 30)
        for reading in ("transpose", "orthogonal"):
            space = EmbeddingSpace(params.E, load_vocabulary(model, tokenizer), reading)
            part = table[(table["model"] == label) & (table["reading"] == reading)]
            expected = overlap_table(record, params, space).round(4)
            pd.testing.assert_frame_equal(part[list(expected)].reset_index(drop=True), expected)
    means = table.groupby(["model", "reading"])["mean"].mean()
    assert means.nunique() == 4 and means.between(0.01, 0.99).all()


def test_a_model_measured_again_replaces_its_rows(tmp_path):
    out = tmp_path / "overlap.csv"
    rows = [{"model": m, "reading": r, "mean": 0.5} for m in ("b", "a") for r in ("x", "y")]
    pd.DataFrame(rows).to_csv(out, index=False)
    new = pd.DataFrame([{"model": "b", "reading": "y", "mean": 0.1}])
    assert merge(new, out)["mean"].tolist() == [0.5, 0.5, 0.1]
    assert merge(new, tmp_path / "none.csv") is new


def test_the_reviews_that_ship_are_named_as_such(folder):
    table = measure(str(folder / "tiny"), "embedded", 4, 5, "transpose")
    assert set(table["source"]) == {"embedded"} and set(table["positions"]) == {5}
