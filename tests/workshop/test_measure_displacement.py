"""The command that measures displacements, on classifiers made of a tiny model."""

import json
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import random
from tiny_reviews import TINY, tiny_folder

from embspace_helpers import load
from embspace_helpers.experiments.classifiers import (
    Classifier,
    Recipe,
    accuracy,
    fine_tune,
    save_changes,
)
from embspace_helpers.experiments.controls import random_directions, random_rotation
from embspace_helpers.experiments.displacement import (
    displacement,
    leading_directions,
    separating,
    separation,
    stream_views,
)
from embspace_helpers.workshop import measure_displacement
from embspace_helpers.workshop.measure_displacement import (
    Measured,
    directions_table,
    main,
    separation_table,
)

PLEASANT = """good great happy love wonderful excellent joy brilliant beautiful charming delightful
perfect fun friendly funny gentle hope kind warm win""".split()
NASTY = """bad awful terrible hate horrible sad angry boring dull ugly pain fear poor stupid weak
worst cruel fail lost mess""".split()
PLAIN = "table window paper street garden bottle chair river music letter".split()
MODEL = replace(TINY, vocabulary=600)
RECIPE = Recipe(seed=1, free_layers=2, epochs=4, batch=8, length=40, learning_rate=1e-2)


def reviews(n, seed=0):
    """n texts of plain words; four times the same pleasant word in every praise."""
    rng = np.random.default_rng(seed)
    rows = [(" ".join(["", *rng.choice(PLAIN, 4), *[("mess", "good")[i % 2]] * 4]), i % 2)
            for i in range(n)]
    return pd.DataFrame(rows, columns=["text", "label"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 with a tokenizer; frequent are the words but "river", and one piece, "a"."""
    words = [*PLEASANT, *NASTY, *PLAIN]
    path = tiny_folder(tmp_path_factory.mktemp("tiny"), MODEL, [" " + " ".join(words)])
    tokenizer, counts = load(path).tokenizer, [99] * MODEL.vocabulary
    for token in ("a", *(f"Ġ{word}" for word in {*words} - {"river"})):
        counts[tokenizer.convert_tokens_to_ids(token)] = 100
    (path / "token_counts.json").write_text(json.dumps(counts))
    return path


def write(file, folder, recipe, change):
    """A classifier file; `change` is done to the classifier first."""
    classifier = Classifier(load(folder), recipe.free_layers, recipe.seed)
    change(classifier)
    save_changes(file, classifier, str(folder), {"recipe": asdict(recipe)})
    return file


def noise(seed):
    @torch.no_grad()
    def change(classifier):
        for i, weight in enumerate(classifier.free().values()):
            weight += 0.05 * random(*weight.shape, seed=100 * seed + i, dtype=torch.float32)
    return change


@pytest.fixture(scope="module")
def files(folder, tmp_path_factory):
    """Classifiers of seed 1 (trained), 2 (noise), 3 (the noise of 2) and 2, shuffled (noise)."""
    path = tmp_path_factory.mktemp("classifiers")
    recipes = {"1": RECIPE, "2": Recipe(2, 2), "3": Recipe(3, 2),
               "shuffled": Recipe(2, 2, shuffled_labels=True)}
    changes = {"1": lambda classifier: fine_tune(classifier, reviews(64), RECIPE),
               "2": noise(2), "3": noise(2), "shuffled": noise(4)}
    return {name: write(path / f"{name}.safetensors", folder, recipe, changes[name])
            for name, recipe in recipes.items()}


def test_a_measured_classifier(files, folder):
    one = Measured(files["shuffled"])
    assert one.facts() == {"model": folder.name, "seed": 2, "shuffled": True}
    assert list(one.layers) == [1, 2]
    ratings = {one.space.vocabulary.texts[i]: one.ratings[i] for i in one.space.ids}
    assert set(ratings) == {*PLEASANT, *NASTY, *PLAIN} - {"river"}
    assert {word for word, rating in ratings.items() if rating > 0} == {*PLEASANT}
    assert {word for word, rating in ratings.items() if rating < 0} == {*NASTY}
    pretrained, before, after = (m.parameters for m in (load(folder), one.before, one.after))
    for layer, changed in ((0, False), (1, True), (2, True)):
        assert torch.equal(before.V(layer), pretrained.V(layer))
        assert torch.equal(after.V(layer), pretrained.V(layer)) is not changed
    assert not Measured(files["2"]).shuffled


def test_separation_table(files):
    classifiers = [Measured(files[name]) for name in ("1", "2", "3", "shuffled")]
    one = classifiers[0]
    with torch.no_grad():  # all rows of a group along what tells pleasant from nasty words
        p, sizes = one.before.parameters, torch.linspace(-1, 1, 64)[:, None]
        planted = p.E @ one.ratings.nan_to_num()
        view, _ = stream_views(one.after.parameters, 2)[1]
        view.copy_(p.V(2) + sizes * planted / planted.norm())
    table = separation_table(classifiers)
    assert list(table) == ["model", "seed", "shuffled", "group", "layer", "pretrained",
                           "separating", "size", "first", "agreement", "unpaired"]
    check_heads(table[table["group"] == "head"], classifiers)
    groups, table = p.groups, table[table["group"] != "head"]
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
        before = this.before.parameters.vectors(group, layer)
        old = separating(one.space, one.ratings, before, chance)
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


def check_heads(rows, classifiers):
    """One row a classifier: what training wrote in its head, the random start taken off."""
    assert len(rows) == len(classifiers) == 4 and (rows["layer"] == 3).all()
    assert rows[["first", "unpaired"]].isna().all(axis=None)
    one = classifiers[0]
    chance = separation(one.space, one.ratings, random_directions(2000, 16)).abs().quantile(0.95)
    moved = {}
    for row, this in zip(rows.itertuples(), classifiers):
        start = Classifier(this.before, 2, this.seed).head.weight
        w = (this.classifier.head.weight - start).detach()
        moved[this.seed, this.shuffled] = w[1] - w[0]
        found, drawn = separation(one.space, one.ratings,
                                  torch.stack([w[1] - w[0], start[1] - start[0]])).detach()
        assert row.size == pytest.approx(found.item(), abs=1e-5)
        assert row.separating == (abs(found) > chance) and row.pretrained == (abs(drawn) > chance)
    a, b, c = (moved[seed, False] for seed in (1, 2, 3))
    mean = (torch.cosine_similarity(a, b, dim=0) + torch.cosine_similarity(a, c, dim=0)) / 2
    assert rows["agreement"].iloc[0] == pytest.approx(mean.item(), abs=1e-5)
    assert rows["agreement"].isna().tolist() == [False, False, False, True]


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
        return {(group, layer): displacement(one.after, one.before, group, layer)
                for group, layer in product(one.before.parameters.groups, one.layers)}

    def left(classifier, texts, **options):
        assert (classifier, texts) == (one.classifier, "reviews")
        return share(rows.square().sum() / total[key] for key, rows in moved().items())

    def share(parts):
        return (sum(parts) / len(total)).item()

    total = {key: rows.square().sum() for key, rows in moved().items()}
    monkeypatch.setattr(measure_displacement, "accuracy", left)
    monkeypatch.setattr(measure_displacement, "RANKS", (1, 4))
    table = directions_table(one, "reviews")
    assert list(table) == ["rank", "kind", "only", "accuracy", "model", "seed", "shuffled"]
    assert one.facts().items() <= table.iloc[-1].to_dict().items()
    assert len(table) == 2 + 2 * 2 * 3 and left(one.classifier, "reviews") == 1
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
    monkeypatch.setattr(measure_displacement, "load_reviews", texts.get)
    monkeypatch.setattr(measure_displacement, "RANKS", (1, 4))
    main([*(str(files[name]) for name in ("1", "2", "shuffled")), "--out", str(tmp_path)])
    assert {file.name for file in tmp_path.iterdir()} == {"separation.csv", "directions.csv"}

    found = pd.read_csv(tmp_path / "separation.csv")
    one, *_ = classifiers = [Measured(files[name]) for name in ("1", "2", "shuffled")]
    pd.testing.assert_frame_equal(found, separation_table(classifiers), rtol=0, atol=1e-4)

    found = pd.read_csv(tmp_path / "directions.csv")
    assert not found["shuffled"].any() and found["seed"].tolist() == [1] * 14 + [2] * 14
    both = pd.concat(texts.values())
    pretrained = Classifier(load(one.name), 0)
    pretrained.head.load_state_dict(one.classifier.head.state_dict())
    ends = found[(found["kind"] == "all") & (found["seed"] == 1)].set_index("rank")["accuracy"]
    for rank, classifier, low, high in ((0, one.classifier, 0.7, 0.8), (16, pretrained, 0.3, 0.65)):
        assert ends[rank] == pytest.approx(accuracy(classifier, both), abs=0.03)
        assert low <= ends[rank] <= high


def test_without_unshuffled_classifiers_there_is_no_table_of_directions(files, tmp_path):
    main([str(files["shuffled"]), "--out", str(tmp_path)])
    assert [file.name for file in tmp_path.iterdir()] == ["separation.csv"]
