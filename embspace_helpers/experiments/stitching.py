"""Zero-shot stitching: a classifier's last layers on top of another model's first ones.

Dar et al. (2023), section 5.2. The host B runs its first l layers, a kernel translates its stream,
and the last layers of the classifier A, and its head, do the rest. Nothing is trained. Layer l
names the stream that enters block l; l = L is the stream behind the last block, before the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from embspace_helpers.experiments.classifiers import Classifier
from embspace_helpers.experiments.kernels import Translation
from embspace_helpers.reading.activations import BAR_AFTER, hooked, padded, run
from embspace_helpers.reading.arrays import as_index, as_model
from embspace_helpers.reading.model import Model

LAST = 3  # layers of the classifier that go with its head, as in the paper


@dataclass(frozen=True)
class Stream:
    """The stream of one batch of texts: `states[l]` (b, positions, d), for the layers asked for.

    `texts` (b,): which texts these are. `ids` and `mask` (b, positions): their tokens, padded.
    """

    texts: Tensor
    ids: Tensor
    mask: Tensor
    states: dict[int, Tensor]


# ---------------------------------------------------------------- the host's first layers


@torch.no_grad()
def streams(host: Model, tokens: Sequence[Sequence[int]], layers: Iterable[int] | None = None,
            batch: int = 16) -> Iterator[Stream]:
    """Run `host` once over rows of tokens and give the stream at every layer, batch by batch.

    `layers`: of 0 to L, default all. Texts come in order of their length, so that little is padded.
    """
    p = as_model(host).parameters
    wanted = [as_index(i, p.L + 1, "layer") for i in (range(p.L + 1) if layers is None else layers)]
    kept: dict[int, Tensor] = {}
    order = torch.tensor([len(row) for row in tokens]).argsort(stable=True)
    bar = tqdm(order.split(batch), unit="batch", leave=False, delay=BAR_AFTER, desc="host")
    for chosen in bar:
        rows = [tokens[i] for i in chosen]
        with _keep_streams(p, wanted, kept):
            run(host, rows)
        ids, mask = padded(rows)
        yield Stream(chosen, ids, mask, {i: kept[i] for i in wanted})


@contextmanager
def _keep_streams(p: Any, layers: Sequence[int], kept: dict[int, Tensor]) -> Iterator[None]:
    """While the block lasts, the stream entering each of the `layers` is kept; L: leaving the last.

    Hooks on what enters take keyword arguments as well: families differ in how they call a block.
    """
    def enters(i: int) -> Callable:
        def hook(module: nn.Module, inputs: tuple, named: dict) -> None:
            kept[i] = inputs[0] if inputs else named["hidden_states"]
        return hook

    def leaves(module: nn.Module, inputs: tuple, output: Any) -> None:
        kept[p.L] = output[0] if isinstance(output, tuple) else output

    handles = [p.blocks[i].register_forward_pre_hook(enters(i), with_kwargs=True)
               for i in layers if i < p.L]
    try:
        with hooked([(p.blocks[-1], leaves, False)]):
            yield
    finally:
        for handle in handles:
            handle.remove()


def positions(found: Iterable[Stream], layer: int) -> Tensor:
    """The states of one layer at all positions of all texts, (n, d), padding left out."""
    return torch.cat([s.states[layer][s.mask.bool()] for s in found])


# ---------------------------------------------------------------- the guest's last layers


@torch.no_grad()
def run_from(guest: Model, states: Tensor, mask: Tensor, last: int = LAST) -> Tensor:
    """What the guest's last state would be, had `states` (b, positions, d) entered block L - last.

    Behind its final norm, if it has one (a classifier has none). `last` = 0: no layer at all.
    Raises ValueError for more layers than there are.
    """
    p = as_model(guest).parameters
    last = as_index(last, p.L + 1, "number of last layers")
    states = states.to(next(guest.model.parameters()).dtype)
    if not last:
        norm = p.final_norm()
        return states if norm is None else norm(states)

    def enter(module: nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
        if inputs:
            return (states, *inputs[1:]), named
        return inputs, named | {"hidden_states": states}

    needed = p.architecture == "BERT"  # padding stands on the right: a decoder never looks there
    handle = p.blocks[p.L - last].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with _only_last(p.entry.layers(guest.model.base_model), last):
            found = guest.model.base_model(
                input_ids=torch.zeros_like(mask), attention_mask=mask if needed else None)
        return found.last_hidden_state
    finally:
        handle.remove()


@contextmanager
def _only_last(layers: nn.ModuleList, last: int) -> Iterator[None]:
    """While the block lasts, a model has only its last layers."""
    early = list(layers)[: len(layers) - last]
    del layers[: len(early)]
    try:
        yield
    finally:
        for block in reversed(early):
            layers.insert(0, block)


def margin(classifier: Classifier, states: Tensor, mask: Tensor, last: int = LAST) -> Tensor:
    """Praise less blame, (b,): the head's logits, averaged over positions, from translated states.

    Above 0 the verdict is praise.
    """
    found = run_from(classifier.model, states, mask, last).to(classifier.head.weight.dtype)
    found = (found * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # (b, d)
    logits = found @ classifier.head.weight.T
    return ((logits + classifier.head.bias) @ logits.new_tensor([-1.0, 1.0])).detach()


def stitch(host: Model, classifiers: Sequence[Classifier] | Classifier, texts: Sequence[str] | str,
           translations: Mapping[Any, tuple[int, Translation]], last: int = LAST,
           length: int = 256) -> dict[Any, Tensor]:
    """Margins of praise of every text, by every stitch: key -> (classifiers, texts).

    `translations`: key -> (layer of the host, translation). The host runs once for all of them.
    """
    tokens = as_model(host).tokens(texts, length)
    layers = sorted({layer for layer, _ in translations.values()})
    return margins(streams(host, tokens, layers), len(tokens), classifiers, translations, last)


def margins(found: Iterable[Stream], n: int, classifiers: Sequence[Classifier] | Classifier,
            translations: Mapping[Any, tuple[int, Translation]], last: int = LAST
            ) -> dict[Any, Tensor]:
    """As `stitch`, from streams of n texts that were run already."""
    many = [classifiers] if isinstance(classifiers, Classifier) else list(classifiers)
    table = {key: torch.empty(len(many), n) for key in translations}
    for stream in found:
        for key, (layer, translation) in translations.items():
            states = translation(stream.states[layer])
            for row, classifier in zip(table[key], many):
                row[stream.texts] = margin(classifier, states, stream.mask, last).float()
    return table


# ---------------------------------------------------------------- without labels


def zero_point(own: Tensor, stitched: Tensor) -> Tensor:
    """What to take off stitched margins (..., n) so that their mean is that of `own` (..., m)."""
    return stitched.mean(-1, keepdim=True) - own.mean(-1, keepdim=True)


@torch.no_grad()
def likelihood(guest: Model, found: Iterable[Stream], layer: int, translation: Translation,
               last: int = LAST) -> float:
    """Mean log-likelihood of the next token (nats), by the stitched *language model*; no label.

    `guest` is the pretrained model A, whose vocabulary the streams' tokens must be from.
    """
    total, count = 0.0, 0
    for stream in found:
        states = run_from(guest, translation(stream.states[layer]), stream.mask, last)
        there = stream.mask[:, 1:].bool()
        logits = (states[:, :-1][there] @ guest.parameters.E_out.to(states.dtype)).float()
        gold = stream.ids[:, 1:][there]
        total += -nn.functional.cross_entropy(logits, gold, reduction="sum").item()
        count += len(gold)
    return total / count
