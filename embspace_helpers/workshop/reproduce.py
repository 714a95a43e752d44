"""Measure the paper's tables on the paper's own models, with this course's controls beside them.

    python -m embspace_helpers.reproduce --parts examples jaccard overlap
    python -m embspace_helpers.reproduce --models wide-w twin-a twin-a twin-b --neuron 7 100

First it says where every model and every table of reviews is, and downloads what is missing. Every
part leaves a table in the folder --out. Stopped and run again, the command goes on with what is
missing: the next part, classifier, group of parameters or few reviews. A part that fails is named
in the report, with the reason, and the others go on. The report, report.html and report.csv, sets
the paper's figures beside what was measured. What is measured on which models:

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
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from embspace_helpers.classroom.reviews import HUB_NAME, read_imdb
from embspace_helpers.experiments.statistics import save_table
from embspace_helpers.reading.files import whole_file
from embspace_helpers.reading.sources import fingerprint, locate
from embspace_helpers.workshop import reproduce_figures as figures
from embspace_helpers.workshop import reproduce_parts as parts
from embspace_helpers.workshop.notebooks import peak_memory
from embspace_helpers.workshop.reproduce_figures import Figures
from embspace_helpers.workshop.reproduce_report import MODELS, Run, picture, report


class Part(NamedTuple):
    """Which of --models and which splits of IMDB a part needs, and how it is measured."""

    models: tuple[int, ...]
    splits: tuple[str, ...]
    measure: Callable[[argparse.Namespace], pd.DataFrame]
    figures: Callable[[pd.DataFrame], Figures]


PARTS = {
    "examples": Part((0,), (), parts.examples, figures.of_examples),
    "jaccard": Part((0,), (), parts.jaccard, figures.of_jaccard),
    "overlap": Part((0,), ("test",), parts.overlap, figures.of_overlap),
    "finetuning": Part((1,), ("train", "test"), parts.finetuning, figures.of_finetuning),
    "displacement": Part((1,), (), parts.displacement, figures.of_displacement),
    "stitching": Part((0, 1), ("unsupervised", "test"), parts.stitching, figures.of_stitching),
    "alignment": Part((2, 3), (), parts.aligned, figures.of_alignment)}


# ---------------------------------------------------------------- what the parts need


class Found(NamedTuple):
    """Whether something is there, and which it is or why it is not."""

    there: bool
    said: str


def found(look: Callable[..., str]) -> Callable[..., Found]:
    """What `look` gives, or the sentence that it raises; nothing is looked for twice."""
    @cache
    def told(*names: str) -> Found:
        try:
            return Found(True, look(*names))
        except (LookupError, ValueError, OSError) as error:
            return Found(False, one_line(error))
    return told


@found
def weights_of(name: str) -> str:
    """Which weights a model's name stands for, in short: a hub model's commit, or a checksum."""
    folder = locate(name)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ValueError(f"{name!r} has no safetensors, and a pickle is not read: save the model "
                         "again with `save_pretrained`, and name the folder in --models")
    return fingerprint(name)[:12]


@found
def reviews_of(data: str, split: str) -> str:
    """How many reviews a split of IMDB has."""
    return f"{len(read_imdb(split, data)):,} reviews"


def needs(part: str, args: argparse.Namespace) -> dict[str, Found]:
    """All that a part needs, by name, and where it is.

    Raises ValueError where too few models are named.
    """
    models, splits = PARTS[part].models, PARTS[part].splits
    if (last := max(models)) >= len(args.models):
        raise ValueError(f"{last + 1} models are needed, {len(args.models)} named")
    return {args.models[i]: weights_of(args.models[i]) for i in models} | {
        f"{args.data}, {split}": reviews_of(args.data, split) for split in splits}


def show_needs(args: argparse.Namespace) -> None:
    """Print where everything is, before hours go by."""
    shown = set()
    for part in args.parts:
        with suppress(ValueError):  # which one_part tells
            for what, where in needs(part, args).items():
                if what not in shown:
                    print(f"{what}: {'' if where.there else 'missing, '}{where.said}", flush=True)
                shown.add(what)


# ---------------------------------------------------------------- the run


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def one_part(part: str, args: argparse.Namespace) -> Run:
    """Measure a part that is not there yet; its table, its figures, and what there is to say."""
    file, times = args.out / f"{part}.csv", args.out / "minutes.json"
    took = json.loads(times.read_text()) if times.exists() else {}
    before, begun = file.exists(), time.monotonic()
    try:
        if not before:
            for need in needs(part, args).values():
                if not need.there:
                    raise ValueError(need.said)
            print(f"{part}: begun", flush=True)
            save_table(PARTS[part].measure(args).round(10), file)
            took[part] = f"{(time.monotonic() - begun) / 60:.1f} minutes"
            with whole_file(times) as new:
                new.write_text(json.dumps(took))
        table = parts.read_table(file)
        said = f"measured {'before, ' * before}in {took.get(part, 'an earlier run')}"
        return Run(said, PARTS[part].figures(table), table, picture(part, table))
    except Exception as error:  # whatever it is, it goes into the report, and the next part begins
        return Run(f"not measured: {one_line(error)}", {})


def run(args: argparse.Namespace) -> None:
    """Measure the parts that are asked for, and write the report after each."""
    show_needs(args)
    done: dict[str, Run] = {}
    for part in PARTS:  # in their order: stitching needs classifiers
        if part in args.parts or (args.out / f"{part}.csv").exists():
            done[part] = one_part(part, args)
            memory = peak_memory(os.getpid())  # in MiB; None where it cannot be told
            peak = f"; {memory / 1024:.1f} GiB at the peak so far" if memory else ""
            print(f"{part}: {done[part].said}{peak}", flush=True)
            read = {i for each in done for i in PARTS[each].models if i < len(args.models)}
            weights = {name: weights_of(name).said for name in map(args.models.__getitem__, read)}
            report(done, settings(args), weights, args.out)
    print(f"the report: {args.out / 'report.html'} and report.csv")


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
    add("--rows", type=int,
        help="of a group in a layer, for jaccard and displacement (default: all)")
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
    try:
        run(args)
    except KeyboardInterrupt:
        parser.exit(130, "stopped: the same command goes on from here\n")
