"""Displacements of tiny models: what was added, what it separates, and the model without it."""

import copy
import math
from itertools import product

import pandas as pd
import pytest
import torch
from tiny_models import close, random, tiny_model, vocabulary_of

from embspace_helpers import Space
from embspace_helpers.experiments.classifiers import FINE_TUNING_RESULTS, Classifier
from embspace_helpers.experiments.controls import random_directions, random_rotation
from embspace_helpers.experiments.displacement import (
    DIRECTIONS,
    SEPARATION,
    displacement,
    edited,
    head_displacement,
    leading_directions,
    sentiment_space,
    separating,
    separation,
    stream_views,
)

LLAMA = {"gate": lambda b: b.mlp.gate_proj.weight, "up": lambda b: b.mlp.up_proj.weight,
         "V": lambda b: b.mlp.down_proj.weight.T, "W_Q": lambda b: b.self_attn.q_proj.weight,
         "W_K": lambda b: b.self_attn.k_proj.weight, "W_V": lambda b: b.self_attn.v_proj.weight,
         "W_O": lambda b: b.self_attn.o_proj.weight.T}
BERT = {"K": lambda b: b.intermediate.dense.weight, "V": lambda b: b.output.dense.weight.T,
        "W_Q": lambda b: b.attention.self.query.weight,
        "W_K": lambda b: b.attention.self.key.weight,
        "W_V": lambda b: b.attention.self.value.weight,
        "W_O": lambda b: b.attention.output.dense.weight.T}
# The rows (n, d) of each group, as views of what a layer's own modules hold.
ROWS = {
    "gpt2": {"K": lambda b: b.mlp.c_fc.weight.T, "V": lambda b: b.mlp.c_proj.weight,
             "W_Q": lambda b: b.attn.c_attn.weight[:, :12].T,
             "W_K": lambda b: b.attn.c_attn.weight[:, 12:24].T,
             "W_V": lambda b: b.attn.c_attn.weight[:, 24:].T,
             "W_O": lambda b: b.attn.c_proj.weight},
    "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "gemma2": LLAMA,
    "opt": {"K": lambda b: b.fc1.weight, "V": lambda b: b.fc2.weight.T,
            "W_Q": lambda b: b.self_attn.q_proj.weight, "W_K": lambda b: b.self_attn.k_proj.weight,
            "W_V": lambda b: b.self_attn.v_proj.weight,
            "W_O": lambda b: b.self_attn.out_proj.weight.T},
    "gpt_neo": {"K": lambda b: b.mlp.c_fc.weight, "V": lambda b: b.mlp.c_proj.weight.T,
                "W_Q": lambda b: b.attn.attention.q_proj.weight,
                "W_K": lambda b: b.attn.attention.k_proj.weight,
                "W_V": lambda b: b.attn.attention.v_proj.weight,
                "W_O": lambda b: b.attn.attention.out_proj.weight.T},
    "gptj": {"K": lambda b: b.mlp.fc_in.weight, "V": lambda b: b.mlp.fc_out.weight.T,
             "W_Q": lambda b: b.attn.q_proj.weight, "W_K": lambda b: b.attn.k_proj.weight,
             "W_V": lambda b: b.attn.v_proj.weight, "W_O": lambda b: b.attn.out_proj.weight.T},
    "gpt_neox": {
        "K": lambda b: b.mlp.dense_h_to_4h.weight, "V": lambda b: b.mlp.dense_4h_to_h.weight.T,
        **{group: lambda b, i=i: b.attention.query_key_value.weight.view(3, 3, 4, 12)[:, i]
           for i, group in enumerate(("W_Q", "W_K", "W_V"))},  # (heads, d_h, d)
        "W_O": lambda b: b.attention.dense.weight.T},
    "phi3": LLAMA | {
        "gate": lambda b: b.mlp.gate_up_proj.weight[:20],
        "up": lambda b: b.mlp.gate_up_proj.weight[20:],
        "W_Q": lambda b: b.self_attn.qkv_proj.weight[:16],
        "W_K": lambda b: b.self_attn.qkv_proj.weight[16:24],
        "W_V": lambda b: b.self_attn.qkv_proj.weight[24:]}, "olmo2": LLAMA, "smollm3": LLAMA,
    "gemma3_text": LLAMA, "bert": BERT, "roberta": BERT,
    "electra": BERT,
    "distilbert": {
        "K": lambda b: b.ffn.lin1.weight, "V": lambda b: b.ffn.lin2.weight.T,
        "W_Q": lambda b: b.attention.q_lin.weight, "W_K": lambda b: b.attention.k_lin.weight,
        "W_V": lambda b: b.attention.v_lin.weight, "W_O": lambda b: b.attention.out_lin.weight.T},
    "modernbert": {
        "gate": lambda b: b.mlp.Wi.weight[:20], "up": lambda b: b.mlp.Wi.weight[20:],
        "V": lambda b: b.mlp.Wo.weight.T, "W_Q": lambda b: b.attn.Wqkv.weight[:16],
        "W_K": lambda b: b.attn.Wqkv.weight[16:32], "W_V": lambda b: b.attn.Wqkv.weight[32:],
        "W_O": lambda b: b.attn.Wo.weight.T},
    "mpnet": BERT | {
        "W_Q": lambda b: b.attention.attn.q.weight, "W_K": lambda b: b.attention.attn.k.weight,
        "W_V": lambda b: b.attention.attn.v.weight, "W_O": lambda b: b.attention.attn.o.weight.T},
}
LARGE = 1e-8  # where a displacement of 1e2 lies beside one of 1: close to 1e-10 of the larger


