"""Measure the paper's tables on the paper's own models, with this course's controls beside them.

    python -m embspace_helpers.reproduce --parts examples jaccard overlap
    python -m embspace_helpers.reproduce --models wide-w twin-a twin-a twin-b --neuron 7 100

Every part leaves a table in the folder --out. Stopped and run again, the command goes on with the
parts that have none. A part that fails is named in the report, with the reason, and the others go
on. The report, report.html and report.csv, sets the paper's figures beside what was measured.
What is measured on which models:

    examples      1     words of one neuron, largest pairs of heads       minutes
    jaccard       1     lists of keys and values, W_V and W_O, W_Q, W_K   half an hour
    overlap       1     words of states and of active parameters          an hour
    finetuning    2     eleven classifiers                                an hour each; GPU: minutes
    displacement  2     what fine-tuning wrote in them                    an hour
    stitching     1, 2  the classifiers on top of model 1, every layer    days; GPU: minutes
    alignment     3, 4  layers matched in six groups                      half an hour

Times are estimates for two cores with default options. Give it 8 GB of memory: stitching took 6.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch

from embspace_helpers.classroom.reviews import HUB_NAME, load_reviews
from embspace_helpers.experiments.alignment import alignment
from embspace_helpers.experiments.classifiers import share_weights
from embspace_helpers.experiments.controls import random_directions, random_rotation, shuffled
from embspace_helpers.experiments.displacement import head_displacement
from embspace_helpers.experiments.kernels import embedding_kernel, matched, shuffled_kernel
from embspace_helpers.experiments.noise import noise_in_place
from embspace_helpers.experiments.statistics import jaccard_at_k, save_table
from embspace_helpers.experiments.stitching import displacement_only, positions
from embspace_helpers.reading.factored import FactoredMatrix
from embspace_helpers.reading.files import whole_file
from embspace_helpers.reading.model import Model, load
from embspace_helpers.reading.pairs import word_pairs
from embspace_helpers.reading.spaces import Space
from embspace_helpers.workshop import (
    finetune,
    measure_alignment,
    measure_displacement,
    measure_overlap,
    measure_stitching,
)
from embspace_helpers.workshop import reproduce_report as figures
from embspace_helpers.workshop.measure_stitching import Pass
from embspace_helpers.workshop.notebooks import peak_memory
from embspace_helpers.workshop.reproduce_report import Figures, report
from embspace_helpers.workshop.stitching_recipes import Guest, Host, placed

MODELS = ("gpt2-medium", "gpt2", "google/multiberts-seed_0", "google/multiberts-seed_1")
TOGETHER = (("K", "V"), ("W_V", "W_O"), ("W_Q", "W_K"))  # whose lists are compared
K = 10  # words or pairs of an example
MATCHED = 20  # unlabelled reviews that mean and size are taken from, of each model


# ---------------------------------------------------------------- the parts, each a table


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
            for reading, read, some in (("E", space, vectors), ("dictionary", dictionary, readers))
            for what, column in read.table(some, K).columns.items()
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
    model, rows = load(args.models[0]), []
    p, space = model.parameters, model.space()
    for groups in TOGETHER:
        one, two = (p.key_kinds[0] if group == "K" else group for group in groups)
        for layer in range(p.L):
            both = [p.vectors(group, layer) for group in (one, two)]
            step = 1 if args.rows is None else max(1, len(both[0]) // args.rows)
            first, second = (space.top(x[::step][: args.rows], 100, by_magnitude=True)[1]
                             for x in both)
            rows.append({"groups": ", ".join(groups), "layer": layer, "rows": len(first),
                         "real": jaccard_at_k(first, second).mean().item(),
                         "shuffled": jaccard_at_k(first, shuffled(second)).mean().item()})
        print(f"jaccard: {', '.join(groups)}", flush=True)
    return pd.DataFrame(rows)


def overlap(args: argparse.Namespace) -> pd.DataFrame:
    """Words of states among those of active parameters, in the model and in an untrained one."""
    return pd.concat([measure_overlap.measure(args.models[0], args.data, args.texts, args.positions,
                                              ["transpose"], untrained)
                      for untrained in (False, True)])


def finetuning(args: argparse.Namespace) -> pd.DataFrame:
    """The classifiers, seed by seed, and their accuracies."""
    folder = args.out / "classifiers"
    finetune.main([args.models[1], "--seeds", *map(str, range(1, args.seeds + 1)),
                   "--data", args.data, "--out", str(folder), "--table",
                   str(folder / "results.csv"), "--reviews", str(args.train), "--test",
                   str(args.test), "--rate", str(args.rate), "--device", args.device])
    return pd.read_csv(folder / "results.csv")


def _classifiers(args: argparse.Namespace) -> list[Path]:
    """The classifiers' files. Raises ValueError where there are none."""
    if files := sorted((args.out / "classifiers").glob("*.safetensors")):
        return files
    raise ValueError("there are no classifiers yet: the part finetuning makes them")


def displacement(args: argparse.Namespace) -> pd.DataFrame:
    """What fine-tuning wrote, by a lexicon; the words of the head's displacement stand beside."""
    before = load(args.models[1])
    found = [measure_displacement.Measured(file, before) for file in _classifiers(args)]
    words = []
    for one in found:
        moved = head_displacement(one.classifier)
        words += [{"seed": one.seed, "side": side, "words": " ".join(one.space.words(x, K))}
                  for side, x in (("praise", moved), ("blame", -moved))]
    save_table(pd.DataFrame(words), args.out / "displacement_words.csv")
    return measure_displacement.separation_table(found)


