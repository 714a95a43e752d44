"""Searches in an atlas against loops, its files, and the atlases that are kept of known models."""

import hashlib
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import parquet
from tiny_atlases import ROWS, TOKENS, lists_of, save_twin, tiny_twins, vectors_of, worded
from tiny_models import byte_level, close, random, tiny_in_float32

from embspace_helpers import Model, load, load_reviews
from embspace_helpers.experiments import atlas_build, atlas_files, atlas_lists
from embspace_helpers.experiments.atlas import Atlas, Hits, build_atlas, load_atlas
from embspace_helpers.experiments.atlas_build import Build, atlas_path, known_build
from embspace_helpers.experiments.atlas_files import layer_path, write_layer
from embspace_helpers.experiments.atlas_lists import group_vectors
from embspace_helpers.reading import sources
from embspace_helpers.reading.judge import JUDGES, Judge
from embspace_helpers.reading.sources import ModelNotFound, fingerprint

FLOAT32 = 1e-7  # correlations are given in 32 bits


@pytest.fixture(scope="module")
def gpt2():
    return worded("gpt2")


@pytest.fixture(scope="module")
def vocabulary(gpt2):
    return gpt2.vocabulary


@pytest.fixture(scope="module")
def found(gpt2):
    """The atlas of the tiny GPT-2, with a judge."""
    ids = torch.arange(1, 36)
    judge = Judge(random(8, 40), ids[ids != 4], size=40)
    return build_atlas(gpt2, judge=judge, k=5, directions=2, progress=False)


def same(first, second):
    pd.testing.assert_frame_equal(first.rows, second.rows)
    for one, other in zip(lists_of(first), lists_of(second)):
        np.testing.assert_array_equal(one, other)
    assert first.about == second.about


def put(model, folder, layers, **options):
    """Build these layers of an atlas in a folder, as `load_atlas` does."""
    build = Build(model, folder, k=5, directions=2, **options)
    for layer in layers:
        build.layer(layer)
    return build


# ---- searching: an atlas written by hand, six rows of three words


ABOUT = {"version": "2", "reading": "transpose", "directions": "2", "L": "2", "d": "12", "e": "40",
         "k": "3", "groups": "K V W_O"}


@pytest.fixture
def small(vocabulary, tmp_path):
    rows = pd.DataFrame({
        "name": ["L0N0", "L0N0", "L0N0", "L0N0", "L1H0S2", "L1H0S2"],
        "group": ["K", "K", "V", "V", "W_O", "W_O"],
        "layer": np.int16([0, 0, 0, 0, 1, 1]), "index": np.int32([0, 0, 0, 0, 2, 2]),
        "sign": np.int8([1, -1] * 3), "norm": np.float32(1), "coherence": np.float32([.1] * 6)})
    ids = np.array([[1, 4, 8], [9, 2, 10], [8, 3, 2], [4, 11, 12], [12, 13, 14], [14, 15, 4]])
    scores = np.array([[3, 2, 1], [9, 4, 1], [5, 4.5, 4], [3, 2, 1], [3, 2, 1], [9, 8, 1.5]])
    parts = [(rows[i:i + 2], ids[i:i + 2].astype("int32"), scores[i:i + 2].astype("float16"))
             for i in (0, 2, 4)]
    write_layer(layer_path(tmp_path / "small", 0), parts[:2], ABOUT)
    write_layer(layer_path(tmp_path / "small", 1), parts[2:], ABOUT)
    return Atlas(tmp_path / "small", vocabulary)


def test_search_for_one_word_whatever_its_case_and_space(small):
    found = small.search("terrible")  # tokens 1, 2 and 3
    assert list(found) == ["name", "group", "layer", "sign", "score", "coherence", "words"]
    assert found.index.tolist() == [2, 1, 0]  # row 2 has two of them: the better placed counts
    assert found["score"].tolist() == [4.5, 4.0, 3.0]
    assert found["sign"].tolist() == ["+", "−", "+"] and found["group"].tolist() == ["V", "K", "K"]
    assert found["words"].iloc[0] == "Terrible, worda, -terrible"  # the best placed leads
    for word in ("TERRIBLE", " Terrible"):
        pd.testing.assert_frame_equal(small.search(word), found)
    assert small.search("terrible", n=2).index.tolist() == [2, 1]
    assert small.search("-terrible").index.tolist() == [1, 2]  # only the piece


