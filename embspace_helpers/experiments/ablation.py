"""Ablation: change one activation and see which words the model finds more or less likely.

A reading says which words a parameter writes. These functions test it: ablate a neuron where it
was active, activate it where it was silent, or let a head move nothing from a word; and compare
the logits of the words read with those of other words as frequent. Logits are taken in front of a
soft cap (Gemma 2), and without a bias of E_out, which no change moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embspace_helpers.experiments.caches import check_kept, kept
from embspace_helpers.reading.activations import (
    ActivationCache,
    Tokens,
    final_states,
    hooked,
    run,
    set_neurons,
    set_values,
)
from embspace_helpers.reading.arrays import as_count, as_index
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.ranking import top_k
from embspace_helpers.reading.vocabulary import Vocabulary


@dataclass(frozen=True)
class Effects:
    """Mean changes of logits in n cases, each (n,): of four sets of words, and of all words.

    `own`: the words read in this case; `matched`: other words, each as frequent as one of these.
    `other`: the words read in another case (the row before); `other_matched`: words as frequent as
    those. `spread`: standard deviation of the change over all words.
    """

    own: Tensor
    matched: Tensor
    other: Tensor
    other_matched: Tensor
    spread: Tensor

    @property
    def size(self) -> Tensor:
        """Change of the words read, less that of words as frequent, in logits (n,)."""
        return self.own - self.matched

    @property
    def other_size(self) -> Tensor:
        """The same for the words of another case: the control, (n,)."""
        return self.other - self.other_matched


def frequency_ranks(vocabulary: Vocabulary, ids: Tensor) -> Tensor:
    """Place of every token of `ids` (m,) in their order by frequency, rarest first: (m,).

    By corpus counts where there are any; else by id, since byte-pair vocabularies are numbered in
    the order of their merges, frequent ones first.
    """
    amount = -ids if vocabulary.counts is None else vocabulary.counts[ids]
    return amount.argsort(stable=True).argsort()


def matched_words(columns: Tensor, ranks: Tensor, near: int = 15, seed: int = 0) -> Tensor:
    """For every word another one as frequent: `columns` (n, k) -> (n, k), column numbers.

    Drawn from those at most `near` ranks away, and never one of the same row of `columns`. Raises
    ValueError where the row's own words leave none.
    """
    order, count = ranks.argsort(), len(ranks)
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.cat([torch.arange(-near, 0), torch.arange(1, near + 1)])
    place = ranks[columns][..., None] + offsets  # (n, k, 2 near)
    inside = (place >= 0) & (place < count)
    candidates = order[place.clamp(0, count - 1)]
    own = (candidates[..., None] == columns[:, None, None, :]).any(-1)
    fit = inside & ~own
    if not fit.any(-1).all():
        raise ValueError(f"some words have no other one within {near} ranks: raise `near`")
    chance = torch.rand(place.shape, generator=generator).masked_fill(~fit, -1)
    return candidates.gather(-1, chance.argmax(-1, keepdim=True)).squeeze(-1)


def effects(change: Tensor, columns: Tensor, ranks: Tensor, seed: int = 0) -> Effects:
    """Effects from the changes of logits (n, m) over m words; words read: columns (n, k).

    `ranks` (m,): the words' `frequency_ranks`. Raises what `matched_words` raises, and ValueError
    for a single case, which has no other one to compare with.
    """
    if len(columns) < 2:
        raise ValueError(f"{len(columns)} case: effects need at least 2, one is another's control")
    matched = matched_words(columns, ranks, seed=seed)
    own, other = change.gather(1, columns).mean(1), change.gather(1, columns.roll(1, 0)).mean(1)
    own_matched = change.gather(1, matched).mean(1)
    other_matched = change.gather(1, matched.roll(1, 0)).mean(1)
    return Effects(own, own_matched, other, other_matched, change.std(1))


def used_signs(cache: ActivationCache, layer: int) -> Tensor:
    """The sign of every neuron's largest coefficient, (d_ff,): with -1 it writes -v.

    Raises ValueError for a cache without neurons.
    """
    used = kept(cache, "neurons", layer)
    largest = used.gather(0, used.abs().argmax(0, keepdim=True)).squeeze(0)
    return torch.where(largest < 0, -1.0, 1.0).to(used.dtype)


@torch.no_grad()
def ablate_neurons(model: Model, cache: ActivationCache, layer: int, neurons: Tensor, ids: Tensor,
                   contexts: int = 3) -> tuple[Tensor, Tensor]:
    """Change of the logits of tokens `ids` (m,) when a neuron is set to zero, actual and direct.

    For each of `neurons` (n,), at the `contexts` positions of `cache` (with states and neurons)
    where its coefficient is largest with its `used_signs`. Both (n, m), means over the positions,
    at these positions. "direct": what it would be if later layers wrote what they wrote before.
    Raises ValueError for a model without a final norm, a cache that lacks something, neurons that
    do not exist, or more `contexts` than the cache has positions.
    """
    check_kept(cache, ("states", "neurons"))
    contexts = as_count(contexts, len(cache), "contexts", "positions")
    neurons = _existing(model, neurons)
    signed = kept(cache, "neurons", layer)[:, neurons] * used_signs(cache, layer)[neurons]
    at = top_k(signed.T, contexts)[1]  # (n, contexts)
    return _set(model, cache, layer, neurons, at, torch.zeros(len(neurons)), ids)


@torch.no_grad()
def activate_neurons(model: Model, cache: ActivationCache, layer: int, neurons: Tensor,
                     ids: Tensor, contexts: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """As `ablate_neurons`, but set to the neuron's largest coefficient, where it was silent.

    The positions are drawn at random, some perhaps twice, from the half where its coefficient was
    smallest. Raises ValueError as `ablate_neurons`, and for a cache of a single position.
    """
    check_kept(cache, ("states", "neurons"))
    neurons, contexts = _existing(model, neurons), as_count(contexts, name="contexts")
    if len(cache) < 2:
        raise ValueError("a cache of one position has none where a neuron was silent")
    used = kept(cache, "neurons", layer)[:, neurons]  # (positions, n)
    largest = used.gather(0, used.abs().argmax(0, keepdim=True)).squeeze(0)  # (n,)
    silent = used.abs().argsort(0)[: len(used) // 2]  # (positions / 2, n)
    drawn = torch.randint(len(silent), (contexts, len(neurons)),
                          generator=torch.Generator().manual_seed(seed))
    at = silent.gather(0, drawn).T  # (n, contexts)
    return _set(model, cache, layer, neurons, at, largest, ids)


def _set(model: Model, cache: ActivationCache, layer: int, neurons: Tensor, at: Tensor,
         value: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Set neurons (n,) to values (n,) at cache positions (n, contexts): two changes, (n, m)."""
    p, norm, (n, contexts) = model.parameters, _final_norm(model), at.shape
    used = kept(cache, "neurons", layer)
    flat, neuron = at.flatten(), neurons.repeat_interleave(contexts)
    value = value.repeat_interleave(contexts).to(used.dtype)
    position = cache.position[flat]
    texts = [cache.tokens[t][: i + 1] for t, i in zip(cache.text[flat].tolist(), position.tolist())]

    def change(chosen: Tensor) -> AbstractContextManager:
        return set_neurons(model, layer, torch.arange(len(chosen)), position[chosen],
                           neuron[chosen], value[chosen])

    state = kept(cache, "states")[-1, flat]  # (n contexts, d), in front of the final norm
    more = (value - used[flat, neuron])[:, None] * p.V(layer)[neuron]
    if p.ff_post_norm(layer) is not None:  # a norm of the block's whole output stands behind it
        changed = used[flat].index_put((torch.arange(len(flat)), neuron), value)
        more = p.written("ff", layer, changed) - p.written("ff", layer, used[flat])
    before, direct = norm(state), norm(state + more)
    after = final_states(model, texts, position, change)
    actual, direct = ((x - before).unflatten(0, (n, contexts)).mean(1) @ p.E_out[:, ids]
                      for x in (after, direct))
    return actual, direct


