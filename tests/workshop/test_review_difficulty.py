"""The command that measures a bag of words on the reviews that ship."""

import re

import pandas as pd
import pytest

from embspace_helpers.workshop.review_difficulty import main


def test_the_command_measures_a_bag_of_words(tmp_path, capsys):
    rows = [(f"a {('dull', 'fine')[i % 2]} film {i}", i % 2) for i in range(40)]
    (tmp_path / "plain_text").mkdir()
    for split in ("train", "test"):
        frame = pd.DataFrame(rows, columns=["text", "label"])
        frame.to_parquet(tmp_path / "plain_text" / f"{split}-00000-of-00001.parquet")
    main(["--data", str(tmp_path)])
    printed = capsys.readouterr().out
    assert re.search(r"IMDB test +1\.0", printed)
    assert re.search(r"embedded hard +0\.\d", printed) and "embedded train" in printed


def test_the_command_ends_with_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match="no file plain_text/train.* in the folder"):
        main(["--data", str(tmp_path)])
