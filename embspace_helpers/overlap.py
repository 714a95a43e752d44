"""Do the words of the most active parameters turn up in the hidden state?

Dar et al. (2023), section 4.2: at every position take the few most active neurons or subheads,
unite their top words, and see which share of the state's own top words is among them.

    python -m embspace_helpers.overlap twin-a --data stanfordnlp/imdb --out overlap.csv
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from embspace_helpers.activations import Record, capture
from embspace_helpers.models import load_model, load_untrained
from embspace_helpers.parameters import Parameters
from embspace_helpers.projection import EmbeddingSpace
from embspace_helpers.reviews import EMBEDDED, HUB_NAME, load_reviews
from embspace_helpers.statistics import bootstrap_interval, overlap_at_k, shuffled
from embspace_helpers.vocabulary import load_vocabulary

RESULTS = Path(__file__).parent / "data" / "overlap_imdb.csv"
TARGETS = ("this", "last")


def overlap_groups(params: Parameters) -> tuple[str, ...]:
    """The groups that have an activation: FF keys and values, value and output subheads."""
    return (*params.key_kinds, "V", "W_V", "W_O")


def most_active(record: Record, group: str, layer: int, active: int = 5) -> tuple[Tensor, Tensor]:
    """Rows of a group that were most active at every position, (n, active), and their signs.

    Of neurons, those with the largest coefficients (without a gate these are those of the largest
    pre-activations), of subheads likewise, by magnitude. The sign, 1 or -1, says with which a row
    was used: of a key the sign of its own pre-activation, else that of the coefficient.
    """
    used = record.subheads if group in ("W_V", "W_O") else record.neurons
    index = used[layer].abs().topk(active, dim=1).indices  # (n, active)
    source = record.keys.get(group, used)[layer]
    return index, source.gather(1, index).sign()


def active_lists(record: Record, params: Parameters, space: EmbeddingSpace, group: str, layer: int,
                 active: int = 5, k: int = 50) -> Tensor:
    """Top k words of the most active rows of a group, side by side: ids (n, active k)."""
    rows = params.vectors(group, layer)
    if group == "W_V" and params.H_kv < params.H:  # one row for every query head that uses it
        per_head = rows.unflatten(0, (params.H_kv, params.d_h))
        rows = per_head.repeat_interleave(params.H // params.H_kv, 0).flatten(0, 1)
    index, sign = most_active(record, group, layer, active)
    place = 2 * index + (sign < 0)  # row r stands at 2 r, its negative at 2 r + 1
    used, back = place.unique(return_inverse=True)
    vectors = rows[used // 2] * (1 - 2 * (used % 2))[:, None]
    return space.top(vectors, k)[1][back].flatten(1)


def state_lists(states: Tensor, space: EmbeddingSpace, k: int = 50,
                norm: nn.Module | None = None) -> Tensor:
    """Top k words of states (n, d), behind the final norm if it is given: ids (n, k)."""
    with torch.no_grad():
        return space.top(states if norm is None else norm(states), k)[1]


def overlaps(words: Tensor, lists: Tensor) -> dict[str, Tensor]:
    """Share of every state's words (n, k) among those of the active rows (n, m): two of (n,).

    "real", and "permuted": among those that were active at another position.
    """
    return {"real": overlap_at_k(words, lists), "permuted": overlap_at_k(words, shuffled(lists))}


def overlap_table(record: Record, params: Parameters, space: EmbeddingSpace,
                  layers: Sequence[int] | None = None, targets: Sequence[str] = TARGETS,
                  active: int = 5, k: int = 50, normed: bool = True) -> pd.DataFrame:
    """A row per group, layer, target and kind ("real", "permuted"): mean, and 95 % interval.

    `targets`: the state behind "this" layer, behind the "last" one. `normed`: states are read
    behind the final norm. Raises ValueError for another target.
    """
    if unknown := set(targets) - set(TARGETS):
        raise ValueError(f"no target {', '.join(sorted(unknown))}: there are {', '.join(TARGETS)}")
    layers, last = range(params.L) if layers is None else layers, params.L - 1
    norm = params.final_norm() if normed else None
    words = {layer: state_lists(record.states[layer], space, k, norm) for layer in {*layers, last}}
    found = []
    for group in overlap_groups(params):
        for layer in layers:
            lists = active_lists(record, params, space, group, layer, active, k)
            for target in targets:
                both = overlaps(words[layer if target == "this" else last], lists)
                for kind, values in both.items():
                    low, high = bootstrap_interval(values, 500)
                    found.append((group, layer, target, kind, values.mean().item(), low, high))
    names = ["group", "layer", "target", "kind", "mean", "low", "high"]
    return pd.DataFrame(found, columns=names)


# ---------------------------------------------------------------- the command


def measure(name: str, source: str, texts: int, positions: int, reading: str,
            untrained: bool = False) -> pd.DataFrame:
    """The table of a model on so many test reviews, with columns model, reading, positions, source."""
    model, tokenizer = load_untrained(name) if untrained else load_model(name)
    params = Parameters(model)
    reviews = load_reviews("test", texts, source=source)["text"].tolist()
    record = capture(model, tokenizer, reviews, positions)
    space = EmbeddingSpace(params.E, load_vocabulary(model, tokenizer), reading)
    table = overlap_table(record, params, space)
    label = f"{Path(name).name}, untrained" if untrained else Path(name).name
    return table.assign(model=label, reading=reading, positions=len(record),
                        source=source if source == EMBEDDED else "imdb")


def merge(new: pd.DataFrame, out: Path) -> pd.DataFrame:
    """The rows of the file `out`, if there is one, with those of the models measured anew replaced."""
    if not out.exists():
        return new
    old = pd.read_csv(out)
    return pd.concat([old[~old["model"].isin(new["model"])], new]).sort_values(
        ["model", "reading"], kind="stable")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.overlap",
        description="Measure the overlap of states and active parameters on IMDB's test reviews.")
    parser.add_argument("names", nargs="+", help="models; a large one needs memory for positions")
    parser.add_argument("--data", default=HUB_NAME, help="hub name or folder (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file to write or to renew")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--positions", type=int, default=5000)
    parser.add_argument("--readings", nargs="+", default=["transpose", "orthogonal"])
    args = parser.parse_args(arguments)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        tables = [measure(name, args.data, args.texts, args.positions, reading, untrained)
                  for reading in args.readings for untrained in (False, True)]
        merge(pd.concat(tables).round(4), args.out).to_csv(args.out, index=False)
        print(f"{name}: done", flush=True)


if __name__ == "__main__":
    main()