def logits(model):
    with torch.no_grad():
        return model.model(torch.tensor([[5, 6, 7, 8, 9]])).logits


@torch.no_grad()
def displaced(kind, layers=(0, 1), size=0.1):
    """A tiny model, and a copy with noise in every matrix of some layers: (before, after)."""
    before, after = tiny_model(kind), tiny_model(kind)
    for seed, (layer, rows) in enumerate(product(layers, ROWS[kind].values())):
        part = rows(after.parameters.blocks[layer])
        part += size * random(*part.shape, seed=seed)
    return before, after


def rotation(d, seed):
    """A random rotation in float64, orthogonal to the last digit."""
    return torch.linalg.qr(random_rotation(d, seed).double()).Q


# ---- displacement


def test_displacement_is_what_was_added_to_a_module(kind):
    before = tiny_model(kind)
    groups = before.parameters.groups
    assert set(ROWS[kind]) == set(groups)
    for changed in groups:
        after = tiny_model(kind)
        with torch.no_grad():
            part = ROWS[kind][changed](after.parameters.blocks[1])
            added = random(*part.shape)
            part += added
        for group, layer in product(groups, (0, 1)):
            found = displacement(after, before, group, layer)
            if (group, layer) == (changed, 1):
                close(found, added.reshape(found.shape))
            else:
                assert found.shape == before.parameters.vectors(group, layer).shape
                assert not found.any()


def test_one_model_is_made_from_the_other():
    with pytest.raises(ValueError, match=r"V of layer 1 has the shapes \(20, 12\) and \(20, 8\)"):
        displacement(tiny_model("gpt2"), tiny_model("mistral"), "V", 1)
    with pytest.raises(ValueError, match="no group 'gate' in this model"):
        displacement(tiny_model("gpt2"), tiny_model("gpt2"), "gate", 1)
    model = tiny_model("gpt2")
    with pytest.raises(ValueError, match="expected a Model, .* got Parameters"):
        displacement(model.parameters, model, "V", 1)


# ---- separation


def test_a_heads_displacement_is_rid_of_its_random_start():
    classifier = Classifier(tiny_model("gpt2"), 1, seed=3)
    drawn = classifier.head.weight.detach().clone()
    assert not head_displacement(classifier).any()
    step = random(2, drawn.shape[1], dtype=torch.float32)
    with torch.no_grad():
        classifier.head.weight += step
    torch.testing.assert_close(head_displacement(classifier), step[1] - step[0])
    start = drawn[1] - drawn[0]
    assert not torch.allclose(head_displacement(classifier), start + step[1] - step[0])


