"""Attention weights against those of tiny random models of every type."""

import pytest
import torch
from tiny_configs import MODELS
from tiny_models import close, random, tiny_model

from embspace_helpers.reading.patterns import attention_reads, attention_weights

TEXT = "7 3 12 9 30 4"


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "mpnet"])
def test_they_are_the_models_own(kind):
    model = tiny_model(kind)
    ids = torch.tensor(model.tokens([TEXT]))
    with torch.no_grad():
        own = model.model(input_ids=ids, output_attentions=True).attentions
    states = attention_reads(model, TEXT)
    assert len(states) == model.parameters.L
    for layer, x in enumerate(states):
        assert x.shape == (ids.shape[1], model.parameters.d)
        close(attention_weights(model, layer, x), own[layer][0])
    assert [len(x) for x in attention_reads(model, TEXT, 3)] == [3] * len(states)


def test_without_biases_and_positions_they_are_those_of_W_QK():
    model = tiny_model("gpt_neox")
    p, x = model.parameters, random(5, 12)
    found = attention_weights(model, 1, x, biases=False, positions=False)
    for head in range(p.H):
        scores = p.score_scale * x @ p.W_QK(1, head).dense() @ x.T
        close(found[head], scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -1e9).softmax(-1))
    with_both = attention_weights(model, 1, x)
    for other in (found, attention_weights(model, 1, x, biases=False),
                  attention_weights(model, 1, x, positions=False)):
        assert (other - with_both).abs().max() > 0.01


def test_learned_positions_stand_in_the_states():
    model, x = tiny_model("gpt2"), random(5, 12)
    close(attention_weights(model, 0, x), attention_weights(model, 0, x, positions=False))


def test_mpnet_is_refused():
    with pytest.raises(ValueError, match="adds a number for each distance"):
        attention_weights(tiny_model("mpnet"), 0, random(5, 12))