def test_search_for_several_words(small):
    found = small.search("film", "terrible")
    assert found.index.tolist() == [0, 2, 1, 3, 5]  # both words; then one, by score
    assert found["score"].tolist() == [5.0, 4.5, 4.0, 3.0, 1.5]
    found = small.search("film", "terrible", "worda")  # three words; two; one
    assert found.index.tolist() == [0, 2, 1, 3, 5]
    assert found["score"].tolist() == [6.0, 9.5, 4.0, 3.0, 1.5]


def test_words_that_were_asked_for_lead_the_printed_list(small):
    found = small.search("film", "wordd")
    assert found["words"].to_dict() == {
        3: "film, wordd, worde", 0: "film, terrible, worda", 5: "film, wordg, wordh"}
    assert small.search("worda", "film")["words"][0] == "film, worda, terrible"  # in their order


@pytest.mark.parametrize("asked", [
    ["film", "terrible"], ["film terrible"], ["film, terrible"], [" film ;terrible,"],
    [["film", "terrible"]], [("film, terrible",)], ["film", ["terrible"]], ["film", "", "terrible"],
    ["film", "film", "terrible", "film"], ["film", "Film", "TERRIBLE"], ["film,film terrible"]])
def test_words_may_be_asked_for_in_many_ways_and_count_once(small, asked):
    pd.testing.assert_frame_equal(small.search(*asked), small.search("film", "terrible"))


def test_a_word_is_looked_up_once_however_often_it_is_asked_for(small, monkeypatch):
    expected, looked_up = small.search("film", "worda"), []
    monkeypatch.setattr(Atlas, "_same", lambda self, word, same=Atlas._same: (
        looked_up.append(word) or same(self, word)))
    found = small.search(*["film", "worda"] * 150, ["film"] * 300, "film " * 300)
    assert looked_up == ["film", "worda"]
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("n, message", [
    (-5, "n = -5, but it must be at least 1"), (0, "n = 0"), (2.5, "n = 2.5, .* whole number"),
    ("10", "n = '10', .* whole number"), (True, "n = True"), (None, "n = None")])
def test_n_is_a_whole_number_from_1_on(small, gpt2, n, message):
    with pytest.raises(ValueError, match=message):
        small.search("film", n=n)
    with pytest.raises(ValueError, match=message):
        small.like(torch.ones(12), gpt2, n=n)


def test_n_may_be_any_kind_of_whole_number(small):
    for n in (2.0, np.int64(2), torch.tensor(2)):
        assert small.search("film", n=n).index.tolist() == [3, 0]


def test_search_in_groups_layers_and_signs(small):
    assert small.search("film").index.tolist() == [3, 0, 5]
    assert small.search("film", groups="K").index.tolist() == [0]
    assert small.search("film", groups=["V", "W_O"]).index.tolist() == [3, 5]
    assert small.search("film", layers=1).index.tolist() == [5]
    for groups in ({"V", "W_O"}, ("V", "W_O"), (g for g in ("V", "W_O")), np.array(["V", "W_O"])):
        assert small.search("film", groups=groups).index.tolist() == [3, 5]
    assert small.search("film", layers=range(2), sign=1).index.tolist() == [0]
    assert small.search("film", sign=-1, layers=np.arange(1)).index.tolist() == [3]


