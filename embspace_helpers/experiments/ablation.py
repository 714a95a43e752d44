"""Change one activation and see which words the model finds more or less likely.

A reading says which words a parameter writes. These functions test it: switch a neuron off where it
was active, switch it on where it was silent, or let nobody see what a head offers at a word; and
compare the logits of the words read with those of other words as frequent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embspace_helpers.reading.activations import Record, final_states, set_neurons, set_values
from embspace_helpers.reading.parameters import Parameters
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
    """Place of every item of `ids` (m,) in their order by frequency, rarest first: (m,).

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

    `ranks` (m,): the words' `frequency_ranks`. Raises what `matched_words` raises, and ValueError for
    a single case, which has no other one to compare with.
    """
    if len(columns) < 2:
        raise ValueError(f"{len(columns)} case: effects need at least 2, one is another's control")
    matched = matched_words(columns, ranks, seed=seed)
    sets = [columns, matched, columns.roll(1, 0), matched.roll(1, 0)]
    return Effects(*(change.gather(1, c).mean(1) for c in sets), change.std(1))


def used_signs(record: Record, layer: int) -> Tensor:
    """The sign of every neuron's largest coefficient, (d_ff,): with -1 it writes -v."""
    used = record.neurons[layer]
    largest = used.gather(0, used.abs().argmax(0, keepdim=True)).squeeze(0)
    return torch.where(largest < 0, -1.0, 1.0).to(used.dtype)


@torch.no_grad()
def switched_off(model: nn.Module, params: Parameters, rows: Sequence[Sequence[int]],
                 record: Record, layer: int, neurons: Tensor, ids: Tensor,
                 contexts: int = 3) -> tuple[Tensor, Tensor]:
    """Change of the logits of items `ids` (m,) when a neuron is set to zero, actual and direct.

    For each of `neurons` (n,), at the `contexts` positions of `record` where its coefficient is
    largest with its `used_signs`; `rows`: the ids of the record's texts. Both (n, m), means over
    the positions, at these positions. "direct": what it would be if later layers wrote what they
    wrote before. Raises ValueError for a model without a final norm.
    """
    signed = record.neurons[layer][:, neurons] * used_signs(record, layer)[neurons]
    at = signed.topk(contexts, dim=0).indices.T  # (n, contexts)
    return _set(model, params, rows, record, layer, neurons, at, torch.zeros(len(neurons)), ids)


@torch.no_grad()
def switched_on(model: nn.Module, params: Parameters, rows: Sequence[Sequence[int]],
                record: Record, layer: int, neurons: Tensor, ids: Tensor, contexts: int = 3,
                seed: int = 0) -> tuple[Tensor, Tensor]:
    """As `switched_off`, but set to the neuron's largest coefficient, where it was silent.

    The positions are drawn at random from the half where its coefficient was smallest.
    """
    used = record.neurons[layer][:, neurons]  # (positions, n)
    largest = used.gather(0, used.abs().argmax(0, keepdim=True)).squeeze(0)  # (n,)
    silent = used.abs().argsort(0)[: len(used) // 2]  # (positions / 2, n)
    drawn = torch.randint(len(silent), (contexts, len(neurons)),
                          generator=torch.Generator().manual_seed(seed))
    at = silent.gather(0, drawn).T  # (n, contexts)
    return _set(model, params, rows, record, layer, neurons, at, largest, ids)


def _set(model, params, rows, record: Record, layer: int, neurons: Tensor, at: Tensor,
         value: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Set neurons (n,) to values (n,) at record positions (n, contexts): two changes, (n, m).

    Raises ValueError where `rows` are not the texts that the record was made from.
    """
    norm, (n, contexts) = _final_norm(params), at.shape
    _check_rows(record, rows)
    flat, neuron = at.flatten(), neurons.repeat_interleave(contexts)
    value = value.repeat_interleave(contexts).to(record.neurons.dtype)
    place = record.place[flat]
    texts = [rows[t][: p + 1] for t, p in zip(record.text[flat].tolist(), place.tolist())]

    def change(chosen):
        return set_neurons(params, layer, torch.arange(len(chosen)), place[chosen], neuron[chosen],
                           value[chosen])

    state = record.states[-1][flat]  # (n contexts, d), in front of the final norm
    more = (value - record.neurons[layer][flat, neuron])[:, None] * params.V(layer)[neuron]
    before, direct = norm(state), norm(state + more)
    after = final_states(model, texts, place, change)
    return tuple((x - before).unflatten(0, (n, contexts)).mean(1) @ params.E_out[:, ids]
                 for x in (after, direct))


def _check_rows(record: Record, rows: Sequence[Sequence[int]]) -> None:
    """Raise ValueError unless the record's items stand in `rows` where it says."""
    text, place, token = (x.tolist() for x in (record.text, record.place, record.token))
    for t, p, item in zip(text, place, token):
        if t >= len(rows) or p >= len(rows[t]) or rows[t][p] != item:
            raise ValueError(f"rows are not the texts of this record: at place {p} of text {t} it "
                             f"has item {item}. Cut the same texts, with the same length")


@torch.no_grad()
def head_changes(model: nn.Module, params: Parameters, rows: Sequence[Sequence[int]], layer: int,
                 head: int, at: Sequence[tuple[int, int]], ids: Tensor, reach: int = 8) -> Tensor:
    """Change of the logits of items `ids` (m,) when no place sees what a head offers at a word.

    At every (text, place) of `at` (n) the value that key-value head `head` offers is set to zero;
    the change is summed over that place and the `reach` that follow. Returns (n, m). Raises
    ValueError for a model without a final norm, or a text too short for `reach`.
    """
    _final_norm(params)
    place = torch.tensor([[p + i for i in range(reach + 1)] for _, p in at])  # (n, reach + 1)
    texts = [rows[t][: p + reach + 1] for t, p in at]

    def change(chosen):
        return set_values(params, layer, torch.arange(len(chosen)), place[chosen, 0],
                          torch.full((len(chosen),), head))

    moved = final_states(model, texts, place, change) - final_states(model, texts, place)
    return moved.sum(1) @ params.E_out[:, ids]


def first_places(rows: Sequence[Sequence[int]], ids: Tensor,
                 room: int = 8) -> dict[int, tuple[int, int]]:
    """Where each of the items `ids` (m,) first stands in the texts `rows`: {column: (text, place)}.

    Left out are first positions of texts, and places with fewer than `room` items after them.
    """
    column, found = {item: i for i, item in enumerate(ids.tolist())}, {}
    for text, row in enumerate(rows):
        for place in range(1, len(row) - room):
            if row[place] in column:
                found.setdefault(column[row[place]], (text, place))
    return found


def _final_norm(params: Parameters) -> nn.Module:
    norm = params.final_norm()
    if norm is None:
        raise ValueError(f"a {params.architecture} model has no final norm in front of E_out: its "
                         "logits cannot be had from a state alone")
    return norm
