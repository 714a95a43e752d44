"""Displacements of tiny models: what was added, what it separates, and the model without it."""

import copy
import json
import math
from dataclasses import asdict
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from embspace_helpers.experiments import displacement
from embspace_helpers.experiments.displacement import (Measured, directions_table, displacement,
                                           edited, leading_directions, main, separating,
                                           separation, separation_table, stream_views)
from embspace_helpers.experiments.finetuning import (Classifier, Recipe, accuracy, fine_tune, save_changes)
from embspace_helpers.reading.models import load_model
from embspace_helpers.reading.parameters import Parameters
from embspace_helpers.workshop.pretrain import Recipe as PretrainRecipe
from embspace_helpers.workshop.pretrain import new_model, train_tokenizer
from embspace_helpers.reading.projection import EmbeddingSpace
from embspace_helpers.experiments.statistics import random_directions, random_rotation
from embspace_helpers.reading.vocabulary import Vocabulary
from tiny_models import MODELS, tiny

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
    "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "bert": BERT, "roberta": BERT,
}
PLEASANT = """good great happy love wonderful excellent joy brilliant beautiful charming delightful
perfect fun friendly funny gentle hope kind warm win""".split()
NASTY = """bad awful terrible hate horrible sad angry boring dull ugly pain fear poor stupid weak
worst cruel fail lost mess""".split()
PLAIN = "table window paper street garden bottle chair river music letter".split()
TINY = PretrainRecipe(seed=1, d=16, layers=3, heads=2, vocabulary=600, context=40)
RECIPE = Recipe(seed=1, free_layers=2, epochs=4, batch=8, length=40, learning_rate=1e-2)


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8, 9]])).logits


@torch.no_grad()
def displaced(kind, layers=(0, 1), size=0.1):
    """A tiny model in float32, and a copy with noise in every matrix of some layers."""
    before = tiny(kind).float()
    after = copy.deepcopy(before)
    for layer, rows in product(layers, ROWS[kind].values()):
        part = rows(Parameters(after).blocks[layer])
        part += size * torch.randn(part.shape)
    return before, after


