"""Does a reader fire on the words that its list names, in texts that fitted nothing?

A reading gives every FF key a list of words. In a running model the key meets what its block
reads, the state behind the norm, and their product is the key's pre-activation. If the list is
true of the key, that product is larger at positions where a word of the list stands than at
positions of other words as frequent. The *firing area* says how often: it is the area under the
ROC curve of the pre-activation, 0.5 for a list that says nothing and 1 for one that never errs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from embspace_helpers.experiments.ablation import matched_words
from embspace_helpers.experiments.controls import random_directions, shuffled
from embspace_helpers.experiments.statistics import bootstrap_interval
from embspace_helpers.reading.activations import Hook, hooked, padded, run, tokenize
from embspace_helpers.reading.arrays import as_count, as_index
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.sources import DATA
from embspace_helpers.reading.spaces import Space

FIRING_RESULTS = DATA / "firing.csv"
LESS_MEAN = "E less the mean"  # the words of a key without what all keys of its layer share


@dataclass(frozen=True)
class ReadStates:
    """What the blocks of some layers read at all positions of some texts but the first of each.

    `states`: layer -> (n, d), behind the block's norm. `token` (n,): which token stands at each
    position; `following` (n,): which one comes next, −1 at the end of a text.
    """

    states: dict[int, Tensor]
    token: Tensor
    following: Tensor


@torch.no_grad()
def read_states(model: Model, texts: Sequence[str] | str, layers: Sequence[int] | None = None,
                reads: str = "ff", length: int = 256, batch: int = 8) -> ReadStates:
    """Run `model` on `texts` and keep what its "ff" or "attention" blocks read.

    `layers`: default all. Memory: positions x layers x d numbers. Raises ValueError as `tokenize`
    does, and where no text has a second position.
    """
    p, tokens = model.parameters, tokenize(model, texts, length)
    chosen = range(p.L) if layers is None else [as_index(i, p.L, "layer") for i in layers]
    found: dict[int, list[Tensor]] = {layer: [] for layer in chosen}
    places: list[Tensor] = []  # of the batch that runs

    def keeper(layer: int) -> tuple[nn.Module, Hook, bool]:
        def hook(module: nn.Module, inputs: tuple) -> None:
            found[layer].append(inputs[0].reshape(-1, p.d)[places[-1]].to(p.E.dtype))
        return p.reader(layer, reads), hook, True

    here, following = [], []
    rows = sorted((row for row in tokens if len(row) > 1), key=len)
    if not rows:
        raise ValueError("no text has a second position: the first of each is left out")
    with hooked([keeper(layer) for layer in chosen]):
        for start in range(0, len(rows), as_count(batch, name="batch")):
            ids, mask = padded(rows[start : start + batch])
            behind = ids.roll(-1, 1).where(mask.roll(-1, 1).bool(), -1)
            behind[:, -1] = -1
            mask[:, 0] = 0
            places.append(mask.flatten().nonzero().squeeze(1))
            here.append(ids.flatten()[places[-1]])
            following.append(behind.flatten()[places[-1]])
            run(model, rows[start : start + batch])
    return ReadStates({layer: torch.cat(parts) for layer, parts in found.items()},
                      torch.cat(here), torch.cat(following))


def area_under_curve(high: Tensor, low: Tensor) -> Tensor:
    """How often an entry of high (n, a) exceeds one of low (n, b), ties counting half: (n,)."""
    a = high.shape[1]
    joined = torch.cat([high, low], 1)
    order = joined.sort(dim=1).values
    above = torch.searchsorted(order, joined[:, :a].contiguous())
    upto = torch.searchsorted(order, joined[:, :a].contiguous(), right=True)
    ranks = (above + upto + 1).double() / 2  # mean rank of equals, from 1
    return ((ranks.sum(1) - a * (a + 1) / 2) / (a * low.shape[1])).to(high.dtype)


def seen_often(model: Model, found: ReadStates, keep: Tensor | None = None, least: int = 5,
             ahead: bool = False) -> Tensor:
    """Mask (e,) of the tokens that stand at `least` positions or more, and in the mask `keep`.

    `ahead`: that come next at so many.
    """
    token = found.following if ahead else found.token
    counts = torch.bincount(token[token >= 0], minlength=model.parameters.e)
    keep = model.vocabulary.keep(whole_words=True) if keep is None else keep
    return (counts >= as_count(least, name="least")) & keep


def firing_areas(found: ReadStates, space: Space, readers: Tensor, layer: int,
                 ahead: bool = False, k: int = 10, each: int = 20, near: int = 15,
                 seed: int = 0, listed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Firing areas of `readers` (n, d) of a layer, on their own lists and on others': two (n,).

    `space`: in which the lists are read, over tokens `seen_often`. All words count
    alike, by `each` of their positions, drawn with replacement. Those on a list are compared with
    matched words, as frequent, at most `near` ranks away, and not on the list. `ahead`: the token
    that comes next instead of the one that stands there. `listed` (n, d): what is read in place of
    the readers, such as these without their mean; they fire as they are. The second areas are a
    control: every reader on the list of another. Raises ValueError for fewer than 2 readers, for
    tokens that stand nowhere, or where no matched words are left.
    """
    ids, token = space.ids, found.following if ahead else found.token
    lists = space.top(readers if listed is None else listed, k)[1]  # (n, k) ids
    columns = torch.searchsorted(ids, lists)  # (n, k) places in ids
    counts = torch.bincount(token[token >= 0], minlength=int(ids.max()) + 1)[ids]
    ranks = counts.argsort(stable=True).argsort()
    places = _places(token, ids, each, seed)  # (words, each)
    used = readers @ found.states[layer].T  # (n, positions): pre-activations, but for the bias
    areas = []
    for words in (columns, shuffled(columns, seed)):
        matched = matched_words(words, ranks, near, seed)
        own, other = (used.gather(1, places[x].flatten(1)) for x in (words, matched))
        areas.append(area_under_curve(own, other))
    return areas[0], areas[1]


