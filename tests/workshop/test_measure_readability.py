"""The command that measures readable shares, on tiny models and made-up reviews."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny_models import close, random, tiny_model
from tiny_reviews import TINY, WORDS, imdb_folder, reviews, tiny_folder

from embspace_helpers import load, load_reviews
from embspace_helpers.experiments.controls import mixtures, random_directions
from embspace_helpers.experiments.readability import (
    FINAL,
    READINGS,
    coherence,
    kurtosis,
    random_control,
    readable_share,
    reading_of,
    sample_rows,
)
from embspace_helpers.reading.judge import JUDGES, Judge
from embspace_helpers.workshop.measure_readability import (
    DRAWS,
    Measurement,
    layers_in_turn,
    main,
    read_texts,
)

RECIPE = replace(TINY, vocabulary=400)  # large enough for some whole words
GROUPS = ("K", "V", "W_Q", "W_K", "W_V", "W_O")


@pytest.fixture
def name(tmp_path, monkeypatch):
    """A tiny model that has a judge."""
    words = "mess gem good bad great story acting cast scene ending music".split()
    texts = [*WORDS, *(f"the {word} and the {word}" for word in words)]
    for folder, scale in (("one", 20), ("two", 10)):
        tiny_folder(tmp_path / folder, RECIPE, texts, scale=scale)
    monkeypatch.setitem(JUDGES, str(tmp_path / "one"), str(tmp_path / "two"))
    return str(tmp_path / "one")


def run(name, out, *more):
    """The table of ten rows a layer, from dictionaries of six reviews."""
    main([name, "--out", str(out), "--rows", "10", "--reviews", "6", *more])
    return pd.read_csv(out)


def test_the_command_measures_shares_and_controls(name, tmp_path, capsys):
    table = run(name, tmp_path / "shares.csv")
    assert capsys.readouterr().out == f"{name}: done\n"
    assert len(table) == TINY.layers * 2 * (len(GROUPS) * len(READINGS) + 2)
    assert set(table["model"]) == {"one"} and set(table["texts"]) == {"embedded"}
    model, texts = load(name), load_reviews("train", 6)["text"].tolist()
    judge, p = model.judge, model.parameters
    for group, reading, layer in (("K", "dictionary", 1), ("W_O", "orthogonal", 2),
                                  ("V", FINAL, 0), ("W_Q", "dictionary whitened", 2)):
        line = table.query("group == @group and reading == @reading and layer == @layer")
        x, space = sample_rows(model, group, layer, 10), reading_of(model, group, layer, reading,
                                                                    texts)
        expected = readable_share(model, x, space, mean=p.vectors(group, layer).mean(0))
        for column in expected:
            assert line[column].tolist() == [
                value if column == "sign" else round(value, 4) for value in expected[column]]
        judged = space.only(judge.keep)
        control = kurtosis(judged, random_directions(DRAWS, TINY.d)).quantile(0.95)
        close(line["kurtosis"], [(kurtosis(judged, x) > control).float().mean()] * 2, 1e-4)
        close(line["kurtosis_mixtures"],
              [(kurtosis(judged, mixtures(x)[0]) > control).float().mean()] * 2, 1e-4)
        if reading.startswith("dictionary"):
            other = reading_of(model, group, layer, reading, texts, shuffle=0)
            share = random_control(other, judge).share(coherence(other, judge, x))
            close(line["shuffled"], share, 1e-4)
            fitted = model.dictionaries(texts, "attention" if group == "W_Q" else "ff")[layer]
            close(line["r2"], [fitted.r2] * 2, 1e-4)
            assert set(line["positions"]) == {fitted.n}
        else:
            assert line["shuffled"].isna().all() and line["r2"].isna().all()


def test_stopped_and_run_again_it_measures_only_what_is_missing(name, tmp_path):
    out = tmp_path / "shares.csv"
    whole = run(name, out)
    part = whole[whole["layer"] != 1].assign(vectors=0.5)
    part.to_csv(out, index=False)
    again = run(name, out)
    assert (again.loc[again["layer"] != 1, "vectors"] == 0.5).all()
    pd.testing.assert_frame_equal(again[again["layer"] == 1].reset_index(drop=True),
                                  whole[whole["layer"] == 1].reset_index(drop=True))


def test_other_texts_stand_beside_each_other(name, tmp_path):
    out = tmp_path / "shares.csv"
    file = tmp_path / "lines.txt"
    file.write_text("the film is fine and we saw it twice\n\nwhat a dull plot it was long\n" * 4)
    first = run(name, out)
    table = run(name, out, "--texts", str(file))
    assert set(table["texts"]) == {"embedded", "lines.txt"} and len(table) == 2 * len(first)


def test_texts_are_embedded_reviews_a_file_or_imdb(tmp_path):
    assert read_texts("embedded", 4) == load_reviews("train", 4)["text"].tolist()
    (tmp_path / "a.txt").write_text("one\n \ntwo\n", "utf-8")
    assert read_texts(str(tmp_path / "a.txt"), 4) == ["one", "two"]
    imdb_folder(tmp_path / "imdb", train=reviews(8))
    assert read_texts(str(tmp_path / "imdb"), 4) == (
        load_reviews("train", 4, source=tmp_path / "imdb")["text"].tolist())
    with pytest.raises(FileNotFoundError, match="no file .* in the folder"):
        read_texts(str(tmp_path / "none.txt"), 4)


def test_without_a_final_norm_there_is_no_final_gain():
    model = tiny_model("bert")
    model.__dict__["judge"] = Judge(random(9, 40, seed=5), torch.arange(1, 39), 40)
    found = Measurement(model, ["1 2 3 4 5 6 7", "11 5 12 3 31 30"], rows=6).layer(1)
    assert set(found["reading"]) == set(READINGS)
    assert len(found) == 2 * len(GROUPS) * len(READINGS)


def test_every_third_layer_comes_first():
    assert layers_in_turn(7) == [0, 3, 6, 1, 2, 4, 5]
