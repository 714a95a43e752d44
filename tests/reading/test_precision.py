"""Weights in 16 bits that compute in float32: the numbers are those of float32 weights."""

import copy

import pytest
import torch
from tiny_configs import MODELS
from tiny_models import numbers, tiny, tiny_in_float32

from embspace_helpers import load
from embspace_helpers.reading.parameters import Parameters
from embspace_helpers.reading.precision import compute_in_float32
from embspace_helpers.reading.weights import quiet


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_run_gives_the_numbers_of_float32(kind, dtype):
    half = tiny(kind).float()
    for p in half.parameters():  # and not what is computed when a model is made, as embed_scale
        p.data = p.data.to(dtype)
    single = copy.deepcopy(half).float()
    ids = torch.tensor([[3, 7, 5, 9, 11]])
    with torch.no_grad():
        found, expected = compute_in_float32(half)(ids).logits, single(ids).logits
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert {p.dtype for p in half.parameters()} == {dtype}
    for group in Parameters(half).groups:
        assert torch.equal(Parameters(half).vectors(group, 1), Parameters(single).vectors(group, 1))


@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_in_16_bits_gives_the_numbers_of_float32(kind, tmp_path):
    """Of the real classes, with what `transformers` computes when it loads them (embed_scale)."""
    numbers(kind).save_pretrained(tmp_path)
    with quiet():
        tiny_in_float32(kind).half().save_pretrained(tmp_path)
    single, half = load(tmp_path), load(tmp_path, dtype="float16")
    ids = torch.tensor([[3, 7, 5, 9, 11]])
    with torch.no_grad():
        assert torch.equal(half.model(ids).logits, single.model(ids).logits)
    assert {p.dtype for p in half.model.parameters()} == {torch.float16}
    assert half.parameters.architecture == single.parameters.architecture


def test_an_error_on_the_way_leaves_the_weights_as_they_were():
    model = compute_in_float32(tiny("gpt2").half())
    with pytest.raises(IndexError):
        model(torch.tensor([[3, 99]]))
    with pytest.raises(RuntimeError):
        model.transformer.h[0].mlp.c_fc(torch.ones(2, 5))
    assert {p.dtype for p in model.parameters()} == {torch.float16}


def test_other_models_are_left_alone():
    model = compute_in_float32(tiny("gpt2"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
