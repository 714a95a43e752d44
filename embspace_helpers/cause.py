"""Change one activation and see which words the model finds more or less likely.

A reading says which words a parameter writes. These functions test it: switch a neuron off where it
was active, or let nobody see what a head offers at a word, and compare the change of the logits of
the words read with that of other words as frequent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embspace_helpers.activations import Record, final_states, set_neurons, set_values
from embspace_helpers.parameters import Parameters
from embspace_helpers.vocabulary import Vocabulary


@dataclass(frozen=True)
class Effects:
    """Changes of logits, in standard deviations over the words, per neuron or per case (n,).

    `own`: of the words that were read, `matched`: of other words as frequent, `other`: of the words
    read in the row before (of a single row, its own). Positive where a word rose.
    """

    own: Tensor
    matched: Tensor
    other: Tensor

    @property
    def size(self) -> Tensor:
        """Effect on the words read, less that on matched words, (n,)."""
        return self.own - self.matched

    @property
    def other_size(self) -> Tensor:
        """The same for another neuron's words: the control, (n,)."""
        return self.other - self.matched


def frequency_ranks(vocabulary: Vocabulary, ids: Tensor) -> Tensor:
    """Place of every item of `ids` (m,) in their order by frequency, rarest first: (m,).

    By corpus counts where there are any; else by id, since byte-pair vocabularies are numbered in
    the order of their merges, frequent ones first.
    """
    amount = -ids if vocabulary.counts is None else vocabulary.counts[ids]
    return amount.argsort(stable=True).argsort()


def matched_words(columns: Tensor, ranks: Tensor, near: int = 15, seed: int = 0) -> Tensor:
    """For every column number in `columns`, another one at most `near` ranks away, at random.

    `ranks` (m,) are those of all columns. Raises ValueError for fewer than 2 `near` of them: those
    in the middle would have nobody so far away.
    """
    if len(ranks) < 2 * near:
        raise ValueError(f"{len(ranks)} words, but matching within {near} ranks needs {2 * near}")
    order = ranks.argsort()
    generator = torch.Generator().manual_seed(seed)
    step = torch.randint(1, near + 1, columns.shape, generator=generator)
    step *= torch.randint(0, 2, columns.shape, generator=generator) * 2 - 1
    place = ranks[columns] + step
    outside = (place < 0) | (place >= len(order))
    return order[torch.where(outside, ranks[columns] - step, place)]


def effects(change: Tensor, columns: Tensor, ranks: Tensor, seed: int = 0) -> Effects:
    """Effects from changes of logits (n, m) over m words and the words read, columns (n, k)."""
    scaled = change / change.std(1, keepdim=True)
    shift = torch.roll(columns, 1, 0)
    pick = [columns, matched_words(columns, ranks, seed=seed), shift]
    return Effects(*(scaled.gather(1, c).mean(1) for c in pick))


@torch.no_grad()
def neuron_changes(model: nn.Module, params: Parameters, rows: Sequence[Sequence[int]],
                   record: Record, layer: int, neurons: Tensor, ids: Tensor, times: float = 0.0,
                   contexts: int = 4) -> Tensor:
    """Mean change of the logits of items `ids` (m,) when a neuron's coefficient is multiplied.

    For each of `neurons` (n,), at the `contexts` positions of `record` where it was most active, of
    the texts `rows` (ids), its coefficient there becomes `times` what it was: 0 switches it off.
    Returns (n, m). Where the coefficient is negative the change is multiplied by -1, as if it had
    been positive: switching off always counts as taking away +v, so that the words of +v should
    fall. Raises ValueError for a model without a final norm (BERT).
    """
    _check_final_norm(params)
    used = record.neurons[layer][:, neurons]  # (positions, n)
    at = used.abs().topk(contexts, dim=0).indices.T.flatten()  # (n contexts,)
    neuron = neurons.repeat_interleave(contexts)
    coefficient = record.neurons[layer][at, neuron]
    place = record.place[at]
    texts = [rows[t][: p + 1] for t, p in zip(record.text[at].tolist(), place.tolist())]

    def change(chosen):
        return set_neurons(params, layer, torch.arange(len(chosen)), place[chosen], neuron[chosen],
                           times * coefficient[chosen])

    before = params.final_norm()(record.states[-1][at])  # (n contexts, d)
    moved = (final_states(model, texts, place, change) - before) * coefficient.sign()[:, None]
    return moved.unflatten(0, (len(neurons), contexts)).mean(1) @ params.E_out[:, ids]


@torch.no_grad()
def head_changes(model: nn.Module, params: Parameters, rows: Sequence[Sequence[int]], layer: int,
                 head: int, at: Sequence[tuple[int, int]], ids: Tensor, reach: int = 8) -> Tensor:
    """Change of the logits of items `ids` (m,) when nobody sees what a head offers at one word.

    At every (text, place) of `at` (n) the value that key-value head `head` offers is set to zero;
    the change is summed over that place and the `reach` that follow. Returns (n, m). Raises
    ValueError where the text ends before, or for a model without a final norm (BERT).
    """
    _check_final_norm(params)
    place = torch.tensor([[p + i for i in range(reach + 1)] for _, p in at])  # (n, reach + 1)
    texts = [rows[t][: p + reach + 1] for t, p in at]

    def change(chosen):
        return set_values(params, layer, torch.arange(len(chosen)), place[chosen, 0],
                          torch.full((len(chosen),), head))

    moved = final_states(model, texts, place, change) - final_states(model, texts, place)
    return moved.sum(1) @ params.E_out[:, ids]


def _check_final_norm(params: Parameters) -> None:
    if params.final_norm() is None:
        raise ValueError(f"{params.architecture} has no final norm: its last states times E_out "
                         "are no logits")


def first_places(rows: Sequence[Sequence[int]], ids: Tensor,
                 room: int = 8) -> dict[int, tuple[int, int]]:
    """Where each of the items `ids` (m,) first stands in the texts `rows`: {column: (text, place)}.

    Left out are first positions of texts, and places with fewer than `room` items behind them.
    """
    column, found = {item: i for i, item in enumerate(ids.tolist())}, {}
    for text, row in enumerate(rows):
        for place, item in enumerate(row[1 : max(0, len(row) - room)], start=1):
            if item in column:
                found.setdefault(column[item], (text, place))
    return found
