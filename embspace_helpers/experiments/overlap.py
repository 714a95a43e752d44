"""Do the words of the most active parameters turn up in the hidden state?

Dar et al. (2023), section 4.2: at every position take the few most active neurons or subheads,
unite their top words, and see which share of the state's own top words is among them.

    python -m embspace_helpers.overlap twin-a --data stanfordnlp/imdb --out overlap.csv
"""

import argparse
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from embspace_helpers.classroom import plots
from embspace_helpers.reading.activations import Record, capture
from embspace_helpers.reading.models import DATA, load_model, load_untrained
from embspace_helpers.reading.parameters import Parameters
from embspace_helpers.reading.projection import EmbeddingSpace
from embspace_helpers.classroom.reviews import EMBEDDED, HUB_NAME, load_reviews
from embspace_helpers.experiments.statistics import (group_interval, mixtures, overlap_at_k, random_rotation,
                                         save_table, shuffled)
from embspace_helpers.reading.vocabulary import Vocabulary, load_vocabulary

RESULTS = DATA / "overlap_imdb.csv"
TARGETS = ("this", "last", "before")
LABELS = {"K": "keys", "gate": "gate keys", "up": "up keys", "V": "values",
          "W_V": "value subheads", "W_O": "output subheads"}
MEAN = -1  # stands for the mean over layers where a table has a layer


def overlap_groups(params: Parameters) -> tuple[str, ...]:
    """The groups that have an activation: FF keys and values, value and output subheads."""
    return (*params.key_kinds, "V", "W_V", "W_O")


def readable_items(vocabulary: Vocabulary) -> Tensor:
    """Mask (e,) of the items these tables are read over: seen 50 times, or whole words."""
    counted = vocabulary.counts is not None
    return vocabulary.keep(min_count=50) if counted else vocabulary.keep(whole_words=True)


