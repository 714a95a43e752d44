"""What fine-tuning wrote: displacements, what a lexicon says of them, and a model without them.

    python -m embspace_helpers.displacement build/classifiers/*.safetensors

A *displacement* is a parameter vector after fine-tuning less the same vector before (Dar et al.,
2023, section 4.3). The command measures all classifiers of the files given, for notebook 05.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm.auto import tqdm

from embspace_helpers.experiments.finetuning import accuracy, load_classifier, read_facts
from embspace_helpers.reading.models import DATA, load_model
from embspace_helpers.reading.parameters import Parameters
from embspace_helpers.reading.projection import EmbeddingSpace, one_thread
from embspace_helpers.classroom.reviews import load_reviews
from embspace_helpers.experiments.statistics import (random_directions, random_rotation, save_table,
                                         share_above, shuffled)
from embspace_helpers.reading.vocabulary import Vocabulary, load_vocabulary, valence

SEPARATION, DIRECTIONS = DATA / "separation.csv", DATA / "directions.csv"
RANKS = (1, 2, 4, 8, 16)


def sentiment_space(params: Parameters, vocabulary: Vocabulary,
                    reading: str = "orthogonal") -> EmbeddingSpace:
    """The space in which notebook 05 reads displacements: over whole words, seen 100 times.

    (Of a vocabulary without counts: over whole words.)
    """
    seen = 100 if vocabulary.counts is not None else 0
    return EmbeddingSpace(params.E, vocabulary, reading,
                          vocabulary.keep(whole_words=True, min_count=seen))


def displacement(after: Parameters, before: Parameters, group: str, layer: int) -> Tensor:
    """Rows (n, d) of a group in a layer, after less before fine-tuning."""
    return after.vectors(group, layer) - before.vectors(group, layer)


def separation(space: EmbeddingSpace, ratings: Tensor, vectors: Tensor, k: int = 30) -> Tensor:
    """Mean rating of the top k words of each row, less that of its negative: (n, d) -> (n,).

    `ratings` (e,): of every item, NaN (no rating) counts as 0.
    """
    ratings = ratings.nan_to_num()
    plus, minus = (space.top(x, k)[1] for x in (vectors, -vectors))  # (n, k) ids
    return ratings[plus].mean(1) - ratings[minus].mean(1)


def separating(space: EmbeddingSpace, ratings: Tensor, vectors: Tensor, control: Tensor) -> Tensor:
    """Which rows (n, d) separate pleasant from unpleasant words: (n,) of 0 and 1.

    Those whose separation is larger, whatever its sign, than 95 % of `control` (m,), that of random
    directions. How long a vector is does not matter: its list is the same for any length.
    """
    return share_above(separation(space, ratings, vectors).abs(), control.abs())


# ---------------------------------------------------------------- a classifier without directions


def stream_views(params: Parameters, layer: int) -> list[tuple[Tensor, int]]:
    """The matrices of a layer as views of the model's own weights, each with its stream axis."""
    readers = [(params.K(layer, kind), -1) for kind in params.key_kinds]
    heads = [(getattr(params, group)(layer), -2) for group in ("W_Q", "W_K", "W_V")]
    return [*readers, (params.V(layer), -1), *heads, (params.W_O(layer), -1)]


def leading_directions(after: Parameters, before: Parameters, layers: Sequence[int],
                       n: int) -> Tensor:
    """The n orthonormal directions (n, d) of the stream along which most was displaced.

    Principal directions of all displacements of `layers`, uncentred, each group of a layer scaled
    to the same total length. Raises ValueError for more directions than d.
    """
    if not 0 < n <= before.d:
        raise ValueError(f"n = {n}, but a stream of d = {before.d} has 1 to {before.d} directions")
    total = torch.zeros(before.d, before.d)
    for group, layer in product(before.groups, layers):
        rows = displacement(after, before, group, layer)
        total += rows.T @ rows / rows.square().sum().clamp_min(1e-30)
    with one_thread():
        return torch.linalg.eigh(total)[1].T.flip(0)[:n].contiguous()