def test_the_sentiment_space_is_of_whole_words_seen_100_times():
    model, words = tiny_model("gpt2"), ["<s>", "good", "bad", "a", "movie", *"bcdefghijklmnopq"]
    E = model.parameters.E
    model.vocabulary = vocabulary_of(words + [f"word{i}" for i in range(40 - len(words))],
                                     [100, 100, 99, 100, 101, *[200] * 35])
    space = sentiment_space(model)
    assert [model.vocabulary.texts[i] for i in space.ids] == ["good", "movie"]
    assert space.name == "orthogonal" and space.E is E
    model.vocabulary.counts = None
    shown = [model.vocabulary.texts[i] for i in sentiment_space(model, "transpose").ids]
    assert shown == ["good", "bad", "movie"]


@pytest.fixture(scope="module")
def handmade():
    """Six words and <unk>, which is never in a list; the first axis tells good from bad."""
    E = torch.tensor([[9.0, 3, 2, 1, -1, -2, -3], [9, -1, 3, -3, 2, -2, 1]])
    ratings = torch.tensor([50, 2, math.nan, 1, math.nan, -1, -3])
    words = ["<unk>", "good", "table", "nice", "window", "dull", "bad"]
    return Space(E, vocabulary_of(words)), ratings


@pytest.mark.parametrize("vector, k, by_hand", [
    ([1, 0], 1, 2 - -3),
    ([1, 0], 2, (2 + 0) / 2 - (-3 - 1) / 2),
    ([1, 0], 3, (2 + 0 + 1) / 3 - (-3 - 1 + 0) / 3),
    ([0, 1], 1, 0 - 1),
    ([0, 1], 3, (0 + 0 - 3) / 3 - (1 - 1 + 2) / 3),
])
def test_separation_by_hand(handmade, vector, k, by_hand):
    space, ratings = handmade
    x = torch.tensor([vector], dtype=torch.float32)
    found = separation(space, ratings, torch.cat([x, -x, 0.01 * x, -700 * x]), k)
    torch.testing.assert_close(found, by_hand * torch.tensor([1.0, -1, 1, -1]))


def test_separation_of_several_rows(handmade):
    space, ratings = handmade
    axes = torch.eye(2)
    both = torch.cat([separation(space, ratings, axis[None], 3) for axis in axes])
    assert torch.equal(separation(space, ratings, axes, 3), both) and both[0] != both[1]


def test_one_random_direction_in_twenty_separates_and_every_planted_one():
    E = random_directions(8, 300, seed=1)
    space = Space(E, vocabulary_of(["<unk>", *(f"token{i}" for i in range(299))]))
    ratings = random_directions(1, 300, seed=2)[0]
    ratings[::3] = math.nan
    control = separation(space, ratings, random_directions(20000, 8, seed=3))
    lucky = separating(space, ratings, random_directions(20000, 8, seed=4), control)
    assert set(lucky.tolist()) == {0, 1} and 0.04 < lucky.mean() < 0.06
    planted = E @ ratings.nan_to_num()
    sizes = torch.tensor([1.0, -1, 1e-3, -1e3])
    assert separating(space, ratings, sizes[:, None] * planted, control).tolist() == [1] * 4


# ---- the stream in a layer's matrices


def test_stream_views_have_the_rows_of_the_groups_along_their_axis(kind):
    params = tiny_model(kind).parameters
    direction = random(params.d)
    views = stream_views(params, 1)
    assert len(views) == len(params.groups)
    for group, (view, axis) in zip(params.groups, views):
        assert view.shape[axis] == params.d
        found = view.movedim(axis, -1) @ direction
        close(found.flatten(), params.vectors(group, 1) @ direction)


def test_stream_views_are_the_weights_themselves(kind):
    model = tiny_model(kind)
    params, rows = model.parameters, ROWS[kind]
    before, same = tiny_model(kind).parameters, logits(model)
    for group, (view, _) in zip(params.groups, stream_views(params, 1)):
        view *= 2
        assert (logits(model) - same).abs().max() > 1e-9  # little for queries that are normed
        for other in params.groups:
            factor = 2 if other == group else 1
            found = rows[other](params.blocks[1]).flatten(0, -2)
            assert torch.equal(found, factor * before.vectors(other, 1))
        view /= 2
    assert torch.equal(logits(model), same)


# ---- leading directions


