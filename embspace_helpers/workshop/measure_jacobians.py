"""Measure average Jacobians beside dictionaries, for notebook 02: cost, and three tests.

    python -m embspace_helpers.jacobians twin-a twin-b wide-w --out jacobians.csv

Both are fitted on the same reviews. A line for every test, layer, reading and sign:

- readable: the share of a layer's `vectors` that can be read, and its controls, as in
  `readable_share`; `shuffled`: the same vectors through the dictionary of shuffled tokens, or
  through the Jacobian with the embedding's directions turned at random
- fires here, fires next: how well keys fire on the words of their lists, in other reviews: the
  mean firing area; `random`: of random directions; `shuffled`: on the lists of other keys
- falls most: the share of the ten words read of a value that are among the ten that fall most
  where its neuron is ablated; `shuffled`: of the ten words of another value

Values are read through the lens as published, "jacobian", and through what changes at the one
position alone, "jacobian here". `seconds`: of processor time that the dictionaries or the
Jacobians of all layers took, over how many `positions`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from time import process_time

import pandas as pd
import torch
from torch import Tensor

from embspace_helpers.classroom.reviews import load_reviews
from embspace_helpers.experiments import ablation
from embspace_helpers.experiments.controls import random_directions, random_rotation, shuffled
from embspace_helpers.experiments.firing import firing_areas, read_states, seen_often
from embspace_helpers.experiments.jacobians import (
    JACOBIANS,
    average_jacobians,
    read_space,
    write_space,
)
from embspace_helpers.experiments.readability import (
    FINAL,
    coherence,
    random_control,
    readable_share,
    reading_of,
    sample_rows,
)
from embspace_helpers.experiments.statistics import overlap_at_k, replace_rows, save_table
from embspace_helpers.reading.activations import capture
from embspace_helpers.reading.model import Model, load
from embspace_helpers.reading.spaces import Space

KEY = ["model"]  # what is measured in one go, in the table of results
COLUMNS = ["model", "test", "layer", "group", "reading", "sign", "vectors", "less_mean", "mixtures",
           "mixtures_less_mean", "random", "shuffled", "rows", "positions", "seconds"]
KEYS = ("transpose", "orthogonal", "dictionary", "dictionary whitened", "jacobian",
        "jacobian whitened")
VALUES = ("transpose", "orthogonal", FINAL, "jacobian", "jacobian here")
Line = dict[str, object]


class Measurement:
    """The tests on one model; dictionaries and Jacobians fitted on `reviews` reviews."""

    def __init__(self, model: Model, reviews: int, rows: int):
        self.model, self.rows = model, rows
        self.group = model.parameters.key_kinds[0]
        self.texts = load_reviews("train", reviews)["text"].tolist()
        self.cost: dict[str, Line] = {}
        start = process_time()
        fitted = model.dictionaries(self.texts)
        self.cost["dictionary"] = {"seconds": process_time() - start, "positions": fitted[0].n}
        start = process_time()
        self.found = average_jacobians(model, self.texts)
        self.cost["jacobian"] = {"seconds": process_time() - start, "positions": self.found.n}

    def space(self, group: str, layer: int, reading: str, keep: Tensor | None = None,
              control: bool = False) -> Space:
        """The space of a reading; `control`: that of shuffled tokens or turned directions."""
        if not reading.startswith("jacobian"):
            options = {"shuffle": 0} if control else {}
            return reading_of(self.model, group, layer, reading, self.texts, keep, **options)
        if group == "V":
            found = self.found.write_here if reading == "jacobian here" else self.found.write
            space = write_space(self.model, found[layer], keep)
        else:
            space = read_space(self.model, self.found.read[layer], keep, "whitened" in reading)
        if control and space.map is not None:
            space.map = space.map @ random_rotation(space.d).to(space.map.dtype)
        return space

    def readable(self) -> Iterator[Line]:
        """Readable shares of every layer, two lines a reading."""
        p, judge = self.model.parameters, self.model.judge
        for layer in range(p.L):
            for group, readings in ((self.group, KEYS), ("V", VALUES)):
                x, mean = sample_rows(self.model, group, layer, self.rows), p.vectors(group, layer)
                for reading in readings:
                    space = self.space(group, layer, reading, judge.keep)
                    table = readable_share(self.model, x, space, judge, mean=mean.mean(0))
                    if reading.split()[0] in self.cost:
                        other = self.space(group, layer, reading, judge.keep, True)
                        control = random_control(other, judge)
                        table["shuffled"] = control.share(coherence(other, judge, x)).tolist()
                    for line in table.to_dict("records"):
                        yield line | {"layer": layer, "group": group, "reading": reading,
                                      "rows": len(x)}

    def fires(self, ahead: bool) -> Iterator[Line]:
        """Firing areas of a hundred keys of every layer, in test reviews."""
        p = self.model.parameters
        seen = read_states(self.model, load_reviews("test", 120)["text"].tolist())
        keep = seen_often(self.model, seen, ahead=ahead)
        for layer in range(p.L):
            x = sample_rows(self.model, self.group, layer, 100)
            dice = random_directions(len(x), p.d, layer).to(x.dtype)
            for reading in KEYS:
                space = self.space(self.group, layer, reading, keep)
                own, others = firing_areas(seen, space, x, layer, ahead)
                random, _ = firing_areas(seen, space, dice, layer, ahead)
                yield {"layer": layer, "group": self.group, "reading": reading, "rows": len(x),
                       "vectors": own.mean().item(), "random": random.mean().item(),
                       "shuffled": others.mean().item()}

    def falls(self) -> Iterator[Line]:
        """Of forty values of every layer: do the words read fall most without the neuron?"""
        model, p, keep = self.model, self.model.parameters, self.model.judge.keep
        texts = load_reviews("test", 60)["text"].tolist()
        active = capture(model, texts, 1500, ("states", "neurons"), 48, skip=1)
        for layer in range(p.L):
            drawn = torch.randperm(p.d_ff, generator=torch.Generator().manual_seed(layer))[:40]
            signs = ablation.used_signs(active, layer)[drawn, None]
            ids = model.space("transpose", keep).ids
            change, _ = ablation.ablate_neurons(model, active, layer, drawn, ids, 3)
            most = ids[(-change).topk(10, dim=1).indices]  # (n, 10)
            for reading in VALUES:
                lists = self.space("V", layer, reading, keep).top(p.V(layer)[drawn] * signs, 10)[1]
                yield {"layer": layer, "group": "V", "reading": reading, "rows": len(drawn),
                       "vectors": overlap_at_k(most, lists).mean().item(),
                       "shuffled": overlap_at_k(most, shuffled(lists)).mean().item()}

    def table(self) -> pd.DataFrame:
        """All tests."""
        tests = {"readable": self.readable(), "fires here": self.fires(False),
                 "fires next": self.fires(True), "falls most": self.falls()}
        lines = [{"test": test, **line, **self.cost.get(str(line["reading"]).split()[0], {})}
                 for test, found in tests.items() for line in found]
        return pd.DataFrame(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.jacobians",
        description="Measure average Jacobians beside dictionaries: cost, readable share, truth.")
    parser.add_argument("models", nargs="+", help="names or folders")
    parser.add_argument("--reviews", type=int, default=40, help="to fit on (default %(default)s)")
    parser.add_argument("--rows", type=int, default=400, help="keys and values of a layer")
    parser.add_argument("--out", type=Path, default=JACOBIANS, help="file to write or to renew")
    args = parser.parse_args(arguments)
    for name in args.models:
        table = Measurement(load(name), args.reviews, args.rows).table()
        table = table.assign(model=Path(name).name, sign=table["sign"].fillna("+"))
        table = table[COLUMNS].round(4)
        save_table(replace_rows(table, args.out, KEY), args.out)
        print(f"{name}: done", flush=True)
