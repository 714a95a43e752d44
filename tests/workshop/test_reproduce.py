"""The command that measures the paper's tables, on small models of the paper's kinds."""

import re
import shutil
from html import escape

import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from tiny_reviews import imdb_folder, reviews
from true_shapes import SMALL, paper_models

from embspace_helpers import load
from embspace_helpers.experiments.noise import noise_in_place
from embspace_helpers.experiments.statistics import jaccard_at_k
from embspace_helpers.experiments.stitching import Stream
from embspace_helpers.workshop import finetune, measure_stitching, reproduce, reproduce_parts
from embspace_helpers.workshop.reproduce import PARTS, head, main
from embspace_helpers.workshop.reproduce_figures import (
    Figure,
    of_displacement,
    of_examples,
    of_jaccard,
)
from embspace_helpers.workshop.reproduce_pictures import PICTURES
from embspace_helpers.workshop.reproduce_report import ABOUT, MODELS, PAPER
from embspace_helpers.workshop.stitching_recipes import Guest

SIZES = ["--neuron", "2", "5", "--heads", "L1H0", "L3H1", "--fit", "6", "--texts", "6",
         "--positions", "30", "--seeds", "2", "--train", "16", "--rate", "0.003", "--test", "8",
         "--device", "cpu"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Four small models, and reviews laid out like IMDB's."""
    root = tmp_path_factory.mktemp("reproduce")
    plain = reviews(200, 3).assign(label=-1)
    plain["text"] += [f" {i}" for i in range(len(plain))]
    data = imdb_folder(root / "imdb", train=reviews(40), test=reviews(24, 1), unsupervised=plain)
    return paper_models(root / "hub", SMALL, 600, 400, 64), data


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer reviews to measure the classifiers' files on, and to take means from."""
    with pytest.MonkeyPatch.context() as patch:
        few = finetune.load_reviews
        patch.setattr(finetune, "load_reviews", lambda split, n=None, seed=0, source="embedded":
                      few(split, 8 if source == "embedded" else n, seed, source))
        patch.setattr(reproduce_parts, "MATCHED", 4)
        patch.setattr(reproduce_parts, "BATCH", {"cpu": 3})
        yield


def run(world, out, *more):
    models, data = world
    main(["--models", *models, "--data", str(data), "--out", str(out), *SIZES, *more])
    return pd.read_csv(out / "report.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def out(world, small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    run(world, folder)
    return folder


def test_every_part_is_measured_and_every_figure_has_its_number(out):
    table = pd.read_csv(out / "report.csv", keep_default_na=False)
    paper = pd.read_csv(PAPER, keep_default_na=False)
    assert table[["part", "what", "paper", "section", "control"]].equals(paper)
    assert (table["measured"] != "").all()
    assert (table.loc[table["control"] != "", "held_against"] != "").all()
    for part in PARTS:
        assert len(pd.read_csv(out / f"{part}.csv"))
    page = (out / "report.html").read_text()
    assert "3 of 11" in page and "not given" in page and "not measured:" not in page


def test_no_review_stands_in_what_is_written(out, world):
    texts = pd.read_parquet(next((world[1] / "plain_text").glob("train*")))["text"]
    for file in [*out.rglob("*.csv"), *out.rglob("*.html")]:
        written = file.read_text()
        assert not any(text in written for text in texts if len(text) > 20)


def test_lists_of_neurons_and_pairs_of_heads(out, world):
    table = pd.read_csv(out / "examples.csv")
    assert set(table["of"]) == {"L2N5", "L1H0", "L3H1"}
    model = load(world[0][0])
    words = table[(table["what"] == "value") & (table["of"] == "L2N5")]["words"]
    assert words.tolist() == model.space().words(model.parameters.V(2)[5], 10)
    assert set(table["what"]) == {"key", "value", "random direction", "W_VO", "W_VO, turned",
                                  "W_QK", "W_QK, turned"}


def test_jaccard_is_of_rows_that_belong_together(out, world):
    table = pd.read_csv(out / "jaccard.csv").set_index(["groups", "layer"])
    model = load(world[0][0])
    p, space = model.parameters, model.space()
    lists = [space.top(p.vectors(group, 1), 100, by_magnitude=True)[1] for group in ("K", "V")]
    assert table.loc[("K, V", 1), "real"] == pytest.approx(
        jaccard_at_k(*lists).mean().item(), abs=1e-3)
    turned = jaccard_at_k(lists[0], lists[1].roll(7, 0)).mean().item()
    assert table.loc[("K, V", 1), "shuffled"] == pytest.approx(turned, abs=0.02)


def test_all_stitches_are_there(out):
    table = pd.read_csv(out / "stitching.csv")
    layers = table[table["kind"] == "every layer"]
    assert set(layers["layer"]) == set(range(5)) and set(layers["recipe"]) == {"paper", "matched"}
    assert set(table["kind"]) == {"own", "every layer", "shuffled vocabulary", "noise",
                                  "displacement only", "untrained host"}
    assert (table["reviews"] == 8).all() and set(table["seed"]) == {1, 2}


def test_noise_is_drawn_by_a_texts_number_among_all_reviews():
    states = {0: torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))}
    mask = torch.ones(4, 3)
    here, there = (Stream(torch.arange(4) + start, mask.long(), mask, states) for start in (0, 32))
    (noise,) = noise_in_place([there])
    (found,) = reproduce_parts._numbered(noise_in_place, 32)([here])
    assert torch.equal(found.states[0], noise.states[0]) and found.texts.tolist() == [0, 1, 2, 3]
    assert not torch.equal(found.states[0], next(noise_in_place([here])).states[0])


