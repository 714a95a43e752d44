"""Do the words of the most active parameters turn up in the hidden state?

Dar et al. (2023), section 4.2: at every position take the few most active neurons or subheads,
unite their top words, and see which share of the state's own top words is among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pandas as pd
import torch
from torch import Tensor, nn

from embspace_helpers.experiments.caches import check_kept, kept
from embspace_helpers.experiments.controls import mixtures, random_rotation, shuffled
from embspace_helpers.experiments.statistics import group_interval, overlap_at_k
from embspace_helpers.reading.activations import ActivationCache
from embspace_helpers.reading.arrays import as_count
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.parameters import GROUP_NAMES
from embspace_helpers.reading.ranking import top_k
from embspace_helpers.reading.sources import DATA
from embspace_helpers.reading.spaces import Space
from embspace_helpers.reading.vocabulary import Vocabulary

OVERLAP_RESULTS = DATA / "overlap_imdb.csv"
TARGETS = ("this", "last", "before")
MEAN = -1  # stands for the mean over layers where a table has a layer


def overlap_groups(model: Model) -> tuple[str, ...]:
    """The groups that have an activation: FF keys and values, value and output subheads."""
    return (*model.parameters.key_kinds, "V", "W_V", "W_O")


def readable_tokens(vocabulary: Vocabulary) -> Tensor:
    """Mask (e,) of the tokens these tables are read over: seen 50 times, or whole words."""
    counted = vocabulary.counts is not None
    return vocabulary.keep(min_count=50) if counted else vocabulary.keep(whole_words=True)


def _uses(model: Model, cache: ActivationCache, group: str, layer: int,
          basis: int | None) -> tuple[Tensor, Tensor]:
    """Rows of a group (m, d), one for each coefficient, and the coefficients (n, m)."""
    p = model.parameters
    if group not in ("W_V", "W_O"):
        return p.vectors(group, layer), kept(cache, "neurons", layer)
    rows = p.vectors(group, layer).unflatten(0, (-1, p.d_h))  # (heads, d_h, d)
    rows = rows.repeat_interleave(p.H // len(rows), 0)  # one for every query head
    used = kept(cache, "subheads", layer).unflatten(-1, (p.H, p.d_h))  # (n, H, d_h)
    if basis is not None:
        seeds = range(basis * p.H, (basis + 1) * p.H)
        Q = torch.stack([random_rotation(p.d_h, seed) for seed in seeds]).to(rows.dtype)
        rows, used = Q.mT @ rows, torch.einsum("nhi,hij->nhj", used, Q)
    return rows.flatten(0, 1), used.flatten(1)


def active_lists(model: Model, cache: ActivationCache, space: Space, group: str, layer: int,
                 active: int = 5, k: int = 50, basis: int | None = None) -> Tensor:
    """Top k words of a group's most active rows at every position, side by side: ids (n, active k).

    Active are the `active` rows with the largest coefficients by magnitude (of a neuron without a
    gate: nearly those with the largest pre-activations). A row is read with the sign it was used
    with: a key with that of its own pre-activation, all else with that of the coefficient.
    `basis`: a seed; subheads are then those of a randomly turned basis of every head, which does
    the same in the model. Raises ValueError for a cache that lacks what is needed, and for more
    `active` rows than there are.
    """
    _check_kept(model, cache, group)
    rows, used = _uses(model, cache, group, layer, basis)
    active = as_count(active, len(rows), "active", "rows")
    index = top_k(used.abs(), active)[1]  # (n, active)
    source = cache.keys[group][layer] if group in model.parameters.key_kinds else used
    place = 2 * index + (source.gather(1, index) < 0)  # row r at 2 r, its negative at 2 r + 1
    used_places, back = place.unique(return_inverse=True)
    vectors = rows[used_places // 2] * (1 - 2 * (used_places % 2))[:, None]
    return space.top(vectors, k)[1][back].flatten(1)


def _check_kept(model: Model, cache: ActivationCache, group: str) -> None:
    keys = ["keys"] if group in model.parameters.key_kinds else []
    needed = ["subheads"] if group in ("W_V", "W_O") else [*keys, "neurons"]
    check_kept(cache, needed, f"for the group {group} ")


def other_keys_lists(model: Model, cache: ActivationCache, space: Space, layer: int,
                     how: str = "turned", seed: int = 0, active: int = 5, k: int = 50) -> Tensor:
    """As `active_lists` for FF keys, but by the control's rule of choice: ids (n, active k).

    Those active are the `active` with the largest product with what the FF block reads (without a
    bias, and of a gated model by the gate alone). "turned": all keys of the layer, turned by one
    random rotation; "mixtures": random combinations of the layer's keys, with their mean and
    covariance; "own": the model's keys themselves, to compare with. Of a gated model, gate keys.
    Raises ValueError for another `how`, or where `state_before` does.
    """
    if how not in ("turned", "mixtures", "own"):
        raise ValueError(f"no control {how!r}: there are turned, mixtures, own")
    p = model.parameters
    norm, K = p.ff_norm(layer), p.K(layer)
    if how == "turned":
        other = K @ random_rotation(p.d, seed).to(K.dtype)
    else:
        other = K if how == "own" else mixtures(K, seed=seed)[0]
    with torch.no_grad():
        state = state_before(model, cache, "K", layer)  # (n, d)
        read = state if norm is None else norm(state)
        active = as_count(active, len(other), "active", "rows")
        index = top_k(read @ other.T, active)[1]  # (n, active)
    used, back = index.unique(return_inverse=True)
    return space.top(other[used], k)[1][back].flatten(1)


def state_before(model: Model, cache: ActivationCache, group: str, layer: int) -> Tensor:
    """The stream in front of the block that a group belongs to, (n, d).

    Raises ValueError for a model whose norms stand in the stream itself (BERT), and for a cache
    that lacks something: states, neurons, and for attention blocks subheads.
    """
    p = model.parameters
    if p.entry.normed_stream:
        raise ValueError(f"{p.architecture} norms the stream after each block: what stood "
                         "before cannot be had by subtracting")
    with torch.no_grad():
        written = p.written("ff", layer, kept(cache, "neurons", layer))
        if group in ("W_V", "W_O") or p.parallel:  # parallel blocks stand behind the same state
            written = written + p.written("attention", layer, kept(cache, "subheads", layer))
    return kept(cache, "states", layer) - written


def state_lists(states: Tensor, space: Space, k: int = 50,
                norm: nn.Module | None = None) -> Tensor:
    """Top k words of states (n, d), after the final norm if it is given: ids (n, k)."""
    with torch.no_grad():
        return space.top(states if norm is None else norm(states), k)[1]


def overlaps(words: Tensor, lists: Tensor) -> dict[str, Tensor]:
    """Share of every state's words (n, k) among those of the active rows (n, m): two of (n,).

    "real", and "permuted": among those that were active at another position.
    """
    return {"real": overlap_at_k(words, lists), "permuted": overlap_at_k(words, shuffled(lists))}


def overlap_table(model: Model, cache: ActivationCache, space: Space,
                  layers: Sequence[int] | None = None, targets: Sequence[str] = ("this", "last"),
                  active: int = 5, k: int = 50, normed: bool = True) -> pd.DataFrame:
    """A row per group, layer, target and kind ("real", "permuted"): mean, and 95 % interval.

    `layers`: default all. `targets`: the state after "this" layer, after the "last" one, or
    "before" the block that the group belongs to. `normed`: states are read after the final norm.
    Rows with layer -1 are means over the layers. Intervals resample whole texts. Raises ValueError
    for another target, for "before" where `state_before` does, for positions of one text only, and
    for a cache that lacks states, keys, neurons or subheads.
    """
    check_kept(cache, ("states", "keys", "neurons", "subheads"))
    p = model.parameters
    if unknown := set(targets) - set(TARGETS):
        raise ValueError(f"no target {', '.join(sorted(unknown))}: there are {', '.join(TARGETS)}")
    layers = range(p.L) if layers is None else layers
    norm = p.final_norm() if normed else None

    @lru_cache
    def words(kind: str, layer: int) -> Tensor:
        """Words of the state after a layer, or before its FF ("K") or attention block ("W_O")."""
        after = kind == "after"
        state = kept(cache, "states", layer) if after else state_before(model, cache, kind, layer)
        return state_lists(state, space, k, norm)

    found = {}
    for group in overlap_groups(model):
        block = "W_O" if group in ("W_V", "W_O") else "K"
        for layer in layers:
            lists = active_lists(model, cache, space, group, layer, active, k)
            near = {"this": ("after", layer), "last": ("after", p.L - 1),
                    "before": (block, layer)}
            for target in targets:
                for kind, values in overlaps(words(*near[target]), lists).items():
                    found[group, layer, target, kind] = values
    for group, _, target, kind in list(found):
        found[group, MEAN, target, kind] = torch.stack(
            [found[group, layer, target, kind] for layer in layers]).mean(0)
    rows = [(*key, x.mean().item(), *group_interval(x, cache.text)) for key, x in found.items()]
    return pd.DataFrame(rows, columns=["group", "layer", "target", "kind", "mean", "low", "high"])


def other_keys_table(model: Model, cache: ActivationCache, space: Space, how: str,
                     seeds: Sequence[int] = (1, 2, 3), k: int = 50) -> pd.DataFrame:
    """Rows like those of `overlap_table` for `other_keys_lists`, means over `seeds`.

    Of two kinds, `how` and f"{how}, permuted". All layers, target "this", without rows for the
    mean over layers.
    """
    p = model.parameters
    rows = []
    for layer in range(p.L):
        words = state_lists(kept(cache, "states", layer), space, k, p.final_norm())
        found = [overlaps(words, other_keys_lists(model, cache, space, layer, how, seed, k=k))
                 for seed in seeds]
        for kind, label in (("real", how), ("permuted", f"{how}, permuted")):
            shares = torch.stack([x[kind] for x in found]).mean(0)
            interval = group_interval(shares, cache.text)
            rows.append((p.key_kinds[0], layer, "this", label, shares.mean().item(), *interval))
    return pd.DataFrame(rows, columns=["group", "layer", "target", "kind", "mean", "low", "high"])


# ---------------------------------------------------------------- tables


def curve_of(table: pd.DataFrame, kind: str = "real", target: str = "this",
             group: str | None = None) -> pd.DataFrame:
    """The rows of one kind and target of an overlap table, layer by layer (no mean over layers).

    `group`: of one group of parameters only; default all.
    """
    chosen = (table["kind"] == kind) & (table["target"] == target) & (table["layer"] != MEAN)
    return table[chosen if group is None else chosen & (table["group"] == group)]


def summary(table: pd.DataFrame, target: str = "this") -> pd.DataFrame:
    """Per group, means over layers: real and permuted with their intervals, and the ratio.

    Raises ValueError for a table of more than one model or reading.
    """
    chosen = table[(table["layer"] == MEAN) & (table["target"] == target)]
    if chosen.duplicated(["group", "kind"]).any():
        raise ValueError("a summary is of one model in one reading: choose their rows first")
    rows = {}
    for group, part in chosen.groupby("group", sort=False):
        part = part.set_index("kind")
        text = {kind: f"{x['mean']:.3f} ({x['low']:.3f} to {x['high']:.3f})"
                for kind, x in part.iterrows()}
        ratio = part.loc["real", "mean"] / part.loc["permuted", "mean"]
        rows[GROUP_NAMES[group]] = {**text, "ratio": f"{ratio:.1f}"}
    return pd.DataFrame(rows).T
