"""The command that measures firing, on a tiny model and made-up reviews."""

from dataclasses import replace

import numpy as np
import pandas as pd
from tiny_reviews import TINY, imdb_folder, tiny_folder

from embspace_helpers.experiments.firing import FIRING_RESULTS
from embspace_helpers.workshop.measure_firing import main

WORDS = [a + b + c for a in "bdfg" for b in "aeiou" for c in "nprt"]


def test_the_command_measures_every_layer_and_replaces_its_rows(tmp_path, capsys):
    name, out = str(tmp_path / "tiny"), tmp_path / "firing.csv"
    tiny_folder(tmp_path / "tiny", replace(TINY, vocabulary=600), [" ".join(WORDS)], scale=20)
    rng = np.random.default_rng(0)
    reviews = pd.DataFrame([(" ".join(rng.choice(WORDS, 30)), i % 2) for i in range(160)],
                           columns=["text", "label"])
    imdb_folder(tmp_path / "imdb", train=reviews[:80], test=reviews[80:])
    arguments = [name, "--data", str(tmp_path / "imdb"), "--out", str(out), "--fit", "60",
                 "--test", "60", "--keys", "5"]
    main(arguments)
    assert capsys.readouterr().out == f"{name}: done\n"
    table = pd.read_csv(out)
    assert len(table) == TINY.layers * (2 * 4 + 5) * 2 and set(table["source"]) == {"imdb"}
    assert set(table["model"]) == {"tiny"} and table["mean"].between(0, 1).all()
    main(arguments)
    pd.testing.assert_frame_equal(pd.read_csv(out), table)
    heads = tmp_path / "heads.csv"
    arguments[4:] = [str(heads), "--fit", "60", "--heads", "6"]
    main(arguments)
    table = pd.read_csv(heads)
    assert table["layer"].tolist() == sorted(table["layer"]) and table["texts"].between(2, 6).all()
    counts = table.groupby(["layer", "seen"]).size().unstack()
    assert counts.shape == (TINY.layers, 3) and (counts == TINY.heads).all(axis=None)
    table.loc[table["layer"] > 0, "own"] = 7.0  # what is there is not measured again
    table[table["layer"] > 0].to_csv(heads, index=False)  # as if it had been stopped
    main(arguments)
    pd.testing.assert_frame_equal(pd.read_csv(heads), table)


def test_the_file_that_ships_holds_every_model_of_the_notebook():
    table = pd.read_csv(FIRING_RESULTS)
    layers = table.groupby("model")["layer"].nunique().to_dict()
    assert layers == {"smollm2": 30, "twin-a": 6, "twin-b": 6, "wide-w": 8}
    assert set(table["reading"]) == {"E", "E less the mean", "F", "dictionary", "next dictionary"}
