"""Average Jacobians: the rival of a layer's dictionary.

The Jacobian lens (Gurnee et al., 2026, transformer-circuits.pub/2026/workspace) reads a state of
layer l by what a small change of it does to the last state, averaged over texts: it goes through
J_l = E[∂h_L / ∂h_l] and then through the output embedding. A value of layer l is such a change,
so it can be read in the same way. The mirror image serves keys: E[∂x_l / ∂h_0] says how the
state that layer l's FF block reads changes with the embedding of the token at its position. Where
a dictionary is fitted by forward passes alone, both need one backward pass for each of d
dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from embspace_helpers.reading.activations import (
    BAR_AFTER,
    Hook,
    Tokens,
    hooked,
    padded,
    run,
    tokenize,
)
from embspace_helpers.reading.arrays import as_count
from embspace_helpers.reading.dictionaries import Dictionary, dictionary_space
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.sources import DATA
from embspace_helpers.reading.spaces import Space

SKIP = 16  # first positions of a text that are left out, as in the code of Gurnee et al.
JACOBIANS = DATA / "jacobians.csv"  # measured by `python -m embspace_helpers.jacobians`


@dataclass(frozen=True)
class Jacobians:
    """Average Jacobians of every layer, each (d, d), over n positions.

    `read[l][i, j]`: how component i of what layer l's FF block reads changes with component j of
    the embedding at the same position. `write[l][i, j]`: how component i of the last stream, at a
    position and all later ones together, changes with component j of the stream behind layer l:
    the Jacobian lens as published. `write_here`: the same at the one position alone.
    """

    read: list[Tensor]
    write: list[Tensor]
    write_here: list[Tensor]
    n: int


def average_jacobians(model: Model, texts: Sequence[str] | str, length: int = 128,
                      skip: int = SKIP, batch: int = 8, seed: int = 0) -> Jacobians:
    """The average Jacobians of all layers, over the positions of some texts.

    Left out are the first `skip` positions of a text and its last. The own position is told from
    later ones by random signs: what passes between two positions has a sign of its own, and
    averages to zero. Cost: d (L + 2) backward passes through the stack or a part of it. Raises
    ValueError where no position is left.
    """
    p = model.parameters
    tokens = sorted(tokenize(model, texts, length), key=len)
    rows = [row for row in tokens if len(row) > as_count(skip, name="skip", least=0) + 1]
    if not rows:
        raise ValueError(f"no text has more than {skip + 1} tokens: no position is left")
    sums = [[torch.zeros(p.d, p.d, dtype=torch.float64) for _ in range(p.L)] for _ in range(3)]
    generator, n = torch.Generator().manual_seed(seed), 0
    for start in tqdm(range(0, len(rows), as_count(batch, name="batch")), unit="batch",
                      leave=False, delay=BAR_AFTER, desc="averaging Jacobians"):
        some = rows[start : start + batch]
        used = padded(some)[1].bool()  # (texts, positions)
        used[:, :skip] = False
        used[range(len(some)), [len(row) - 1 for row in some]] = False
        n += int(used.sum())
        _add(model, some, used, generator, sums)
    means = [[x.div(n).to(p.E.dtype) for x in part] for part in sums]
    return Jacobians(means[0], means[1], means[2], n)


def _add(model: Model, rows: Tokens, used: Tensor, generator: torch.Generator,
         sums: list[list[Tensor]]) -> None:
    """Add the Jacobians at the positions `used` (texts, positions) to the three sums."""
    p, (read, write, here) = model.parameters, sums
    first, states, stream = _graph(model, rows)
    for i in range(p.d):
        put = torch.zeros_like(first)
        put[..., i] = used.to(put.dtype)
        for total, moved in zip(write, torch.autograd.grad(stream[-1], stream, put,
                                                           retain_graph=True)):
            total[i] += moved[used].sum(0)
        signs = torch.randint(0, 2, used.shape, generator=generator) * 2 - 1
        put[..., i] *= signs
        own = torch.autograd.grad(stream[-1], stream, put, retain_graph=True)
        own += tuple(torch.autograd.grad(x, first, put.reshape(x.shape), retain_graph=True)[0]
                     for x in states)  # OPT: texts and positions as one axis
        for total, moved in zip([*here, *read], own):
            total[i] += (moved * signs[..., None])[used].sum(0)


def _graph(model: Model, rows: Tokens) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Run the model and keep its graph: embeddings, what FF blocks read, the stream behind blocks.

    Each (texts, positions, d).
    """
    p, first = model.parameters, []
    states: list[Tensor] = []
    stream: list[Tensor] = []

    def begin(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        first.append(output.detach().requires_grad_())
        return first[0]

    def before(module: nn.Module, inputs: tuple) -> None:
        states.append(inputs[0])

    def behind(module: nn.Module, inputs: tuple, output: Any) -> None:
        stream.append(output[0] if isinstance(output, tuple) else output)

    hooks: list[tuple[nn.Module, Hook, bool]] = [(model.model.get_input_embeddings(), begin, False)]
    hooks += [(p.reader(i, "ff"), before, True) for i in range(p.L)]
    hooks += [(block, behind, False) for block in p.blocks]
    with torch.enable_grad(), hooked(hooks):
        run(model, rows)
    return first[0], states, stream


def read_space(model: Model, R: Tensor, keep: Tensor | None = None,
               whitened: bool = False) -> Space:
    """The space in which keys k are read through a Jacobian R (d, d) of `read`.

    R e_i is the change of state that the embedding e_i makes. Scores k · (R e_i), centred over the
    vocabulary; `whitened` as a dictionary is.
    """
    return dictionary_space(model, Dictionary(R.T, float("nan"), 0), keep, whitened, "Jacobian")


def write_space(model: Model, J: Tensor, keep: Tensor | None = None) -> Space:
    """The space in which values v are read through a Jacobian J (d, d) of `write`.

    J v goes through the final norm's gain to E, as the last state does.
    """
    p, plain = model.parameters, model.space("transpose", keep)
    through = p.fold(J.T.contiguous(), p.final_norm())  # (d, d)
    return Space(plain.E, model.vocabulary, through, False, plain.keep, "Jacobian", model.sums)
