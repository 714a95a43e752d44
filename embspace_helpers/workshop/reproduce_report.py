"""What the parts of `reproduce` come to: a figure of each beside the paper's, and the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from embspace_helpers.experiments.alignment import WRITERS, hungarian
from embspace_helpers.experiments.overlap import MEAN
from embspace_helpers.experiments.statistics import save_table
from embspace_helpers.reading.files import whole_file
from embspace_helpers.reading.sources import DATA
from embspace_helpers.workshop.measure_alignment import GROUPS

PAPER = DATA / "paper_figures.csv"  # what Dar et al. (2023) report, part by part
WORDS = ("examples", "displacement_words")  # tables that are shown as they are
STYLE = "body{font-family:sans-serif;margin:2em}td,th{text-align:left;padding:2px 12px}"
Figures = dict[str, tuple[str, str]]  # what -> (measured, what it is held against)


def of_examples(table: pd.DataFrame) -> Figures:
    """Words of the neuron, and the mean score of the heads' largest pairs."""
    lists = table.groupby(["what", "reading"])["words"].agg(" ".join)
    found = {f"words of the FF {what} through {'the ' * (reading != 'E')}{reading}":
             (lists[what, reading], lists["random direction", reading])
             for what, reading in (("key", "E"), ("key", "dictionary"), ("value", "E"))}
    best = table[table["rank"] == 1].groupby("what")["score"].mean()
    return found | {f"largest pair of {kind} (standard deviations)":
                    (f"{best[kind]:.0f}", f"{best[f'{kind}, turned']:.0f}")
                    for kind in ("W_VO", "W_QK")}


def of_jaccard(table: pd.DataFrame) -> Figures:
    """Means over layers."""
    means = table.groupby("groups")[["real", "shuffled"]].mean()
    return {row.Index: (f"{row.real:.2f}", f"{row.shuffled:.2f}") for row in means.itertuples()}


def of_overlap(table: pd.DataFrame) -> Figures:
    """Means over layers, of the model and of an untrained one."""
    table = table[table["layer"] == MEAN].assign(
        untrained=table["model"].str.endswith(", untrained"))
    shares = table.set_index(["group", "target", "untrained", "kind"])["mean"]
    found = {}
    for group, target in sorted({(g, t) for g, t, *_ in shares.index}):
        real, permuted, other = (shares[group, target, *rest] for rest in (
            (False, "real"), (False, "permuted"), (True, "real")))
        where = "state behind its layer" if target == "this" else "last state"
        group = "K" if group == "gate" else group
        found[f"{group}, {where}"] = (
            f"{real:.2f}", f"{permuted:.2f}; an untrained model's own {other:.2f}")
    return found


def of_finetuning(table: pd.DataFrame) -> Figures:
    """How many classifiers, and how often they are right."""
    shares = table["imdb"]
    return {"classifiers": (str(len(table)), ""), "accuracy on test reviews": (
        f"{shares.mean():.2f} ({shares.min():.2f} to {shares.max():.2f})", "0.50")}


def of_displacement(table: pd.DataFrame) -> Figures:
    """Shares of the free layers' rows, means over layers and classifiers."""
    means = table.dropna(subset="separating").groupby("group")[["separating", "pretrained"]].mean()
    return {f"share of {'heads that separate' if i == 'head' else f'{i} that separates'} praise "
            "from blame": (f"{row['separating']:.2f}", f"{row['pretrained']:.2f}; chance 0.05")
            for i, row in means.iterrows()}


def of_alignment(table: pd.DataFrame) -> Figures:
    """How many layers the Hungarian match puts on the diagonal, of each group and reading."""
    hits = {}
    for key, rows in table.groupby(["group", "reading", "control"]):
        means = rows.pivot(index="layer_a", columns="layer_b", values="mean")
        hits[key] = f"{hungarian(torch.tensor(means.to_numpy())).hits} of {len(means)}"
    found = {f"{group}, layers on the diagonal": (
        hits[group, "transpose", "given"], hits[group, "feature space", "given"])
        for group in GROUPS}
    return found | {f"{group}, layers on the diagonal through dictionaries": (
        hits[group, "dictionary", "given"], hits[group, "dictionary", "random"])
        for group in GROUPS if group not in WRITERS}


def of_stitching(table: pd.DataFrame) -> Figures:
    """Of every classifier the best layer, chosen with the labels, as for a curve over layers."""
    table = table.assign(share=table["right"] / table["reviews"])
    best = table.groupby(["kind", "recipe", "seed"])["share"].max().unstack("seed")

    def said(*key: str) -> str:
        x = best.loc[key].dropna()
        return f"{x.mean():.2f} ({x.min():.2f} to {x.max():.2f})"

    def above(*key: str) -> str:
        x = best.loc[key].dropna()
        return f"{int((x > 0.7).sum())} of {len(x)}"

    blind = ("shuffled vocabulary", "paper")
    return {"classifiers above 70 % at some layer": (above("every layer", "paper"), above(*blind)),
            "best accuracy over layers": (said("every layer", "paper"), said(*blind)),
            "best accuracy over layers with mean and size matched": (
                said("every layer", "matched"), said("noise", "matched")),
            "best accuracy over layers with the displacement alone": (
                said("displacement only", "paper"), ""),
            "best accuracy over layers of an untrained host": (
                said("untrained host", "paper"), ""),
            "accuracy of the classifiers themselves": (said("own", "own"), "")}


def report(found: Mapping[str, tuple[Figures, str]], options: Mapping[str, object],
           out: Path) -> pd.DataFrame:
    """Write report.csv and report.html in `out`: the paper's figures beside what was measured.

    `found`: of every part its figures, and what there is to say of it. Returns the table.
    """
    table = pd.read_csv(PAPER, keep_default_na=False)
    table = table[table["part"].isin(found)]
    ours = [found[row.part][0].get(row.what, ("", "")) for row in table.itertuples()]
    table = table.assign(measured=[x for x, _ in ours], held_against=[y for _, y in ours])
    save_table(table, out / "report.csv")
    parts = [(part, said) for part, (_, said) in found.items()]
    given = [(name, value) for name, value in options.items()]
    shown = {"The paper's figures, and ours": table,
             "Parts": pd.DataFrame(parts, columns=["part", "state"]),
             "Options": pd.DataFrame(given, columns=["option", "value"]).astype(str)}
    shown |= {name.replace("_", " ").capitalize(): pd.read_csv(out / f"{name}.csv",
                                                               keep_default_na=False)
              for name in WORDS if (out / f"{name}.csv").exists()}
    body = "".join(f"<h2>{title}</h2>{rows.to_html(index=False, border=0)}"
                   for title, rows in shown.items())
    with whole_file(out / "report.html") as part:
        part.write_text('<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>The paper\'s '
                        f"tables</title><style>{STYLE}</style><h1>The paper's tables, measured "
                        f"again</h1>{body}</html>", encoding="utf-8")
    return table