def test_classifiers_in_memory_share_what_was_frozen(out, world):
    guest = Guest(sorted((out / "classifiers").glob("*.safetensors")), world[1])
    one, two = (dict(x.base.named_parameters()) for x in guest.many[""].values())
    shared = {name for name in one if one[name].data_ptr() == two[name].data_ptr()}
    free = {name for name, weight in one.items() if name.startswith("h.") and weight.ndim > 1}
    assert "wte.weight" in shared and set(one) - shared == free


class Killed(BaseException):
    """Stops a run without a chance to clear up."""


def killed_at(monkeypatch, place, name, at):
    """Let a function be called so many times, then kill; at None, only count. Returns the calls."""
    real, calls = getattr(place, name), []

    def counted(*args):
        if len(calls) == at:
            raise Killed
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(place, name, counted)
    return calls


def test_a_killed_run_goes_on_where_it_was(out, world, tmp_path, monkeypatch):
    shutil.copytree(out / "classifiers", tmp_path / "classifiers")
    places = {"Measured": reproduce_parts, "counted": measure_stitching}
    for name, at in (("Measured", 2), ("counted", 3), ("counted", 5)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_at(patch, places[name], name, at)
            run(world, tmp_path, "--parts", "displacement", "stitching")
    pieces = {file: file.read_bytes() for file in (tmp_path / "pieces").iterdir()}
    assert len(pieces) == 5  # the rows before, two classifiers, two times six reviews
    assert not (tmp_path / "stitching.csv").exists()
    calls = killed_at(monkeypatch, measure_stitching, "counted", None)
    run(world, tmp_path, "--parts", "displacement", "stitching")
    assert 0 < len(calls) < 12
    for name in ("displacement", "stitching"):
        assert pd.read_csv(tmp_path / f"{name}.csv").equals(pd.read_csv(out / f"{name}.csv"))


def test_it_goes_on_with_what_is_missing(out, world, monkeypatch, capsys):
    before = pd.read_csv(out / "overlap.csv")
    (out / "overlap.csv").unlink()
    kept = {part: entry for part, entry in PARTS.items() if part != "overlap"}
    monkeypatch.setattr(reproduce, "PARTS", PARTS | {
        part: entry._replace(measure=None) for part, entry in kept.items()})
    table = run(world, out, "--parts", "overlap")
    assert pd.read_csv(out / "overlap.csv").equals(before)
    assert capsys.readouterr().out.count("measured before") == 6 and (table["measured"] != "").all()


def test_other_options_need_another_folder(out, world, capsys):
    with pytest.raises(SystemExit):
        run(world, out, "--texts", "7")
    assert "holds results of other options (texts): name another" in capsys.readouterr().err


def test_a_part_that_fails_is_told_and_stops_no_other(world, tmp_path, capsys):
    models, _ = world
    main(["--models", *models[:2], "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path),
          *SIZES, "--rows", "5"])
    said = capsys.readouterr().out
    assert "displacement: not measured: 0 of 2 classifiers are there: the part finetuning" in said
    assert "overlap: not measured: no file plain_text/test" in said
    assert "alignment: not measured: 4 models are needed, 2 named" in said
    table = pd.read_csv(tmp_path / "report.csv", keep_default_na=False)
    assert set(table.loc[table["measured"] != "", "part"]) == {"examples", "jaccard"}
    assert "not measured: no file plain_text/test" in (tmp_path / "report.html").read_text()
    assert set(pd.read_csv(tmp_path / "jaccard.csv")["rows"]) == {5}
    assert not (tmp_path / "overlap.csv").exists()


def test_a_model_that_is_not_there_is_one_sentence(tmp_path, capsys):
    main(["--models", "./no-model", "--parts", "jaccard", "--out", str(tmp_path)])
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "not measured" in x]
    assert "there is no file or folder './no-model'" in line


def test_a_neuron_that_is_not_there_is_one_sentence(world, tmp_path, capsys):
    main(["--models", world[0][0], "--parts", "examples", "--out", str(tmp_path)])
    assert "examples: not measured: no layer 23: layers are 0 to 3" in capsys.readouterr().out