def _places(token: Tensor, ids: Tensor, each: int, seed: int) -> Tensor:
    """For each of the tokens `ids` (m,), ascending, `each` of its positions in `token`: (m, each).

    Raises ValueError for one that stands nowhere.
    """
    column = torch.searchsorted(ids, token).clamp_max(len(ids) - 1)
    at = (ids[column] == token).nonzero().squeeze(1)
    order = at[column[at].argsort(stable=True)]  # positions, token by token
    counts = torch.bincount(column[at], minlength=len(ids))
    if not counts.all():
        raise ValueError(f"{int((counts == 0).sum())} of {len(ids)} tokens stand nowhere in these "
                         "texts: read over tokens `seen_often`")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(len(ids), each, generator=generator) * counts[:, None]
    first = counts.cumsum(0) - counts
    return order[first[:, None] + drawn.long().clamp_max(counts[:, None] - 1)]


# ---------------------------------------------------------------- a table of a model


def firing_table(model: Model, fit: Sequence[str], found: ReadStates, n: int = 100,
                 least: int = 5, seed: int = 0) -> pd.DataFrame:
    """Firing areas of `n` keys of every kind and layer of `found`, in every reading: a row each.

    `fit`: the texts that the dictionaries are fitted on, none of those in `found`. Columns layer,
    kind ("random": random directions in place of keys), reading (E, the same less the mean of the
    layer's keys, F, dictionary, and of the token that comes next the dictionary fitted on it),
    words ("all", or "new": those of the half of the vocabulary that the dictionary was not fitted
    on), token ("here", "next"), mean with its 95 % interval over keys, and the mean on other keys'
    lists.
    """
    rows = []
    for words, token, keep, only in _settings(model, found, least, seed):
        E = model.space("transpose", keep)
        plain = {"E": E, LESS_MEAN: E, "F": model.space("orthogonal", keep)}
        for layer in found.states:
            spaces = {**plain, "dictionary": model.dictionary(layer, fit, keep=keep, only=only)}
            if token == "next":
                spaces["next dictionary"] = model.dictionary(layer, fit, keep=keep, offset=1)
            for kind, readers, mean in _readers(model, layer, n, seed):
                for reading, space in spaces.items():
                    listed = readers - mean if reading == LESS_MEAN else None
                    own, others = firing_areas(found, space, readers, layer, token == "next",
                                               seed=seed, listed=listed)
                    low, high = bootstrap_interval(own, 500)
                    rows.append((layer, kind, reading, words, token, own.mean().item(), low, high,
                                 others.mean().item()))
    return pd.DataFrame(rows, columns=["layer", "kind", "reading", "words", "token", "mean", "low",
                                       "high", "others"])


def _settings(model: Model, found: ReadStates, least: int,
              seed: int) -> Iterator[tuple[str, str, Tensor, Tensor | None]]:
    """Which words, which token, mask of the words to list, mask of those to fit on (None: all)."""
    half = torch.rand(model.parameters.e, generator=torch.Generator().manual_seed(seed)) < 0.5
    here = seen_often(model, found, least=least)
    yield "all", "here", here, None
    yield "new", "here", here & ~half, half
    yield "all", "next", seen_often(model, found, least=least, ahead=True), None


def _readers(model: Model, layer: int, n: int,
             seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """`n` keys of every kind, drawn at random, and as many random directions, with their means.

    (kind, (n, d), (d,)); the mean is that of all keys of the layer and kind.
    """
    p = model.parameters
    drawn = torch.randperm(p.d_ff, generator=torch.Generator().manual_seed(seed + layer))[:n]
    for kind in p.key_kinds:
        keys = p.K(layer, kind)
        yield kind, keys[drawn], keys.mean(0)
    dice = random_directions(n, p.d, seed + layer).to(p.E.dtype)
    yield "random", dice, dice.mean(0)