def _uses(record: Record, params: Parameters, group: str, layer: int,
          basis: int | None) -> tuple[Tensor, Tensor]:
    """Rows of a group (m, d), one for each coefficient, and the coefficients (n, m)."""
    if group not in ("W_V", "W_O"):
        return params.vectors(group, layer), record.neurons[layer]
    rows = params.vectors(group, layer).unflatten(0, (-1, params.d_h))  # (heads, d_h, d)
    rows = rows.repeat_interleave(params.H // len(rows), 0)  # one for every query head
    used = record.subheads[layer].unflatten(-1, (params.H, params.d_h))  # (n, H, d_h)
    if basis is not None:
        seeds = range(basis * params.H, (basis + 1) * params.H)
        Q = torch.stack([random_rotation(params.d_h, seed) for seed in seeds]).to(rows.dtype)
        rows, used = Q.mT @ rows, torch.einsum("nhi,hij->nhj", used, Q)
    return rows.flatten(0, 1), used.flatten(1)


def active_lists(record: Record, params: Parameters, space: EmbeddingSpace, group: str, layer: int,
                 active: int = 5, k: int = 50, basis: int | None = None) -> Tensor:
    """Top k words of a group's most active rows at every position, side by side: ids (n, active k).

    Active are the `active` rows with the largest coefficients by magnitude (of a neuron without a
    gate: nearly those with the largest pre-activations). A row is read with the sign it was used
    with: a key with that of its own pre-activation, all else with that of the coefficient.
    `basis`: a seed; subheads are then those of a randomly turned basis of every head, which does
    the same in the model. Raises ValueError for a record that does not hold what is needed.
    """
    _check_kept(record, params, group)
    rows, used = _uses(record, params, group, layer, basis)
    index = used.abs().topk(active, dim=1).indices  # (n, active)
    source = record.keys[group][layer] if group in params.key_kinds else used
    place = 2 * index + (source.gather(1, index) < 0)  # row r at 2 r, its negative at 2 r + 1
    used_places, back = place.unique(return_inverse=True)
    vectors = rows[used_places // 2] * (1 - 2 * (used_places % 2))[:, None]
    return space.top(vectors, k)[1][back].flatten(1)


def _check_kept(record: Record, params: Parameters, group: str) -> None:
    needed = {"subheads"} if group in ("W_V", "W_O") else {"neurons"}
    needed |= {"keys"} if group in params.key_kinds else set()
    missing = [x for x in sorted(needed) if getattr(record, x) is None or not len(getattr(record, x))]
    if missing:
        raise ValueError(f"for the group {group} the record needs {' and '.join(missing)}: "
                         "capture(..., keep=(...)) says what is kept")


def other_keys_lists(record: Record, params: Parameters, space: EmbeddingSpace, layer: int,
                     how: str = "turned", seed: int = 0, active: int = 5, k: int = 50) -> Tensor:
    """As `active_lists` for FF keys, but of vectors that are not the model's: ids (n, active k).

    Those active are the `active` with the largest product with what the FF block reads (without a
    bias, and of a gated model by the gate alone). "turned": all keys of the layer, turned by one
    random rotation; "mixtures": random combinations of the layer's keys, with their mean and
    covariance. Of a gated model, gate keys. Raises ValueError for another `how`, or where
    `state_before` does.
    """
    if how not in ("turned", "mixtures"):
        raise ValueError(f"no control {how!r}: there are turned, mixtures")
    norm, K = params.ff_norm(layer), params.K(layer)
    if how == "turned":
        other = K @ random_rotation(params.d, seed).to(K.dtype)
    else:
        other = mixtures(K, seed=seed)[0]
    with torch.no_grad():
        read = norm(state_before(record, params, "K", layer))  # (n, d)
        index = (read @ other.T).topk(active, dim=1).indices  # (n, active)
    used, back = index.unique(return_inverse=True)
    return space.top(other[used], k)[1][back].flatten(1)


def state_before(record: Record, params: Parameters, group: str, layer: int) -> Tensor:
    """The stream in front of the block that a group belongs to, (n, d).

    Raises ValueError for a model whose norms stand in the stream itself (BERT).
    """
    if not params.entry.norm_first:
        raise ValueError(f"{params.architecture} norms the stream after each block: what stood "
                         "before cannot be had by subtracting")
    written = record.neurons[layer] @ params.V(layer)
    biases = [params.b_V(layer)]
    if group in ("W_V", "W_O"):
        written = written + record.subheads[layer] @ params.vectors("W_O", layer)
        biases.append(params.b_O(layer))
    return record.states[layer] - written - sum(b for b in biases if b is not None)


def state_lists(states: Tensor, space: EmbeddingSpace, k: int = 50,
                norm: nn.Module | None = None) -> Tensor:
    """Top k words of states (n, d), after the final norm if it is given: ids (n, k)."""
    with torch.no_grad():
        return space.top(states if norm is None else norm(states), k)[1]


def overlaps(words: Tensor, lists: Tensor) -> dict[str, Tensor]:
    """Share of every state's words (n, k) among those of the active rows (n, m): two of (n,).

    "real", and "permuted": among those that were active at another position.
    """
    return {"real": overlap_at_k(words, lists), "permuted": overlap_at_k(words, shuffled(lists))}


def overlap_table(record: Record, params: Parameters, space: EmbeddingSpace,
                  layers: Sequence[int] | None = None, targets: Sequence[str] = ("this", "last"),
                  active: int = 5, k: int = 50, normed: bool = True) -> pd.DataFrame:
    """A row per group, layer, target and kind ("real", "permuted"): mean, and 95 % interval.

    `layers`: default all. `targets`: the state after "this" layer, after the "last" one, or "before"
    the block that the group belongs to. `normed`: states are read after the final norm. Rows with
    layer -1 are means over the layers. Intervals resample whole texts. Raises ValueError for
    another target, for "before" where `state_before` does, and for positions of one text only.
    """
    if unknown := set(targets) - set(TARGETS):
        raise ValueError(f"no target {', '.join(sorted(unknown))}: there are {', '.join(TARGETS)}")
    layers = range(params.L) if layers is None else layers
    norm = params.final_norm() if normed else None

    @lru_cache
    def words(kind: str, layer: int) -> Tensor:
        """Words of the state after a layer, or before its FF ("K") or attention block ("W_O")."""
        after = kind == "after"
        state = record.states[layer] if after else state_before(record, params, kind, layer)
        return state_lists(state, space, k, norm)

    found = {}
    for group in overlap_groups(params):
        block = "W_O" if group in ("W_V", "W_O") else "K"
        for layer in layers:
            lists = active_lists(record, params, space, group, layer, active, k)
            near = {"this": ("after", layer), "last": ("after", params.L - 1),
                    "before": (block, layer)}
            for target in targets:
                for kind, values in overlaps(words(*near[target]), lists).items():
                    found[group, layer, target, kind] = values
    for group, _, target, kind in list(found):
        found[group, MEAN, target, kind] = torch.stack(
            [found[group, layer, target, kind] for layer in layers]).mean(0)
    rows = [(*key, x.mean().item(), *group_interval(x, record.text)) for key, x in found.items()]
    return pd.DataFrame(rows, columns=["group", "layer", "target", "kind", "mean", "low", "high"])


def other_keys_table(record: Record, params: Parameters, space: EmbeddingSpace, how: str,
                     seeds: Sequence[int] = (1, 2, 3), k: int = 50) -> pd.DataFrame:
    """Rows like those of `overlap_table` for `other_keys_lists`, means over `seeds`; kind: `how`.

    All layers, target "this", without rows for the mean over layers.
    """
    rows = []
    for layer in range(params.L):
        words = state_lists(record.states[layer], space, k, params.final_norm())
        shares = torch.stack([
            overlap_at_k(words, other_keys_lists(record, params, space, layer, how, seed, k=k))
            for seed in seeds]).mean(0)
        interval = group_interval(shares, record.text)
        rows.append((params.key_kinds[0], layer, "this", how, shares.mean().item(), *interval))
    return pd.DataFrame(rows, columns=["group", "layer", "target", "kind", "mean", "low", "high"])


# ---------------------------------------------------------------- tables and figures


def curve_of(table: pd.DataFrame, group: str, kind: str = "real",
             target: str = "this") -> pd.DataFrame:
    """The rows of one curve of an overlap table, without the mean over layers."""
    chosen = (table["group"] == group) & (table["kind"] == kind) & (table["target"] == target)
    return table[chosen & (table["layer"] != MEAN)]


def plot_overlap(takeaway: str, curves: dict[str, tuple[pd.DataFrame, str, str]], chance: float,
                 top: float | None = None) -> None:
    """A panel per group of the first table; curves: {label: (table, kind, target)}."""
    groups = list(next(iter(curves.values()))[0]["group"].unique())
    figure, axes = plots.panels(takeaway, *[LABELS[g] for g in groups], width=12, height=3.5,
                                share_y=True)
    for ax, group in zip(axes, groups):
        index = 0
        for label, (table, kind, target) in curves.items():
            rows = curve_of(table, group, kind, target)
            if len(rows):
                plots.curve(ax, rows["layer"], rows["mean"], list(zip(rows["low"], rows["high"])),
                            label, index, control=kind == "permuted")
            index += kind != "permuted"
        plots.chance_line(ax, chance)
        plots.caption(ax, "layer", "share of the state's top words" if ax is axes[0] else "")
        ax.get_legend().remove()
    axes[-1].legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="upper left",
                    bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes[0].set_ylim(0, top)


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
        rows[LABELS[group]] = {**text, "ratio": f"{ratio:.1f}"}
    return pd.DataFrame(rows).T


# ---------------------------------------------------------------- the command


UNTRAINED_SEEDS = {"twin-b": 1}  # so that the two twins have two untrained controls; others 0


def measure(name: str, source: str, texts: int, positions: int, readings: Sequence[str],
            untrained: bool = False) -> pd.DataFrame:
    """The tables of a model on so many test reviews; columns model, reading, positions, source."""
    seed = UNTRAINED_SEEDS.get(name, 0)
    model, tokenizer = load_untrained(name, seed) if untrained else load_model(name)
    params = Parameters(model)
    reviews = load_reviews("test", texts, source=source)["text"].tolist()
    record = capture(model, tokenizer, reviews, positions, skip=1,
                     keep=("states", "keys", "neurons", "subheads"))
    vocabulary = load_vocabulary(model, tokenizer)
    label = f"{Path(name).name}, untrained" if untrained else Path(name).name
    tables = []
    for reading in readings:
        space = EmbeddingSpace(params.E, vocabulary, reading, readable_items(vocabulary))
        table = overlap_table(record, params, space)
        tables.append(table.assign(model=label, reading=reading, positions=len(record),
                                   source=source if source == EMBEDDED else "imdb"))
    return pd.concat(tables)


def merge(new: pd.DataFrame, out: Path) -> pd.DataFrame:
    """The rows of the file `out`, if there is one, with those measured anew replaced.

    Replaced is what has the same model, reading and source.
    """
    key = ["model", "reading", "source"]
    if out.exists():
        old = pd.read_csv(out)
        again = pd.MultiIndex.from_frame(old[key]).isin(pd.MultiIndex.from_frame(new[key]))
        new = pd.concat([old[~again], new])
    return new.sort_values(key, kind="stable")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.overlap",
        description="Measure the overlap of states and active parameters on IMDB's test reviews.")
    parser.add_argument("names", nargs="+", help="models; a large one needs memory for positions")
    parser.add_argument("--data", default=HUB_NAME, help="hub name or folder (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file to write or to renew")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--positions", type=int, default=3000)
    parser.add_argument("--readings", nargs="+", default=["transpose", "orthogonal"])
    args = parser.parse_args(arguments)
    for name in args.names:
        tables = [measure(name, args.data, args.texts, args.positions, args.readings, untrained)
                  for untrained in (False, True)]
        save_table(merge(pd.concat(tables).round(4), args.out), args.out)
        print(f"{name}: done", flush=True)