def test_without_a_network_every_part_says_so_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    main(["--parts", "jaccard", "overlap", "alignment", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out.splitlines()
    assert [x.split(":")[0] for x in said[:4]] == [MODELS[0], "stanfordnlp/imdb, test",
                                                   *MODELS[2:]]
    for line in said[:-1]:
        assert "HF_HUB_OFFLINE is set, so the hub is not asked" in line
        assert "missing, " in line or "not measured: " in line
    assert len(said) == 8 and said[-1].startswith("the report: ")


def test_a_pickle_alone_is_one_sentence(tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"")
    main(["--models", str(folder), "--parts", "jaccard", "--out", str(tmp_path)])
    assert "jaccard: not measured: " in (said := capsys.readouterr().out)
    assert said.count("has no safetensors, and a pickle is not read: save the model") == 2


def test_only_models_of_the_chosen_parts_are_looked_for(world, tmp_path, capsys):
    main(["--models", world[0][0], "no/such", "no/such", "no/such", "--parts", "jaccard",
          "--rows", "3", "--out", str(tmp_path)])
    assert "no/such" not in capsys.readouterr().out
    assert (tmp_path / "report.html").read_text().count("<td>not read</td>") == 3


def test_stopped_by_hand_it_says_what_to_do(world, tmp_path, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(reproduce_parts, "_lists", stopped)
    with pytest.raises(SystemExit) as stop:
        main(["--models", world[0][0], "--parts", "jaccard", "--out", str(tmp_path)])
    assert stop.value.code == 130 and "the same command goes on" in capsys.readouterr().err


def test_the_report_explains_its_numbers(out):
    page = (out / "report.html").read_text()
    for part, (heading, what, how) in ABOUT.items():
        assert f'<h2 id="{part}">{escape(heading)}</h2>' in page
        assert escape(what) in page and escape(how) in page
    pictures = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]+)">', page)
    assert len(pictures) == len(PICTURES) and all(len(alt) > 40 for alt in pictures)
    assert "prefers-color-scheme: dark" in page and "These are not the paper" in page
    paper = pd.read_csv(PAPER)
    assert set(ABOUT) == set(PARTS) == set(paper["part"])


def test_words_that_look_like_nothing_are_words(tmp_path):
    lists = {("key", "E"): ["null", "None"], ("value", "E"): ["NA", "nan"],
             ("random direction", "E"): ["a", "b"], ("key", "dictionary"): ["N/A", "c"],
             ("random direction", "dictionary"): ["d", "e"]}
    rows = [{"what": what, "reading": reading, "rank": rank, "words": word, "score": 1.0}
            for (what, reading), words in lists.items() for rank, word in enumerate(words, 1)]
    rows += [{"what": what, "reading": "E", "rank": 1, "words": "null → NA", "score": 9.0}
             for what in ("W_VO", "W_VO, turned", "W_QK", "W_QK, turned")]
    pd.DataFrame(rows).to_csv(tmp_path / "examples.csv", index=False)
    found = of_examples(reproduce_parts.read_table(tmp_path / "examples.csv"))
    assert found["words of the FF key through E"] == Figure("null None", "a b", "1 neuron")
    assert found["words of the FF value through E"].measured == "NA nan"


def test_figures_have_the_spread_of_their_units():
    table = pd.DataFrame({"groups": "K, V", "layer": range(4), "rows": 64,
                          "real": [0.1, 0.2, 0.3, 0.6], "shuffled": [0.1, 0.1, 0.1, 0.1]})
    assert of_jaccard(table) == {"K, V": Figure("0.30 (0.10 to 0.60)", "0.10 (0.10 to 0.10)",
                                                "4 layers of 64 pairs")}
    rows = [{"group": group, "layer": i, "rows": 8, "seed": seed, "state": state,
             "separating": share}
            for group, i, seed, state, share in (
                ("K", 1, 1, "after", 0.2), ("K", 2, 1, "after", 0.4), ("K", 1, 2, "after", 0.6),
                ("K", 2, 2, "after", 0.8), ("K", 1, 0, "before", 0.1), ("K", 2, 0, "before", 0.3),
                ("head", 3, 1, "after", 1), ("head", 3, 2, "after", 1),
                ("head", 3, 1, "before", 0), ("head", 3, 2, "before", 1))]
    assert of_displacement(pd.DataFrame(rows)) == {
        "share of K that separates praise from blame": Figure(
            "0.50 (0.30 to 0.70)", "0.20; chance 0.05", "2 classifiers, 2 layers of 8 rows"),
        "heads that separate praise from blame": Figure("2 of 2", "1 of 2; chance 0.05",
                                                        "2 classifiers")}


def test_heads_are_named_as_everywhere():
    assert head("L21H7") == head("l21h7") == (21, 7)
    with pytest.raises(ValueError):
        head("21")