def aligned(args: argparse.Namespace) -> pd.DataFrame:
    """Two models aligned, in embedding space and in feature space."""
    one, two = args.models[2:4]
    a, b = load(one), load(two)
    feature = [measure_alignment.rows(alignment(a, b, group, "feature"), "feature space")
               for group in measure_alignment.GROUPS]
    return pd.concat([measure_alignment.measure(one, two, args.fit), *feature])


def stitching(args: argparse.Namespace) -> pd.DataFrame:
    """The classifiers on top of every layer of the host; a pass that is done is not done again."""
    guest = Guest(_classifiers(args), args.data, args.device)
    first, *others = guest.many[""].values()
    for other in others:
        share_weights(other.base, first.base)
    model = placed(load(args.models[0]), args.device)
    host = Host(model, tuple(range(model.parameters.L + 1)))
    part = args.out / "stitching" / f"{Path(args.models[0]).name}+{Path(guest.name).name}.csv"
    measure_stitching.measure(part, _passes(host, guest),
                              guest, load_reviews("test", args.test, source=args.data))
    return pd.read_csv(part)


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


Part = tuple[int, Callable[[argparse.Namespace], pd.DataFrame], Callable[[pd.DataFrame], Figures]]
PARTS: dict[str, Part] = {  # how many models must be named, the measurement, its figures
    "examples": (1, examples, figures.of_examples), "jaccard": (1, jaccard, figures.of_jaccard),
    "overlap": (1, overlap, figures.of_overlap),
    "finetuning": (2, finetuning, figures.of_finetuning),
    "displacement": (2, displacement, figures.of_displacement),
    "stitching": (2, stitching, figures.of_stitching),
    "alignment": (4, aligned, figures.of_alignment)}


# ---------------------------------------------------------------- the run and its report


def one_part(part: str, args: argparse.Namespace) -> tuple[Figures, str]:
    """Measure a part that is not there yet; its figures, and what there is to say of it."""
    file, (models, measure, summary) = args.out / f"{part}.csv", PARTS[part]
    if len(args.models) < models:
        return {}, f"not measured: {models} models are needed, {len(args.models)} named"
    begun, said = time.monotonic(), "measured before"
    try:
        if not file.exists():
            print(f"{part}: begun", flush=True)
            save_table(measure(args).round(10), file)  # fewer digits tie, and match the diagonal
            said = f"measured in {(time.monotonic() - begun) / 60:.1f} minutes"
        return summary(pd.read_csv(file)), said
    except Exception as error:  # whatever it is, it goes into the report, and the next part begins
        reason = " ".join(str(error).split()) or type(error).__name__
        return {}, f"not measured: {reason}"


def settings(args: argparse.Namespace) -> dict:
    """The options that decide what is measured."""
    return {k: v for k, v in vars(args).items() if k not in ("parts", "out", "device")}


def _check_folder(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse a folder that holds results of other options."""
    file, now = args.out / "options.json", json.loads(json.dumps(settings(args)))
    before = json.loads(file.read_text()) if file.exists() else now
    if changed := [k for k in now if now[k] != before.get(k)]:
        parser.error(f"{args.out} holds results of other options ({', '.join(changed)}): name "
                     "another folder with --out")
    with whole_file(file) as part:
        part.write_text(json.dumps(now, indent=1))


def head(text: str) -> tuple[int, int]:
    """Layer and head of a name such as L21H7."""
    layer, number = text.upper().removeprefix("L").split("H")
    return int(layer), int(number)


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts named on the command line, and write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.reproduce", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", default=list(MODELS), metavar="NAME",
        help="in this order: the model that is read and that hosts the stitch, the one that is "
        "fine-tuned, two to align; parts whose models are not named are left out "
        f"(default {' '.join(MODELS)})")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--data", default=HUB_NAME, help="IMDB: hub name or folder (default %(default)s)")
    add("--out", type=Path, default=Path("build/reproduce"), help="folder (default %(default)s)")
    add("--neuron", type=int, nargs=2, default=[23, 907], metavar=("LAYER", "NUMBER"),
        help="of the examples (default 23 907, which the paper prints)")
    add("--heads", type=head, nargs="+", metavar="L21H7",
        help="of the examples (default: all of the neuron's layer)")
    add("--fit", type=int, default=100, help="embedded reviews for dictionaries (default 100)")
    add("--rows", type=int, help="of a layer, for the Jaccard overlap (default: all)")
    add("--texts", type=int, default=60, help="reviews for the overlap (default 60)")
    add("--positions", type=int, default=1000, help="in these reviews (default 1000)")
    add("--seeds", type=int, default=11, help="classifiers (default 11)")
    add("--train", type=int, default=3000, help="training reviews of each (default 3000)")
    add("--rate", type=float, default=1e-4, help="learning rate (default %(default)s)")
    add("--test", type=int, default=500, help="test reviews (default 500)")
    add("--device", choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu", help="of classifiers and stitches")
    args = parser.parse_args(arguments)
    _check_folder(args, parser)
    found: dict[str, tuple[Figures, str]] = {}
    for part in PARTS:  # in their order: stitching needs classifiers
        if part in args.parts or (args.out / f"{part}.csv").exists():
            found[part] = one_part(part, args)
            memory = peak_memory(os.getpid())  # in MiB; None where it cannot be told
            peak = f"; {memory / 1024:.1f} GiB at the peak so far" if memory else ""
            print(f"{part}: {found[part][1]}{peak}", flush=True)
            report(found, settings(args), args.out)
    print(f"the report: {args.out / 'report.html'} and report.csv")
