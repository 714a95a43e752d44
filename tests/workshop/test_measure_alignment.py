"""The command that aligns two models, on tiny ones."""

import pandas as pd
import torch
from tiny_models import close
from tiny_reviews import TINY, tiny_folder

from embspace_helpers import load, load_reviews
from embspace_helpers.experiments.alignment import alignment
from embspace_helpers.workshop.measure_alignment import main


def test_the_command_measures_groups_readings_and_controls(tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    tiny_folder(one, scale=20)
    tiny_folder(two, scale=10)
    out = tmp_path / "alignment.csv"
    arguments = [str(one), str(two), "--out", str(out), "--texts", "6"]
    main(arguments)
    assert capsys.readouterr().out == f"{one}, {two}: done\n"
    table = pd.read_csv(out)
    assert set(table["a"]) == {"one"} and set(table["b"]) == {"two"}
    assert len(table) == (6 + 2 * 4) * TINY.layers**2
    a, b, texts = load(str(one)), load(str(two)), load_reviews("train", 6)["text"].tolist()
    for reading, control, group in (("transpose", "given", "W_O"), ("dictionary", "given", "K"),
                                    ("dictionary", "random", "W_V")):
        found = alignment(a, b, group, reading=reading, texts=texts,
                          control=None if control == "given" else control)
        part = table.query("reading == @reading and control == @control and group == @group")
        for aggregate in ("mean", "best"):
            stored = part.pivot(index="layer_a", columns="layer_b", values=aggregate).to_numpy()
            close(torch.tensor(stored), getattr(found, aggregate), 1e-4)

    main(arguments)  # again: its rows are replaced
    pd.testing.assert_frame_equal(pd.read_csv(out), table)
