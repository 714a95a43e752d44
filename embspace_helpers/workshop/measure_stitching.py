"""Measure stitches on IMDB's test reviews, for notebook 07.

    python -m embspace_helpers.stitching build/classifiers/*.safetensors --hosts twin-b wide-w

Test reviews come in chunks, in the order of their hash. The recipes at their chosen layers are
measured on all; the paper's and two more at every layer, and the controls, on a part of the first
`--sweeps` chunks. The table is renewed after every chunk: stopped and run again, the command goes
on with what is missing, such as classifiers that were not there before. Nothing is chosen by
labels: a recipe's layer is the one at which the stitched *language model* finds unlabelled reviews
least surprising. A GPU, where there is one, does all of IMDB in minutes: `--chunk 25000 --swept-on
25000 --controls-on 25000`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from embspace_helpers.classroom.reviews import HUB_NAME, load_reviews
from embspace_helpers.experiments.classifiers import (
    Classifier,
    Recipe,
    fine_tune,
    read_facts,
    save_changes,
)
from embspace_helpers.experiments.kernels import random_kernel, shuffled_kernel
from embspace_helpers.experiments.label_free import zero_point
from embspace_helpers.experiments.noise import noise_in_place, token_noise
from embspace_helpers.experiments.statistics import replace_rows, save_table
from embspace_helpers.experiments.stitching import (
    LAST,
    STITCHING,
    Stream,
    displacement_only,
    margins,
)
from embspace_helpers.reading.model import load
from embspace_helpers.workshop.stitching_recipes import (
    BATCH,
    Guest,
    Host,
    Texts,
    Wanted,
    best_layers,
    choice,
    placed,
    recipes,
)

KEY = ["guest", "host", "kind", "recipe", "layer", "last", "seed"]
COUNTS = ["reviews", "right", "right_zero", "praise"]
CHUNK = 500  # test reviews
PERSON = "first person"  # another task: does a text speak of its writer more than most do?
MANY_I = 0.016  # a share of words; the median of IMDB's training reviews
SWEPT = ("paper", "matched", "fitted")  # at every layer
HELD = ("paper", "fitted", "fitted, all layers")  # against controls
SWEPT_ON, CONTROLS_ON = 100, 200  # reviews of a chunk, for --sweeps


@dataclass(frozen=True)
class Pass:
    """Stitches that are measured in one go: `wanted`, on top of `host`, with these classifiers."""

    kind: str
    host: Host
    wanted: Wanted
    classifiers: dict[int, Classifier]
    last: int = LAST
    most: int | None = None  # reviews of a chunk; default all
    change: Callable[[Iterable[Stream]], Iterator[Stream]] = iter

    def margins(self, texts: Texts) -> dict[Any, Tensor]:
        """Margins of all texts, (recipe, layer) -> (classifiers, n)."""
        found = self.change(self.host.streams(texts, {i for i, _ in self.wanted.values()}))
        return margins(found, len(texts), list(self.classifiers.values()), self.wanted, self.last)


# ---------------------------------------------------------------- what is measured


def controls(host: Host, guest: Guest, chosen: Mapping[str, int], wanted: Wanted,
             most: int) -> list[Pass]:
    """What a stitch is held against, with three classifiers, at the layers of the real ones."""
    few = dict(list(guest.many[""].items())[:3])
    held = {(recipe, i): wanted[recipe, i] for recipe, i in chosen.items() if recipe in HELD}
    blind: Wanted = {}
    if (at := chosen.get("paper")) is not None:
        blind = {("shuffled vocabulary", at): (at, shuffled_kernel(host.model, guest.model)),
                 ("random kernel", at): (at, random_kernel(wanted["paper", at][1]))}
    real = Pass("real", host, held, few, most=most)
    found = [real, replace(real, kind="blind kernel", wanted=blind),
             replace(real, kind="noise", change=noise_in_place),
             replace(real, kind="token noise", change=token_noise),
             *(replace(real, kind=f"{n} last layers", last=n) for n in range(LAST))]
    plain = {seed: displacement_only(one, guest.model) for seed, one in few.items()}
    found.append(replace(real, kind="displacement only", classifiers=plain))
    device = host.model.model.device.type
    untrained = Host(placed(load(host.model.name, untrained=True), device), host.layers)
    new = {key: x for key, x in recipes(untrained, guest).items() if key in held}
    untrained.model.model.bfloat16()
    found.append(replace(real, kind="untrained host", host=untrained, wanted=new))
    kinds = {kind: others for kind, others in guest.many.items() if kind}
    if PERSON in kinds:
        kinds[f"{PERSON}, its own task"] = kinds[PERSON]
    return found + [replace(real, kind=k, classifiers=others) for k, others in kinds.items()]


def first_person(reviews: pd.DataFrame) -> Tensor:
    """Which texts (n,) speak of their writer more than most do: "I", "me", "my", "myself"."""
    words = reviews["text"].str.count(r"\b(?:I|me|my|My|myself)\b") / reviews["text"].str.split(
        ).str.len()
    return torch.tensor((words > MANY_I).to_numpy())


def other_task(name: str, data: str | Path, path: Path, device: str, n: int = 3000) -> Path:
    """The file of a classifier of another task, made like the others; trained if not there yet."""
    if not path.exists():
        train, recipe = load_reviews("train", n, source=data), Recipe(seed=1)
        train = train.assign(label=first_person(train).long().numpy())
        classifier = Classifier(load(name), recipe.free_layers, recipe.seed).to(device)
        history = fine_tune(classifier, train, recipe, autocast=True)
        facts = {"recipe": asdict(recipe), "reviews": len(train), "task": PERSON}
        save_changes(path, classifier.cpu(), name, facts | {"loss": history["loss"].tolist()})
    return path


# ---------------------------------------------------------------- the work


def counted(one: Pass, guest: Guest, reviews: pd.DataFrame) -> list[dict]:
    """A row per stitch and classifier: how many reviews, and how many of them right.

    `right_zero`: after the margins were moved so that on unlabelled reviews their mean is that of
    the classifier itself.
    """
    reviews = reviews[: one.most]
    found, zero = one.margins(reviews["text"].tolist()), {}
    if one.kind in ("layers", "chosen", "real"):
        own = replace(one, host=Host(guest.model, (guest.layer,)),
                      wanted={("own", 0): (guest.layer, guest.unchanged)})
        mine = own.margins(guest.zero)["own", 0]
        zero = {key: zero_point(mine, x) for key, x in one.margins(guest.zero).items()}
    own_task = one.kind == f"{PERSON}, its own task"
    praise = first_person(reviews) if own_task else torch.tensor(reviews["label"].to_numpy() == 1)
    rows = []
    for (recipe, layer), table in found.items():
        shift = zero.get((recipe, layer), torch.full((len(table), 1), torch.nan))
        for seed, row, less in zip(one.classifiers, table, shift):
            moved = ((row > less) == praise).sum().item() if less.isfinite() else None
            rows.append({"kind": one.kind, "recipe": recipe, "layer": layer, "last": one.last,
                         "seed": seed, "reviews": len(row), "praise": (row > 0).sum().item(),
                         "right": ((row > 0) == praise).sum().item(), "right_zero": moved})
    return rows


def measure(part: Path, passes: Iterable[Pass], guest: Guest, reviews: pd.DataFrame) -> None:
    """Measure what `part`, a table of one chunk, does not hold yet, and add it there."""
    for one in passes:
        old = pd.read_csv(part) if part.exists() else pd.DataFrame(columns=[*KEY, *COUNTS])
        done = set(old.loc[old["kind"] == one.kind, ["recipe", "layer", "seed"]].itertuples(
            index=False, name=None))
        wanted = {key: x for key, x in one.wanted.items()
                  if any((*key, seed) not in done for seed in one.classifiers)}
        missing = {seed: x for seed, x in one.classifiers.items()
                   if any((*key, seed) not in done for key in wanted)}
        if missing:
            one = replace(one, wanted=wanted, classifiers=missing)
            rows = pd.DataFrame(counted(one, guest, reviews)).assign(
                guest=guest.name, host=part.name.split("+")[0])
            save_table(replace_rows(rows, part, KEY), part)
            print(f"{part.stem}: {one.kind}, {len(rows)} rows", flush=True)


def merged(folder: Path) -> pd.DataFrame:
    """All parts as one table: counts are summed over chunks, likelihoods stand beside."""
    parts = [pd.read_csv(file) for file in sorted(folder.glob("*+*.csv"))]
    table = pd.concat(parts).groupby(KEY, as_index=False)[COUNTS].sum(min_count=1)
    choices = pd.concat([pd.read_csv(file) for file in sorted(folder.glob("*.choice"))])
    return table.merge(choices, "left", ["guest", "host", "recipe", "layer"])


def bag_of_words(data: str | Path, reviews: pd.DataFrame) -> pd.DataFrame:
    """A row for logistic regression on which words a text has, from as many labelled reviews."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train = load_reviews("train", min(6000, len(load_reviews("train", source=data))), 1, data)
    model = make_pipeline(CountVectorizer(binary=True), LogisticRegression(C=0.1, max_iter=1000))
    right = model.fit(train["text"], train["label"]).predict(reviews["text"]) == reviews["label"]
    return pd.DataFrame([dict.fromkeys(KEY, "none") | {
        "kind": "bag of words", "layer": 0, "last": 0, "seed": 1, "reviews": len(reviews),
        "right": int(right.sum())}])