def test_the_leading_directions_weigh_every_group_alike(kind):
    before, after = tiny_model(kind), tiny_model(kind)
    u, v, w = rotation(before.parameters.d, seed=5)[:3]
    loud = after.parameters.groups[0]
    with torch.no_grad():
        for group, rows in ROWS[kind].items():
            # to all rows the same
            rows(after.parameters.blocks[1]).add_(100 * v if group == loud else u)
            rows(after.parameters.blocks[0]).add_(1000 * w)
    found = leading_directions(after, before, [1], 2)
    expected = torch.stack([u, v])
    close((found @ expected.T).abs(), torch.eye(2), LARGE)
    assert (leading_directions(after, before, [0, 1], 1) @ w).abs() > 0.999


def test_leading_directions_are_orthonormal_and_ordered(kind):
    before, after = displaced(kind)
    d = before.parameters.d
    found = leading_directions(after, before, [0, 1], d)
    close(found @ found.T, torch.eye(d))
    along = sum((rows @ found.T).square().sum(0) / rows.square().sum()
                for rows in rows_of(after, before).values())
    assert along.tolist() == sorted(along.tolist(), reverse=True)
    close(leading_directions(after, before, [0, 1], 3), found[:3])


@pytest.mark.parametrize("n", [0, 13])
def test_impossible_numbers_of_directions(n):
    before, after = displaced("gpt2")
    with pytest.raises(ValueError, match=f"n = {n}, but .* between 1 and the 12 directions"):
        leading_directions(after, before, [1], n)


# ---- a model without some directions of its displacement


def rows_of(model, before):
    """Displacements by group and layer."""
    p = before.parameters
    return {(group, layer): displacement(model, before, group, layer)
            for group, layer in product(p.groups, range(p.L))}


def test_without_all_directions_the_model_is_the_pretrained_one(kind):
    before, after = displaced(kind)
    assert (logits(after) - logits(before)).abs().max() > 1e-3
    with edited(after, before, [0, 1], torch.eye(before.parameters.d, dtype=torch.float64)):
        assert not any(rows.any() for rows in rows_of(after, before).values())
        assert torch.equal(logits(after), logits(before))


def test_with_only_all_directions_nothing_changes(kind):
    before, after = displaced(kind)
    moved = rows_of(after, before)
    with edited(after, before, [0, 1], torch.eye(before.parameters.d, dtype=torch.float64), True):
        for key, rows in rows_of(after, before).items():
            close(rows, moved[key])


@pytest.mark.parametrize("only", [False, True])
def test_directions_leave_or_stay_and_other_layers_keep_all(kind, only):
    before, after = displaced(kind)
    directions = rotation(before.parameters.d, seed=3)[:2]
    moved = rows_of(after, before)
    with edited(after, before, [1], directions, only):
        for (group, layer), rows in rows_of(after, before).items():
            along = (moved[group, 1] @ directions.T) @ directions
            expected = along if only else moved[group, 1] - along
            if layer == 0:
                assert torch.equal(rows, moved[group, 0])
            else:
                close(rows, expected)
                if not only:
                    close(rows @ directions.T, torch.zeros(len(rows), 2))
                assert (rows - moved[group, 1]).abs().max() > 0.01


@pytest.mark.parametrize("only", [False, True])
def test_shortened_displacements_keep_their_directions_and_the_length_that_was_left(kind, only):
    before, after = displaced(kind)
    directions = rotation(before.parameters.d, 3)[:3]
    whole = rows_of(after, before)
    with edited(after, before, [1], directions, only):
        left = rows_of(after, before)
    with edited(after, before, [1], directions, only, shorten=True):
        short = rows_of(after, before)
    for key, rows in whole.items():
        if key[1] == 1:
            factor = (left[key].norm() / rows.norm()).item()
            assert 0.05 < factor < 0.98
            close(short[key], factor * rows)
        else:
            assert torch.equal(short[key], rows)


@pytest.mark.parametrize("fails", [False, True])
def test_the_weights_come_back_exactly(kind, fails):
    before, after = displaced(kind)
    weights, pretrained = (copy.deepcopy(m.model.state_dict()) for m in (after, before))
    directions = rotation(before.parameters.d, seed=3)[:2]
    try:
        with edited(after, before, [0, 1], directions):
            now = after.model.state_dict()
            assert any(not torch.equal(w, weights[name]) for name, w in now.items())
            if fails:
                raise KeyError("inside")
        assert not fails
    except KeyError:
        assert fails
    for model, as_it_was in ((after, weights), (before, pretrained)):
        now = model.model.state_dict()
        assert all(torch.equal(w, as_it_was[name]) for name, w in now.items())


