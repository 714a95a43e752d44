"""The command that fine-tunes classifiers, on a tiny model and made-up reviews."""

from dataclasses import asdict

import pandas as pd
import pytest
from tiny_reviews import imdb_folder, reviews, tiny_folder

from embspace_helpers import load_classifier, load_reviews
from embspace_helpers.experiments.classifiers import Recipe, accuracy, fine_tune, read_facts
from embspace_helpers.workshop import finetune
from embspace_helpers.workshop.finetune import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 with a tokenizer."""
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def command(folder, tmp_path, monkeypatch):
    """Runs the command on 40 + 40 reviews, and tells what each training was given."""
    imdb_folder(tmp_path / "imdb", train=reviews(40, 0), test=reviews(40, 1))
    given = []

    def listening(classifier, train, recipe, **options):
        given.append((recipe, train))
        return fine_tune(classifier, train, recipe, **options)

    def run(*options):
        given.clear()
        main([str(folder), "--data", str(tmp_path / "imdb"), "--out", str(tmp_path / "out"),
              "--table", str(tmp_path / "table.csv"), "--device", "cpu", "--reviews", "32",
              *options])
        return given

    def few(split, n=None, seed=0, source="embedded"):
        return load_reviews(split, 40 if source == "embedded" else n, seed, source)

    monkeypatch.setattr(finetune, "fine_tune", listening)
    monkeypatch.setattr(finetune, "load_reviews", few)
    return run


def test_the_command_trains_measures_and_goes_on(command, folder, tmp_path, capsys):
    out, table = tmp_path / "out", tmp_path / "table.csv"
    trained = command("--seeds", "1", "--rate", "0.01", "--epochs", "2", "--test", "20")
    assert [recipe for recipe, _ in trained] == [Recipe(1, epochs=2, learning_rate=0.01)]
    first = out / f"{folder.name}-seed1.safetensors"
    assert "is there already" not in capsys.readouterr().out

    written = first.stat().st_mtime_ns
    trained = command("--seeds", "2", "1", "--rate", "0.01", "--epochs", "2", "--test", "20")
    assert [recipe.seed for recipe, _ in trained] == [2] and first.stat().st_mtime_ns == written
    said = f"{first} is there already, and its results are in {table}"
    assert said in capsys.readouterr().out.splitlines()

    found = pd.read_csv(table)
    assert list(found) == ["model", "seed", "shuffled", "reviews", "epochs", "loss", "minutes",
                           "imdb", "imdb_reviews", "embedded_train", "embedded_test",
                           "embedded_hard"]
    assert (found["model"] == folder.name).all() and found["seed"].tolist() == [1, 2]
    assert not found["shuffled"].any()
    for column, value in (("reviews", 32), ("epochs", 2), ("imdb_reviews", 20)):
        assert found[column].tolist() == [value] * 2
    for seed in (1, 2):
        file = out / f"{folder.name}-seed{seed}.safetensors"
        classifier = load_classifier(str(folder), path=file)
        facts, row = read_facts(file), found.iloc[seed - 1]
        assert facts["recipe"] == asdict(Recipe(seed, epochs=2, learning_rate=0.01))
        assert facts["reviews"] == 32 and row["loss"] == pytest.approx(facts["loss"][-1], abs=1e-4)
        texts = load_reviews("test", 20, source=tmp_path / "imdb")
        right = accuracy(classifier, texts, autocast=True)
        assert row["imdb"] == pytest.approx(right)
        for split in ("train", "test", "hard"):
            right = accuracy(classifier, load_reviews(split, 40))
            assert row[f"embedded_{split}"] == pytest.approx(right)


def test_a_file_without_results_or_results_without_a_file_are_made_again(command, folder, tmp_path):
    table, file = tmp_path / "table.csv", tmp_path / "out" / f"{folder.name}-seed1.safetensors"
    assert len(command()) == 1 and len(command()) == 0
    row = pd.read_csv(table)
    row.iloc[:0].to_csv(table, index=False)
    assert len(command()) == 1 and len(command()) == 0
    table.unlink()
    assert len(command()) == 1 and len(command()) == 0
    row.assign(model="another").to_csv(table, index=False)
    assert len(command()) == 1 and len(command()) == 0
    assert pd.read_csv(table)["model"].tolist() == sorted(["another", folder.name])
    file.unlink()
    assert len(command()) == 1 and len(command()) == 0 and file.exists()


@pytest.mark.parametrize("changed", [["--epochs", "2"], ["--rate", "0.1"], ["--reviews", "30"]])
def test_a_file_of_another_recipe_is_not_taken_for_this_one(command, changed):
    assert len(command()) == 1
    with pytest.raises(ValueError, match="seed1.safetensors was made from 32 reviews with"):
        command(*changed)


def test_shuffled_labels_are_the_same_labels_of_other_texts(command, folder, tmp_path):
    (_, plain), = command("--seeds", "1")
    (recipe, mixed), = command("--seeds", "1", "--shuffled-labels")
    (_, other), = command("--seeds", "2", "--shuffled-labels")
    assert recipe == Recipe(1, shuffled_labels=True)
    assert plain["text"].tolist() == mixed["text"].tolist()
    assert sorted(plain["label"]) == sorted(mixed["label"])
    assert 8 < (plain["label"] != mixed["label"]).sum() < 24  # of 32; 16 expected
    assert mixed["label"].tolist() != other["label"].tolist()
    assert (plain["text"].str.contains("gem") == plain["label"]).all()

    names = {file.stem for file in (tmp_path / "out").iterdir()}
    name = folder.name
    assert names == {f"{name}-seed1", f"{name}-shuffled-seed1", f"{name}-shuffled-seed2"}
    for file in (tmp_path / "out").iterdir():
        assert read_facts(file)["recipe"]["shuffled_labels"] is ("shuffled" in file.stem)
    found = pd.read_csv(tmp_path / "table.csv")
    assert found[["shuffled", "seed"]].to_numpy().tolist() == [[False, 1], [True, 1], [True, 2]]
    assert command("--seeds", "1") == command("--seeds", "1", "2", "--shuffled-labels") == []
