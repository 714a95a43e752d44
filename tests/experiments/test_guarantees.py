"""The check of a loaded model: it passes for every architecture, and sees what is broken."""

import pytest
import torch
from tiny_configs import DECODERS, GATED, MODELS
from tiny_models import tiny_model

from embspace_helpers.experiments.guarantees import guarantees

TEXT = "5 7 9 11 13 2 4 6"


def agreement(model):
    return guarantees(model, TEXT).set_index("the model's own")["agreement"]


@pytest.mark.parametrize("kind", MODELS)
def test_every_architecture_passes(kind):
    table = guarantees(tiny_model(kind), TEXT)
    assert (table["agreement"] > 1 - 1e-12).all()
    names = set(table["the model's own"])
    assert ("logits" in names) == (kind in DECODERS)
    assert ("what heads bring along" in names) == (kind != "mpnet")
    assert len(table) == 5 + (kind in GATED) + (kind in DECODERS) - (kind == "mpnet")
    assert (table["numbers"] > 0).all()


@pytest.mark.parametrize(("name", "what"), [
    ("K", "pre-activations of neurons, K"), ("V", "what the FF block writes"),
    ("W_Q", "what heads bring along"), ("W_V", "values of heads"),
    ("W_O", "what attention writes"), ("logits", "logits")])
def test_a_wrong_view_of_one_layer_is_seen(monkeypatch, name, what):
    model = tiny_model("gpt_neox")
    real = getattr(model.parameters, name)

    def wrong(*given, **options):
        first_layer = isinstance(given[0], int) and given[0] == 0
        return real(*given, **options) * (1.0 if first_layer else 1.5)

    monkeypatch.setattr(model.parameters, name, wrong)
    found = agreement(model)
    assert found[what] < 0.99
    untouched = set(found.index) - {what, "what heads bring along"}
    assert all(found[x] > 1 - 1e-12 for x in untouched)


def test_one_forward_pass_leaves_the_model_as_it_was():
    model = tiny_model("llama")
    guarantees(model, TEXT)
    assert not any(module._forward_hooks for module in model.model.modules())
    assert torch.isfinite(model.parameters.E).all()
