"""The command that measures overlap, on a tiny model and made-up reviews."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_reviews import TINY, WORDS, imdb_folder, tiny_folder

from embspace_helpers import capture, load, load_reviews
from embspace_helpers.experiments.overlap import overlap_table
from embspace_helpers.workshop.measure_overlap import main, measure

COUNTS = [50 if i % 4 else 49 for i in range(TINY.vocabulary)]  # of every token


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2, and beside it reviews in IMDB's layout."""
    path = tmp_path_factory.mktemp("overlap")
    # with a larger embedding it differs from the untrained one by more than its seed
    tiny_folder(path / "tiny", counts=COUNTS, scale=20)
    rng = np.random.default_rng(0)
    rows = [(" ".join(rng.choice(WORDS, 3)) + f" {i}", i % 2) for i in range(20)]
    imdb_folder(path / "imdb", test=pd.DataFrame(rows, columns=["text", "label"]))
    return path


def test_the_command_measures_trained_and_untrained_in_every_reading(folder, tmp_path, capsys):
    name, data = str(folder / "tiny"), str(folder / "imdb")
    out = tmp_path / "results" / "overlap.csv"
    arguments = [name, "--data", data, "--out", str(out), "--texts", "6", "--positions", "30"]
    main(arguments)
    assert capsys.readouterr().out == f"{name}: done\n"
    table = pd.read_csv(out)
    assert set(table["positions"]) == {30} and set(table["source"]) == {"imdb"}
    # groups, layers and their mean, targets, kinds
    assert len(table) == 4 * (4 * (TINY.layers + 1) * 2 * 2)
    reviews = load_reviews("test", 6, source=data)["text"].tolist()
    for label, model in (("tiny", load(name)), ("tiny, untrained", load(name, untrained=True))):
        cache = capture(model, reviews, 30, skip=1)
        readable = model.vocabulary.keep() & (torch.tensor(COUNTS) == 50)
        for reading in ("transpose", "orthogonal"):
            part = table[(table["model"] == label) & (table["reading"] == reading)]
            expected = overlap_table(model, cache, model.space(reading, readable)).round(4)
            pd.testing.assert_frame_equal(part[list(expected)].reset_index(drop=True), expected)
    means = table.groupby(["model", "reading"])["mean"].mean()
    assert means.nunique() == 4 and means.between(0.01, 0.99).all()

    main([*arguments, "--readings", "transpose"])  # again: its rows are replaced
    pd.testing.assert_frame_equal(pd.read_csv(out), table)


def test_the_untrained_twins_are_two(folder, monkeypatch):
    monkeypatch.setattr("embspace_helpers.workshop.measure_overlap.UNTRAINED_SEEDS",
                        {str(folder / "tiny"): 1})
    arguments = str(folder / "tiny"), "embedded", 4, 5, ["transpose"]
    found = [measure(*arguments, untrained) for untrained in (False, True)]
    monkeypatch.undo()
    again = [measure(*arguments, untrained) for untrained in (False, True)]
    pd.testing.assert_frame_equal(found[0], again[0])
    assert not found[1].equals(again[1])


def test_the_reviews_that_ship_are_named_as_such(folder):
    table = measure(str(folder / "tiny"), "embedded", 4, 5, ["transpose"])
    assert set(table["source"]) == {"embedded"} and set(table["positions"]) == {5}
