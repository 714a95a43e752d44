"""The command that measures stitches, on tiny models and made-up reviews."""

from dataclasses import asdict, replace

import pandas as pd
import pytest
from tiny_models import close
from tiny_reviews import TINY, imdb_folder, reviews, tiny_folder

from embspace_helpers import load
from embspace_helpers.classroom.reviews import load_reviews
from embspace_helpers.experiments.classifiers import (
    Classifier,
    Recipe,
    accuracy,
    load_classifier,
    save_changes,
)
from embspace_helpers.experiments.kernels import embedding_kernel
from embspace_helpers.experiments.stitching import stitch
from embspace_helpers.workshop import measure_stitching as command
from embspace_helpers.workshop import stitching_recipes

SIZES = {"CHUNK": 12, "SWEPT_ON": 6, "CONTROLS_ON": 8}
TEXTS = {"FIT": 8, "ZERO": 4, "JUDGED": 4, "WRITTEN": 3, "DRAWN": 4}
RECIPE = Recipe(free_layers=2, epochs=1, batch=8, length=40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two tiny models of one vocabulary, two classifiers of the first, and tiny reviews."""
    root = tmp_path_factory.mktemp("stitching")
    counts = [1] * TINY.vocabulary
    guest, host = (tiny_folder(root / name, counts=counts, scale=s)
                   for name, s in (("guest", 3), ("host", 5)))
    files = []
    for seed in (1, 2, 3):
        recipe = Recipe(**asdict(RECIPE) | {"seed": seed})
        classifier = Classifier(load(guest), recipe.free_layers, seed)
        classifier.head.weight.data *= 50
        files.append(root / f"{seed}.safetensors")
        facts = {"recipe": asdict(recipe)} | ({"task": command.PERSON} if seed == 3 else {})
        save_changes(files[-1], classifier, str(guest), facts)
    plain = reviews(40, 3).assign(label=-1)
    plain["text"] += [f" {i}" for i in range(len(plain))]
    data = imdb_folder(root / "imdb", train=reviews(40), test=reviews(24, 1), unsupervised=plain)
    return host, files[:2], data


@pytest.fixture(scope="module", autouse=True)
def small(folders):
    """Little to measure, and nothing to train."""
    other = folders[1][0].with_name("3.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SIZES.items():
            patch.setattr(command, name, value)
        for name, value in TEXTS.items():
            patch.setattr(stitching_recipes, name, value)
        patch.setattr(stitching_recipes, "own_text", lambda model, n: [[5, 6, 7, 8]] * n)
        patch.setattr(command, "other_task", lambda name, data, path, device: other)
        yield


def run(folders, out, n=24, files=None, parts="parts", more=()):
    host, known, data = folders
    arguments = [*map(str, files or known), "--hosts", str(host), "--data", str(data), "--reviews",
                 str(n), "--parts", str(out / parts), "--out", str(out / "table.csv")]
    command.main([*arguments, *more])
    return pd.read_csv(out / "table.csv")


@pytest.fixture(scope="module")
def table(folders, small, tmp_path_factory):
    return run(folders, tmp_path_factory.mktemp("out"))


def test_counts_are_those_of_the_stitch(table, folders):
    host, files, data = folders
    rows = table[(table["kind"] == "chosen") & (table["recipe"] == "paper")]
    assert rows["reviews"].tolist() == [24, 24] and rows["chosen"].all()
    layer = rows["layer"].iloc[0]
    test = load_reviews("test", 24, source=data)
    for seed, right in zip(rows["seed"], rows["right"]):
        classifier = load_classifier(str(load_name(files)), path=files[seed - 1])
        model = load(host)
        kernel = embedding_kernel(model, load(load_name(files)))
        found = stitch(model, classifier, test["text"].tolist(), {0: (layer, kernel)})[0][0]
        expected = ((found > 0).numpy() == test["label"].to_numpy(bool)).sum()
        assert abs(right - expected) <= 2  # the command computes in 16 bits


def load_name(files):
    return command.read_facts(files[0])["model"]


def test_own_accuracy_is_the_classifiers(table, folders):
    _, files, data = folders
    test = load_reviews("test", 24, source=data)
    for seed, row in table[table["kind"] == "own"].groupby("seed"):
        classifier = load_classifier(str(load_name(files)), path=files[seed - 1])
        close(row["right"].item() / 24, accuracy(classifier, test), 0.1)


def test_every_layer_and_every_control_is_there(table):
    layers = table[table["kind"] == "layers"]
    assert set(layers["layer"]) == {0, 1, 2, 3} and (layers["reviews"] == 6).all()
    assert set(layers["recipe"]) == {"paper", "matched", "fitted"}
    kinds = set(table["kind"])
    assert {"own", "chosen", "real", "noise", "token noise", "untrained host", "blind kernel",
            "0 last layers", "displacement only", "first person",
            "first person, its own task"} <= kinds
    assert layers["right_zero"].notna().all() and (layers["right"] <= 6).all()


def test_a_recipes_layer_is_the_likeliest(table):
    layers = table[table["kind"] == "layers"].drop_duplicates(["recipe", "layer"])
    for _, rows in layers.groupby("recipe"):
        assert rows.loc[rows["likelihood"].idxmax(), "chosen"] and rows["chosen"].sum() == 1


def test_it_goes_on_where_it_stopped(folders, tmp_path, monkeypatch):
    _, files, _ = folders
    half = run(folders, tmp_path, 12, files[:1])
    assert set(half["seed"]) == {1, 3}  # 3: of another task
    whole = run(folders, tmp_path, 24)
    assert set(whole["seed"]) == {1, 2, 3}
    monkeypatch.setattr(command, "counted", None)  # nothing is measured again
    assert run(folders, tmp_path, 24).equals(whole)


def test_a_bag_of_words_is_counted_too(table):
    (row,) = table[table["kind"] == "bag of words"].itertuples()
    assert row.reviews == 12 and row.right > 9  # one word tells all


def test_first_person_is_counted_in_words():
    texts = ["I saw it.", "It is seen.", "Mine? I me my myself. " + "x " * 99]
    frame = pd.DataFrame({"text": texts})
    assert command.first_person(frame).tolist() == [True, False, True]


def test_some_recipes_alone_renew_their_rows(folders, tmp_path, table):
    table.to_csv(tmp_path / "table.csv", index=False)
    more = ["--kinds", "chosen", "--recipes", "fitted, all layers", "paper"]
    found = run(folders, tmp_path, 12, parts="again", more=more)
    assert len(found) == len(table)
    asked = (found["kind"] == "chosen") & found["recipe"].isin(("fitted, all layers", "paper"))
    assert (found.loc[asked, "reviews"] == 12).all() and asked.sum() == 4
    old = pd.concat([table, found[~asked]]).drop_duplicates(keep=False)
    assert set(old["recipe"]) == {"fitted, all layers", "paper"}  # all others are as they were


def test_parts_of_another_size_are_refused(folders, tmp_path, capsys):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "host+guest+500+000.csv").touch()
    with pytest.raises(SystemExit):
        run(folders, tmp_path)
    assert "parts of chunks of another size" in capsys.readouterr().err


def test_a_host_of_another_vocabulary(folders, tmp_path):
    _, files, data = folders
    words = tiny_folder(tmp_path / "words", replace(TINY, vocabulary=280), scale=7)
    table = run((words, files, data), tmp_path, 12)
    rows = table[(table["kind"] == "chosen") & (table["host"] == "words")]
    assert {"paper", "fitted", "fitted, all layers"} <= set(rows["recipe"])
    assert not rows["recipe"].str.contains("random").any()
    assert rows["likelihood"].notna().all() and rows["right"].between(0, 12).all()
