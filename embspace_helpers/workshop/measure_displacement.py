"""Measure what fine-tuning wrote in classifiers, for notebook 05.

    python -m embspace_helpers.displacement build/classifiers/*.safetensors

Name all classifiers at once: both tables are written anew.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm.auto import tqdm

from embspace_helpers.classroom.reviews import load_reviews
from embspace_helpers.experiments.classifiers import (
    accuracy,
    load_classifier,
    read_facts,
    share_weights,
)
from embspace_helpers.experiments.controls import (
    random_directions,
    random_rotation,
    share_above,
    shuffled,
)
from embspace_helpers.experiments.displacement import (
    DIRECTIONS,
    SEPARATION,
    displacement,
    edited,
    head_displacement,
    leading_directions,
    sentiment_space,
    separating,
    separation,
)
from embspace_helpers.experiments.statistics import save_table
from embspace_helpers.reading.arrays import one_thread
from embspace_helpers.reading.model import Model, load
from embspace_helpers.reading.sources import DATA
from embspace_helpers.reading.vocabulary import valence

RANKS = (1, 2, 4, 8, 16)


class Measured:
    """One classifier of a file, beside the model it was made from."""

    def __init__(self, file: Path, before: Model | None = None):
        """Load both, or the classifier only; what was frozen then takes no memory of its own."""
        facts = read_facts(file)
        self.name, self.seed = facts["model"], facts["recipe"]["seed"]
        self.shuffled = facts["recipe"].get("shuffled_labels", False)
        self.classifier = load_classifier(self.name, path=file)
        self.before, self.after = before or load(self.name), self.classifier.model
        share_weights(self.after.model, self.before.model.base_model)
        p = self.before.parameters
        self.layers = range(p.L - facts["recipe"]["free_layers"], p.L)
        self.space, self.ratings = sentiment_space(self.before), valence(self.before.vocabulary)

    def facts(self) -> dict:
        """Which classifier this is."""
        return {"model": Path(self.name).name, "seed": self.seed, "shuffled": self.shuffled}


def separation_table(classifiers: Sequence[Measured]) -> pd.DataFrame:
    """Per classifier, group and layer: shares that separate, and agreement with the other seeds.

    Columns: separating (share of displacements), size (mean of |separation|), pretrained (share of
    the same vectors before), first (share of the squared lengths along one direction), agreement
    (mean cosine with the same vector's displacement, over the model's other seeds) and unpaired
    (the same with other vectors of the layer). Layers that were not free: pretrained only. The
    group "head", in the layer behind the last, is the head's one direction: pretrained is its
    random start, size its separation with its sign.
    """
    rows, chance = [], {}
    pretrained: dict[tuple[str, str, int], float] = {}  # the same for all classifiers of a model
    for one in tqdm(classifiers, desc="separation", unit="classifier"):
        if one.name not in chance:
            lucky = random_directions(2000, one.before.parameters.d)
            chance[one.name] = separation(one.space, one.ratings, lucky)  # (2000,)
        others = [x for x in classifiers if x is not one
                  and (x.name, x.shuffled) == (one.name, one.shuffled)]
        p = one.before.parameters
        for group, layer in product(p.groups, range(p.L)):
            if (key := (one.name, group, layer)) not in pretrained:
                old = p.vectors(group, layer)
                pretrained[key] = separating(one.space, one.ratings, old,
                                             chance[one.name]).mean().item()
            rows.append(one.facts() | {"group": group, "layer": layer,
                                       "pretrained": pretrained[key]}
                        | _row(one, others, group, layer, chance[one.name]))
        rows.append(one.facts() | {"group": "head", "layer": one.before.parameters.L}
                    | _head_row(one, others, chance[one.name]))
    return pd.DataFrame(rows)


def _head_row(one: Measured, others: Sequence[Measured], chance: Tensor) -> dict:
    start = one.classifier.head_before[1] - one.classifier.head_before[0]  # (d,)
    moved = torch.stack([head_displacement(x.classifier) for x in (one, *others)])  # (m, d)
    before, after = separation(one.space, one.ratings, torch.stack([start, moved[0]]))
    shares = share_above(torch.stack([before, after]).abs(), chance.abs()).tolist()
    row = {"pretrained": shares[0], "separating": shares[1], "size": after.item()}
    if others:
        row["agreement"] = cosine_similarity(moved[:1], moved[1:]).mean().item()
    return row


def _row(one: Measured, others: Sequence[Measured], group: str, layer: int, chance: Tensor) -> dict:
    if layer not in one.layers:
        return {}
    moved = displacement(one.after, one.before, group, layer)
    found = separation(one.space, one.ratings, moved)
    row = {"separating": share_above(found.abs(), chance.abs()).mean().item(),
           "size": found.abs().mean().item()}
    with one_thread():
        spectrum = torch.linalg.eigvalsh(moved.T @ moved)
    row["first"] = (spectrum[-1] / spectrum.sum()).item()
    theirs = [displacement(x.after, x.before, group, layer) for x in others]
    if theirs:
        row["agreement"] = torch.stack([cosine_similarity(moved, x) for x in theirs]).mean().item()
        unpaired = [cosine_similarity(moved, shuffled(x)) for x in theirs]  # (n,) each
        row["unpaired"] = torch.stack(unpaired).mean().item()
    return row


def directions_table(one: Measured, reviews: pd.DataFrame) -> pd.DataFrame:
    """Accuracy on `reviews` without the leading directions of a displacement, and with only these.

    Columns rank (0: nothing taken out; d: all displacement out), kind ("leading", "random", or
    "shortened": all directions, but as short as without the leading ones), only, accuracy.
    """
    def measure(directions: Tensor, only: bool, shorten: bool = False) -> float:
        with edited(one.after, one.before, one.layers, directions, only, shorten):
            return accuracy(one.classifier, reviews, autocast=True)

    d = one.before.parameters.d
    everything = torch.eye(d)
    rows = [{"rank": 0, "kind": "all", "only": False, "accuracy": measure(everything, True)},
            {"rank": d, "kind": "all", "only": False, "accuracy": measure(everything, False)}]
    ranks = [rank for rank in RANKS if rank < d]
    leading = leading_directions(one.after, one.before, one.layers, max(ranks))
    for rank, only in product(ranks, (False, True)):
        found = {"leading": leading[:rank], "random": random_rotation(d, one.seed)[:rank]}
        rows += [{"rank": rank, "kind": kind, "only": only, "accuracy": measure(x, only)}
                 for kind, x in found.items()]
        rows.append({"rank": rank, "kind": "shortened", "only": only,
                     "accuracy": measure(leading[:rank], only, shorten=True)})
    return pd.DataFrame(rows).assign(**one.facts())


def main(arguments: list[str] | None = None) -> None:
    """Measure the classifiers named on the command line, and write both tables."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.displacement",
        description="Measure what classifiers wrote; notebook 05 shows the tables.")
    parser.add_argument("files", type=Path, nargs="+", help="what `finetuning` wrote")
    parser.add_argument("--out", type=Path, default=DATA, help="folder (default: this package's)")
    args = parser.parse_args(arguments)
    classifiers = sorted(map(Measured, args.files), key=lambda x: (x.name, x.shuffled, x.seed))
    save_table(separation_table(classifiers).round(4), args.out / SEPARATION.name)
    reviews = pd.concat([load_reviews("train"), load_reviews("test")])
    tables = [directions_table(one, reviews) for one in tqdm(classifiers, desc="directions")
              if not one.shuffled]
    if tables:
        save_table(pd.concat(tables).round(4), args.out / DIRECTIONS.name)