def test_search_for_what_is_not_there(small):
    empty = small.search("films")  # a token, but in no list
    assert len(empty) == 0 and list(empty.columns) == list(small.search("film").columns)
    assert len(small.search("worda", groups="W_O")) == 0
    for word in ("terribly", "<unk>"):
        with pytest.raises(ValueError, match=f"'{word}' is not one token"):
            small.search("film", word)
    for nothing in ((), ("",), (" ",), (", ;",), ([],), ("", [" "])):
        with pytest.raises(ValueError, match="search needs at least one word, got"):
            small.search(*nothing)
    for wrong in (3, None, ["film", 4]):
        with pytest.raises(ValueError, match="words are strings, got (3|None|4)"):
            small.search(wrong)
    for choice, message in (({"groups": "gate"}, "no group 'gate' .* K, V, W_O"),
                            ({"layers": [0, 7]}, "no layer 7 .* 0, 1"),
                            ({"layers": np.arange(3)}, "no layer 2 .* 0, 1"),
                            ({"groups": {"gate"}}, "no group 'gate' .* K, V, W_O"),
                            ({"sign": 0}, "no sign 0 .* 1, -1")):
        with pytest.raises(ValueError, match=message):
            small.search("film", **choice)


def test_search_against_a_loop(found):
    hits = []
    lists = (x.tolist() for x in lists_of(found))
    for row, (ids, scores) in enumerate(zip(*lists)):
        best = [max((s for i, s in zip(ids, scores) if i in word), default=None)
                for word in ({1, 2, 3}, {4}, {20})]
        present = [s for s in best if s is not None]
        if present:
            hits.append((-len(present), -sum(present), row))
    result = found.search("terrible", "film", "wordm", n=1000)
    assert len(hits) > 50 and min(hits)[0] < -1
    assert found.search("terrible")["score"].dtype == "float32"
    assert result.index.tolist() == [row for _, _, row in sorted(hits)]


def test_words_tables_and_text(small):
    assert small.words(1) == ["wordb", "-terrible", "wordc"] and small.words(1, 1) == ["wordb"]
    for row, k, message in ((6, 1, "no row 6: rows are 0 to 5"), ("L0N1", 1, "no row 'L0N1'"),
                            (1, 0, "k = 0"), (1, 4, "k = 4, .* 3 words of a list")):
        with pytest.raises(ValueError, match=message):
            small.words(row, k)
    table = small.table(small.search("terrible").index[:2], k=2, title="Two")
    assert table.columns == {"L0N0 V +": [("worda", 5.0), ("Terrible", 4.5)],
                             "L0N0 K −": [("wordb", 9.0), ("-terrible", 4.0)]}
    assert table.title == "Two"
    assert repr(small) == ("Atlas of a model, transpose reading: 6 rows of 3 words, groups K, V, "
                           "W_O")


def test_tables_of_rows_given_in_many_ways(small):
    hits = small.search("terrible")
    expected = small.table([2, 1, 0], k=2).columns
    for rows in (hits, hits.index, hits.index.tolist(), np.array([2, 1, 0]), iter([2, 1, 0])):
        assert small.table(rows, k=2).columns == expected
    assert small.table(2, k=2).columns == small.table(np.int64(2), k=2).columns == {
        "L0N0 V +": expected["L0N0 V +"]}


@pytest.mark.parametrize("rows, k, message", [
    (["L0N1"], 2, "no row 'L0N1': rows are numbers from 0 to 5, such as the index of what "),
    ("L0N1", 2, "no row 'L0N1'"), ([0, 6], 2, "no row 6"), ([-1], 2, "no row -1"),
    ([0], 4, "k = 4, but it must be between 1 and the 3 words of a list there are"),
    ([0], -2, "k = -2")])
def test_tables_of_unknown_rows_or_words(small, rows, k, message):
    with pytest.raises(ValueError, match=message):
        small.table(rows, k)


