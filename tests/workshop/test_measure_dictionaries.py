"""The command that measures what dictionaries depend on, on tiny models and made-up reviews."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny_models import close
from tiny_reviews import TINY, WORDS, imdb_folder, reviews, tiny_folder

from embspace_helpers import load, load_reviews
from embspace_helpers.experiments.controls import mixtures
from embspace_helpers.experiments.readability import DICTIONARIES, coherence, random_control
from embspace_helpers.reading.dictionaries import dictionary_space, fit_dictionaries
from embspace_helpers.reading.judge import JUDGES
from embspace_helpers.workshop import measure_dictionaries
from embspace_helpers.workshop.measure_dictionaries import (
    EXPERIMENTS,
    Experiments,
    documentation,
    half,
    main,
)

RECIPE = replace(TINY, vocabulary=400)  # large enough for some whole words


@pytest.fixture
def name(tmp_path, monkeypatch):
    """A tiny model, two others that judge it, and IMDB's unlabelled reviews."""
    words = "mess gem good bad great story acting cast scene ending music".split()
    texts = [*WORDS, *(f"the {word} and the {word}" for word in words)]
    for folder, scale in (("one", 20), ("two", 10), ("three", 15)):
        tiny_folder(tmp_path / folder, replace(RECIPE, seed=scale), texts * 3, scale=scale)
    monkeypatch.setitem(JUDGES, str(tmp_path / "one"), str(tmp_path / "two"))
    others = tuple(str(tmp_path / folder) for folder in ("one", "two", "three"))
    monkeypatch.setattr(measure_dictionaries, "OTHER_JUDGES", others)
    monkeypatch.setattr(measure_dictionaries, "POSITIONS", (40, 100, 9000))
    imdb_folder(tmp_path / "imdb", unsupervised=reviews(60))
    return str(tmp_path / "one")


def test_every_experiment_is_measured(name, tmp_path, capsys):
    out = tmp_path / "found.csv"
    arguments = [name, "--imdb", str(tmp_path / "imdb"), "--out", str(out), "--rows", "8",
                 "--positions", "200"]
    main(arguments)
    assert capsys.readouterr().out.count(": done") == len(EXPERIMENTS)
    table = pd.read_csv(out)
    L = TINY.layers
    assert table["experiment"].value_counts().to_dict() == {
        "layer of the dictionary": L * (2 * L + 1), "target": 5 * L, "held-out words": 5 * L,
        "texts": 8 * L, "positions": 4 * L, "judge": 6 * L}
    assert set(table["group"]) == {"K"} and set(table["rows"]) == {8}
    model, texts = load(name), load_reviews("train", 100)["text"].tolist()
    fitted = fit_dictionaries(model, texts)
    space, judge = dictionary_space(model, fitted[2]), model.judge
    line = table.query("experiment == 'layer of the dictionary' and setting == '2' and layer == 0 "
                       "and reading == 'dictionary'")
    rows = model.parameters.K(0)[[0, 8, 16, 24, 32, 40, 48, 56]]
    control = random_control(space, judge)
    for column, x in (("vectors", rows), ("mixtures", mixtures(rows)[0])):
        close(line[column], control.share(coherence(space, judge, x))[:1], 1e-4)
    close(line["r2"], [fitted[2].r2], 1e-4)
    sizes = table.query("experiment == 'positions' and layer == 0")
    assert (sizes["positions"] >= sizes["setting"].astype(int)).all()
    assert (sizes["positions"] < sizes["setting"].astype(int) + TINY.context).all()

    main([*arguments, "--only", "target"])  # again: its rows are replaced
    pd.testing.assert_frame_equal(pd.read_csv(out), table)


def test_held_out_words_fit_nothing_and_only_they_are_listed(name, monkeypatch):
    model = load(name)
    found = Experiments(model, reviews(60)["text"].tolist(), 200, 8)
    seen, kept = [], []
    monkeypatch.setattr(measure_dictionaries, "fit_dictionaries", lambda *arguments, **options: (
        seen.append(options.get("only")), fit_dictionaries(*arguments, **options))[1])
    monkeypatch.setattr(measure_dictionaries, "coherence", lambda space, *arguments: (
        kept.append(space.keep), coherence(space, *arguments))[1])
    assert len(list(found.held_out())) == 5 * TINY.layers
    fitted = half(model)
    assert 0.4 < fitted.float().mean() < 0.6
    assert sum(x is not None and torch.equal(x, fitted) for x in seen) == 1
    assert not any((keep & fitted).any() for keep in kept)


def test_documentation_is_text():
    found = documentation()
    assert len(found) > 50 and min(map(len, found)) > 300 and "\n" not in found[0]


def test_the_file_says_what_notebook_02_says_of_layers():
    """The first layer's dictionary serves no middle layer, middle ones serve each other."""
    table = pd.read_csv(DICTIONARIES).query("experiment == 'layer of the dictionary'")
    table = table[table["reading"] == "dictionary"].astype({"setting": int})
    for name, last in (("twin-a", 5), ("smollm2", 21)):
        one = table[(table["model"] == name) & table["layer"].between(1, last)]
        own = one[one["setting"] == one["layer"]]["vectors"].mean()
        near = one[one["setting"].between(1, last) & (one["setting"] != one["layer"])]
        assert own - near["vectors"].mean() < 0.03
        assert own > 1.8 * one[one["setting"] == 0]["vectors"].mean()
    read = table[table["vectors"] > 0.2]
    level = read[read["vectors"] < read["mixtures"] + 0.05]
    assert level[["model", "setting", "layer"]].values.tolist() == [["smollm2", 18, 18]]