def plan(name: str, guest: Guest, args: argparse.Namespace
         ) -> tuple[str, tuple[list[Pass], list[Pass]]]:
    """What is measured on a host: its label, and the passes of the first chunks and of all."""
    model, real = placed(load(name), args.device), guest.many[""]
    host = Host(model, tuple(args.layers or range(model.parameters.L + 1)))
    wanted = {key: x for key, x in recipes(host, guest).items()
              if not args.recipes or key[0] in args.recipes}
    label = f"{Path(name).name}+{Path(guest.name).name}"
    file = args.parts / f"{label}.choice"
    if not file.exists():
        save_table(choice(host, guest, wanted).assign(guest=guest.name, host=Path(name).name), file)
    best = best_layers(pd.read_csv(file))
    own = {("own", guest.layer): (guest.layer, guest.unchanged)}
    picked = {(r, i): wanted[r, i] for r, i in best.items()}
    swept = {key: x for key, x in wanted.items() if key[0] in SWEPT}
    first = [Pass("layers", host, swept, real, most=args.swept_on),
             *controls(host, guest, best, wanted, args.controls_on)]
    host.model.model.bfloat16()  # from here on it only runs
    later = [Pass("own", Host(guest.model, (guest.layer,)), own, real),
             Pass("chosen", host, picked, real)]
    first, later = ([x for x in some if x.wanted and x.kind in (args.kinds or [x.kind])]
                    for some in (first, later))
    return label, (first, later)