def test_hits_show_whole_lists_and_numbers_in_two_digits(gpt2):
    hits = build_atlas(gpt2, k=12, directions=2, progress=False).search("film", n=30)
    assert hits["words"].str.len().min() > 50  # what pandas cuts
    for part in (hits, hits.head(2), hits[hits["sign"] == "+"], hits[["score", "words"]]):
        assert isinstance(part, Hits)
        for text in (part._repr_html_(), repr(part)):
            assert all(words in text for words in part["words"])
            assert f"{part['score'].iloc[0]:.2f}" in text
            assert f"{part['score'].iloc[0]:.3f}" not in text
    assert all(len(words.split(", ")) == 8 for words in hits["words"])
    assert pd.get_option("display.max_colwidth") == 50  # only while they are shown


# ---- likeness


@pytest.mark.parametrize("reading", ["transpose", "orthogonal"])
def test_like_is_the_correlation_of_scores(reading):
    model = worded("llama")
    found = build_atlas(model, reading, k=3, directions=2, progress=False)
    x, vector = vectors_of(model, found)[::2].numpy(), random(12, seed=5)
    both = [np.corrcoef(np.concatenate([vector[None].numpy(), x])
                        @ model.space(reading, output=side).columns().numpy())[0, 1:]
            for side in (False, True)]  # through E, and through E_out: this model is untied
    dense = np.where(found.rows["group"][::2].isin(["V", "W_O", "VO_writes"]), *both[::-1])
    expected = np.argsort(-np.abs(dense))[:20]
    result = found.like(vector, model, n=20)
    close(result["correlation"], dense[expected], FLOAT32)
    assert result.index.tolist() == [2 * i + (dense[i] < 0) for i in expected]
    assert result["sign"].tolist() == ["−" if dense[i] < 0 else "+" for i in expected]
    assert list(result.columns) == ["name", "group", "layer", "sign", "correlation", "coherence",
                                    "words"]


@pytest.mark.parametrize("group", ["gate", "W_O", "VO_writes"])
def test_a_vector_is_most_like_itself(group):
    model = worded("llama")
    found = build_atlas(model, k=3, directions=2, progress=False)
    vector = 3 * group_vectors(model.parameters, group, 1, 2)[0][5]
    for sign, text in ((1, "+"), (-1, "−")):
        first = found.like(sign * vector, model, n=3).iloc[0]
        assert (first["group"], first["layer"], first["sign"]) == (group, 1, text)
        assert found.rows["index"][first.name] == 5
        assert first["correlation"] == pytest.approx(sign, abs=FLOAT32)
        others = found.like(sign * vector, model, n=300, groups=["V", group], layers=0)
        assert set(others["layer"]) == {0} and set(others["group"]) == {"V", group}
        assert len(others) == 20 + ROWS["llama"][group]


def test_like_takes_numbers_of_any_kind(found, gpt2):
    vector = random(12, seed=5)
    expected = found.like(vector, gpt2)
    for given in (vector.numpy(), vector.tolist(), vector.float()):
        pd.testing.assert_frame_equal(found.like(given, gpt2), expected)


def test_errors_of_like(found, gpt2):
    with pytest.raises(ValueError, match=r"expected one vector \(d,\), got of shape \(2, 12\)"):
        found.like(torch.zeros(2, 12), gpt2)
    with pytest.raises(ValueError, match=r"with d = 12, got of shape \(11,\)"):
        found.like(torch.zeros(11), gpt2)
    with pytest.raises(ValueError, match="no group 'gate'"):
        found.like(torch.zeros(12), gpt2, groups="gate")
    with pytest.raises(ValueError, match="expected a Model, .* got Parameters"):
        found.like(torch.zeros(12), gpt2.parameters)
    with pytest.raises(ValueError, match="vectors with d = 12, the model has d = 8: it is another"):
        found.like(torch.zeros(12), worded("mistral"))


