"""The command that measures Jacobians, on a tiny model; and the file that ships."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny_reviews import TINY, tiny_folder

from embspace_helpers.experiments.jacobians import JACOBIANS
from embspace_helpers.reading.model import Model
from embspace_helpers.workshop import measure_jacobians

WORDS = [a + b + c for a in "bdfg" for b in "aeiou" for c in "nprt"]
NAMES = {"transpose", "orthogonal", "dictionary", "dictionary whitened", "jacobian",
         "jacobian whitened", "final gain", "jacobian here"}


def test_the_command_measures_every_layer_and_replaces_its_rows(tmp_path, capsys, monkeypatch):
    name, out = str(tmp_path / "tiny"), tmp_path / "jacobians.csv"
    tiny_folder(tmp_path / "tiny", replace(TINY, vocabulary=600), [" ".join(WORDS)], scale=20)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 30)) for _ in range(160)]

    def reviews(split, count):
        chosen = texts[:80] if split == "train" else texts[80:]
        return pd.DataFrame({"text": chosen[:count]})

    monkeypatch.setattr(measure_jacobians, "load_reviews", reviews)
    monkeypatch.setattr(Model, "judge", property(lambda self: self.judged_by(self)))
    measure_jacobians.main([name, "--reviews", "4", "--rows", "6", "--out", str(out)])
    assert capsys.readouterr().out == f"{name}: done\n"
    table = pd.read_csv(out)
    assert set(table["reading"]) == NAMES and set(table["layer"]) == set(range(TINY.layers))
    counts = table.groupby("test").size().to_dict()
    assert counts == {"readable": TINY.layers * 22, "fires here": TINY.layers * 6,
                      "fires next": TINY.layers * 6, "falls most": TINY.layers * 5}
    assert table["vectors"].between(0, 1).all()
    with_cost = table.loc[table["seconds"].notna(), "reading"].unique()
    assert {x.split()[0] for x in with_cost} == {"dictionary", "jacobian"}


TWINS, WIDE = ["twin-a", "twin-b"], ["wide-w"]


def test_the_file_holds_the_models_that_notebook_02_names():
    assert set(pd.read_csv(JACOBIANS)["model"]) == {*TWINS, *WIDE}


@pytest.mark.parametrize("models", [TWINS, WIDE], ids=["twins", "wide-w"])
def test_the_file_says_what_notebook_02_says(models):
    """Keys alike through both, at hundreds of times the cost; values; of twins and W apart."""
    table = pd.read_csv(JACOBIANS)
    table = table[(table["sign"] == "+") & table["model"].isin(models)]
    cost = table.groupby("reading")["seconds"].mean()
    assert cost["jacobian"] > 300 * cost["dictionary"]
    means = table.pivot_table(index=["test", "group", "layer"], columns="reading",
                              values="vectors")
    keys = means.loc["readable", "K"]
    assert (keys["jacobian"] - keys["dictionary"]).abs().max() < 0.05
    assert keys["jacobian"].mean() == pytest.approx(keys["dictionary"].mean(), abs=0.02)
    fires = means.loc["fires here", "K"]
    assert fires["jacobian"].mean() == pytest.approx(fires["dictionary"].mean(), abs=0.05)
    assert (fires["jacobian"] > fires["transpose"])[1:].all()
    falls = means.loc["falls most", "V"][:-1]  # the last layer's map is the identity
    assert (falls["jacobian here"] > falls["final gain"]).all()
    assert (falls["jacobian"] < falls["final gain"]).all()
