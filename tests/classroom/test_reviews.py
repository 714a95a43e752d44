"""Reading IMDB from a folder laid out like the hub's, and the reviews that ship."""

import hashlib
import re
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embspace_helpers.classroom.reviews import (
    clean_text,
    load_reviews,
    read_embedded,
    read_imdb,
    text_hash,
)
from embspace_helpers.reading import hub
from embspace_helpers.reading.vocabulary import is_coarse


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
    assert min(values) >= 0 and max(values) < 1 and len(set(values)) == 2000
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


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="no split 'dev': there are train, test, unsupervised"):
        read_imdb("dev", tmp_path)


def test_folder_without_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "hub_file", lambda *_: pytest.fail("the hub was asked"))
    folder = write_folder(tmp_path / "imdb", train=[("a", 0)])
    sources = [folder, tmp_path / "missing", str(tmp_path), Path("owner/name"), "imdb", "a b/c"]
    for source in sources:
        with pytest.raises(FileNotFoundError, match="test-00000-of-00001.parquet in the folder"):
            load_reviews("test", source=source)


def test_the_default_is_the_hub(monkeypatch, tmp_path):
    folder, asked = write_folder(tmp_path, test=[("a<br />b", 0)]), []
    monkeypatch.setattr(hub, "hub_file", lambda name, file, kind: asked.append((name, kind))
                        or folder / file)
    assert read_imdb("Test").text.tolist() == ["a b"]
    assert asked == [("stanfordnlp/imdb", "dataset")]