def test_an_atlas_of_every_architecture(kind):
    model = worded(kind)
    p, found = model.parameters, build_atlas(model, k=5, directions=2, progress=False)
    assert p.tied == model.model.config.tie_word_embeddings == ("E_out" not in found.about["sides"])
    ids, _ = lists_of(found)
    for group in p.groups:
        part = (found.rows["group"] == group) & (found.rows["layer"] == 1)
        rows = p.vectors(group, 1)
        assert part.sum() == 2 * len(rows)
        plus = ids[(part & (found.rows["sign"] == 1)).to_numpy()]
        rows = group_vectors(p, group, 1)[0]
        space = model.space("orthogonal", output=group in ("V", "W_O"))
        np.testing.assert_array_equal(plus[1], space.top(rows[1], 5)[1])


# ---- files


def test_the_table_of_all_rows(small):
    rows = small.rows
    assert list(rows.columns) == ["name", "group", "layer", "index", "sign", "norm", "coherence"]
    assert list(rows["group"].cat.categories) == ["K", "V", "W_O"] and len(small) == len(rows) == 6
    assert rows["name"].tolist() == ["L0N0"] * 4 + ["L1H0S2"] * 2
    found = small.files.take([5, 0, 5, 3])
    assert found.table.index.tolist() == [5, 0, 5, 3]
    assert found.table["group"].tolist() == ["W_O", "K", "W_O", "V"]
    assert found.ids[:, 0].tolist() == [14, 1, 14, 4]
    assert found.scores[:, 0].tolist() == [9, 3, 9, 3]


@pytest.mark.parametrize("kind", ROWS)
def test_an_atlas_in_a_folder(kind, vocabulary, tmp_path):
    model = worded(kind)
    build = put(model, tmp_path / "new", [1, 0])
    assert build.missing() == []
    again = Atlas(str(tmp_path / "new"), vocabulary)
    same(build_atlas(model, k=5, directions=2, progress=False), again)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "layer-000.parquet", "layer-001.parquet"]


def test_a_search_reads_only_what_it_was_asked_for(found, monkeypatch):
    read = []
    whole = atlas_files.Files._read
    monkeypatch.setattr(atlas_files.Files, "_read", lambda self, layer, parts, *columns: (
        read.extend((layer, part.group) for part in parts) or whole(self, layer, parts, *columns)))
    assert len(found.search("film", groups=["V", "W_O"], layers=1))
    assert set(read) == {(1, "V"), (1, "W_O")}


def test_a_temporary_folder_goes_with_its_atlas(gpt2):
    found = build_atlas(gpt2, k=5, directions=2, progress=False)
    folder = found.files.folder
    assert folder.is_dir()
    del found
    assert not folder.exists()


def test_other_programs_can_read_the_files(found):
    frame = pd.read_parquet(found.files.folder)
    assert list(frame.columns[-3:]) == ["coherence", "words", "scores"]
    assert np.stack(frame["words"]).tolist() == lists_of(found)[0].tolist()


