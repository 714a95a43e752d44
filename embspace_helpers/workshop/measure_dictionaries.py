"""Measure what a layer's dictionary depends on: a results file beside that of readable shares.

    python -m embspace_helpers.dictionaries twin-a --imdb stanfordnlp/imdb --out dictionaries.csv

A line for every setting of an experiment, layer and reading, all of the model's first kind of FF
key: the share of `vectors` that are readable, and of `mixtures` of them. The experiments:

- positions: from how many positions of IMDB a dictionary is fitted
- texts: embedded reviews, IMDB, Python's documentation, or every token without text
- judge: in the eyes of other models, through E and through the dictionary
- held-out words: lists of words whose positions fitted nothing
- layer of the dictionary: keys of one layer through the dictionary of another
- target: the token that stands at a position, or the one that comes next, beside E
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from embspace_helpers.classroom.reviews import HUB_NAME, load_reviews, read_imdb, text_hash
from embspace_helpers.experiments.controls import mixtures
from embspace_helpers.experiments.readability import (
    DICTIONARIES,
    Control,
    coherence,
    random_control,
    reading_of,
    sample_rows,
)
from embspace_helpers.experiments.statistics import replace_rows, save_table
from embspace_helpers.reading.dictionaries import Dictionary, dictionary_space, fit_dictionaries
from embspace_helpers.reading.judge import Judge
from embspace_helpers.reading.model import Model, load
from embspace_helpers.reading.spaces import Space

DICTIONARY_READINGS = ("dictionary", "dictionary whitened")
KEY = ["model", "experiment"]  # what is measured in one go, in the table of results
POSITIONS = (500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
OTHER_JUDGES = ("twin-b", "twin-a", "wide-w", "minilm", "smollm2")
Line = dict[str, object]


def documentation() -> list[str]:
    """Text of another kind that every Python has: the topics of its `help`."""
    from pydoc_data.topics import topics

    long = (" ".join(text.split()) for text in topics.values() if len(text) > 400)
    return sorted(long, key=text_hash)


class Experiments:
    """The experiments on one model; `texts` are IMDB's, `most` positions of them are used."""

    def __init__(self, model: Model, texts: Sequence[str], most: int, rows: int, step: int = 1,
                 readings: Sequence[str] = DICTIONARY_READINGS):
        self.model, self.texts, self.most, self.rows = model, texts, most, rows
        self.readings = readings
        self.group = model.parameters.key_kinds[0]
        self.layers = list(range(0, model.parameters.L, step))

    # ---- texts and dictionaries

    def first(self, texts: Sequence[str], positions: int) -> list[str]:
        """The first texts that have so many positions together, or all."""
        found, n = [], 0
        for text, row in zip(texts, self.model.tokens(texts)):
            if n < positions:
                found.append(text)
                n += len(row) - 1
        return found

    @cached_property
    def embedded(self) -> list[Dictionary]:
        """Of a hundred embedded reviews, as in the table of readable shares."""
        return fit_dictionaries(self.model, load_reviews("train", 100)["text"].tolist())

    @cached_property
    def imdb(self) -> list[Dictionary]:
        """Of all positions of IMDB that are used."""
        return fit_dictionaries(self.model, self.first(self.texts, self.most))

    # ---- shares

    def lines(self, setting: object, spaces: Callable[[int], Space], judge: Judge | None = None,
              reading: str = "dictionary") -> Iterator[Line]:
        """A line for every layer, in the space that `spaces` gives for it."""
        judge, controls = judge or self.model.judge, dict[int, Control]()
        for layer in self.layers:
            space = spaces(layer)
            mark = 0 if space.map is None else hash(space.map.numpy().tobytes())
            if mark not in controls:
                controls[mark] = random_control(space, judge)
            x = sample_rows(self.model, self.group, layer, self.rows)
            scores = coherence(space, judge, torch.cat([x, mixtures(x)[0]]))[0].split(len(x))
            shares = [controls[mark].share(one).item() for one in scores]
            yield {"setting": setting, "layer": layer, "group": self.group, "reading": reading,
                   "vectors": shares[0], "mixtures": shares[1], "rows": len(x)}

    def fitted(self, setting: object, found: list[Dictionary], judge: Judge | None = None,
               keep: Tensor | None = None) -> Iterator[Line]:
        """Lines through dictionaries, one of each layer; over the tokens `keep` (e,)."""
        for reading in self.readings:
            whitened = reading != "dictionary"
            for line in self.lines(
                    setting, partial(self.space, found, keep, whitened),
                    judge, reading):
                used = found[int(str(line["layer"]))]
                yield line | {"r2": used.r2, "positions": used.n}

    def space(self, found: list[Dictionary], keep: Tensor | None, whitened: bool,
              layer: int) -> Space:
        """The space of the dictionary of a layer."""
        return dictionary_space(self.model, found[layer], keep, whitened)

    def through_E(self, setting: object, judge: Judge | None = None,
                  keep: Tensor | None = None) -> Iterator[Line]:
        """Lines through E, the norm folded in; over the tokens `keep` (e,)."""
        yield from self.lines(setting, lambda i: reading_of(self.model, self.group, i, keep=keep),
                              judge, "transpose")

    # ---- experiments

    def positions(self) -> Iterator[Line]:
        """From few positions to many."""
        for n in POSITIONS:
            if n <= self.most:
                yield from self.fitted(n, fit_dictionaries(self.model, self.first(self.texts, n)))

    def kinds_of_text(self) -> Iterator[Line]:
        """The same number of positions of other texts, and no text."""
        n = self.embedded[0].n
        yield from self.fitted("embedded", self.embedded)
        for name, texts in (("imdb", self.texts), ("documentation", documentation())):
            yield from self.fitted(name, fit_dictionaries(self.model, self.first(texts, n)))
        yield from self.fitted("without text", fit_dictionaries(self.model))

    def judges(self) -> Iterator[Line]:
        """In the eyes of every other model."""
        for name in OTHER_JUDGES:
            if name != self.model.name:
                judge = self.model.judged_by(load(name, dtype="auto"))
                yield from self.through_E(name, judge)
                yield from self.fitted(name, self.embedded, judge)

    def held_out(self) -> Iterator[Line]:
        """Half of the vocabulary fits nothing; only its words are listed and judged."""
        only = half(self.model)
        keep = self.model.vocabulary.keep() & ~only
        some = fit_dictionaries(self.model, self.first(self.texts, self.most), only=only)
        yield from self.through_E("E", keep=keep)
        yield from self.fitted("never fitted", some, keep=keep)
        yield from self.fitted("all fitted", self.imdb, keep=keep)

    def other_layers(self) -> Iterator[Line]:
        """Keys of every layer through the dictionary of every layer, and through E."""
        yield from self.through_E("E")
        for layer in self.layers:
            yield from self.fitted(layer, [self.embedded[layer]] * self.model.parameters.L)

    def targets(self) -> Iterator[Line]:
        """What stands here against what comes next."""
        texts = self.first(self.texts, self.most)
        yield from self.through_E("E")
        yield from self.fitted("this token", self.imdb)
        yield from self.fitted("next token", fit_dictionaries(self.model, texts, offset=1))