@pytest.mark.parametrize("directions", [
    2 * torch.eye(12)[:3], torch.tensor([[0.6, 0.8] + [0] * 10, [1] + [0] * 11])])
def test_directions_must_be_orthonormal(directions):
    before, after = displaced("gpt2")
    weights = copy.deepcopy(after.model.state_dict())
    block = edited(after, before, [1], directions.double())
    with pytest.raises(ValueError, match="directions must be orthonormal, but are off"), block:
        pytest.fail("the block was run")
    now = after.model.state_dict()
    assert all(torch.equal(w, weights[name]) for name, w in now.items())


# ---- what notebook 05 says of the results files


def test_the_stored_classifiers_are_as_good_as_the_notebook_says():
    results = pd.read_csv(FINE_TUNING_RESULTS).set_index("shuffled")
    trained, control = results.loc[False], results.loc[True]
    assert len(trained) == 14 and trained["imdb"].between(0.85, 0.87).all()
    assert (trained["embedded_hard"] < 0.46).all() and (trained["embedded_test"] < 0.83).all()
    assert control["imdb"].max() < 0.55


def test_the_stored_shares_that_separate_are_as_the_notebook_says():
    table = pd.read_csv(SEPARATION).query("group != 'head'").dropna(subset="separating")
    kinds = {"A": "model == 'twin-a' and not shuffled", "B": "model == 'twin-b'",
             "shuffled": "shuffled"}
    share = {kind: table.query(which).groupby(["group", "layer"])["separating"].mean()
             for kind, which in kinds.items()}
    for twin in ("A", "B"):
        assert share[twin][[("W_V", 5), ("K", 5)]].min() > 0.6 > share["shuffled"].max() + 0.3
        assert share[twin]["W_K"].max() < 0.15
    assert share["A"]["W_O", 3] - share["shuffled"]["W_O", 3] < 0.05
    assert table.query("model == 'twin-a'")["pretrained"].max() < 0.15
    assert 0.15 < share["shuffled"]["W_V"].mean() < 0.21


def test_the_stored_agreement_of_seeds_is_as_the_notebook_says():
    table = pd.read_csv(SEPARATION).query("model == 'twin-a'").dropna(subset="agreement")
    groups = table[table["group"] != "head"]
    true, control = (groups[groups["shuffled"] == x].groupby(["group", "layer"])["agreement"].mean()
                     for x in (False, True))
    unpaired = groups.groupby(["group", "layer"])["unpaired"].mean()
    assert unpaired.abs().max() < 0.05 < 0.06 < true.min()
    more = true / control
    assert (more.drop(5, level="layer") > 1.3).all() and 0.3 < (control / true).median() < 0.7
    assert (more[[("K", 5), ("V", 5), ("W_O", 5)]] < 1.4).all()
    assert (more[[("W_Q", 5), ("W_K", 5)]] > 2).all()
    heads = table[table["group"] == "head"].groupby("shuffled")["agreement"].mean()
    assert heads[False] > 0.7 and abs(heads[True]) < 0.1


def test_the_stored_accuracies_without_directions_are_as_the_notebook_says():
    curves = pd.read_csv(DIRECTIONS)
    ends = curves[curves["kind"] == "all"].groupby("rank")["accuracy"].mean()
    none, gain = ends[192], ends[0] - ends[192]
    mean = curves.groupby(["only", "kind", "rank"])["accuracy"].mean()
    lost, kept = (ends[0] - mean[False]) / gain, (mean[True] - none) / gain
    assert lost["leading", 4] > 0.5 > 0.15 > max(lost["random", 4], lost["shortened", 4])
    assert lost["leading", 8] > 0.6 > 0.2 > lost["shortened", 8]
    assert lost["leading", 1] < 0.1 < lost["leading", 2] < 0.3
    assert all(abs(kept["leading", r] - kept["shortened", r]) < 0.1 for r in (4, 8, 16))
    assert kept["leading", 8] > 0.8 > kept["random", 8] + 0.3