def _existing(model: Model, neurons: Tensor) -> Tensor:
    """The numbers of neurons as a tensor (n,). Raises ValueError for one that is none."""
    d_ff = model.parameters.d_ff
    return torch.tensor([as_index(neuron, d_ff, "neuron") for neuron in neurons],
                        dtype=torch.long)


@torch.no_grad()
def ablate_moves(model: Model, tokens: Tokens, layer: int, head: int,
                 at: Sequence[tuple[int, int]], ids: Tensor, reach: int = 8,
                 usual: Tensor | None = None) -> Tensor:
    """Change of the logits of tokens `ids` (m,) when a query head moves nothing from a word.

    At every (text, position) of `at` (n) in the rows `tokens`, what query head `head` brings from
    there, attention times value, is taken out of its output in front of W_O. Heads that share its
    values keep theirs. The change is summed over that position and the `reach` that follow. `usual`
    (n, reach + 1, d): the final states there without ablation, where they are known: it saves a
    pass. Returns (n, m). Raises ValueError for a model without a final norm, or a text too short
    for `reach`.
    """
    _final_norm(model)
    position = torch.tensor([[start + i for i in range(reach + 1)] for _, start in at])
    texts = [tokens[t][: start + reach + 1] for t, start in at]

    def change(chosen: Tensor) -> AbstractContextManager:
        return _without_moves(model, layer, head, [texts[i] for i in chosen], position[chosen, 0])

    usual = final_states(model, texts, position) if usual is None else usual  # (n, reach + 1, d)
    moved = final_states(model, texts, position, change) - usual
    return moved.sum(1) @ model.parameters.E_out[:, ids]


class _Enough(Exception):
    """Ends a forward pass of which nothing more is needed."""


@contextmanager
def _without_moves(model: Model, layer: int, head: int, rows: Tokens,
                   position: Tensor) -> Iterator[None]:
    """While the block lasts, `head` brings nothing from position[i] of row i, if these rows run."""
    p, seen = model.parameters, {}
    kv_head, module = p.kv_head(head), p.entry.output(p.blocks[as_index(layer, p.L, "layer")])
    columns = slice(head * p.d_h, (head + 1) * p.d_h)  # of W_O's input

    def keep(module: nn.Module, inputs: tuple) -> None:
        seen["output"] = inputs[0][..., columns].clone()
        raise _Enough

    def put(module: nn.Module, inputs: tuple) -> tuple:
        changed = inputs[0].clone()
        changed[..., columns] = seen["output"]
        return changed, *inputs[1:]

    without = set_values(model, layer, torch.arange(len(rows)), position, kv_head)
    with without, hooked([(module, keep, True)]), suppress(_Enough):
        run(model, rows)  # the head's output without that value, and no further
    with hooked([(module, put, True)]):
        yield


def _final_norm(model: Model) -> nn.Module:
    norm = model.parameters.final_norm()
    if norm is None or not model.parameters.entry.causal:
        raise ValueError(f"a {model.parameters.architecture} model has a head of several layers in "
                         "front of E_out: its logits cannot be had from a state alone")
    return norm
