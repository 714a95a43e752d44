"""Measure stitches on IMDB's test reviews, for notebook 07.

    python -m embspace_helpers.stitching build/classifiers/*.safetensors --hosts twin-b wide-w

Test reviews come in chunks, in the order of their hash. The recipes at their chosen layers are
measured on all; the paper's and two more at every layer, and the controls, on a part of the first
`--sweeps` chunks. The table is renewed after every chunk: stopped and run again, the command goes
on with what is missing, such as classifiers that were not there before. Nothing is chosen by
labels: a recipe's layer is the one at which the stitched *language model* finds unlabelled reviews
least surprising.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from embspace_helpers.classroom.reviews import HUB_NAME, load_reviews, read_imdb, text_hash
from embspace_helpers.experiments.classifiers import (
    Classifier,
    Recipe,
    fine_tune,
    load_classifier,
    read_facts,
    save_changes,
)
from embspace_helpers.experiments.kernels import (
    Translation,
    embedding_kernel,
    fitted,
    matched,
    random_kernel,
    shuffled_kernel,
    word_kernel,
)
from embspace_helpers.experiments.noise import noise_in_place, token_noise
from embspace_helpers.experiments.statistics import save_table
from embspace_helpers.experiments.stitching import (
    LAST,
    STITCHING,
    Stream,
    displacement_only,
    likelihood,
    margins,
    own_text,
    positions,
    streams,
    zero_point,
)
from embspace_helpers.reading.activations import Tokens
from embspace_helpers.reading.model import Model, load

KEY = ["guest", "host", "kind", "recipe", "layer", "last", "seed"]
COUNTS = ["reviews", "right", "right_zero", "praise"]
FIT, ZERO, JUDGED = 200, 60, 24  # unlabelled reviews: to fit on, to find zero on, to choose l by
WRITTEN = 128  # texts that the guest writes itself
CHUNK = 500  # test reviews
PERSON = "first person"  # another task: does a text speak of its writer more than most do?
MANY_I = 0.016  # a share of words; the median of IMDB's training reviews
SWEPT = ("paper", "matched", "fitted")  # at every layer
SWEPT_ON, CONTROLS_ON = 100, 200  # reviews of a chunk, for --sweeps
Wanted = dict[tuple[str, int], tuple[int, Translation]]  # (recipe, layer) -> (layer, translation)


class Guest:
    """The classifiers of one model, in 16 bits to be fast, and the texts they are fitted with."""

    def __init__(self, files: Sequence[Path], data: str | Path):
        """Load all; unlabelled reviews come in the order of their hash."""
        self.many: dict[str, dict[int, Classifier]] = {}  # kind -> seed -> classifier
        for file in files:
            facts = read_facts(file)
            self.name, seed = facts["model"], facts["recipe"]["seed"]
            shuffled = facts["recipe"].get("shuffled_labels", False)
            kind = facts.get("task") or ("shuffled labels" if shuffled else "")
            classifier = load_classifier(self.name, path=file)
            classifier.base.bfloat16()
            self.many.setdefault(kind, {})[seed] = classifier
        self.model = load(self.name)
        self.layer = self.model.parameters.L - LAST
        texts = read_imdb("unsupervised", data)["text"].drop_duplicates()
        texts = sorted(texts, key=lambda text: text_hash(f"fit {text}"))[: FIT + ZERO + JUDGED]
        tokens = self.model.tokens(texts)
        self.fit, self.zero = tokens[:FIT], tokens[FIT : FIT + ZERO]
        self.judged = tokens[FIT + ZERO :]

    @cached_property
    def written(self) -> Tokens:
        """Text of its own."""
        return own_text(self.model, WRITTEN)

    @property
    def unchanged(self) -> Translation:
        """The translation of the guest into itself."""
        d = self.model.parameters.d
        return Translation(torch.eye(d), torch.zeros(d))


@dataclass(frozen=True)
class Pass:
    """Stitches that are measured in one go: `wanted`, on top of `host`, with these classifiers."""

    kind: str
    host: Model
    wanted: Wanted
    classifiers: dict[int, Classifier]
    last: int = LAST
    change: Callable[[Iterable[Stream]], Iterator[Stream]] = iter

    def margins(self, tokens: Tokens) -> dict[Any, Tensor]:
        """Margins of all rows of tokens, (recipe, layer) -> (classifiers, n)."""
        layers = sorted({i for i, _ in self.wanted.values()})
        found = self.change(streams(self.host, tokens, layers))
        return margins(found, len(tokens), list(self.classifiers.values()), self.wanted, self.last)


# ---------------------------------------------------------------- what is measured


def recipes(host: Model, guest: Guest, layers: Iterable[int]) -> Wanted:
    """All recipes at all layers. "matched" takes other reviews for the host than for the guest."""
    layers = list(layers)
    paper = embedding_kernel(host, guest.model)
    words = word_kernel(host, guest.model)
    middle = Translation((paper.matrix + words.matrix) / 2, paper.offset)
    plain = {"paper": paper, "words": words, "averaged": middle}
    found: Wanted = {(name, i): (i, kernel) for name, kernel in plain.items() for i in layers}
    half = len(guest.fit) // 2
    for texts, name in ((guest.fit, ""), (guest.written, ", own text")):
        here = list(streams(host, texts, layers))
        there = list(streams(guest.model, texts, [guest.layer]))
        target = positions(there, guest.layer)
        second = target if name else positions(_some(there, range(half, len(texts))), guest.layer)
        for i in layers:
            states = positions(here, i)
            first = states if name else positions(_some(here, range(half)), i)
            found["matched" + name, i] = (i, matched(paper, first, second))
            found["fitted" + name, i] = (i, fitted(states, target))
    return found


def _some(found: Iterable[Stream], texts: range) -> Iterator[Stream]:
    """The streams of these texts only."""
    for s in found:
        rows = torch.tensor([t in texts for t in s.texts.tolist()])
        if rows.any():
            states = {i: x[rows] for i, x in s.states.items()}
            yield Stream(s.texts[rows], s.ids[rows], s.mask[rows], states)


def choice(host: Model, guest: Guest, wanted: Wanted) -> pd.DataFrame:
    """How likely unlabelled reviews are to each stitched language model, in nats a token.

    A recipe's `chosen` layer is the one with the largest likelihood.
    """
    found = list(streams(host, guest.judged, sorted({i for i, _ in wanted.values()})))
    table = pd.DataFrame([
        {"recipe": recipe, "layer": i, "likelihood": likelihood(guest.model, found, i, translation)}
        for (recipe, i), (_, translation) in wanted.items()])
    best = table.groupby("recipe")["likelihood"].transform("max")
    return table.assign(chosen=table["likelihood"] == best)


def controls(host: Model, guest: Guest, chosen: Mapping[str, int], wanted: Wanted) -> list[Pass]:
    """What a stitch is held against, with three classifiers, at the layers of the real ones."""
    few = dict(list(guest.many[""].items())[:3])
    at, fit_at = chosen["paper"], chosen["fitted"]
    both = {("paper", at): wanted["paper", at], ("fitted", fit_at): wanted["fitted", fit_at]}
    paper = wanted["paper", at][1]
    blind = {("shuffled vocabulary", at): (at, shuffled_kernel(host, guest.model)),
             ("random kernel", at): (at, random_kernel(paper))}
    real = Pass("real", host, both, few)
    found = [real, replace(real, kind="blind kernel", wanted=blind),
             replace(real, kind="noise", change=noise_in_place),
             replace(real, kind="token noise", change=token_noise),
             *(replace(real, kind=f"{n} last layers", last=n) for n in range(LAST))]
    plain = {seed: displacement_only(one, guest.model) for seed, one in few.items()}
    found.append(replace(real, kind="displacement only", classifiers=plain))
    untrained = load(host.name, untrained=True)
    new = recipes(untrained, guest, {at, fit_at})
    untrained.model.bfloat16()
    found.append(Pass("untrained host", untrained, {key: new[key] for key in both}, few))
    kinds = {kind: others for kind, others in guest.many.items() if kind}
    if PERSON in kinds:
        kinds[f"{PERSON}, its own task"] = kinds[PERSON]
    return found + [replace(real, kind=k, classifiers=others) for k, others in kinds.items()]


def first_person(reviews: pd.DataFrame) -> Tensor:
    """Which texts (n,) speak of their writer more than most do: "I", "me", "my", "myself"."""
    words = reviews["text"].str.count(r"\b(?:I|me|my|My|myself)\b") / reviews["text"].str.split(
        ).str.len()
    return torch.tensor((words > MANY_I).to_numpy())


def other_task(name: str, data: str | Path, path: Path, n: int = 3000) -> Path:
    """The file of a classifier of another task, made like the others; trained if not there yet."""
    if not path.exists():
        train, recipe = load_reviews("train", n, source=data), Recipe(seed=1)
        train = train.assign(label=first_person(train).long().numpy())
        classifier = Classifier(load(name), recipe.free_layers, recipe.seed)
        history = fine_tune(classifier, train, recipe, autocast=True)
        facts = {"recipe": asdict(recipe), "reviews": len(train), "task": PERSON}
        save_changes(path, classifier, name, facts | {"loss": history["loss"].tolist()})
    return path


# ---------------------------------------------------------------- the work


def counted(one: Pass, guest: Guest, reviews: pd.DataFrame) -> list[dict]:
    """A row per stitch and classifier: how many reviews, and how many of them right.

    `right_zero`: after the margins were moved so that on unlabelled reviews their mean is that of
    the classifier itself.
    """
    if one.kind not in ("own", "chosen"):
        reviews = reviews[: SWEPT_ON if one.kind == "layers" else CONTROLS_ON]
    found, zero = one.margins(guest.model.tokens(reviews["text"].tolist())), {}
    if one.kind in ("layers", "chosen", "real"):
        own = replace(one, host=guest.model, wanted={("own", 0): (guest.layer, guest.unchanged)})
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
        done = set(old.loc[old["kind"] == one.kind, "seed"])
        missing = {seed: x for seed, x in one.classifiers.items() if seed not in done}
        if missing:
            rows = pd.DataFrame(counted(replace(one, classifiers=missing), guest, reviews)).assign(
                guest=guest.name, host=part.name.split("+")[0])
            save_table(rows if old.empty else pd.concat([old, rows]), part)
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


def plan(name: str, guest: Guest, parts: Path) -> tuple[str, tuple[list[Pass], list[Pass]]]:
    """What is measured on a host: its label, and the passes of the first chunks and of all."""
    host, real = load(name), guest.many[""]
    wanted = recipes(host, guest, range(host.parameters.L + 1))
    label = f"{Path(name).name}+{Path(guest.name).name}"
    file = parts / f"{label}.choice"
    if not file.exists():
        save_table(choice(host, guest, wanted).assign(guest=guest.name, host=Path(name).name), file)
    chosen = pd.read_csv(file)
    best = chosen[chosen["chosen"]].set_index("recipe")["layer"].to_dict()
    own = {("own", guest.layer): (guest.layer, guest.unchanged)}
    picked = {(r, i): wanted[r, i] for r, i in best.items()}
    swept = {key: x for key, x in wanted.items() if key[0] in SWEPT}
    first = [Pass("layers", host, swept, real), *controls(host, guest, best, wanted)]
    host.model.bfloat16()  # from here on it only runs
    return label, (first, [Pass("own", guest.model, own, real),
                           Pass("chosen", host, picked, real)])


def work(args: argparse.Namespace) -> None:
    """What `main` is asked for."""
    name = read_facts(args.files[0])["model"]
    other = other_task(name, args.data, args.parts / f"{Path(name).name}-person.safetensors")
    guest = Guest([*args.files, other], args.data)
    test = load_reviews("test", args.reviews, source=args.data)
    chunks = [test[i : i + CHUNK] for i in range(0, len(test), CHUNK)]
    with torch.autocast("cpu", torch.bfloat16):
        plans = dict(plan(name, guest, args.parts) for name in args.hosts)
    words = args.parts / "none+bag of words.csv"
    if not words.exists():
        save_table(bag_of_words(args.data, chunks[0]), words)
    for number, chunk in enumerate(chunks):
        for label, (first, later) in plans.items():
            part = args.parts / f"{label}+{number:03}.csv"
            measure(part, (*later, *first) if number < args.sweeps else later, guest, chunk)
            save_table(merged(args.parts).round(4), args.out)


def main(arguments: list[str] | None = None) -> None:
    """Measure the classifiers named on the command line, on all hosts."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.stitching",
        description="Measure stitches on IMDB; run again, it goes on with what is missing.")
    parser.add_argument("files", type=Path, nargs="+", help="classifiers of one model")
    parser.add_argument("--hosts", nargs="+", default=["twin-b", "wide-w"])
    parser.add_argument("--data", default=HUB_NAME, help="hub name or folder (default %(default)s)")
    parser.add_argument("--reviews", type=int, default=25_000, help="test reviews")
    parser.add_argument("--sweeps", type=int, default=1,
                        help="chunks that every layer and the controls are measured on")
    parser.add_argument("--parts", type=Path, default=Path("build/stitching"),
                        help="folder for what is measured, chunk by chunk")
    parser.add_argument("--out", type=Path, default=STITCHING, help="table to write")
    args = parser.parse_args(arguments)
    work(args)
