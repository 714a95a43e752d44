"""Searches in an atlas against loops, its files, and the atlases that are kept of known models."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import parquet
from tiny_atlases import ROWS, TOKENS, save_twin, tiny_twins, vectors_of, worded
from tiny_models import byte_level, close, random, tiny_in_float32

from embspace_helpers import Model, load
from embspace_helpers.experiments import atlas
from embspace_helpers.experiments.atlas import Atlas, Hits, build_atlas, load_atlas, read_atlas
from embspace_helpers.experiments.atlas_lists import group_vectors
from embspace_helpers.reading import sources
from embspace_helpers.reading.judge import JUDGES, Judge
from embspace_helpers.reading.sources import ModelNotFound, fingerprint

# `like` computes in 32 bits: sums of 144 products, each off by 6e-8.
FLOAT32 = 1e-5


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
    np.testing.assert_array_equal(first.ids, second.ids)
    np.testing.assert_array_equal(first.scores, second.scores)
    assert torch.equal(first.covariance, second.covariance) and first.about == second.about


# ---- searching: an atlas written by hand, six rows of three words


@pytest.fixture
def small(vocabulary):
    rows = pd.DataFrame({
        "name": pd.Categorical(["L0N0", "L0N0", "L0N0", "L0N0", "L1H0S2", "L1H0S2"]),
        "group": pd.Categorical(["K", "K", "V", "V", "W_O", "W_O"], ["K", "V", "W_O"]),
        "layer": np.int16([0, 0, 0, 0, 1, 1]), "index": np.int32([0, 0, 0, 0, 2, 2]),
        "sign": np.int8([1, -1] * 3), "norm": np.float32(1), "coherence": np.float32([.1] * 6)})
    ids = np.array([[1, 4, 8], [9, 2, 10], [8, 3, 2], [4, 11, 12], [12, 13, 14], [14, 15, 4]])
    scores = np.array([[3, 2, 1], [9, 4, 1], [5, 4.5, 4], [3, 2, 1], [3, 2, 1], [9, 8, 1.5]])
    return Atlas(rows, ids.astype("int32"), scores.astype("float16"), torch.eye(12), vocabulary,
                 {"reading": "transpose", "directions": "2"})


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
    for row, (ids, scores) in enumerate(zip(found.ids.tolist(), found.scores.astype(float))):
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
    R, x = model.space(reading).columns().numpy(), vectors_of(model, found)[::2].numpy()
    vector = random(12, seed=5)
    dense = np.corrcoef(np.concatenate([vector[None].numpy(), x]) @ R)[0, 1:]
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
    for group in p.groups:
        part = (found.rows["group"] == group) & (found.rows["layer"] == 1)
        rows = p.vectors(group, 1)
        assert part.sum() == 2 * len(rows)
        plus = found.ids[(part & (found.rows["sign"] == 1)).to_numpy()]
        np.testing.assert_array_equal(plus[1], model.space("orthogonal").top(rows[1], 5)[1])


# ---- files


@pytest.mark.parametrize("kind", ROWS)
def test_round_trip(kind, vocabulary, tmp_path):
    found = build_atlas(worded(kind), k=5, directions=2, progress=False)
    found.save(str(tmp_path / "new" / "x.parquet"))
    again = read_atlas(str(tmp_path / "new" / "x.parquet"), vocabulary)
    same(found, again)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.parquet"]
    pd.testing.assert_frame_equal(again.search("film"), found.search("film"))


def test_a_file_of_more_rows_than_are_read_at_once(small, vocabulary, tmp_path):
    times = 2**14 // 6 * 2 + 1
    rows = pd.concat([small.rows] * times, ignore_index=True)
    ids, places = np.tile(small.ids, (times, 1)), np.arange(3 * len(rows)).reshape(-1, 3)
    large = Atlas(rows, ids, (places % 2048).astype("float16"), small.covariance, vocabulary,
                  {"version": "1", "reading": "transpose", "directions": "2"})
    large.save(tmp_path / "x.parquet")
    same(read_atlas(tmp_path / "x.parquet", vocabulary), large)


def test_other_programs_can_read_the_file(found, tmp_path):
    found.save(tmp_path / "x.parquet")
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert list(frame.columns[-3:]) == ["coherence", "words", "scores"]
    assert np.stack(frame["words"]).tolist() == found.ids.tolist()


def test_damaged_and_foreign_files(found, vocabulary, tmp_path):
    path = tmp_path / "x.parquet"
    found.save(path)
    whole = path.read_bytes()
    scores = parquet.read_metadata(path).row_group(0).column(8)
    flipped = bytearray(whole)
    flipped[scores.data_page_offset - 60] ^= 1  # in the dictionary of scores
    for data in (whole[:len(whole) // 2], whole[:-1], b"", b"no parquet" * 20, bytes(flipped)):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="x.parquet is damaged or no atlas"):
            read_atlas(path, vocabulary)
    pd.DataFrame({"words": [1, 2]}).to_parquet(path)
    with pytest.raises(ValueError, match="no atlas of version 1, but of another kind"):
        read_atlas(path, vocabulary)
    with pytest.raises(FileNotFoundError):
        read_atlas(tmp_path / "y.parquet", vocabulary)


def test_files_for_another_vocabulary_or_version(found, vocabulary, tmp_path, monkeypatch):
    found.save(tmp_path / "x.parquet")
    other = worded().vocabulary
    other.size = 20
    with pytest.raises(ValueError, match="more than the 20 tokens"):
        read_atlas(tmp_path / "x.parquet", other)
    monkeypatch.setattr(atlas, "VERSION", "2")
    with pytest.raises(ValueError, match="no atlas of version 2, but of 1"):
        read_atlas(tmp_path / "x.parquet", vocabulary)


# ---- known models: tiny twins where the bundled ones are looked for


@pytest.fixture
def twins(tmp_path, monkeypatch):
    """Folder of tiny twins, with an empty cache."""
    return tiny_twins(tmp_path, monkeypatch)


@pytest.fixture
def built(monkeypatch):
    """List of the readings that were built since."""
    calls = []

    def build(model, reading, judge=None):
        calls.append(reading)
        return build_atlas(model, reading, directions=2, judge=judge, progress=False)
    monkeypatch.setattr(atlas, "build_atlas", build)
    return calls


def test_an_atlas_is_built_once(twins, built, tmp_path):
    first = load_atlas("twin-a")
    assert first.about["model"] == "twin-a" and first.about["judge"] == "twin-b"
    assert first.rows["coherence"].notna().all()
    assert built == ["orthogonal"]
    again = load_atlas("twin-a")
    same(again, first)
    assert built == ["orthogonal"]
    load_atlas("twin-a", "transpose")
    assert built == ["orthogonal", "transpose"]
    assert sorted(p.name for p in (tmp_path / "cache" / "atlas").iterdir()) == [
        "twin-a-orthogonal.parquet", "twin-a-transpose.parquet"]


def test_an_atlas_is_the_same_by_name_or_of_a_loaded_model(twins, built, tmp_path):
    model = load("twin-a")
    first = load_atlas(model)
    assert first.vocabulary is model.vocabulary
    for name in ("twin-a", "Twin-A", " twin_a"):
        same(load_atlas(name), first)
    same(load_atlas(load("TWIN-A")), first)
    assert len(built) == 1 and len([*(tmp_path / "cache" / "atlas").iterdir()]) == 1


def test_a_model_that_is_given_or_an_atlas_that_is_there_loads_no_weights(twins, built,
                                                                           monkeypatch):
    model = load("twin-a")
    monkeypatch.setattr(atlas, "load", None)
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
    assert len(built) == 5
    assert [a.about.get("model") for a in found] == [None] * 4
    assert (found[2].ids == trained.ids).all() and found[2].rows["coherence"].isna().all()
    for one in (*found[:2], found[3]):
        assert (one.ids != trained.ids).mean() > 0.5
    assert (found[0].ids != found[1].ids).any() and (found[0].ids == found[3].ids).all()
    assert [file.name for file in (tmp_path / "cache" / "atlas").iterdir()] == [
        "twin-a-orthogonal.parquet"]
    same(load_atlas("twin-a"), trained)


@pytest.mark.parametrize("changed", ["twin-a", "twin-b"])
def test_changed_weights_of_model_or_judge(twins, built, changed):
    first = load_atlas("twin-a")
    save_twin(twins, changed, seed=7)
    second = load_atlas("twin-a")
    assert len(built) == 2
    assert (first.ids != second.ids).any() == (changed == "twin-a")
    assert (first.rows["coherence"] != second.rows["coherence"]).any()
    load_atlas("twin-a")
    assert len(built) == 2


def test_a_damaged_file_is_built_anew(twins, built):
    first = load_atlas("twin-a")
    path = atlas.atlas_path("twin-a")
    path.write_bytes(path.read_bytes()[:500])
    same(load_atlas("twin-a"), first)
    assert len(built) == 2
    load_atlas("twin-a")
    assert len(built) == 2


def test_a_cache_that_cannot_be_written(twins, built, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the atlas of twin-a cannot be kept in .*file"):
        assert len(load_atlas("twin-a").rows) == 4 * sum(ROWS["gpt2"].values())


def test_a_save_cut_off_leaves_the_old_file(found, tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    path.write_text("old")

    def cut_off(table, file, **options):
        file.write_text("half")
        raise OSError("disk full")
    monkeypatch.setattr(atlas.parquet, "write_table", cut_off)
    with pytest.raises(OSError, match="disk full"):
        found.save(path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_has_no_judge(twins, built, tmp_path):
    folder = twins / "twin-a"
    found = load_atlas(folder)
    assert found.about["judge"] == "" and found.rows["coherence"].isna().all()
    load_atlas(folder)
    assert len(built) == 1
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
