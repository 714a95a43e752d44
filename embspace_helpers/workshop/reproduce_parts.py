"""The parts of `reproduce`: each takes the options of the command and returns a table.

They are measured piece by piece, and a piece that is there is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from torch import Tensor

from embspace_helpers.classroom.reviews import load_reviews
from embspace_helpers.experiments.alignment import alignment
from embspace_helpers.experiments.controls import random_directions, random_rotation, shuffled
from embspace_helpers.experiments.displacement import (
    displacement as moved_rows,
)
from embspace_helpers.experiments.displacement import (
    head_displacement,
    sentiment_space,
    separating,
    separation,
)
from embspace_helpers.experiments.kernels import embedding_kernel, matched, shuffled_kernel
from embspace_helpers.experiments.noise import noise_in_place
from embspace_helpers.experiments.statistics import jaccard_at_k, save_table
from embspace_helpers.experiments.stitching import Stream, displacement_only, positions
from embspace_helpers.reading.factored import FactoredMatrix
from embspace_helpers.reading.model import Model, load
from embspace_helpers.reading.pairs import word_pairs
from embspace_helpers.reading.spaces import Space
from embspace_helpers.reading.vocabulary import valence
from embspace_helpers.workshop import (
    finetune,
    measure_alignment,
    measure_overlap,
    measure_stitching,
)
from embspace_helpers.workshop.measure_displacement import Measured
from embspace_helpers.workshop.measure_stitching import Pass
from embspace_helpers.workshop.stitching_recipes import BATCH, Guest, Host, placed

TOGETHER = (("K", "V"), ("W_V", "W_O"), ("W_Q", "W_K"))  # whose lists are compared
K = 10  # words or pairs of an example
MATCHED = 20  # unlabelled reviews that mean and size are taken from, of each model


def piece(args: argparse.Namespace, name: str,
          make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table of the folder "pieces", made unless it is there."""
    file = args.out / "pieces" / f"{name}.csv"
    if not file.exists():
        save_table(make().round(10), file)  # fewer digits tie, and match the diagonal
        print(f"{name}: done", flush=True)
    return read_table(file)


def read_table(file: Path) -> pd.DataFrame:
    """A table of results; the words "null", "None" and "NA" in it are words."""
    return pd.read_csv(file, keep_default_na=False, na_values=[""])


