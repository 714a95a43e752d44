"""Fine-tuning tiny models: what is free, what is learned, what is stored."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from embspace_helpers.experiments import finetuning
from embspace_helpers.reading.activations import capture, padded
from embspace_helpers.experiments.finetuning import (Classifier, Recipe, accuracy, batches, bundled_seeds,
                                         fine_tune, load_classifier, main, merge, predict,
                                         read_facts, save_changes)
from embspace_helpers.reading.models import ModelNotFound, fingerprint, load_model
from embspace_helpers.workshop.pretrain import Recipe as PretrainRecipe
from embspace_helpers.workshop.pretrain import new_model, train_tokenizer
from embspace_helpers.classroom.reviews import load_reviews
from tiny_models import MODELS, tiny

WORDS = ("the film is fine", "a dull plot", "what an actor", "we saw it twice", "it was long")
TINY = PretrainRecipe(seed=1, d=16, layers=3, heads=2, vocabulary=300, context=40)


def reviews(n, seed=0):
    """n texts of random words; "gem" is in every praise, "mess" in every blame."""
    rng = np.random.default_rng(seed)
    rows = [(" ".join([*rng.choice(WORDS, rng.integers(1, 4)), *[("mess", "gem")[i % 2]] * 4]),
             i % 2) for i in range(n)]
    return pd.DataFrame(rows, columns=["text", "label"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 with a tokenizer, as `from_pretrained` wants it."""
    path = tmp_path_factory.mktemp("tiny")
    new_model(TINY).save_pretrained(path)
    train_tokenizer([*WORDS, "mess gem"] * 20, TINY.vocabulary).save_pretrained(path)
    return path


@pytest.fixture
def loaded(folder):
    return load_model(folder)


RECIPE = Recipe(seed=2, free_layers=2, epochs=8, batch=8, length=40, learning_rate=1e-2)


# ---- the classifier


