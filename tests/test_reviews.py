"""Reading the IMDB reviews from a folder laid out like the hub's."""

import hashlib

import pandas as pd
import pytest

from embspace_helpers import reviews
from embspace_helpers.reviews import clean_text, read_imdb, text_hash


def write_folder(folder, **splits):
    (folder / "plain_text").mkdir(parents=True)
    for split, rows in splits.items():
        frame = pd.DataFrame(rows, columns=["text", "label"])
        frame.to_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("text, clean", [
    ("Good.<br /><br />Very good.", "Good. Very good."),
    ("Good.<br>Very<br/>good.", "Good. Very good."),
    ("  a \n\t b  ", "a b"),
    ("a < b > c", "a < b > c"),
    ("", ""),
])
def test_clean_text(text, clean):
    assert clean_text(text) == clean


def test_text_hash_depends_on_the_text_alone_and_is_uniform():
    expected = int(hashlib.sha256("film é".encode()).hexdigest()[:16], 16) / 2**64
    assert text_hash("film é") == expected
    values = [text_hash(str(i)) for i in range(2000)]
    assert 0 <= min(values) and max(values) < 1 and len(set(values)) == 2000
    assert abs(sum(v < 0.25 for v in values) / 2000 - 0.25) < 0.04


def test_read_imdb_from_a_folder(tmp_path):
    rows = [("Fine.<br />Really  fine.", 1), ("Bad.", 0)]
    folder = write_folder(tmp_path / "imdb", train=rows, unsupervised=[("So so.", -1)])
    for source in (folder, str(folder)):
        frame = read_imdb("train", source)
        assert list(frame.columns) == ["text", "label"]
        assert frame.text.tolist() == ["Fine. Really fine.", "Bad."]
        assert frame.label.tolist() == [1, 0]
    assert read_imdb("unsupervised", folder).label.tolist() == [-1]


def test_the_default_is_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(pd, "read_parquet", lambda path: asked.append(path)
                        or pd.DataFrame({"text": ["a<br />b"], "label": [0]}))
    assert read_imdb("test").text.tolist() == ["a b"]
    assert asked == ["hf://datasets/stanfordnlp/imdb/plain_text/test-00000-of-00001.parquet"]


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="no split 'dev': there are train, test, unsupervised"):
        read_imdb("dev", tmp_path)


def test_folder_without_the_file(tmp_path):
    folder = write_folder(tmp_path / "imdb", train=[("a", 0)])
    for source in (folder, tmp_path / "missing" / "imdb"):
        with pytest.raises(FileNotFoundError, match="test-00000-of-00001.parquet in the folder"):
            read_imdb("test", source)


class ClientError(Exception):
    """The hub's client raises its own kinds of error (httpx.ConnectError is no OSError)."""


@pytest.mark.parametrize("error", [OSError, ClientError])
def test_no_network(monkeypatch, error):
    def refuse(path):
        raise error("name not known")
    monkeypatch.setattr(reviews.pd, "read_parquet", refuse)
    with pytest.raises(FileNotFoundError, match="hf://.*name not known.*network"):
        read_imdb("test")


def test_damaged_file(tmp_path):
    folder = write_folder(tmp_path / "imdb", train=[("a", 0)])
    next(folder.rglob("*.parquet")).write_bytes(b"cut off")
    with pytest.raises(FileNotFoundError, match="cannot read .*train-00000-of-00001.parquet"):
        read_imdb("train", folder)
