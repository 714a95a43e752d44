"""Noise in place of a host's states: what a stitch must not do without the text.

*Functional Alignment Can Mislead* (ICML 2025) shows that even clustered noise can be stitched.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from embspace_helpers.experiments.stitching import Stream


def noise_in_place(found: Iterable[Stream]) -> Iterator[Stream]:
    """Streams whose states are normal noise with each layer's mean and spread."""
    for s in found:
        dice = torch.Generator().manual_seed(int(s.texts[0]))
        yield replace(s, states={i: _alike(torch.randn(x.shape, generator=dice), x, s.mask)
                                 for i, x in s.states.items()})


def token_noise(found: Iterable[Stream]) -> Iterator[Stream]:
    """Streams of clustered noise: every token is one random vector, wherever it stands."""
    for s in found:
        states = {}
        for i, x in s.states.items():
            codes = torch.randn(int(s.ids.max()) + 1, x.shape[-1],
                                generator=torch.Generator().manual_seed(i))
            states[i] = _alike(codes[s.ids.cpu()], x, s.mask)
        yield replace(s, states=states)


def _alike(drawn: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """Normal numbers with the mean and spread that the states have over all their positions."""
    real = states[mask.bool()]
    return real.mean(0) + drawn.to(real.device) * real.std(0)
