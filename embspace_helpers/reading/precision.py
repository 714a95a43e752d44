"""Weights kept in 16 bits, computed with in 32: half the memory, and the very numbers of float32.

A processor is slow and coarse with 16-bit numbers. Weights that a file holds in 16 bits stay
there, mapped; a module's are widened while it computes, which is exact, and let go behind it.
"""

import torch
from torch import Tensor, nn

from embspace_helpers.reading.files import release

HALVES = (torch.float16, torch.bfloat16)


def compute_in_float32(model: nn.Module) -> nn.Module:
    """Make every module of `model` that holds 16-bit weights compute in float32; returns it.

    Memory: one module's weights in float32 at a time (an embedding's looked-up rows only).
    """
    for module in model.modules():
        if not any(p.dtype in HALVES for p in module.parameters(recurse=False)):
            continue
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(_widened)
        else:
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(_narrow, always_call=True)
    return model


def in_float32(weights: Tensor) -> Tensor:
    """The weights without gradient, to be read; 16-bit numbers in float32, a copy."""
    if weights.element_size() >= 4:
        return weights.detach()
    copy = weights.detach().float()
    release(weights)
    return copy


def _widened(module: nn.Embedding, inputs: tuple, output: Tensor) -> Tensor:
    if (scale := getattr(module, "scalar_embed_scale", None)) is None:
        return output.float()
    rows = nn.functional.embedding(inputs[0], module.weight)  # Gemma: `output` is rounded already
    return rows.float() * scale


def _widen(module: nn.Module, inputs: tuple) -> None:
    for parameter in module.parameters(recurse=False):
        if parameter.dtype in HALVES:
            parameter.kept = parameter.data  # the tensor in the file
            parameter.data = parameter.data.float()


def _narrow(module: nn.Module, inputs: tuple, output: object) -> None:
    for parameter in module.parameters(recurse=False):
        if hasattr(parameter, "kept"):
            parameter.data = parameter.kept
            release(parameter.kept)
            del parameter.kept