def reviews(n, seed=0):
    """n texts of plain words; four times the same pleasant word in every praise."""
    rng = np.random.default_rng(seed)
    rows = [(" ".join(["", *rng.choice(PLAIN, 4), *[("mess", "good")[i % 2]] * 4]), i % 2)
            for i in range(n)]
    return pd.DataFrame(rows, columns=["text", "label"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 with a tokenizer; frequent are the words but "river", and one piece, "a"."""
    path = tmp_path_factory.mktemp("tiny")
    words = [*PLEASANT, *NASTY, *PLAIN]
    tokenizer = train_tokenizer([" " + " ".join(words)] * 20, TINY.vocabulary)
    tokenizer.save_pretrained(path)
    new_model(TINY).save_pretrained(path)
    counts = [99] * TINY.vocabulary
    for item in ("a", *(f"Ġ{word}" for word in {*words} - {"river"})):
        counts[tokenizer.convert_tokens_to_ids(item)] = 100
    (path / "token_counts.json").write_text(json.dumps(counts))
    return path


def write(file, folder, recipe, change):
    """A classifier file; `change` gets the classifier and its tokenizer."""
    model, tokenizer = load_model(folder)
    classifier = Classifier(model, recipe.free_layers, recipe.seed)
    with torch.enable_grad():
        change(classifier, tokenizer)
    save_changes(file, classifier, str(folder), {"recipe": asdict(recipe)})
    return file


def noise(seed):
    @torch.no_grad()
    def change(classifier, _):
        torch.manual_seed(seed)
        for weight in classifier.free().values():
            weight += 0.05 * torch.randn(weight.shape)
    return change


@pytest.fixture(scope="module")
def files(folder, tmp_path_factory):
    """Classifiers of seed 1 (trained), 2 (noise), 3 (the noise of 2) and 2, shuffled (noise)."""
    path = tmp_path_factory.mktemp("classifiers")
    recipes = {"1": RECIPE, "2": Recipe(2, 2), "3": Recipe(3, 2),
               "shuffled": Recipe(2, 2, shuffled_labels=True)}
    changes = {"1": lambda c, t: fine_tune(c, t, reviews(64), RECIPE),
               "2": noise(2), "3": noise(2), "shuffled": noise(4)}
    return {name: write(path / f"{name}.safetensors", folder, recipe, changes[name])
            for name, recipe in recipes.items()}


# ---- displacement


def test_displacement_is_what_was_added_to_a_module(kind):
    before = Parameters(tiny(kind))
    assert set(ROWS[kind]) == set(before.groups)
    for changed in before.groups:
        model = tiny(kind)
        after = Parameters(model)
        with torch.no_grad():
            part = ROWS[kind][changed](after.blocks[1])
            added = torch.randn(part.shape, dtype=part.dtype)
            part += added
        for group, layer in product(before.groups, (0, 1)):
            found = displacement(after, before, group, layer)
            if (group, layer) == (changed, 1):
                torch.testing.assert_close(found, added)
            else:
                assert torch.equal(found, torch.zeros_like(before.vectors(group, layer)))


# ---- separation


def made_up(items, E):
    model = models.WordLevel(vocab={item: i for i, item in enumerate(items)}, unk_token=items[0])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token=items[0])
    return EmbeddingSpace(E, Vocabulary(tokenizer))


@pytest.fixture(scope="module")
def handmade():
    """Six words and <unk>, which is never in a list; the first axis tells good from bad."""
    E = torch.tensor([[9.0, 3, 2, 1, -1, -2, -3], [9, -1, 3, -3, 2, -2, 1]])
    ratings = torch.tensor([50, 2, math.nan, 1, math.nan, -1, -3])
    return made_up(["<unk>", "good", "table", "nice", "window", "dull", "bad"], E), ratings


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
    space = made_up(["<unk>", *(f"item{i}" for i in range(299))], E)
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
    params = Parameters(tiny(kind))
    direction = torch.randn(params.d, dtype=torch.float64)
    views = stream_views(params, 1)
    assert len(views) == len(params.groups)
    for group, (view, axis) in zip(params.groups, views):
        assert view.shape[axis] == params.d
        found = view.movedim(axis, -1) @ direction
        torch.testing.assert_close(found.flatten(), params.vectors(group, 1) @ direction)


def test_stream_views_are_the_weights_themselves(kind):
    model = tiny(kind)
    params, rows = Parameters(model), ROWS[kind]
    before, same = Parameters(tiny(kind)), logits(model)
    for group, (view, _) in zip(params.groups, stream_views(params, 1)):
        view *= 2
        assert (logits(model) - same).abs().max() > 1e-6
        for other in params.groups:
            factor = 2 if other == group else 1
            assert torch.equal(rows[other](params.blocks[1]), factor * before.vectors(other, 1))
        view /= 2
    assert torch.equal(logits(model), same)


# ---- leading directions


def test_the_leading_directions_weigh_every_group_alike(kind):
    before = Parameters(tiny(kind).float())
    after = Parameters(tiny(kind).float())
    u, v, w = random_rotation(before.d, seed=5)[:3]
    loud = after.groups[0]
    with torch.no_grad():
        for group, rows in ROWS[kind].items():
            rows(after.blocks[1]).add_(100 * v if group == loud else u)  # to all rows the same
            rows(after.blocks[0]).add_(1000 * w)
    found = leading_directions(after, before, [1], 2)
    expected = torch.stack([u, v])
    torch.testing.assert_close((found @ expected.T).abs(), torch.eye(2), rtol=0, atol=1e-3)
    assert (leading_directions(after, before, [0, 1], 1) @ w).abs() > 0.999


def test_leading_directions_are_orthonormal_and_ordered(kind):
    before, after = map(Parameters, displaced(kind))
    found = leading_directions(after, before, [0, 1], before.d)
    torch.testing.assert_close(found @ found.T, torch.eye(before.d), rtol=0, atol=1e-5)
    along = sum((rows @ found.T).square().sum(0) / rows.square().sum() for rows in
                (displacement(after, before, g, i) for g, i in product(before.groups, (0, 1))))
    assert along.tolist() == sorted(along.tolist(), reverse=True)
    torch.testing.assert_close(leading_directions(after, before, [0, 1], 3), found[:3])


@pytest.mark.parametrize("n", [0, 13])
def test_impossible_numbers_of_directions(n):
    before, after = map(Parameters, displaced("gpt2"))
    with pytest.raises(ValueError, match=f"n = {n}, but a stream of d = 12 has 1 to 12"):
        leading_directions(after, before, [1], n)


# ---- a model without some directions of its displacement


def rows_of(params, before):
    """Displacements by group and layer."""
    return {(group, layer): displacement(params, before, group, layer)
            for group, layer in product(before.groups, range(before.L))}


def test_without_all_directions_the_model_is_the_pretrained_one(kind):
    old, new = displaced(kind)
    before, after = Parameters(old), Parameters(new)
    assert (logits(new) - logits(old)).abs().max() > 1e-3
    with edited(after, before, [0, 1], torch.eye(before.d)):
        assert all(torch.equal(rows, torch.zeros_like(rows))
                   for rows in rows_of(after, before).values())
        assert torch.equal(logits(new), logits(old))


def test_with_only_all_directions_nothing_changes(kind):
    before, after = map(Parameters, displaced(kind))
    moved = rows_of(after, before)
    with edited(after, before, [0, 1], torch.eye(before.d), only=True):
        torch.testing.assert_close(rows_of(after, before), moved, rtol=0, atol=1e-6)


@pytest.mark.parametrize("only", [False, True])
def test_directions_leave_or_stay_and_other_layers_keep_all(kind, only):
    before, after = map(Parameters, displaced(kind))
    directions = random_rotation(before.d, seed=3)[:2]
    moved = rows_of(after, before)
    with edited(after, before, [1], directions, only):
        for (group, layer), rows in rows_of(after, before).items():
            along = (moved[group, 1] @ directions.T) @ directions
            expected = along if only else moved[group, 1] - along
            if layer == 0:
                assert torch.equal(rows, moved[group, 0])
            else:
                torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)
                across = rows @ directions.T
                assert only or across.abs().max() < 1e-6
                assert (rows - moved[group, 1]).abs().max() > 0.01


@pytest.mark.parametrize("only", [False, True])
def test_shortened_displacements_keep_their_directions_and_the_length_that_was_left(kind, only):
    before, after = map(Parameters, displaced(kind))
    directions = random_rotation(before.d, 3)[:3]
    whole = rows_of(after, before)
    with edited(after, before, [1], directions, only):
        left = rows_of(after, before)
    with edited(after, before, [1], directions, only, shorten=True):
        short = rows_of(after, before)
    for key, rows in whole.items():
        if key[1] == 1:
            factor = (left[key].norm() / rows.norm()).item()
            assert 0.05 < factor < 0.98
            torch.testing.assert_close(short[key], factor * rows, atol=1e-5, rtol=1e-3)
        else:
            assert torch.equal(short[key], rows)


@pytest.mark.parametrize("fails", [False, True])
def test_the_weights_come_back_exactly(kind, fails):
    old, new = displaced(kind)
    weights, pretrained = copy.deepcopy(new.state_dict()), copy.deepcopy(old.state_dict())
    directions = random_rotation(new.config.hidden_size, seed=3)[:2]
    try:
        with edited(Parameters(new), Parameters(old), [0, 1], directions):
            assert any(not torch.equal(w, weights[name]) for name, w in new.state_dict().items())
            if fails:
                raise KeyError("inside")
        assert not fails
    except KeyError:
        assert fails
    for model, as_it_was in ((new, weights), (old, pretrained)):
        assert all(torch.equal(w, as_it_was[name]) for name, w in model.state_dict().items())


@pytest.mark.parametrize("directions", [
    2 * torch.eye(12)[:3], torch.tensor([[0.6, 0.8] + [0] * 10, [1] + [0] * 11])])
def test_directions_must_be_orthonormal(directions):
    old, new = displaced("gpt2")
    weights = copy.deepcopy(new.state_dict())
    with pytest.raises(ValueError, match="the rows of directions must be orthonormal, but are off"):
        with edited(Parameters(new), Parameters(old), [1], directions):
            pytest.fail("the block was run")
    assert all(torch.equal(w, weights[name]) for name, w in new.state_dict().items())


# ---- the tables


def test_a_measured_classifier(files, folder):
    one = Measured(files["shuffled"])
    assert one.facts() == {"model": folder.name, "seed": 2, "shuffled": True}
    assert list(one.layers) == [1, 2]
    ratings = {one.space.vocabulary.texts[i]: one.ratings[i] for i in one.space.ids}
    assert set(ratings) == {*PLEASANT, *NASTY, *PLAIN} - {"river"}
    assert {word for word, rating in ratings.items() if rating > 0} == {*PLEASANT}
    assert {word for word, rating in ratings.items() if rating < 0} == {*NASTY}
    pretrained = Parameters(load_model(folder)[0])
    for layer, changed in ((0, False), (1, True), (2, True)):
        assert torch.equal(one.before.V(layer), pretrained.V(layer))
        assert torch.equal(one.after.V(layer), pretrained.V(layer)) is not changed
    assert not Measured(files["2"]).shuffled


def test_separation_table(files):
    classifiers = [Measured(files[name]) for name in ("1", "2", "3", "shuffled")]
    one, two, three, control = classifiers
    with torch.no_grad():  # all rows of a group along what tells pleasant from nasty words
        planted = one.before.E @ one.ratings.nan_to_num()
        sizes = torch.linspace(-1, 1, 64)[:, None]
        stream_views(one.after, 2)[1][0].copy_(one.before.V(2) + sizes * planted / planted.norm())
    table = separation_table(classifiers)
    assert list(table) == ["model", "seed", "shuffled", "group", "layer", "pretrained",
                           "separating", "size", "first", "agreement", "unpaired"]
    groups = one.before.groups
    assert len(table) == 4 * len(groups) * 3
    assert table["pretrained"].notna().all()
    measured = ["separating", "size", "first"]
    frozen, free = table[table["layer"] == 0], table[table["layer"] > 0]
    assert frozen[[*measured, "agreement", "unpaired"]].isna().all(axis=None)
    assert free[measured].notna().all(axis=None)
    assert (free["agreement"].isna() == free["shuffled"]).all()

    cells = table.set_index(["shuffled", "seed", "group", "layer"])
    chance = separation(one.space, one.ratings, random_directions(2000, 16))
    seeds = dict(zip((1, 2, 3), classifiers))
    for seed, group, layer in product(seeds, groups, (1, 2)):
        this, cell = seeds[seed], cells.loc[(False, seed, group, layer)]
        moved = displacement(this.after, this.before, group, layer)
        found = separation(one.space, one.ratings, moved)
        assert cell["size"] == pytest.approx(found.abs().mean().item())
        hits = separating(one.space, one.ratings, moved, chance)
        assert cell["separating"] == pytest.approx(hits.mean().item())
        old = separating(one.space, one.ratings, this.before.vectors(group, layer), chance)
        assert cell["pretrained"] == pytest.approx(old.mean().item())
        squares = torch.linalg.svdvals(moved).square()
        assert cell["first"] == pytest.approx((squares[0] / squares.sum()).item(), abs=1e-4)
        theirs = [torch.cosine_similarity(moved, displacement(x.after, x.before, group, layer))
                  for x in seeds.values() if x is not this]
        assert cell["agreement"] == pytest.approx(torch.cat(theirs).mean().item(), abs=1e-5)
        assert abs(cell["unpaired"]) < 0.9
    planted = cells.loc[(False, 1, "V", 2)]
    assert planted["separating"] == 1 and planted["first"] > 0.9999
    assert planted["pretrained"] < 0.5 and cells.loc[(False, 2, "V", 2)]["separating"] < 0.5


def test_identical_classifiers_agree(files):
    table = separation_table([Measured(files["2"]), Measured(files["3"])]).dropna()
    np.testing.assert_allclose(table["agreement"], 1, atol=1e-5)
    assert len(table) == 2 * 2 * 6 and (table["unpaired"].abs() < 0.5).all()


def test_one_classifier_agrees_with_nobody(files):
    assert "agreement" not in separation_table([Measured(files["2"]), Measured(files["shuffled"])])


def test_directions_table(files, monkeypatch):
    """How much of the displacement is left stands in for the accuracy."""
    one = Measured(files["1"])

    def moved():
        return {key: x for key, x in rows_of(one.after, one.before).items() if key[1] in one.layers}

    def left(classifier, tokenizer, texts, **options):
        assert (classifier, tokenizer, texts) == (one.classifier, one.tokenizer, "reviews")
        return share(rows.square().sum() / total[key] for key, rows in moved().items())

    def share(parts):
        return (sum(parts) / len(total)).item()

    total = {key: rows.square().sum() for key, rows in moved().items()}
    monkeypatch.setattr(module, "accuracy", left)
    monkeypatch.setattr(module, "RANKS", (1, 4))
    table = directions_table(one, "reviews")
    assert list(table) == ["rank", "kind", "only", "accuracy", "model", "seed", "shuffled"]
    assert one.facts().items() <= table.iloc[-1].to_dict().items()
    assert len(table) == 2 + 2 * 2 * 3 and left(one.classifier, one.tokenizer, "reviews") == 1
    found = table.set_index(["kind", "rank", "only"])["accuracy"]
    assert found["all", 0, False] == pytest.approx(1) and found["all", 16, False] == 0
    leading = leading_directions(one.after, one.before, one.layers, 4)
    for rank in (1, 4):
        kept = {}
        for kind, directions in (("leading", leading), ("random", random_rotation(16, one.seed))):
            kept[kind] = share((rows @ directions[:rank].T).square().sum() / total[key]
                               for key, rows in moved().items())
            assert found[kind, rank, True] == pytest.approx(kept[kind], rel=1e-3)
            assert found[kind, rank, False] == pytest.approx(1 - kept[kind], rel=1e-3)
        for only in (False, True):  # as short as without the leading directions
            assert found["shortened", rank, only] == pytest.approx(
                found["leading", rank, only], rel=1e-3)
        assert kept["leading"] > 1.5 * kept["random"]


def test_the_command_writes_both_tables(files, tmp_path, monkeypatch):
    texts = {"train": reviews(30, seed=7), "test": reviews(10, seed=8)}
    texts["test"]["label"] = 1 - texts["test"]["label"]  # what the classifier gets wrong
    monkeypatch.setattr(module, "load_reviews", texts.get)
    monkeypatch.setattr(module, "RANKS", (1, 4))
    main([*(str(files[name]) for name in ("1", "2", "shuffled")), "--out", str(tmp_path)])
    assert {file.name for file in tmp_path.iterdir()} == {"separation.csv", "directions.csv"}

    found = pd.read_csv(tmp_path / "separation.csv")
    one, *_ = classifiers = [Measured(files[name]) for name in ("1", "2", "shuffled")]
    pd.testing.assert_frame_equal(found, separation_table(classifiers), rtol=0, atol=1e-4)

    found = pd.read_csv(tmp_path / "directions.csv")
    assert not found["shuffled"].any() and found["seed"].tolist() == [1] * 14 + [2] * 14
    both = pd.concat(texts.values())
    pretrained = Classifier(load_model(one.name)[0], 0)
    pretrained.head.load_state_dict(one.classifier.head.state_dict())
    ends = found[(found["kind"] == "all") & (found["seed"] == 1)].set_index("rank")["accuracy"]
    for rank, classifier, low, high in ((0, one.classifier, 0.7, 0.8), (16, pretrained, 0.3, 0.65)):
        assert ends[rank] == pytest.approx(accuracy(classifier, one.tokenizer, both), abs=0.03)
        assert low <= ends[rank] <= high


def test_without_unshuffled_classifiers_there_is_no_table_of_directions(files, tmp_path):
    main([str(files["shuffled"]), "--out", str(tmp_path)])
    assert [file.name for file in tmp_path.iterdir()] == ["separation.csv"]
