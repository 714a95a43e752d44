"""The lists of an atlas against spaces and judges, on tiny models in float64."""

import numpy as np
import pytest
import torch
from tiny_atlases import HEADS, ROWS, lists_of, vectors_of, worded
from tiny_models import close, random, tiny_model
from torch.nn.functional import normalize

from embspace_helpers.experiments import atlas_lists
from embspace_helpers.experiments.atlas import build_atlas
from embspace_helpers.experiments.atlas_lists import (
    HEAD_GROUPS,
    JUDGED,
    WRITERS,
    Lister,
    group_vectors,
)
from embspace_helpers.reading.judge import Judge
from embspace_helpers.reading.ranking import BLOCK, TILE

# Numbers of an atlas are kept in 32 bits, scores in 16: rounded once, by 6e-8 and by 5e-4.
FLOAT32, FLOAT16 = 2e-7, 1e-3


@pytest.fixture(scope="module", params=ROWS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return worded(kind)


@pytest.fixture(scope="module")
def judge():
    ids = torch.arange(1, 36)
    return Judge(random(8, 40), ids[ids != 4], size=40)


@pytest.fixture(scope="module")
def found(model, judge):
    return build_atlas(model, progress=False, judge=judge, k=5, directions=2)


def test_head_vectors_are_those_of_W_VO_and_W_QK(model):
    p = model.parameters
    for head in range(p.H):
        dense = {"VO": p.W_V(1, head) @ p.W_O(1, head), "QK": p.W_Q(1, head) @ p.W_K(1, head).T}
        for W, row, column in ((dense["VO"], "VO_reads", "VO_writes"),
                               (dense["QK"], "QK_query", "QK_key")):
            (U, S), (V, S_too) = (group_vectors(p, group, 1, 2) for group in (row, column))
            assert torch.equal(S, S_too)
            U, S, V = (x[2 * head:2 * head + 2] for x in (U, S, V))
            close(S, torch.linalg.svdvals(W)[:2])
            close(U @ W, S[:, None] * V)


def test_other_vectors_are_those_of_the_parameters(model):
    for group in model.parameters.groups:
        vectors, norms = group_vectors(model.parameters, group, 1)
        assert torch.equal(vectors, model.parameters.vectors(group, 1))
        close(norms, [sum(v * v for v in row) ** 0.5 for row in vectors.tolist()])


def test_every_vector_has_two_rows(kind, model, found):
    rows, p = found.rows, model.parameters
    assert list(rows.columns) == ["name", "group", "layer", "index", "sign", "norm", "coherence"]
    assert list(rows["group"].cat.categories) == [*p.groups, *HEAD_GROUPS]
    counts = rows.groupby(["layer", "group", "sign"], observed=True).size()
    assert counts.to_dict() == {(layer, group, sign): n for layer in (0, 1)
                                for group, n in ROWS[kind].items() for sign in (1, -1)}
    for _, part in rows.groupby(["layer", "group"], observed=True):
        assert part["index"].tolist() == [i for i in range(len(part) // 2) for _ in (1, -1)]
        assert part["sign"].tolist() == [1, -1] * (len(part) // 2)
    names = [f"L{layer}H{i // 2}D{i % 2}" if group in HEADS else p.label(group, layer, i)
             for group, layer, i in zip(rows["group"], rows["layer"], rows["index"])]
    assert rows["name"].tolist() == names
    norms = torch.cat([group_vectors(p, group, layer, 2)[1].repeat_interleave(2)
                       for layer in (0, 1) for group in ROWS[kind]])
    close(rows["norm"], norms, FLOAT32)


def test_memory_is_compact(found):
    ids, scores = lists_of(found)
    assert ids.dtype == np.int32 and scores.dtype == np.float16
    assert [str(t) for t in found.rows.dtypes] == ["category", "category", "int16", "int32", "int8",
                                                   "float32", "float32"]


def test_lists_are_those_of_the_space(model, found, judge):
    vectors, written = vectors_of(model, found), np.array(found.rows["group"].isin(WRITERS))
    for rows, output in ((~written, False), (written, True)):
        space, x = model.space("orthogonal", output=output), vectors[rows]
        ids, numbers = (part[rows] for part in lists_of(found))
        assert ids.tolist() == space.top(x, 5)[1].tolist()
        scores = space.project(x)
        z = (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)
        close(numbers, z.sort(1, descending=True).values[:, :5], FLOAT16)
        known = space.only(judge.keep & space.keep)
        expected = judge.coherence(known.top(x, 10)[1])
        close(found.rows["coherence"][rows], expected, FLOAT32)


@pytest.mark.parametrize("reading", ["transpose", "dictionary"])
def test_an_untied_model_reads_through_E_and_writes_through_E_out(reading):
    model, texts = tiny_model("gpt_neox"), ["1 2 3 4 5", "7 8 9 1 5 20 21 22 3", "30 31 32 3 4 11"]
    p, kept = model.parameters, model.space().keep
    found = build_atlas(model, reading, progress=False, k=5, directions=2,
                        texts=texts if reading == "dictionary" else None)
    ids = lists_of(found)[0]

    def dense(group, x, E):
        """The five best tokens of x, and of -x, by hand."""
        if reading == "dictionary" and group in WRITERS:  # whitened
            E = E - E.mean(1, keepdim=True)
            values, U = torch.linalg.eigh(E @ E.T)
            E = U @ torch.diag(values.rsqrt()) @ U.T @ E
        elif reading == "dictionary":
            E = model.dictionaries(texts, "ff" if group == "K" else "attention")[1].W.T @ E
        scores = (torch.stack([x, -x], 1) @ E).masked_fill(~kept, -torch.inf)
        return scores.topk(5).indices.flatten(0, 1)

    for group in found.groups:
        rows = ((found.rows["group"] == group) & (found.rows["layer"] == 1)).to_numpy()
        x, side = group_vectors(p, group, 1, 2)[0], found.sides[group]
        through = {name: dense(group, x, E) for name, E in (("E", p.E), ("E_out", p.E_out))}
        assert ids[rows].tolist() == through[side].tolist()
        assert (through["E"] != through["E_out"]).any(1).all()  # the other side would be seen
    assert [group for group in found.groups if found.sides[group] == "E_out"] == [*WRITERS]
    assert repr(found).endswith("; V, W_O, VO_writes through E_out")


def test_of_a_tied_model_there_is_one_side():
    found = build_atlas(worded(), progress=False, k=5, directions=2)
    assert set(found.sides.values()) == {"E"} and "E_out" not in repr(found)


@pytest.mark.parametrize("reading", ["transpose", "pseudo-inverse"])
def test_other_readings_judges_and_batches(judge, reading, monkeypatch):
    model = worded()
    monkeypatch.setattr(atlas_lists, "ROWS", 7)
    found = build_atlas(model, reading, progress=False, judge=judge, k=28, directions=1)
    ids, _ = lists_of(found)
    assert (found.rows["group"] == "VO_reads").sum() == 12
    rows = (found.rows["group"] == "V").to_numpy()
    assert rows.sum() == 80
    values = [model.parameters.V(layer) for layer in (0, 1)]
    x = torch.cat([torch.stack([v, -v]) for v in torch.cat(values)])
    space = model.space(reading)
    assert ids[rows].tolist() == space.top(x, 28)[1].tolist()
    known = space.only(judge.keep & space.keep)
    close(found.rows["coherence"][rows], judge.coherence(known.top(x, 10)[1]), FLOAT32)


def test_lists_of_a_vector_and_of_its_negative(judge):
    model = worded()
    space, x = model.space("centred"), random(3, 12, seed=7)
    ids, scores, coherence = Lister(model, 4, judge).lists(x, space.map)
    assert ids.shape == scores.shape == (3, 2, 4) and coherence.shape == (3, 2)
    for side, vectors in enumerate((x, -x)):
        values, best = space.top(vectors, 4)
        assert ids[:, side].tolist() == best.tolist()
        close(scores[:, side], space.standardise(vectors, values), FLOAT16)
    assert Lister(model, 4).lists(x)[2].isnan().all()


def test_lists_of_many_tokens_tile_by_tile(twin):
    space, judge = twin.space("orthogonal"), twin.judge
    assert len(space.ids) > TILE and len(judge.ids) > 2 * JUDGED * BLOCK
    x = twin.parameters.V(3)[:50]
    ids, scores, coherence = Lister(twin, 20, judge).lists(x, space.map)
    known = space.only(judge.keep & space.keep)
    for side, vectors in enumerate((x, -x)):
        best = space.standardise(vectors, space.top(vectors, 20)[0])
        close(scores[:, side], best, FLOAT16)
        there = space.scores(vectors).gather(1, ids[:, side].long())  # of the words themselves
        close(space.standardise(vectors, there), best, 1e-4)
        expected = judge.coherence(known.top(vectors, 10)[1])
        assert ((coherence[:, side] - expected).abs() < 1e-5).float().mean() > 0.95  # ties


def test_nothing_is_made_on_another_device_than_the_weights(twin):
    """Whatever is made without a device named would be on "meta", and could not be computed."""
    x, map, judge = twin.parameters.V(3)[:9], twin.space("orthogonal").map, twin.judge
    expected = Lister(twin, 4, judge).lists(x, map)
    with torch.device("meta"):
        found = Lister(twin, 4, judge).lists(x, map)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_dictionaries_read_what_reads_and_F_what_writes(kind):
    model, texts = tiny_model(kind), ["1 2 3 4 5", "7 8 9 1 5 20 21 22 3", "30 31 32 3 4 11 12"]
    found = build_atlas(model, "dictionary", progress=False, texts=texts, k=5, directions=2)
    ids, _ = lists_of(found)
    params = model.parameters
    for group in found.groups:
        rows = ((found.rows["group"] == group) & (found.rows["layer"] == 1)
                & (found.rows["sign"] == 1)).to_numpy()
        x = group_vectors(params, group, 1, 2)[0]
        if group in ("V", "W_O", "VO_writes"):
            space = model.space("orthogonal", output=True)
        else:
            space = model.dictionary(1, texts, "ff" if group in params.key_kinds else "attention")
        assert ids[rows].tolist() == space.top(x, 5)[1].tolist()
    with pytest.raises(ValueError, match="the dictionary is another in every layer"):
        found.like(torch.ones(params.d), model)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "olmo2"])
def test_what_is_written_goes_through_the_norm_behind_the_block(kind):
    """A unit of a neuron or of a subhead moves the stream along its vector, up to its size."""
    model, params = worded(kind), worded(kind).parameters
    for group, block, n in (("V", "ff", params.d_ff), ("W_O", "attention", params.H * params.d_h)):
        added = params.written(block, 1, torch.eye(n, dtype=params.E.dtype))  # (n, d), each normed
        vectors = group_vectors(model.parameters, group, 1)[0]
        close(normalize(vectors, dim=1), normalize(added, dim=1))
        raw = normalize(params.vectors(group, 1), dim=1)
        assert (raw - normalize(added, dim=1)).abs().max() > 0.01
    reads, writes = (group_vectors(params, group, 1, 1) for group in ("VO_reads", "VO_writes"))
    dense = params.fold_written(params.W_V(1, 0) @ params.W_O(1, 0), params.attention_post_norm(1))
    close(reads[0][0] @ dense, writes[1][0] * writes[0][0])


def test_without_a_judge_there_is_no_coherence():
    found = build_atlas(worded(), progress=False, k=5, directions=2)
    assert found.rows["coherence"].isna().all()


def test_a_zero_vector_scores_zero():
    model = worded()
    with torch.no_grad():
        model.parameters.V(0)[3] = 0
    found = build_atlas(model, progress=False, k=5, directions=1)
    rows, (_, scores) = found.rows.query("group == 'V' and layer == 0 and index == 3").index, (
        lists_of(found))
    assert (scores[rows] == 0).all() and (scores[rows - 2] != 0).all()
    assert np.isfinite(scores).all()
    value = found.like(torch.ones(12), model, n=40, groups="V", layers=0)
    assert value["correlation"].iloc[-1] == 0


def test_the_bar_can_be_switched_off(capsys):
    build_atlas(worded(), progress=False, k=2, directions=1)
    assert capsys.readouterr().err == ""
    build_atlas(worded(), k=2, directions=1)
    assert "2/2" in capsys.readouterr().err


def test_errors_of_building(judge):
    model = worded()
    few = Judge(random(8, 40), torch.arange(1, 10), size=40)
    other = Judge(random(8, 40), torch.arange(1, 20), size=50)
    for options, message in (
            ({"k": 0}, "k = 0, but it must be at least 1"),
            ({"k": 38}, "k = 38, but .* between 1 and the 37 kept tokens"),
            ({"judge": few}, "coherence = 10, but .* the 8 words of the judge"),
            ({"judge": other}, "has 40 tokens, the judge knows of 50: .* different models"),
            ({"reading": "pca"}, "no reading 'pca': .* orthogonal, dictionary"),
            ({"directions": 5}, "directions = 5, but .* the 4 singular directions of a head")):
        with pytest.raises(ValueError, match=message):
            build_atlas(model, progress=False, **options)