def test_damaged_and_foreign_files(gpt2, vocabulary, tmp_path):
    build = put(gpt2, tmp_path / "x", [0, 1])
    path = layer_path(tmp_path / "x", 1)
    whole = path.read_bytes()
    for data in (whole[:len(whole) // 2], whole[:-1], b"", b"no parquet" * 20):
        path.write_bytes(data)
        assert build.missing() == [1]
        with pytest.raises(ValueError, match="of 2 layers in .*x are missing, damaged .*: 1. A bu"):
            Atlas(tmp_path / "x", vocabulary)
    scores = parquet.read_metadata(layer_path(tmp_path / "x", 0)).row_group(0).column(8)
    flipped = bytearray(whole)
    flipped[scores.data_page_offset + scores.total_compressed_size - 9] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match="layer-001.parquet is damaged: .* Delete it"):
        Atlas(tmp_path / "x", vocabulary).search("film", n=1000)
    pd.DataFrame({"words": [1, 2]}).to_parquet(layer_path(tmp_path / "x", 0))
    with pytest.raises(ValueError, match="no atlas of version 2, but of another kind"):
        Atlas(tmp_path / "x", vocabulary)
    with pytest.raises(FileNotFoundError, match="there is no atlas in .*y"):
        Atlas(tmp_path / "y", vocabulary)


def test_files_for_another_vocabulary_or_version(gpt2, vocabulary, tmp_path, monkeypatch):
    put(gpt2, tmp_path / "x", [0, 1])
    other = worded().vocabulary
    other.size = 20
    with pytest.raises(ValueError, match="a vocabulary of 40 tokens, not of 20"):
        Atlas(tmp_path / "x", other)
    monkeypatch.setattr(atlas_files, "VERSION", "3")
    with pytest.raises(ValueError, match="no atlas of version 3, but of 2"):
        Atlas(tmp_path / "x", vocabulary)


def test_a_layer_cut_off_leaves_the_old_file(small, gpt2, tmp_path):
    def groups():
        yield next(iter([(small.rows[:2], *(x[:2] for x in lists_of(small)))]))
        raise OSError("disk full")
    path = tmp_path / "x.parquet"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_layer(path, groups(), ABOUT)
    assert path.read_text() == "old"
    assert not list(tmp_path.glob("*.part"))


KILLED = """
import sys, time
from embspace_helpers.experiments import atlas_build, atlas_files
from embspace_helpers.experiments.atlas import load_atlas

lists = atlas_build.layer_lists
def slow(model, layer, *rest):
    for number, group in enumerate(lists(model, layer, *rest)):
        if layer == 1 and number == 2:  # in the middle of a file
            print("half", flush=True)
            time.sleep(600)
        yield group
atlas_build.layer_lists = slow
load_atlas(sys.argv[1])
"""


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_files_from_before_there_were_sides_go_on_for_tied_models_only(kind, tmp_path, monkeypatch):
    """An untied model's writers were read through E then."""
    model = tiny_in_float32(kind)
    model.save_pretrained(tmp_path / "mine")
    byte_level(TOKENS, unk_token="<unk>").save_pretrained(tmp_path / "mine")
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path / "cache"))
    name, loaded = str(tmp_path / "mine"), load(tmp_path / "mine")
    with monkeypatch.context() as patch:
        patch.setattr(atlas_lists, "side_of", lambda params, group: "E")
        build = known_build(name)
        build.about.pop("sides", None)
        for layer in range(2):
            build.layer(layer)
    old = lists_of(Atlas(build.folder, build.model.vocabulary))[0]
    wrote, layer = [], Build.layer
    monkeypatch.setattr(Build, "layer", lambda self, i: wrote.append(i) or layer(self, i))
    for given in (loaded, name, loaded):
        new = load_atlas(given)
        assert wrote == ([] if kind == "gpt2" else [0, 1])  # once
    rows = new.rows["group"].isin(["V", "W_O", "VO_writes"]).to_numpy()
    changed = (old != lists_of(new)[0]).any(1)
    assert not changed[~rows].any() and changed[rows].mean() == (0 if kind == "gpt2" else 1)


def test_a_killed_build_goes_on_and_gives_the_same_atlas(tmp_path, monkeypatch):
    save_twin(tmp_path, "mine", seed=3, layers=3)
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path / "cut"))
    with subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "mine"],
                          stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    folder = atlas_path(str(tmp_path / "mine"))
    names = sorted(file.name for file in folder.iterdir())
    assert names[0] == "layer-000.parquet" and len(names) == 2 and names[1].endswith(".part")
    first = layer_path(folder, 0).stat().st_mtime_ns
    wrote, layer = [], Build.layer
    monkeypatch.setattr(Build, "layer", lambda self, i: wrote.append(i) or layer(self, i))
    again = load_atlas(tmp_path / "mine")
    assert wrote == [1, 2] and layer_path(folder, 0).stat().st_mtime_ns == first
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path / "whole"))
    same(again, load_atlas(tmp_path / "mine"))


# ---- known models: tiny twins where the bundled ones are looked for


@pytest.fixture
def twins(tmp_path, monkeypatch):
    """Folder of tiny twins, with an empty cache."""
    monkeypatch.setattr(atlas_build, "DIRECTIONS", 2)
    return tiny_twins(tmp_path, monkeypatch)