def work(args: argparse.Namespace) -> None:
    """What `main` is asked for."""
    name = read_facts(args.files[0])["model"]
    other = other_task(name, args.data, args.parts / f"{Path(name).name}-person.safetensors",
                       args.device)
    guest = Guest([*args.files, other], args.data, args.device)
    test = load_reviews("test", args.reviews, source=args.data)
    chunks = [test[i : i + args.chunk] for i in range(0, len(test), args.chunk)]
    with torch.autocast("cpu", torch.bfloat16, enabled=args.device == "cpu"):
        plans = dict(plan(name, guest, args) for name in args.hosts)
    words = args.parts / "none+bag of words.csv"
    if not words.exists():
        save_table(bag_of_words(args.data, chunks[0]), words)
    for number, chunk in enumerate(chunks):
        for label, (first, later) in plans.items():
            part = args.parts / f"{label}+{args.chunk}+{number:03}.csv"
            measure(part, (*later, *first) if number < args.sweeps else later, guest, chunk)
            save_table(replace_rows(merged(args.parts).round(4), args.out, KEY), args.out)


def main(arguments: list[str] | None = None) -> None:
    """Measure the classifiers named on the command line, on all hosts."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.stitching",
        description="Measure stitches on IMDB; run again, it goes on with what is missing.")
    parser.add_argument("files", type=Path, nargs="+", help="classifiers of one model")
    parser.add_argument("--hosts", nargs="+", default=["twin-b", "wide-w"])
    parser.add_argument("--layers", type=int, nargs="+", help="of the hosts (default: all)")
    parser.add_argument("--kinds", nargs="+",
                        help="of rows to measure (default: all), such as own, chosen, layers")
    parser.add_argument("--recipes", nargs="+", help="to measure (default: all)")
    parser.add_argument("--data", default=HUB_NAME, help="hub name or folder (default %(default)s)")
    parser.add_argument("--reviews", type=int, default=25_000, help="test reviews")
    parser.add_argument("--chunk", type=int, default=CHUNK, help="test reviews at a time")
    parser.add_argument("--sweeps", type=int, default=1,
                        help="chunks that every layer and the controls are measured on")
    parser.add_argument("--swept-on", type=int, default=SWEPT_ON,
                        help="reviews of such a chunk, for every layer")
    parser.add_argument("--controls-on", type=int, default=CONTROLS_ON,
                        help="reviews of such a chunk, for the controls")
    parser.add_argument("--device", choices=BATCH,
                        default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", type=Path, default=Path("build/stitching"),
                        help="folder for what is measured, chunk by chunk")
    parser.add_argument("--out", type=Path, default=STITCHING,
                        help="table; rows that are there already are renewed")
    args = parser.parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = True
    other_chunks = [file for file in args.parts.glob("*+*.csv")
                    if f"+{args.chunk}+" not in file.name and not file.name.startswith("none")]
    if other_chunks:
        parser.error(f"{args.parts} holds parts of chunks of another size, such as "
                     f"{other_chunks[0].name}: name another folder with --parts")
    work(args)
