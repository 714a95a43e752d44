"""The command that measures the paper's tables, on small models of the paper's kinds."""

import pandas as pd
import pytest
from tiny_reviews import imdb_folder, reviews
from true_shapes import SMALL, paper_models

from embspace_helpers import load
from embspace_helpers.experiments.statistics import jaccard_at_k
from embspace_helpers.workshop import finetune, reproduce
from embspace_helpers.workshop.reproduce import PARTS, head, main
from embspace_helpers.workshop.reproduce_report import PAPER

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
        patch.setattr(reproduce, "MATCHED", 4)
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


def test_it_goes_on_with_what_is_missing(out, world, monkeypatch, capsys):
    before = pd.read_csv(out / "overlap.csv")
    (out / "overlap.csv").unlink()
    kept = {part: entry for part, entry in PARTS.items() if part != "overlap"}
    monkeypatch.setattr(reproduce, "PARTS", PARTS | {
        part: (n, None, summary) for part, (n, _, summary) in kept.items()})
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
    assert said.count("there are no classifiers yet: the part finetuning makes them") == 2
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


def test_heads_are_named_as_everywhere():
    assert head("L21H7") == head("l21h7") == (21, 7)
    with pytest.raises(ValueError):
        head("21")