EXPERIMENTS: dict[str, Callable[[Experiments], Iterator[Line]]] = {
    "layer of the dictionary": Experiments.other_layers, "target": Experiments.targets,
    "held-out words": Experiments.held_out, "texts": Experiments.kinds_of_text,
    "positions": Experiments.positions, "judge": Experiments.judges}


def half(model: Model, seed: int = 0) -> Tensor:
    """Half of the vocabulary, (e,), drawn."""
    return torch.rand(model.parameters.e, generator=torch.Generator().manual_seed(seed)) < 0.5


def main(arguments: list[str] | None = None) -> None:
    """Measure the models named on the command line, experiment by experiment."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.dictionaries",
        description="Measure what the dictionary of a layer depends on.")
    parser.add_argument("models", nargs="+", help="names or folders")
    parser.add_argument("--imdb", default=HUB_NAME, help="hub name or folder (default %(default)s)")
    parser.add_argument("--positions", type=int, default=50_000, help="of IMDB, at most")
    parser.add_argument("--rows", type=int, default=400, help="keys of a layer")
    parser.add_argument("--step", type=int, default=1, help="every so many layers")
    parser.add_argument("--readings", nargs="+", choices=DICTIONARY_READINGS,
                        default=DICTIONARY_READINGS)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=[*EXPERIMENTS])
    parser.add_argument("--out", type=Path, default=DICTIONARIES, help="file to write or to renew")
    args = parser.parse_args(arguments)
    texts = sorted(read_imdb("unsupervised", args.imdb)["text"].drop_duplicates(),
                   key=lambda text: text_hash(f"readability {text}"))[: 60 + args.positions // 100]
    for name in args.models:
        found = Experiments(load(name), texts, args.positions, args.rows, args.step,
                            args.readings)
        for experiment in args.only:
            table = pd.DataFrame(list(EXPERIMENTS[experiment](found)))
            table = table.assign(model=Path(name).name, experiment=experiment)
            for column in ("r2", "positions"):
                table[column] = table.get(column, math.nan)
            table = table[[*KEY, "setting", "layer", "group", "reading", "vectors", "mixtures",
                           "r2", "positions", "rows"]].round(4)
            save_table(replace_rows(table, args.out, KEY), args.out)
            print(f"{name}, {experiment}: done", flush=True)