def some(rows: Tensor, n: int | None) -> Tensor:
    """At most n of the rows, evenly spread; all where n is None."""
    return rows if n is None else rows[:: max(1, len(rows) // n)][:n]


def examples(args: argparse.Namespace) -> pd.DataFrame:
    """Words of a neuron's key and value, and of a random direction; the largest pairs of heads."""
    model = load(args.models[0])
    p, (layer, index) = model.parameters, args.neuron
    name, space = p.label("V", layer, index), model.space()
    texts = load_reviews("train", args.fit)["text"].tolist()
    dictionary = model.dictionary(layer, texts, keep=space.keep)
    vectors = {"key": p.K(layer)[index], "value": p.V(layer)[index],
               "random direction": random_directions(1, p.d)[0]}
    readers = {what: x for what, x in vectors.items() if what != "value"}
    rows = [{"of": name, "what": what, "reading": reading, "rank": rank, "words": word,
             "score": score}
            for reading, read, them in (("E", space, vectors), ("dictionary", dictionary, readers))
            for what, column in read.table(them, K).columns.items()
            for rank, (word, score) in enumerate(column, 1)]
    heads = args.heads or [(layer, head) for head in range(p.H)]
    return pd.DataFrame(rows + [row for head in heads for row in _pairs(model, space, *head)])


def _pairs(model: Model, space: Space, layer: int, head: int) -> Iterator[dict]:
    """Rows for the largest pairs of a head, and of the head with its factors' pairing turned."""
    for kind in ("W_VO", "W_QK"):
        W = getattr(model.parameters, kind)(layer, head)
        Q = random_rotation(model.parameters.d_h, head).to(W.left.dtype)
        for what, M in ((kind, W), (f"{kind}, turned", FactoredMatrix(W.left @ Q, W.right))):
            found = word_pairs(space, M, K, drop="stem")
            for rank, (words, score) in enumerate(zip(found.words, found.scores.tolist()), 1):
                yield {"of": f"L{layer}H{head}", "what": what, "reading": "E", "rank": rank,
                       "words": " → ".join(words), "score": score}


def jaccard(args: argparse.Namespace) -> pd.DataFrame:
    """Jaccard overlap of the top 100 of rows that belong together, and of rows that do not."""
    model = load(args.models[0])
    return pd.concat([piece(args, f"jaccard {' and '.join(groups)}",
                            partial(_lists, model, groups, args.rows))
                      for groups in TOGETHER])


def _lists(model: Model, groups: tuple[str, str], n: int | None) -> pd.DataFrame:
    """A row per layer for two groups of parameters."""
    p, space, rows = model.parameters, model.space(), []
    one, two = (p.key_kinds[0] if group == "K" else group for group in groups)
    for layer in range(p.L):
        first, second = (space.top(some(p.vectors(group, layer), n), 100, by_magnitude=True)[1]
                         for group in (one, two))
        rows.append({"groups": ", ".join(groups), "layer": layer, "rows": len(first),
                     "real": jaccard_at_k(first, second).mean().item(),
                     "shuffled": jaccard_at_k(first, shuffled(second)).mean().item()})
    return pd.DataFrame(rows)


def overlap(args: argparse.Namespace) -> pd.DataFrame:
    """Words of states among those of active parameters, in the model and in an untrained one."""
    measure = partial(measure_overlap.measure, args.models[0], args.data, args.texts,
                      args.positions, ["transpose"])
    return pd.concat([piece(args, "overlap", measure), piece(
        args, "overlap, untrained", partial(measure, untrained=True))]).assign(texts=args.texts)


def finetuning(args: argparse.Namespace) -> pd.DataFrame:
    """The classifiers, seed by seed, and their accuracies."""
    folder = args.out / "classifiers"
    finetune.main([args.models[1], "--seeds", *map(str, range(1, args.seeds + 1)),
                   "--data", args.data, "--out", str(folder), "--table",
                   str(folder / "results.csv"), "--reviews", str(args.train), "--test",
                   str(args.test), "--rate", str(args.rate), "--device", args.device])
    return pd.read_csv(folder / "results.csv")


def _classifiers(args: argparse.Namespace) -> list[Path]:
    """The classifiers' files. Raises ValueError unless all are there."""
    files = list((args.out / "classifiers").glob("*.safetensors"))
    if len(files) < args.seeds:
        raise ValueError(f"{len(files)} of {args.seeds} classifiers are there: the part finetuning "
                         "makes the others")
    return sorted(files, key=lambda file: (len(file.name), file.name))


def displacement(args: argparse.Namespace) -> pd.DataFrame:
    """What fine-tuning wrote in one classifier after the other, by a lexicon.

    Of every group and free layer: the share of displacements that separate praise from blame, the
    same of the rows before (seed 0), and the words of the longest displacement. "head": its one
    direction, and the same of its random start.
    """
    before = load(args.models[1])
    p, space, ratings = before.parameters, sentiment_space(before), valence(before.vocabulary)
    chance = separation(space, ratings, random_directions(2000, p.d))

    def measured(rows: Tensor, group: str, layer: int, **facts: object) -> dict:
        rows = some(rows, args.rows)
        longest = rows[rows.norm(dim=1).argmax()]
        plus, minus = (" ".join(space.words(x, K)) for x in (longest, -longest))
        share = separating(space, ratings, rows, chance).mean().item()
        return {"group": group, "layer": layer, "rows": len(rows), "separating": share,
                "plus": plus, "minus": minus} | facts

    def of(file: Path) -> pd.DataFrame:
        one = Measured(file, before)
        start = one.classifier.head_before[1] - one.classifier.head_before[0]  # (d,)
        told = {"seed": one.seed, "state": "after"}
        return pd.DataFrame([
            measured(moved_rows(one.after, before, group, i), group, i, **told)
            for i in one.layers for group in p.groups
        ] + [measured(head_displacement(one.classifier)[None], "head", p.L, **told),
             measured(start[None], "head", p.L, seed=one.seed, state="before")])

    files = _classifiers(args)
    layers = Measured(files[0], before).layers
    tables = [piece(args, "displacement, before", lambda: pd.DataFrame([
        measured(p.vectors(group, i), group, i, seed=0, state="before")
        for i in layers for group in p.groups]))]
    return pd.concat(tables + [piece(args, f"displacement, {file.stem}", partial(of, file))
                               for file in files])


def aligned(args: argparse.Namespace) -> pd.DataFrame:
    """Two models aligned, in embedding space and in feature space."""
    one, two = args.models[2:4]

    def feature() -> pd.DataFrame:
        a, b = load(one), load(two)
        return pd.concat([measure_alignment.rows(alignment(a, b, group, "feature"), "feature space")
                          for group in measure_alignment.GROUPS])

    return pd.concat([piece(args, "alignment, feature space", feature), piece(
        args, "alignment", lambda: measure_alignment.measure(one, two, args.fit))])


def stitching(args: argparse.Namespace) -> pd.DataFrame:
    """The classifiers on top of every layer of the host, a few reviews at a time."""
    guest = Guest(_classifiers(args), args.data, args.device)
    model = placed(load(args.models[0]), args.device)
    host = Host(model, tuple(range(model.parameters.L + 1)))
    name = f"{Path(args.models[0]).name}+{Path(guest.name).name}"
    reviews, size = load_reviews("test", args.test, source=args.data), 2 * BATCH[args.device]
    parts = {start: args.out / "pieces" / f"{name}+{start:05}.csv"
             for start in range(0, len(reviews), size)}
    for one in _passes(host, guest):
        for start, part in parts.items():
            now = replace(one, change=_numbered(one.change, start))
            measure_stitching.measure(part, [now], guest, reviews[start : start + size])
    table = pd.concat([pd.read_csv(part) for part in parts.values()])
    return table.groupby(["kind", "recipe", "layer", "seed"], as_index=False)[
        ["reviews", "praise", "right"]].sum()


def _numbered(change: Callable[[Iterable[Stream]], Iterator[Stream]], start: int
              ) -> Callable[[Iterable[Stream]], Iterator[Stream]]:
    """`change` for texts that are numbered from `start`: by their numbers, noise is drawn."""
    def changed(found: Iterable[Stream]) -> Iterator[Stream]:
        for stream in found:
            (new,) = change([replace(stream, texts=stream.texts + start)])
            yield replace(new, texts=stream.texts)
    return changed


def _passes(host: Host, guest: Guest) -> Iterator[Pass]:
    """The paper's stitch at every layer, ours beside it, and what both are held against."""
    kernel, real = embedding_kernel(host.model, guest.model), guest.many[""]
    few = dict(list(real.items())[:3])
    blind = shuffled_kernel(host.model, guest.model)
    found = list(host.streams(guest.fit[:MATCHED]))
    there = positions(guest.states(guest.fit[MATCHED : 2 * MATCHED]), guest.layer)
    mended = {("matched", i): (i, matched(kernel, positions(found, i), there))
              for i in host.layers}
    del found
    paper = {("paper", i): (i, kernel) for i in host.layers}
    host.model.model.bfloat16()  # from here on it only runs
    yield Pass("own", Host(guest.model, (guest.layer,)),
               {("own", guest.layer): (guest.layer, guest.unchanged)}, real)
    yield Pass("every layer", host, paper | mended, real)
    yield Pass("shuffled vocabulary", host, {("paper", i): (i, blind) for i in host.layers}, few)
    yield Pass("noise", host, paper | mended, few, change=noise_in_place)
    plain = {seed: displacement_only(one, guest.model) for seed, one in few.items()}
    yield Pass("displacement only", host, paper, plain)
    device = host.model.model.device.type
    untrained = Host(placed(load(host.model.name, untrained=True), device), host.layers)
    kernel = embedding_kernel(untrained.model, guest.model)
    untrained.model.model.bfloat16()
    yield Pass("untrained host", untrained, {("paper", i): (i, kernel) for i in host.layers}, few)