def test_no_network(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for variable in hub.OFFLINE:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(hub.TIMEOUT, "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(FileNotFoundError, match="'owner/set' could not be had .*sent nothing "
                           "for 1 s .*without a network there are .*'embedded'"):
            load_reviews(source="owner/set")
    assert len(capfd.readouterr().out.splitlines()) == 1
    with pytest.raises(FileNotFoundError, match="no connection to 127.0.0.1"):
        read_imdb("test")


BAD = [(b"cut off", "Parquet"), (None, "No match for FieldRef.Name")]


@pytest.mark.parametrize(("content", "why"), BAD)
def test_damaged_file(content, why, tmp_path):
    folder = write_folder(tmp_path / "imdb", train=[("a", 0)])
    file = next(folder.rglob("*.parquet"))
    pd.DataFrame({"words": ["a"]}).to_parquet(file)
    if content is not None:
        file.write_bytes(content)
    said = f"train-00000.* cannot be read .*{why}.*: copy it again"
    with pytest.raises(FileNotFoundError, match=said) as error:
        read_imdb("train", folder)
    assert "\n" not in str(error.value)


# ---- the reviews that ship


@pytest.fixture(scope="module")
def embedded():
    return read_embedded()


def trigrams(text):
    words = re.findall(r"[a-z0-9']+", text.lower())
    return set(zip(words, words[1:], words[2:]))


def test_size_and_balance_of_the_embedded_set(embedded):
    assert list(embedded) == ["split", "label", "genre", "manner", "verdict", "text"]
    counts = embedded.groupby(["split", "label"]).size().unstack()
    assert counts[0].tolist() == counts[1].tolist()
    assert counts.loc[["train", "test"]].to_numpy().sum() >= 400
    assert counts.loc["test", 0] >= 80 and counts.loc["hard", 0] >= 150
    assert embedded["genre"].nunique() >= 20 and embedded["genre"].value_counts().min() >= 10
    assert set(embedded["verdict"]) == {"said", "shown"}
    for split in ("train", "test"):  # every manner, and of every manner as much praise as blame
        part = embedded[embedded["split"] == split].groupby(["manner", "label"]).size().unstack()
        assert set(part.index) == {"plain", "florid", "ironic", "mixed"}
        assert (part[0] - part[1]).abs().max() <= 3
    assert (embedded[embedded["split"] == "hard"]["verdict"] == "shown").all()


def test_embedded_reviews_have_20_to_150_words_and_one_line(embedded):
    words = embedded["text"].str.split().str.len()
    assert words.min() >= 20 and words.max() <= 150
    shares = [words.between(*bounds).mean() for bounds in ((20, 45), (46, 100), (101, 150))]
    assert min(shares) > 0.15  # short, middling and long ones
    assert (embedded["text"] == embedded["text"].map(clean_text)).all()


def test_no_two_embedded_reviews_are_alike(embedded):
    texts, holders, common = embedded["text"].tolist(), {}, Counter()
    for i, text in enumerate(texts):
        for gram in trigrams(text):
            for other in holders.setdefault(gram, []):
                common[other, i] += 1
            holders[gram].append(i)
    jaccard = {pair: n / len(trigrams(texts[pair[0]]) | trigrams(texts[pair[1]]))
               for pair, n in common.items() if n > 3}
    assert max(jaccard.values(), default=0) < 0.1
    openings = Counter(" ".join(text.lower().split()[:3]) for text in texts)
    assert max(openings.values()) <= 0.012 * len(texts)
    assert len(openings) > 0.9 * len(texts)


def test_embedded_reviews_are_fit_for_a_classroom(embedded):
    words = {w for text in embedded["text"] for w in re.findall(r"[A-Za-z]+", text)}
    assert [w for w in sorted(words) if is_coarse(w)] == []


def test_splits_are_disjoint_and_whole(embedded):
    parts = [load_reviews(split) for split in ("train", "test", "hard")]
    texts = [t for part in parts for t in part["text"]]
    assert sorted(texts) == sorted(embedded["text"]) and len(set(texts)) == len(texts)


@pytest.mark.parametrize("local", [False, True])
def test_a_subset_follows_from_seed_and_texts(tmp_path, local):
    options = {"split": "train"}
    if local:
        rows = [(f"review {i}", i % 2) for i in range(60)]
        options["source"] = write_folder(tmp_path / "a", train=rows)
    some = load_reviews(n=20, seed=1, **options)
    assert some["label"].sum() == 10 and len(some) == 20
    assert list(some.index) == list(range(20))
    assert some["text"].tolist() == load_reviews(n=20, seed=1, **options)["text"].tolist()
    assert set(load_reviews(n=10, seed=1, **options)["text"]) < set(some["text"])
    assert set(some["text"]) != set(load_reviews(n=20, seed=2, **options)["text"])
    assert some["label"].iloc[:10].nunique() == 2  # praise and blame are mixed
    if local:  # another copy, in another order, gives the same subset
        options["source"] = write_folder(tmp_path / "b", train=rows[::-1])
        assert some["text"].tolist() == load_reviews(n=20, seed=1, **options)["text"].tolist()


@pytest.mark.parametrize("n", [7, 0, -2, 10_000, 10.5, float("nan"), float("inf")])
def test_impossible_numbers_of_reviews(n):
    with pytest.raises(ValueError, match=f"n = {n}, but it must be even.*at most 336, what"):
        load_reviews(n=n)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"n": "10"}, "n = '10', but it must be an even number, or None for all reviews"),
        ({"n": True}, "n = True, but it must be an even number"),
        ({"n": [2]}, "n = [2], but it must be an even number"),
        ({"split": 3}, "split = 3, but it must be the name of a split; there are train, test, ha"),
        ({"split": None}, "split = None, but it must be the name of a split"),
        ({"source": None}, "source = None, but it must be 'embedded', 'stanfordnlp/imdb' or a"),
        ({"source": ""}, "source = '', but it must be 'embedded'"),
        ({"source": 3}, "source = 3, but it must be 'embedded'"),
        ({"seed": "one"}, "seed = 'one', but it must be a whole number"),
        ({"seed": 0.5}, "seed = 0.5, but it must be a whole number"),
    ],
)
def test_arguments_of_another_type(arguments, said):
    with pytest.raises(TypeError, match=re.escape(said)):
        load_reviews(**arguments)


@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        ({"n": 10.0}, {"n": 10}),
        ({"n": np.int64(10), "seed": np.int64(1)}, {"n": 10, "seed": 1}),
        ({"split": " Train"}, {"split": "train"}),
        ({"split": "HARD", "source": "Embedded "}, {"split": "hard"}),
    ],
)
def test_arguments_in_another_writing(arguments, same):
    assert load_reviews(**arguments).equals(load_reviews(**same))


@pytest.mark.parametrize("split, source", [("unsupervised", "embedded"), ("hard", "a/folder")])
def test_splits_without_labels(split, source):
    with pytest.raises(ValueError, match=f"no split '{split}' of {source} with labels"):
        load_reviews(split, source=source)