def test_logits_are_the_mean_over_the_positions_of_the_head_of_the_unnormed_state(loaded, folder):
    model, tokenizer = loaded
    texts = reviews(5)["text"].tolist()
    states = capture(load_model(folder)[0], tokenizer, texts, positions=None)
    classifier = Classifier(model, 1).eval()
    with torch.no_grad():
        found = classifier(*padded(tokenizer(texts)["input_ids"]))
        for t in range(5):
            logits = states.states[-1][states.text == t] @ classifier.head.weight.T
            torch.testing.assert_close(found[t], logits.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_every_architecture_becomes_a_classifier(kind):
    model = tiny(kind).float()
    ids, mask = padded([[1, 2, 3], [4, 5, 6, 7]])
    classifier = Classifier(model, 1).eval()
    with torch.no_grad():
        short = classifier(*padded([[1, 2, 3]]))
        torch.testing.assert_close(classifier(ids, mask)[:1], short, rtol=1e-4, atol=1e-4)


def test_only_the_matrices_of_the_last_layers_and_the_head_are_free(loaded):
    free = list(Classifier(loaded[0], 2).free())
    matrices = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert free == [f"base.h.{i}.{m}.weight" for i in (1, 2) for m in matrices] + [
        "head.weight", "head.bias"]


@pytest.mark.parametrize("layers", [-1, 4])
def test_impossible_free_layers(loaded, layers):
    with pytest.raises(ValueError, match=f"free_layers = {layers}, but the model has 3 layers"):
        Classifier(loaded[0], layers)


def test_the_head_follows_from_the_seed(folder):
    heads = [Classifier(load_model(folder)[0], seed=s).head.weight for s in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


# ---- training


def test_fine_tuning_learns_and_moves_only_what_is_free(loaded, folder):
    model, tokenizer = loaded
    classifier = Classifier(model, 2, seed=2)
    before = {name: p.clone() for name, p in classifier.named_parameters()}
    history = fine_tune(classifier, tokenizer, reviews(160), RECIPE, reviews(40, seed=1))
    assert list(history) == ["epoch", "loss", "accuracy", "minutes"]
    assert history["epoch"].tolist() == [*range(1, 9)]
    assert history["loss"].iloc[-1] < 0.05 < 0.4 < history["loss"].iloc[0] < 0.8
    assert history["accuracy"].iloc[-1] > 0.95 and not classifier.training
    moved = {name for name, p in classifier.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(classifier.free())


def test_the_same_seed_gives_the_same_weights(folder):
    def run(seed):
        model, tokenizer = load_model(folder)
        recipe = Recipe(seed=seed, free_layers=1, batch=8, length=40)
        classifier = Classifier(model, 1, seed)
        fine_tune(classifier, tokenizer, reviews(32), recipe)
        return torch.cat([p.flatten() for p in classifier.free().values()]).detach()

    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_batches():
    lengths = np.random.default_rng(0).integers(1, 200, 1003)
    parts = list(batches(lengths, 10, seed=1))
    assert sorted(i for part in parts for i in part) == list(range(1003))
    assert len(parts) == 101 and {len(part) for part in parts} == {10, 3}
    spread = np.mean([np.ptp(lengths[part]) for part in parts])
    assert spread < 25  # of 199: texts of a batch are about as long
    means = np.array([np.mean(lengths[part]) for part in parts])
    assert abs(np.corrcoef(np.arange(101), means)[0, 1]) < 0.3  # and batches come in no order
    assert parts == list(batches(lengths, 10, seed=1)) != list(batches(lengths, 10, seed=2))


def test_predictions_do_not_depend_on_the_batch(loaded):
    model, tokenizer = loaded
    classifier, texts = Classifier(model), reviews(11)["text"].tolist()
    with torch.no_grad():
        classifier.head.weight.mul_(100)
    one, five = (predict(classifier, tokenizer, texts, batch=size) for size in (1, 5))
    torch.testing.assert_close(one, five)
    assert one.std() > 0.001
    right = ((one > 0.5).long().numpy() == reviews(11)["label"]).mean()
    assert accuracy(classifier, tokenizer, reviews(11)) == pytest.approx(right)


# ---- what is kept


def test_changes_come_back(folder, tmp_path):
    model, tokenizer = load_model(folder)
    classifier = Classifier(model, 2, seed=2)
    fine_tune(classifier, tokenizer, reviews(64), RECIPE)
    file = tmp_path / "a" / "b.safetensors"
    save_changes(file, classifier, str(folder), {"recipe": {"free_layers": 2}})
    again, _ = load_classifier(str(folder), path=file)
    assert not any(p.requires_grad for p in again.parameters())
    for (name, p), (other, q) in zip(classifier.named_parameters(), again.named_parameters()):
        assert name == other
        torch.testing.assert_close(p.detach(), q, rtol=1e-3, atol=1e-4)
    texts = reviews(20, seed=5)["text"].tolist()
    torch.testing.assert_close(predict(classifier, tokenizer, texts),
                               predict(again, tokenizer, texts), rtol=0, atol=0.01)
    # far less than the model itself: two layers of three, no embedding, half the bytes
    assert file.stat().st_size < 0.5 * (folder / "model.safetensors").stat().st_size


def test_changes_do_not_fit_other_weights(folder, tmp_path):
    file, other = tmp_path / "b.safetensors", tmp_path / "other"
    save_changes(file, Classifier(load_model(folder)[0], 1), str(folder), {"recipe": {}})
    new_model(PretrainRecipe(**{**TINY.__dict__, "seed": 9})).save_pretrained(other)
    load_model(folder)[1].save_pretrained(other)
    with pytest.raises(ValueError, match="fine-tuned from other weights than those of"):
        load_classifier(str(other), path=file)


def test_unknown_classifier(tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "CLASSIFIERS", tmp_path)
    for seed in (3, 1):
        (tmp_path / f"twin-a-seed{seed}.safetensors").touch()
    assert bundled_seeds("twin-a") == [1, 3] and bundled_seeds("twin-b") == []
    with pytest.raises(ModelNotFound, match="'twin-a-seed2'; there are twin-a-seed1, twin-a-seed3"):
        load_classifier("twin-a", seed=2)


def test_facts_come_back(folder, tmp_path):
    file = tmp_path / "c.safetensors"
    facts = {"recipe": asdict(RECIPE), "reviews": 64, "loss": [0.7, 0.5]}
    save_changes(file, Classifier(load_model(folder)[0], 1), str(folder), facts)
    model = {"model": str(folder), "fingerprint": fingerprint(folder)}
    assert read_facts(file) == facts | model


def test_a_file_that_holds_no_classifier(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match="d.safetensors holds no classifier"):
        read_facts(tmp_path / "d.safetensors")


# ---- the command


@pytest.fixture
def command(folder, tmp_path, monkeypatch):
    """Runs the command on 40 + 40 reviews, and tells what each training was given."""
    data = tmp_path / "imdb" / "plain_text"
    data.mkdir(parents=True)
    for split, seed in (("train", 0), ("test", 1)):
        reviews(40, seed).to_parquet(data / f"{split}-00000-of-00001.parquet")
    given = []

    def listening(classifier, tokenizer, train, recipe, **options):
        given.append((recipe, train))
        return fine_tune(classifier, tokenizer, train, recipe, **options)

    def run(*options):
        given.clear()
        main([str(folder), "--data", str(tmp_path / "imdb"), "--out", str(tmp_path / "out"),
              "--table", str(tmp_path / "table.csv"), "--device", "cpu", "--reviews", "32",
              *options])
        return given

    def few(split, n=None, seed=0, source="embedded"):
        return load_reviews(split, 40 if source == "embedded" else n, seed, source)

    monkeypatch.setattr(finetuning, "fine_tune", listening)
    monkeypatch.setattr(finetuning, "load_reviews", few)
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
        classifier, tokenizer = load_classifier(str(folder), path=file)
        facts, row = read_facts(file), found.iloc[seed - 1]
        assert facts["recipe"] == asdict(Recipe(seed, epochs=2, learning_rate=0.01))
        assert facts["reviews"] == 32 and row["loss"] == pytest.approx(facts["loss"][-1], abs=1e-4)
        texts = load_reviews("test", 20, source=tmp_path / "imdb")
        right = accuracy(classifier, tokenizer, texts, autocast=True)
        assert row["imdb"] == pytest.approx(right)
        for split in ("train", "test", "hard"):
            right = accuracy(classifier, tokenizer, load_reviews(split, 40))
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
    assert found[["shuffled", "seed"]].values.tolist() == [[False, 1], [True, 1], [True, 2]]
    assert command("--seeds", "1") == command("--seeds", "1", "2", "--shuffled-labels") == []


def test_new_results_replace_those_of_the_same_classifier_only(tmp_path):
    table = tmp_path / "t.csv"
    row = {"model": "b", "seed": 1, "shuffled": False, "imdb": 0.5}
    for new in (row, row | {"seed": 2}, row | {"shuffled": True}, row | {"model": "a"},
                row | {"imdb": 0.81236}):
        merge(new, table).to_csv(table, index=False)
    assert pd.read_csv(table).values.tolist() == [
        ["a", 1, False, 0.5], ["b", 1, False, 0.8124], ["b", 2, False, 0.5], ["b", 1, True, 0.5]]
