"""What the parts of `reproduce` come to: of each table the figures that stand beside the paper's.

A mean comes with its smallest and largest unit in brackets, or where the units are drawn from many,
with a 95 % interval; `reproduce_report` says which.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import torch

from embspace_helpers.experiments.alignment import WRITERS, hungarian
from embspace_helpers.experiments.overlap import MEAN
from embspace_helpers.workshop.measure_alignment import GROUPS

ABOVE = 0.7  # the accuracy from which the paper counts a stitch


class Figure(NamedTuple):
    """A figure as measured, what it is held against, and of how many it is."""

    measured: str
    held_against: str = ""
    n: str = ""


Figures = dict[str, Figure]


def spread(values: pd.Series) -> str:
    """Mean, smallest and largest: "0.12 (0.05 to 0.20)"."""
    return f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"


def of_examples(table: pd.DataFrame) -> Figures:
    """Words of the neuron, and the scores of the heads' largest pairs."""
    lists = table.groupby(["what", "reading"])["words"].agg(" ".join)
    found = {f"words of the FF {what} through {'the ' * (reading != 'E')}{reading}":
             Figure(lists[what, reading], lists["random direction", reading], "1 neuron")
             for what, reading in (("key", "E"), ("key", "dictionary"), ("value", "E"))}
    best = table[table["rank"] == 1].set_index("what")["score"]

    def heads(kind: str) -> str:
        x = best[[kind]]
        return f"{x.mean():.0f} ({x.min():.0f} to {x.max():.0f})"

    return found | {f"largest pair of {kind}": Figure(
        heads(kind), heads(f"{kind}, turned"), f"{len(best[[kind]])} heads")
        for kind in ("W_VO", "W_QK")}


def of_jaccard(table: pd.DataFrame) -> Figures:
    """Means over layers."""
    return {groups: Figure(spread(rows["real"]), spread(rows["shuffled"]),
                           f"{len(rows)} layers of {rows['rows'].iloc[0]:,} pairs")
            for groups, rows in table.groupby("groups")}


def of_overlap(table: pd.DataFrame) -> Figures:
    """Means over layers, of the model and of an untrained one."""
    table = table[table["layer"] == MEAN].assign(
        untrained=table["model"].str.endswith(", untrained"))
    table["text"] = [f"{row.mean:.2f} ({row.low:.2f} to {row.high:.2f})" for row in
                     table[["mean", "low", "high"]].itertuples(index=False)]
    shares = table.set_index(["group", "target", "untrained", "kind"])["text"]
    n = f"{table['texts'].iloc[0]:,} reviews, {table['positions'].iloc[0]:,} positions"
    found = {}
    for group, target in sorted({(g, t) for g, t, *_ in shares.index}):
        real, permuted, other = (shares[group, target, *rest] for rest in (
            (False, "real"), (False, "permuted"), (True, "real")))
        where = "state behind its layer" if target == "this" else "last state"
        name = "K" if group == "gate" else group
        found[f"{name}, {where}"] = Figure(real, f"{permuted}; untrained {other}", n)
    return found


def of_finetuning(table: pd.DataFrame) -> Figures:
    """How many classifiers, and how often they are right."""
    return {"classifiers": Figure(str(len(table))), "accuracy on test reviews": Figure(
        spread(table["imdb"]), "0.50",
        f"{len(table)} classifiers, {table['imdb_reviews'].iloc[0]:,} reviews")}


def of_displacement(table: pd.DataFrame) -> Figures:
    """Shares of the free layers' rows: of every classifier the mean over layers."""
    found = {}
    for group, rows in table.groupby("group"):
        after, before = (rows[rows["state"] == state] for state in ("after", "before"))
        shares, old = after.groupby("seed")["separating"].mean(), before["separating"].mean()
        n = f"{len(shares)} classifiers"
        if group == "head":
            found["heads that separate praise from blame"] = Figure(
                f"{shares.sum():.0f} of {len(shares)}",
                f"{before['separating'].sum():.0f} of {len(before)}; chance 0.05", n)
        else:
            found[f"share of {group} that separates praise from blame"] = Figure(
                spread(shares), f"{old:.2f}; chance 0.05",
                f"{n}, {after['layer'].nunique()} layers of {after['rows'].iloc[0]:,} rows")
    return found


def of_alignment(table: pd.DataFrame) -> Figures:
    """How many layers the Hungarian match puts on the diagonal, of each group and reading."""
    hits, layers = {}, 0
    for key, rows in table.groupby(["group", "reading", "control"]):
        match = hungarian(torch.tensor(layer_table(rows).to_numpy()))
        layers = len(match.rows)
        hits[key] = f"{match.hits} of {layers} (p {_p(match.p)})"
    found = {f"{group}, layers on the diagonal": Figure(
        hits[group, "transpose", "given"], hits[group, "feature space", "given"],
        f"{layers} layers") for group in GROUPS}
    return found | {f"{group}, layers on the diagonal through dictionaries": Figure(
        hits[group, "dictionary", "given"], hits[group, "dictionary", "random"],
        f"{layers} layers") for group in GROUPS if group not in WRITERS}


def layer_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean correlations of an alignment, layers of one model by layers of the other."""
    return rows.pivot(index="layer_a", columns="layer_b", values="mean")


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.1g}"


def of_stitching(table: pd.DataFrame) -> Figures:
    """Of every classifier the best layer, chosen with the labels, as for a curve over layers."""
    table = table.assign(share=table["right"] / table["reviews"])
    best = table.groupby(["kind", "recipe", "seed"])["share"].max().unstack("seed")
    reviews, layers = table["reviews"].iloc[0], table["layer"].nunique()

    def said(*key: str) -> str:
        return spread(best.loc[key].dropna())

    def above(*key: str) -> str:
        x = best.loc[key].dropna()
        return f"{int((x > ABOVE).sum())} of {len(x)}"

    def n(*key: str) -> str:
        return f"{best.loc[key].notna().sum()} classifiers, {reviews:,} reviews, {layers} layers"

    paper, blind = ("every layer", "paper"), ("shuffled vocabulary", "paper")
    mended, alone, new = (("every layer", "matched"), ("displacement only", "paper"),
                          ("untrained host", "paper"))
    return {"classifiers above 70 % at some layer": Figure(above(*paper), above(*blind), n(*paper)),
            "best accuracy over layers": Figure(said(*paper), said(*blind), n(*paper)),
            "best accuracy over layers with mean and size matched": Figure(
                said(*mended), said("noise", "matched"), n(*mended)),
            "best accuracy over layers with the displacement alone": Figure(
                said(*alone), "", n(*alone)),
            "best accuracy over layers of an untrained host": Figure(said(*new), "", n(*new)),
            "accuracy of the classifiers themselves": Figure(
                said("own", "own"), "", f"{best.loc['own', 'own'].notna().sum()} classifiers, "
                f"{reviews:,} reviews")}
