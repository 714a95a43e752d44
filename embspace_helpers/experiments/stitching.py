"""Zero-shot stitching: a classifier's last layers on top of another model's first ones.

Dar et al. (2023), section 5.2. The host B runs its first l layers, a kernel translates its stream,
and the last layers of the classifier A, and its head, do the rest. Nothing is trained. Layer l
names the stream that enters block l; l = L is the stream behind the last block, before the norm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from embspace_helpers.experiments.classifiers import Classifier
from embspace_helpers.experiments.kernels import Translation
from embspace_helpers.reading.activations import BAR_AFTER, hooked, padded, run
from embspace_helpers.reading.arrays import as_index, as_model, as_texts
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.sources import DATA

STITCHING = DATA / "stitching.csv"
LAST = 3  # layers of the classifier that go with its head, as in the paper
ALL = -1  # in place of a layer: all of them, see `side_by_side`


@dataclass(frozen=True)
class Stream:
    """The stream of one batch of texts: `states[l]` (b, positions, d), for the layers asked for.

    `texts` (b,): which texts these are. `ids` and `mask` (b, positions): their tokens, padded.
    All but `texts` lie where the host does, on the processor or a GPU.
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
        ids, mask = (x.to(next(host.model.parameters()).device) for x in padded(rows))
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


def side_by_side(found: Iterable[Stream]) -> Iterator[Stream]:
    """Streams with one more layer, `ALL`: the states of all that are there, (b, positions, sum d).

    A translation of it, of shape (sum d, d_A), reads all layers of the host at once.
    """
    for s in found:
        yield replace(s, states=s.states | {
            ALL: torch.cat([s.states[i] for i in sorted(s.states)], dim=-1)})


def positions(found: Iterable[Stream], layer: int) -> Tensor:
    """The states of one layer at all positions of all texts, (n, d), padding left out."""
    return torch.cat([s.states[layer][s.mask.bool()] for s in found])


def common_ends(host: Model, guest: Model, texts: Sequence[str] | str,
                length: int = 256) -> Tensor:
    """Where tokens of both models end at the same character: (n, 3), text and place in each.

    Two tokenizers cut a text differently; behind such a place both models have read the same.
    Raises ValueError for a tokenizer that does not tell where its tokens stand (a slow one).
    """
    ends = [_token_ends(as_model(model), as_texts(texts), length) for model in (host, guest)]
    found = []
    for i, (here, there) in enumerate(zip(*ends)):
        place = {end: j for j, end in enumerate(here) if end}  # the last token that ends there
        found += [(i, place[end], j) for j, end in enumerate(there) if end in place]
    return torch.tensor(found).reshape(-1, 3)


def _token_ends(model: Model, texts: list[str], length: int) -> list[list[int]]:
    """The character behind every token of every text; 0 for the tokenizer's own extras."""
    if not model.tokenizer.is_fast:
        raise ValueError(f"the tokenizer of {model.name or 'this model'} does not tell where its "
                         "tokens stand in a text: a fast one does")
    rows = model.tokens(texts, length)
    found = model.tokenizer(texts, return_offsets_mapping=True)["offset_mapping"]
    return [[end for _, end in offsets[: len(row)]] for row, offsets in zip(rows, found)]


def paired_states(found: Iterable[Stream], layer: int, places: Tensor) -> Tensor:
    """The states of one layer at places (n, 2) of (text, position): (n, d)."""
    found = list(found)
    row = {int(t): (s, i) for s in found for i, t in enumerate(s.texts)}
    return torch.stack([row[t][0].states[layer][row[t][1], j] for t, j in places.tolist()])


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

    needed = not p.entry.causal  # padding stands on the right: a decoder never looks there
    handle = p.blocks[p.L - last].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with _only_last(p.entry.layers(guest.model.base_model), last, guest.model.config):
            found = guest.model.base_model(
                input_ids=torch.zeros_like(mask), attention_mask=mask if needed else None,
                **{} if needed else {"use_cache": False})
        return found.last_hidden_state
    finally:
        handle.remove()


@contextmanager
def _only_last(layers: nn.ModuleList, last: int, config: Any) -> Iterator[None]:
    """While the block lasts, a model has only its last layers."""
    early = list(layers)[: len(layers) - last]
    types = getattr(config, "layer_types", None)  # of attention, by place
    del layers[: len(early)]
    if types is not None:
        config.layer_types = types[len(early):]
    try:
        yield
    finally:
        for block in reversed(early):
            layers.insert(0, block)
        if types is not None:
            config.layer_types = types


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
                row[stream.texts] = margin(classifier, states, stream.mask, last).float().cpu()
    return table


# ---------------------------------------------------------------- what is made of it


def pairs_right(margins: Tensor, praise: Tensor) -> Tensor:
    """Share of all pairs, one praise and one blame, in which the praise has the larger margin.

    `margins` (..., n), `praise` (n,) of bool: (...). It does not depend on where zero lies, and is
    the area under the ROC curve; 0.5 is chance.
    """
    high, low = margins[..., praise], margins[..., ~praise]  # (..., p), (..., q)
    return (high[..., :, None] > low[..., None, :]).float().mean((-2, -1))


def displacement_only(classifier: Classifier, before: Model) -> Classifier:
    """A copy of the classifier whose free matrices are only what fine-tuning added.

    The variant of the authors' code: pretrained weights subtracted, norms and biases left alone.
    """
    changed = copy.deepcopy(classifier)
    old = dict(as_model(before).model.base_model.named_parameters())
    p = changed.model.parameters
    inside = {id(weight) for block in p.blocks for weight in block.parameters()}
    with torch.no_grad():
        for name, weight in changed.base.named_parameters():
            if id(weight) in inside and weight.ndim > 1:
                weight -= old[name].to(weight.dtype)
    return changed