@contextmanager
def edited(after: Parameters, before: Parameters, layers: Sequence[int], directions: Tensor,
           only: bool = False, shorten: bool = False) -> Iterator[None]:
    """Inside, the displacements of `layers` lack `directions` (r, d), orthonormal rows.

    With `only`, they keep nothing else. With `shorten`, the control: they keep all directions, but
    every matrix's displacement is scaled to the length that it would have been left. The model
    behind `after` is changed in place and has its weights back at the end, even after an error. Its
    head is left as it is. Raises ValueError for directions that are not orthonormal.
    """
    error = (directions @ directions.T - torch.eye(len(directions))).abs().max()
    if not error <= 1e-3:  # NaN is refused as well
        raise ValueError(f"the rows of directions must be orthonormal, but are off by {error:.2g}")
    views = [(new, old, axis) for layer in layers for (new, axis), (old, _) in
             zip(stream_views(after, layer), stream_views(before, layer))]
    kept = [new.clone() for new, _, _ in views]
    try:
        with torch.no_grad():
            for new, old, axis in views:
                moved = (new - old).movedim(axis, -1)  # (..., d)
                along = (moved @ directions.T) @ directions
                left = along if only else moved - along
                if shorten:
                    left = moved * (left.norm() / moved.norm().clamp_min(1e-30))
                new.copy_(old + left.movedim(-1, axis))
        yield
    finally:
        with torch.no_grad():
            for (new, _, _), weights in zip(views, kept):
                new.copy_(weights)


# ---------------------------------------------------------------- the command


class Measured:
    """One classifier of a file, beside the model it was made from."""

    def __init__(self, file: Path):
        facts = read_facts(file)
        self.name, self.seed = facts["model"], facts["recipe"]["seed"]
        self.shuffled = facts["recipe"].get("shuffled_labels", False)
        self.classifier, self.tokenizer = load_classifier(self.name, path=file)
        model, _ = load_model(self.name)
        self.before, self.after = Parameters(model), Parameters(self.classifier.base)
        self.layers = range(self.before.L - facts["recipe"]["free_layers"], self.before.L)
        vocabulary = load_vocabulary(model, self.tokenizer)
        self.space, self.ratings = sentiment_space(self.before, vocabulary), valence(vocabulary)

    def facts(self) -> dict:
        return {"model": Path(self.name).name, "seed": self.seed, "shuffled": self.shuffled}


def separation_table(classifiers: Sequence[Measured]) -> pd.DataFrame:
    """Per classifier, group and layer: shares that separate, and agreement with the other seeds.

    Columns: separating (share of displacements), size (mean of |separation|), pretrained (share of
    the same vectors before), first (share of the squared lengths along one direction), agreement
    (mean cosine with the same vector's displacement, over the model's other seeds) and unpaired
    (the same with other vectors of the layer). Layers that were not free: pretrained only.
    """
    rows, chance = [], {}
    for one in tqdm(classifiers, desc="separation", unit="classifier"):
        if one.name not in chance:
            lucky = random_directions(2000, one.before.d)
            chance[one.name] = separation(one.space, one.ratings, lucky)  # (2000,)
        others = [x for x in classifiers if x is not one
                  and (x.name, x.shuffled) == (one.name, one.shuffled)]
        for group, layer in product(one.before.groups, range(one.before.L)):
            rows.append(one.facts() | {"group": group, "layer": layer} | _row(
                one, others, group, layer, chance[one.name]))
    return pd.DataFrame(rows)


def _row(one: Measured, others: Sequence[Measured], group: str, layer: int, chance: Tensor) -> dict:
    old = one.before.vectors(group, layer)
    row = {"pretrained": separating(one.space, one.ratings, old, chance).mean().item()}
    if layer not in one.layers:
        return row
    moved = displacement(one.after, one.before, group, layer)
    found = separation(one.space, one.ratings, moved)
    row["separating"] = share_above(found.abs(), chance.abs()).mean().item()
    row["size"] = found.abs().mean().item()
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
            return accuracy(one.classifier, one.tokenizer, reviews, autocast=True)

    d = one.before.d
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