@pytest.fixture
def built(monkeypatch):
    """List of the (reading, layer) that were built since."""
    calls, layer = [], Build.layer
    monkeypatch.setattr(Build, "layer", lambda self, i: (
        calls.append((self.about["reading"], i)) or layer(self, i)))
    return calls


def test_an_atlas_is_built_once(twins, built, tmp_path):
    first = load_atlas("twin-a")
    assert first.about["model"] == "twin-a" and first.about["judge"] == "twin-b"
    assert first.rows["coherence"].notna().all()
    assert built == [("orthogonal", 0), ("orthogonal", 1)]
    again = load_atlas("twin-a")
    same(again, first)
    assert len(built) == 2
    load_atlas("twin-a", "transpose")
    assert built[2:] == [("transpose", 0), ("transpose", 1)]
    assert sorted(p.name for p in (tmp_path / "cache" / "atlas").iterdir()) == [
        "twin-a-orthogonal", "twin-a-transpose"]


def test_an_atlas_of_dictionaries_is_kept_for_its_texts(twins, built):
    texts = ["éĊéĊéé", "ĊéĊé"]  # the tokens that this tokenizer finds in a text
    first = load_atlas("twin-a", "dictionary", texts)
    same(load_atlas("twin-a", "Dictionary", tuple(texts)), first)
    assert len(built) == 2
    load_atlas("twin-a", "dictionary", texts[:1])
    assert len(built) == 4
    with pytest.raises(ValueError, match="texts are for the reading 'dictionary', 'centred' needs"):
        load_atlas("twin-a", "centred", texts)


def test_dictionaries_are_fitted_on_embedded_reviews_by_default(twins):
    assert atlas_build.texts_of("dictionary", None) == load_reviews("train", 40)["text"].tolist()
    assert atlas_build.texts_of("orthogonal", None) is None


def test_an_atlas_is_the_same_by_name_or_of_a_loaded_model(twins, built, tmp_path):
    model = load("twin-a")
    first = load_atlas(model)
    assert first.vocabulary is model.vocabulary
    for name in ("twin-a", "Twin-A", " twin_a"):
        same(load_atlas(name), first)
    same(load_atlas(load("TWIN-A")), first)
    assert len(built) == 2 and len([*(tmp_path / "cache" / "atlas").iterdir()]) == 1


def test_a_model_that_is_given_or_an_atlas_that_is_there_loads_no_weights(twins, built,
                                                                           monkeypatch):
    model = load("twin-a")
    monkeypatch.setattr(atlas_build, "load", None)
    expected = load_atlas(model)  # this one loads the judge
    monkeypatch.setattr("embspace_helpers.reading.model.read_model", None)
    same(load_atlas("twin-a"), expected)
    assert load_atlas("twin-a").vocabulary.shown == model.vocabulary.shown
    assert load_atlas(model).vocabulary is model.vocabulary


def test_atlases_of_untrained_and_of_self_made_models_are_not_kept(twins, built, tmp_path):
    trained, model = load_atlas("twin-a"), load("twin-a")
    untrained, other = (load("twin-a", untrained=True, seed=seed) for seed in (0, 1))
    mine = Model(model.model, model.tokenizer)
    named = Model(untrained.model, model.tokenizer, "twin-a")
    found = [load_atlas(m) for m in (untrained, other, mine, named)]
    assert len(built) == 10
    assert [a.about.get("model") for a in found] == [None] * 4
    ids, found_ids = lists_of(trained)[0], [lists_of(a)[0] for a in found]
    assert (found_ids[2] == ids).all() and found[2].rows["coherence"].isna().all()
    for one in (*found_ids[:2], found_ids[3]):
        assert (one != ids).mean() > 0.5
    assert (found_ids[0] != found_ids[1]).any() and (found_ids[0] == found_ids[3]).all()
    assert [file.name for file in (tmp_path / "cache" / "atlas").iterdir()] == [
        "twin-a-orthogonal"]
    same(load_atlas("twin-a"), trained)


