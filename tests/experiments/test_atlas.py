"""The atlas of tiny models against Space and Judge; searches against loops; the cache."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import parquet
from tokenizers import Tokenizer, models as tokenizer_models
from transformers import (BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig,
                          LlamaForCausalLM, PreTrainedTokenizerFast)

import embspace_helpers.reading.models
from embspace_helpers.experiments import atlas
from embspace_helpers.experiments.atlas import Atlas, build_atlas, load_atlas, read_atlas
from embspace_helpers.experiments.atlas_lists import HEAD_GROUPS, group_vectors
from embspace_helpers.experiments.controls import random_directions
from embspace_helpers.reading.judge import JUDGES, Judge
from embspace_helpers.reading.model import Model, load
from embspace_helpers.reading.models import ModelNotFound, fingerprint
from embspace_helpers.reading.vocabulary import load_vocabulary
from embspace_helpers.workshop import atlases

ITEMS = ["<unk>", "Ġterrible", "terrible", "ĠTerrible", "Ġfilm", "ing", "Ġfilms", "é",
         *(f"Ġword{letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCDE"), "Ċ"]
SIZES = {"vocab_size": 40, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 32}
MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(
        vocab_size=40, n_positions=32, n_embd=12, n_inner=20, n_layer=2, n_head=3)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(
        **SIZES, num_key_value_heads=2, head_dim=6, tie_word_embeddings=False)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
}
HEADS = ("VO_reads", "VO_writes", "QK_query", "QK_key")
SUBHEADS = ("W_Q", "W_K", "W_V", "W_O")
ROWS = {  # vectors of each group in a layer, with 2 directions a head
    "gpt2": {"K": 20, "V": 20} | dict.fromkeys(SUBHEADS, 12) | dict.fromkeys(HEADS, 6),
    "llama": {"gate": 20, "up": 20, "V": 20, "W_Q": 24, "W_K": 12, "W_V": 12, "W_O": 24}
    | dict.fromkeys(HEADS, 8),
    "bert": {"K": 20, "V": 20} | dict.fromkeys(SUBHEADS, 12) | dict.fromkeys(HEADS, 8),
}


def tiny(kind, seed=0):
    torch.manual_seed(seed)
    model = MODELS[kind]()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape))
    return model


def tiny_tokenizer(items=ITEMS):
    model = tokenizer_models.WordLevel(vocab={t: i for i, t in enumerate(items)}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")


def read(kind="gpt2", double=False, seed=0):
    """A tiny model, to be read."""
    model = tiny(kind, seed)
    return Model(model.double() if double else model, tiny_tokenizer())


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary(tiny("gpt2"), tiny_tokenizer())


@pytest.fixture(scope="module")
def judge():
    ids = torch.arange(1, 36)
    return Judge(random_directions(8, 40), ids[ids != 4], size=40)


@pytest.fixture(scope="module", params=MODELS)
def case(request, vocabulary, judge):
    """(kind, model in float64, atlas)"""
    model = read(request.param, double=True)
    return request.param, model, build_atlas(model, judge=judge, k=5, directions=2, progress=False)


@pytest.fixture(scope="module")
def gpt2(vocabulary):
    model = read()
    return model, build_atlas(model, k=5, directions=2, progress=False)


def vectors_of(model, found):
    """The vector of every row of an atlas, (rows, d), by its group, layer, index and sign."""
    rows = zip(found.rows["group"], found.rows["layer"], found.rows["index"], found.rows["sign"])
    return torch.stack([s * group_vectors(model.parameters, g, layer, 2)[0][i] for g, layer, i, s in rows])


def same(first, second):
    pd.testing.assert_frame_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.ids, second.ids)
    np.testing.assert_array_equal(first.scores, second.scores)
    assert torch.equal(first.covariance, second.covariance) and first.about == second.about


# ---- vectors of heads


def test_head_vectors_are_those_of_W_VO_and_W_QK(case):
    params = case[1].parameters
    for head in range(params.H):
        for W, row, column in ((params.W_VO(1, head).dense(), "VO_reads", "VO_writes"),
                               (params.W_QK(1, head).dense(), "QK_query", "QK_key")):
            (U, S), (V, S_too) = (group_vectors(params, g, 1, 2) for g in (row, column))
            assert torch.equal(S, S_too)
            U, S, V = (x[2 * head:2 * head + 2] for x in (U, S, V))
            torch.testing.assert_close(S, torch.linalg.svdvals(W)[:2])
            torch.testing.assert_close(U @ W, S[:, None] * V)


# ---- building


def test_every_vector_has_two_rows(case):
    kind, params, found = case[0], case[1].parameters, case[2]
    rows = found.rows
    assert list(rows.columns) == ["name", "group", "layer", "index", "sign", "norm", "coherence"]
    assert list(rows["group"].cat.categories) == [*params.groups, *HEAD_GROUPS]
    counts = rows.groupby(["layer", "group", "sign"], observed=True).size()
    assert counts.to_dict() == {(layer, group, sign): n for layer in (0, 1)
                                for group, n in ROWS[kind].items() for sign in (1, -1)}
    for _, part in rows.groupby(["layer", "group"], observed=True):
        assert part["index"].tolist() == [i for i in range(len(part) // 2) for _ in (1, -1)]
        assert part["sign"].tolist() == [1, -1] * (len(part) // 2)
    names = [f"L{layer}H{i // 2}D{i % 2}" if group in HEADS else params.label(group, layer, i)
             for group, layer, i in zip(rows["group"], rows["layer"], rows["index"])]
    assert rows["name"].tolist() == names
    norms = torch.cat([group_vectors(params, g, layer, 2)[1].repeat_interleave(2)
                       for layer in (0, 1) for g in ROWS[kind]])
    np.testing.assert_allclose(rows["norm"], norms, rtol=1e-6)
    first = rows[(rows["group"] == "V") & (rows["layer"] == 1)]["norm"].iloc[0]
    assert first == pytest.approx(float(params.V(1)[0].norm()))


def test_memory_is_compact(case):
    found = case[2]
    assert found.ids.dtype == np.int32 and found.scores.dtype == np.float16
    assert [str(t) for t in found.rows.dtypes] == ["category", "category", "int16", "int32", "int8",
                                                   "float32", "float32"]


def test_lists_are_those_of_the_space(case, vocabulary, judge):
    _, model, found = case
    space, x = model.space("orthogonal"), vectors_of(model, found)
    assert found.ids.tolist() == space.top(x, 5)[1].tolist()
    scores = space.project(x)
    z = (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)
    np.testing.assert_allclose(found.scores, z.sort(1, descending=True).values[:, :5], rtol=1e-3)
    known = space.only(judge.keep)
    np.testing.assert_allclose(found.rows["coherence"], judge.coherence(known.top(x, 10)[1]),
                               atol=1e-6)


@pytest.mark.parametrize("reading", ["transpose", "pseudo-inverse"])
def test_other_readings_tokens_judges_and_batches(vocabulary, judge, reading):
    model = read(double=True)
    params = model.parameters
    keep = torch.arange(40) >= 12  # the judge knows items that are not kept, and not all kept ones
    found = build_atlas(model, reading, keep=keep, judge=judge, k=28,
                        directions=1, progress=False, batch=7)
    for part, n in ((found.rows["group"] == "V", 80), (found.rows["group"] == "VO_reads", 12)):
        assert part.sum() == n
    rows = found.rows["group"] == "V"
    x = torch.cat([torch.stack([v, -v]) for v in torch.cat([params.V(0), params.V(1)])])
    space = model.space(reading, keep)
    assert found.ids[rows].tolist() == space.top(x, 28)[1].tolist()
    known = model.space(reading, judge.keep)
    np.testing.assert_allclose(found.rows["coherence"][rows],
                               judge.coherence(known.top(x, 10)[1]), atol=1e-6)


def test_without_a_judge_there_is_no_coherence(gpt2):
    assert gpt2[1].rows["coherence"].isna().all()


@torch.no_grad()
def test_a_zero_vector_scores_zero(vocabulary):
    model = tiny("gpt2")
    model.transformer.h[0].mlp.c_proj.weight[3] = 0  # value 3
    model = Model(model, tiny_tokenizer())
    found = build_atlas(model, k=5, directions=1, progress=False)
    rows = found.rows.query("group == 'V' and layer == 0 and index == 3").index
    assert (found.scores[rows] == 0).all() and (found.scores[rows - 2] != 0).all()
    assert np.isfinite(found.scores).all()
    value = found.like(torch.ones(12), model, n=40, groups="V", layers=0)
    assert value["correlation"].iloc[-1] == 0


def test_the_bar_can_be_switched_off(vocabulary, capsys):
    model = read()
    build_atlas(model, k=2, directions=1, progress=False)
    assert capsys.readouterr().err == ""
    build_atlas(model, k=2, directions=1)
    assert "2/2" in capsys.readouterr().err


def test_errors_of_building(vocabulary, judge):
    model, kept = read(), int(vocabulary.keep().sum())
    few = Judge(random_directions(8, 40), torch.arange(1, 10), size=40)
    for options, message in (({"k": 0}, f"k = 0, .* {kept} kept tokens"),
                             ({"k": kept + 1}, f"k = {kept + 1}, .* {kept} kept tokens"),
                             ({"judge": few}, "coherence = 10, .* 9 words of the judge"),
                             ({"keep": torch.ones(30, dtype=torch.bool)}, "keep must be a mask"),
                             ({"reading": "pca"}, "no reading 'pca'"),
                             ({"directions": 5}, "n = 5, .* singular directions")):
        with pytest.raises(ValueError, match=message):
            build_atlas(model, progress=False, **options)


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
    found = small.search("terrible")  # items 1, 2 and 3
    assert list(found.columns) == ["name", "group", "layer", "sign", "score", "coherence", "words"]
    assert found.index.tolist() == [2, 1, 0]  # row 2 has two of them: the better placed counts
    assert found["score"].tolist() == [4.5, 4.0, 3.0]
    assert found["sign"].tolist() == ["+", "−", "+"] and found["group"].tolist() == ["V", "K", "K"]
    assert found["words"].iloc[0] == "Terrible, worda, -terrible"  # the word asked for leads
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


def test_search_in_groups_layers_and_signs(small):
    assert small.search("film").index.tolist() == [3, 0, 5]
    assert small.search("film", groups="K").index.tolist() == [0]
    assert small.search("film", groups=["V", "W_O"]).index.tolist() == [3, 5]
    assert small.search("film", layers=1).index.tolist() == [5]
    assert small.search("film", layers=range(2), sign=1).index.tolist() == [0]
    assert small.search("film", sign=-1, layers=np.arange(1)).index.tolist() == [3]


def test_search_for_what_is_not_there(small):
    empty = small.search("films")  # an item, but in no list
    assert len(empty) == 0 and list(empty.columns) == list(small.search("film").columns)
    assert len(small.search("worda", groups="W_O")) == 0
    for word in ("terribly", "<unk>"):
        with pytest.raises(ValueError, match=f"'{word}' is not one token"):
            small.search("film", word)
    with pytest.raises(ValueError, match="at least one word"):
        small.search()
    for choice, message in (({"groups": "gate"}, "no group 'gate' .* K, V, W_O"),
                            ({"layers": [0, 7]}, "no layer 7 .* 0, 1"),
                            ({"sign": 0}, "no sign 0 .* 1, -1")):
        with pytest.raises(ValueError, match=message):
            small.search("film", **choice)


def test_search_against_a_loop(case, vocabulary):
    found = case[2]
    hits = []
    for row, (ids, scores) in enumerate(zip(found.ids.tolist(), found.scores.astype(float))):
        best = [max((s for i, s in zip(ids, scores) if i in word), default=None)
                for word in ({1, 2, 3}, {4}, {20})]
        present = [s for s in best if s is not None]
        if present:
            hits.append((-len(present), -sum(present), row))
    result = found.search("terrible", "film", "wordm", n=1000)
    assert len(hits) > 50 and min(hits)[0] < -1
    assert result.index.tolist() == [row for _, _, row in sorted(hits)]


def test_words_tables_and_text(small):
    assert small.words(1) == ["wordb", "-terrible", "wordc"] and small.words(1, 1) == ["wordb"]
    table = small.table(small.search("terrible").index[:2], k=2, title="Two")
    assert table.columns == {"L0N0 V +": [("worda", 5.0), ("Terrible", 4.5)],
                             "L0N0 K −": [("wordb", 9.0), ("-terrible", 4.0)]}
    assert table.title == "Two"
    assert repr(small) == ("Atlas of a model, transpose reading: 6 rows of 3 words, groups K, V, "
                           "W_O")


# ---- likeness


@pytest.mark.parametrize("reading", ["transpose", "orthogonal"])
def test_like_is_the_correlation_of_scores(vocabulary, reading):
    model = read("llama", double=True)
    found = build_atlas(model, reading, k=3, directions=2, progress=False)
    R = model.space(reading).columns().numpy()
    x = vectors_of(model, found)[::2].numpy()
    vector = random_directions(1, 12, seed=5)[0].double()
    dense = np.corrcoef(np.concatenate([vector[None].numpy(), x]) @ R)[0, 1:]
    expected = np.argsort(-np.abs(dense))[:20]
    result = found.like(vector, model, n=20)
    np.testing.assert_allclose(result["correlation"], dense[expected], atol=1e-5)
    assert result.index.tolist() == [2 * i + (dense[i] < 0) for i in expected]
    assert result["sign"].tolist() == ["−" if dense[i] < 0 else "+" for i in expected]
    assert list(result.columns) == ["name", "group", "layer", "sign", "correlation", "coherence",
                                    "words"]


@pytest.mark.parametrize("group", ["gate", "W_O", "VO_writes"])
def test_a_vector_is_most_like_itself(vocabulary, group):
    model = read("llama")
    found = build_atlas(model, k=3, directions=2, progress=False)
    vector = 3 * group_vectors(model.parameters, group, 1, 2)[0][5]
    for sign, text in ((1, "+"), (-1, "−")):
        first = found.like(sign * vector, model, n=3).iloc[0]
        assert (first["group"], first["layer"], first["sign"]) == (group, 1, text)
        assert found.rows["index"][first.name] == 5
        assert first["correlation"] == pytest.approx(sign, abs=1e-5)
        others = found.like(sign * vector, model, n=300, groups=["V", group], layers=0)
        assert set(others["layer"]) == {0} and set(others["group"]) == {"V", group}
        assert len(others) == 20 + ROWS["llama"][group]


def test_errors_of_like(gpt2):
    model, found = gpt2
    with pytest.raises(ValueError, match=r"one vector \(d,\), got of shape \(2, 12\)"):
        found.like(torch.zeros(2, 12), model)
    with pytest.raises(ValueError, match="no group 'gate'"):
        found.like(torch.zeros(12), model, groups="gate")


# ---- files


def test_round_trip(case, vocabulary, tmp_path):
    found = case[2]
    found.save(tmp_path / "new" / "x.parquet")
    again = read_atlas(tmp_path / "new" / "x.parquet", vocabulary)
    same(found, again)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.parquet"]
    pd.testing.assert_frame_equal(again.search("film"), found.search("film"))


def test_other_programs_can_read_the_file(gpt2, tmp_path):
    gpt2[1].save(tmp_path / "x.parquet")
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert list(frame.columns[-3:]) == ["coherence", "words", "scores"]
    assert np.stack(frame["words"]).tolist() == gpt2[1].ids.tolist()


def test_damaged_and_foreign_files(gpt2, vocabulary, tmp_path):
    path = tmp_path / "x.parquet"
    gpt2[1].save(path)
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


def test_files_for_another_vocabulary_or_version(gpt2, vocabulary, tmp_path, monkeypatch):
    gpt2[1].save(tmp_path / "x.parquet")
    other = load_vocabulary(MODELS["gpt2"](), tiny_tokenizer())
    other.size = 20
    with pytest.raises(ValueError, match="more than the 20 tokens"):
        read_atlas(tmp_path / "x.parquet", other)
    monkeypatch.setattr(atlas, "VERSION", "2")
    with pytest.raises(ValueError, match="no atlas of version 2, but of 1"):
        read_atlas(tmp_path / "x.parquet", vocabulary)


# ---- known models: tiny twins where the bundled ones are looked for


def save_twin(folder, name, seed):
    tiny("gpt2", seed).save_pretrained(folder / name)
    tiny_tokenizer().save_pretrained(folder / name)
    (folder / name / "token_counts.json").write_text(json.dumps([200] * 38 + [199] * 2))


@pytest.fixture
def twins(tmp_path, monkeypatch):
    """Folder of tiny twins with an empty cache; `built` lists what was built."""
    for seed, name in enumerate(("twin-a", "twin-b")):
        save_twin(tmp_path / "bundled", name, seed)
    monkeypatch.setattr(embspace_helpers.reading.models, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "bundled"


@pytest.fixture
def built(monkeypatch):
    """List of the readings that were built since."""
    calls = []

    def build(model, reading, *, judge=None):
        calls.append(reading)
        return build_atlas(model, reading, judge=judge, directions=2, progress=False)
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


def test_what_is_given_is_not_loaded(twins, built, monkeypatch):
    model, expected = load("twin-a"), load_atlas("twin-a")
    atlas.atlas_path("twin-a").unlink()
    monkeypatch.setattr(atlas, "_vocabulary", None)
    monkeypatch.setattr(atlas, "load", None)  # no weights but the judge's are loaded
    found = load_atlas(model)
    same(found, expected)
    assert found.vocabulary is model.vocabulary
    assert load_atlas(model).vocabulary is model.vocabulary  # from the file
    assert len(built) == 2


def test_the_atlas_of_a_model_made_here_is_not_kept(twins, built, tmp_path):
    for model in (read(), load("twin-a", untrained=True)):
        found = load_atlas(model)
        assert len(found.rows) and found.rows["coherence"].isna().all()
    assert not (tmp_path / "cache" / "atlas").exists()


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


def test_a_save_cut_off_leaves_the_old_file(gpt2, tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    path.write_text("old")

    def cut_off(table, file, **options):
        file.write_text("half")
        raise OSError("disk full")
    monkeypatch.setattr(atlas.parquet, "write_table", cut_off)
    with pytest.raises(OSError, match="disk full"):
        gpt2[1].save(path)
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


def test_fingerprints(twins, tmp_path):
    weights = (twins / "twin-a" / "model.safetensors").read_bytes()
    assert fingerprint("twin-a") == hashlib.sha256(weights).hexdigest()
    assert fingerprint(twins / "twin-a") == fingerprint("twin-a") != fingerprint("twin-b")
    (twins / "twin-a" / "model-2.safetensors").write_bytes(b"another part")
    assert fingerprint("twin-a") != hashlib.sha256(weights).hexdigest()
    (tmp_path / "x[1].gguf").write_bytes(b"weights")
    assert fingerprint(tmp_path / "x[1].gguf") == hashlib.sha256(b"weights").hexdigest()


# ---- judges


def test_the_judge_of_a_twin_is_the_other_on_frequent_words():
    assert set(JUDGES) == set(embspace_helpers.reading.models.MODELS)
    model = load("twin-a")
    ids = model.vocabulary.keep(whole_words=True, min_count=200).nonzero().squeeze(1)
    expected = Judge(load("twin-b").parameters.E, ids, len(model.vocabulary))
    assert torch.equal(model.judge.row, expected.row)
    torch.testing.assert_close(model.judge.vectors, expected.vectors)


def test_the_judge_of_another_vocabulary_knows_the_shared_words():
    items = ["<unk>", *reversed(ITEMS[1:-10]), *(f"Ġother{i}" for i in range(10))]
    model, other = read(), Model(tiny("gpt2", seed=3), tiny_tokenizer(items))
    words = [i for i, t in enumerate(ITEMS[:-10]) if t[0] == "Ġ" and t != "ĠTerrible"]
    judge_ids = torch.tensor([items.index(ITEMS[i]) for i in words])
    expected = Judge(other.parameters.E, torch.tensor(words), 40, judge_ids)
    found = model.judged_by(other)
    assert torch.equal(found.row, expected.row)
    torch.testing.assert_close(found.vectors, expected.vectors)


def test_no_judge():
    with pytest.raises(ValueError, match="no judge is set for 'this model'.* judges for twin-a"):
        read().judge  # noqa: B018


# ---- command line


def test_command_line(twins, built, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(atlases, "model_names", lambda: ["twin-a", "twin-b"])
    atlases.main(["twin-b"])
    rows = f"{4 * sum(ROWS['gpt2'].values()):,} rows"
    assert capsys.readouterr().out.startswith(f"twin-b: {rows}, 0.")
    atlases.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["twin-a", "twin-b"] and len(built) == 2
    assert lines[1].endswith(str(tmp_path / "cache" / "atlas" / "twin-b-orthogonal.parquet"))


def test_command_line_without_the_model(twins, capsys):
    with pytest.raises(SystemExit, match="minilm is not in the cache folder .*fetch minilm"):
        atlases.main(["minilm"])
