"""What fine-tuning wrote: displacements, what a lexicon says of them, and a model without them.

A *displacement* is a parameter vector after fine-tuning less the same vector before (Dar et al.,
2023, section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product

import torch
from torch import Tensor

from embspace_helpers.experiments.classifiers import Classifier
from embspace_helpers.experiments.controls import share_above
from embspace_helpers.reading.arrays import as_count, as_model, one_thread
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.parameters import Parameters
from embspace_helpers.reading.sources import DATA
from embspace_helpers.reading.spaces import Space

SEPARATION, DIRECTIONS = DATA / "separation.csv", DATA / "directions.csv"


def sentiment_space(model: Model, reading: str = "orthogonal") -> Space:
    """The space in which notebook 05 reads displacements: over whole words, seen 100 times.

    (Of a vocabulary without counts: over whole words.)
    """
    seen = 100 if model.vocabulary.counts is not None else 0
    return model.space(reading, model.vocabulary.keep(whole_words=True, min_count=seen))


def displacement(after: Model, before: Model, group: str, layer: int) -> Tensor:
    """Rows (n, d) of a group in a layer, after less before fine-tuning.

    Raises ValueError for models of different shapes.
    """
    first, second = (as_model(m).parameters.vectors(group, layer) for m in (after, before))
    if first.shape != second.shape:
        raise ValueError(f"{group} of layer {layer} has the shapes {tuple(first.shape)} and "
                         f"{tuple(second.shape)}: one model was not made from the other")
    return first - second


def head_displacement(classifier: Classifier) -> Tensor:
    """What training wrote in a classifier's head: its direction of praise, less the same before.

    (d,): the row of praise less that of blame. The random start has to be taken off, for a head
    barely outgrows it.
    """
    moved = (classifier.head.weight - classifier.head_before.to(classifier.head.weight)).detach()
    return moved[1] - moved[0]


def separation(space: Space, ratings: Tensor, vectors: Tensor, k: int = 30) -> Tensor:
    """Mean rating of the top k words of each row, less that of its negative: (n, d) -> (n,).

    `ratings` (e,): of every token, NaN (no rating) counts as 0.
    """
    ratings = ratings.nan_to_num()
    plus, minus = (space.top(x, k)[1] for x in (vectors, -vectors))  # (n, k) ids
    return ratings[plus].mean(1) - ratings[minus].mean(1)


def separating(space: Space, ratings: Tensor, vectors: Tensor, control: Tensor) -> Tensor:
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


def leading_directions(after: Model, before: Model, layers: Sequence[int], n: int) -> Tensor:
    """The n orthonormal directions (n, d) of the stream along which most was displaced.

    Principal directions of all displacements of `layers`, uncentred, each group of a layer scaled
    to the same total length. Raises ValueError for more directions than d.
    """
    d, dtype = before.parameters.d, before.parameters.E.dtype
    n, total = as_count(n, d, "n", "directions"), torch.zeros(d, d, dtype=dtype)
    for group, layer in product(before.parameters.groups, layers):
        rows = displacement(after, before, group, layer)
        total += rows.T @ rows / rows.square().sum().clamp_min(1e-30)
    with one_thread():
        return torch.linalg.eigh(total)[1].T.flip(0)[:n].contiguous()


@contextmanager
def edited(after: Model, before: Model, layers: Sequence[int], directions: Tensor,
           only: bool = False, shorten: bool = False) -> Iterator[None]:
    """Inside, the displacements of `layers` lack `directions` (r, d), orthonormal rows.

    With `only`, they keep nothing else. With `shorten`, the control: they keep all directions, but
    every matrix's displacement is scaled to the length that it would have been left. The model
    `after` is changed in place and has its weights back at the end, even after an error. Its head
    is left as it is. Raises ValueError for directions that are not orthonormal.
    """
    error = (directions @ directions.T - torch.eye(len(directions))).abs().max()
    if not error <= 1e-3:  # NaN is refused as well
        raise ValueError(f"the rows of directions must be orthonormal, but are off by {error:.2g}")
    views = [(new, old, axis) for layer in layers for (new, axis), (old, _) in
             zip(stream_views(after.parameters, layer), stream_views(before.parameters, layer))]
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
