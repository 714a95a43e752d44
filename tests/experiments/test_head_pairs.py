"""Pairs of words of all heads: those of each head, and kept layer by layer."""

import pandas as pd
import pytest
import torch
from tiny_models import another, tiny_model

from embspace_helpers.experiments import head_pairs as module
from embspace_helpers.experiments.head_pairs import head_pairs
from embspace_helpers.reading.pairs import word_pairs


@pytest.fixture
def heads(monkeypatch):
    """How many heads are computed."""
    seen = []
    monkeypatch.setattr(module, "word_pairs", lambda *args, **more: (
        seen.append(1) or word_pairs(*args, **more)))
    return seen


@pytest.mark.parametrize("kind", ["W_QK", "W_VO"])
@pytest.mark.parametrize("which", ["gpt2", "llama", "bert"])
def test_every_head_s_pairs_are_those_of_word_pairs(which, kind):
    model = tiny_model(which)
    table, p = head_pairs(model, kind, 5, drop=None, progress=False), model.parameters
    assert list(table) == ["layer", "head", "left", "right", "score"]
    assert len(table) == 5 * p.L * p.H and not table.attrs.get("weights")
    for (layer, head), rows in table.groupby(["layer", "head"]):
        found = word_pairs(model.space("orthogonal"), getattr(p, kind)(layer, head), 5)
        assert list(zip(rows["left"], rows["right"])) == found.words
        assert rows["score"].tolist() == found.scores.tolist()


def test_a_run_that_was_stopped_goes_on(tmp_path, heads, monkeypatch):
    model = tiny_model("gpt2")
    whole, H = head_pairs(model, k=4, progress=False), model.parameters.H
    heads.clear()
    write = pd.DataFrame.to_parquet

    def stopped(self, path):
        if self["layer"][0] == 1:
            raise KeyboardInterrupt
        write(self, path)

    monkeypatch.setattr(pd.DataFrame, "to_parquet", stopped)
    with pytest.raises(KeyboardInterrupt):
        head_pairs(model, k=4, folder=tmp_path, progress=False)
    monkeypatch.setattr(pd.DataFrame, "to_parquet", write)
    assert [path.name for path in tmp_path.iterdir()] == ["W_VO-L0.parquet"]
    heads.clear()
    found = head_pairs(model, k=4, folder=tmp_path, progress=False)
    assert len(heads) == H * (model.parameters.L - 1)
    pd.testing.assert_frame_equal(found, whole)
    heads.clear()
    pd.testing.assert_frame_equal(head_pairs(model, k=4, folder=tmp_path, progress=False), whole)
    assert not heads


def test_files_of_other_weights_or_options_are_written_anew(tmp_path, heads):
    model, other = tiny_model("gpt2"), another("gpt2")
    head_pairs(model, k=4, folder=tmp_path, progress=False)
    for changed, options in ((other, {}), (model, {"drop": "word"}), (model, {"k": 3}),
                             (model, {"reading": "transpose"})):
        options = {"k": 4, **options}
        heads.clear()
        found = head_pairs(changed, folder=tmp_path, progress=False, **options)
        assert len(heads) == model.parameters.L * model.parameters.H
        pd.testing.assert_frame_equal(found, head_pairs(changed, progress=False, **options))


def test_another_kind_and_too_many_pairs_are_refused():
    model = tiny_model("gpt2")
    with pytest.raises(ValueError, match="^no kind 'W_OV': there are W_QK, W_VO$"):
        head_pairs(model, "W_OV")
    with pytest.raises(ValueError, match="^k = 0, but it must be"):
        head_pairs(model, k=0)
    assert torch.is_grad_enabled()