@pytest.mark.parametrize("changed", ["twin-a", "twin-b"])
def test_changed_weights_of_model_or_judge(twins, built, changed):
    first = load_atlas("twin-a")
    before = lists_of(first)[0], first.rows["coherence"]
    save_twin(twins, changed, seed=7)
    second = load_atlas("twin-a")
    assert len(built) == 4
    assert (before[0] != lists_of(second)[0]).any() == (changed == "twin-a")
    assert (before[1] != second.rows["coherence"]).any()
    load_atlas("twin-a")
    assert len(built) == 4


def test_a_damaged_layer_is_built_anew(twins, built, tmp_path):
    first = lists_of(load_atlas("twin-a"))
    path = layer_path(atlas_path("twin-a"), 1)
    path.write_bytes(path.read_bytes()[:500])
    for one, other in zip(lists_of(load_atlas("twin-a")), first):
        np.testing.assert_array_equal(one, other)
    assert [layer for _, layer in built] == [0, 1, 1]
    load_atlas("twin-a")
    assert len(built) == 3


def test_a_cache_that_cannot_be_written(twins, built, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the atlas of twin-a cannot be kept in .*file"):
        assert len(load_atlas("twin-a")) == 4 * sum(ROWS["gpt2"].values())


def test_a_folder_has_no_judge(twins, built, tmp_path):
    folder = twins / "twin-a"
    found = load_atlas(folder)
    assert found.about["judge"] == "" and found.rows["coherence"].isna().all()
    load_atlas(folder)
    assert len(built) == 2
    assert len(list((tmp_path / "cache" / "atlas").iterdir())) == 1
    with pytest.raises(ModelNotFound):
        load_atlas(tmp_path / "nothing")


def test_fingerprints_of_folders_and_files(twins, tmp_path):
    weights = (twins / "twin-a" / "model.safetensors").read_bytes()
    assert fingerprint("twin-a") == hashlib.sha256(weights).hexdigest()
    assert fingerprint(twins / "twin-a") == fingerprint("twin-a") != fingerprint("twin-b")
    (twins / "twin-a" / "model-2.safetensors").write_bytes(b"another part")
    assert fingerprint("twin-a") != hashlib.sha256(weights).hexdigest()
    (tmp_path / "x[1].gguf").write_bytes(b"weights")
    assert fingerprint(tmp_path / "x[1].gguf") == hashlib.sha256(b"weights").hexdigest()


# ---- judges


def test_the_judge_of_a_twin_is_notebook_01s():
    assert set(JUDGES) == set(sources.MODELS)
    model = load("twin-a")
    ids = model.vocabulary.keep(whole_words=True, min_count=200).nonzero().squeeze(1)
    expected = Judge(load("twin-b").parameters.E, ids, len(model.vocabulary))
    assert torch.equal(model.judge.row, expected.row)
    assert torch.equal(model.judge.vectors, expected.vectors)


def test_the_judge_of_another_vocabulary_knows_the_shared_words(gpt2):
    tokens = ["<unk>", *reversed(TOKENS[1:-10]), *(f"Ġother{i}" for i in range(10))]
    model = Model(tiny_in_float32("gpt2"), byte_level(tokens, unk_token="<unk>"))
    words = [i for i, t in enumerate(TOKENS[:-10]) if t[0] == "Ġ" and t != "ĠTerrible"]
    judge_ids = torch.tensor([tokens.index(TOKENS[i]) for i in words])
    expected = Judge(model.parameters.E, torch.tensor(words), 40, judge_ids)
    found = gpt2.judged_by(model)
    assert torch.equal(found.row, expected.row) and torch.equal(found.vectors, expected.vectors)


def test_no_judge(gpt2):
    with pytest.raises(ValueError, match="no judge is set for 'this model': there are judges for "
                                         "twin-a, .*judged_by"):
        _ = gpt2.judge
