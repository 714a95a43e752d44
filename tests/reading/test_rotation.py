"""W_QK at a distance against queries and keys that the model's own code has turned."""

import sys

import pytest
import torch
from tiny_configs import MODELS, TWO_ROTATIONS
from tiny_models import close, random, tiny_model

from embspace_helpers.reading.architectures import ARCHITECTURES
from embspace_helpers.reading.rotation import at_distance

ROTARY = [kind for kind in MODELS for entry in ARCHITECTURES.values()
          if kind in entry.model_types and entry.position == "rotary"]
N = 6


def turned(kind, model, layer, q, k):
    """Queries and keys (N, d_h) at positions 0 to N - 1, turned by `transformers`."""
    base, code = model.model.base_model, sys.modules[type(model.model).__module__]
    if kind == "gptj":
        sin, cos = base.h[layer].attn.embed_positions[:N][None].chunk(2, -1)
        parts = [torch.cat([code.apply_rotary_pos_emb(x[None, :, None, :2], sin, cos),
                            x[None, :, None, 2:]], -1) for x in (q, k)]
        return [x[0, :, 0] for x in parts]
    if kind == "smollm3" and layer == 1:
        return q, k
    types = (model.model.config.layer_types[layer],) if kind in TWO_ROTATIONS else ()
    cos, sin = base.rotary_emb(q, torch.arange(N)[None], *types)
    return [x[0, 0] for x in code.apply_rotary_pos_emb(q[None, None], k[None, None], cos, sin)]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", ROTARY)
def test_scores_of_all_pairs_of_positions(kind, layer):
    model = tiny_model(kind)
    p, head = model.parameters, model.parameters.H - 1
    x, y = random(N, p.d), random(N, p.d, seed=1)
    q, k = turned(kind, model, layer, x @ p.W_Q(layer, head), y @ p.W_K(layer, head))
    by_distance = {i - j: at_distance(model, layer, head, i - j).dense()
                   for i in range(N) for j in range(N)}
    found = [[x[i] @ by_distance[i - j] @ y[j] for j in range(N)] for i in range(N)]
    close(torch.tensor(found), q @ k.T)
    close(by_distance[0], p.W_QK(layer, head).dense())
    same = torch.equal(by_distance[1], by_distance[0])
    assert same == (kind == "smollm3" and layer == 1)
    folded = at_distance(model, layer, head, 0, fold_norm=True)
    close(folded.dense(), p.W_QK(layer, head, fold_norm=True).dense())


@pytest.mark.parametrize("kind, how", [("gpt2", "learned"), ("mpnet", "relative")])
def test_other_positions_do_not_turn(kind, how):
    with pytest.raises(ValueError, match=f"has {how} positions, .* the same at any distance"):
        at_distance(tiny_model(kind), 0, 0, 1)
