"""The report of `reproduce`: the paper's figures beside ours, part by part, as HTML and CSV."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from embspace_helpers.classroom.plots import describe
from embspace_helpers.experiments.statistics import save_table
from embspace_helpers.reading.files import whole_file
from embspace_helpers.reading.sources import DATA
from embspace_helpers.workshop.reproduce_figures import Figure, Figures
from embspace_helpers.workshop.reproduce_pictures import PICTURES

MODELS = ("openai-community/gpt2-medium", "openai-community/gpt2", "google/multiberts-seed_0",
          "google/multiberts-seed_1")
ROLES = ("is read, and hosts the stitch", "is fine-tuned", "is aligned", "is aligned")
PAPER = DATA / "paper_figures.csv"  # what Dar et al. (2023) report, part by part
COLUMNS = {"what": "", "measured": "measured here", "held_against": "control", "control":
           "what the control is", "paper": "the paper (section)", "n": "of"}


class Run(NamedTuple):
    """A part: what there is to say of it, and where it was measured its figures, table, picture."""

    said: str
    figures: Figures
    table: pd.DataFrame | None = None
    picture: str = ""


ABOUT = {  # part -> heading, what is measured, how its numbers are to be read
    "examples": (
        "Words of a neuron, pairs of heads",
        "The ten words with the largest scores, of the key and of the value of one FF neuron, "
        "through E; of the key also through the dictionary of its layer.",
        "A pair's score is in standard deviations over all pairs. It is given as the mean over "
        "heads, with the smallest and the largest head in brackets."),
    "jaccard": (
        "Do keys go with their values?",
        "Jaccard overlap, from 0 to 1, of the 100 tokens with the largest scores, whatever their "
        "sign, of two rows that belong together.",
        "Mean over layers, with the lowest and the highest layer in brackets."),
    "overlap": (
        "Do states go with the parameters they activate?",
        "Share, from 0 to 1, of a state's top 50 words that are among those of the five most "
        "active parameters.",
        "Mean over layers and positions, with a 95 % interval over reviews in brackets."),
    "finetuning": (
        "The classifiers",
        "The last three layers and a head are trained to tell praise from blame.",
        "Mean over classifiers, with the worst and the best in brackets."),
    "displacement": (
        "What did fine-tuning write?",
        "A displacement is a row after fine-tuning less the same row before. It separates praise "
        "from blame if its top words and those of its negative differ more in a lexicon's rating "
        "than 95 % of random directions do.",
        "Share of rows, from 0 to 1: mean over classifiers, with the lowest and the highest "
        "classifier in brackets."),
    "stitching": (
        "Can a classifier move into another model?",
        "The host's first layers, a translation through both vocabularies, and the classifier's "
        "last three layers and head. No training.",
        "Accuracy, of every classifier at its best layer. The layer is chosen with the labels, in "
        "the controls too, so that a figure a little above 0.50 says nothing. Mean over "
        "classifiers, with the worst and the best in brackets. The controls are of the first "
        "three classifiers."),
    "alignment": (
        "Do two models learn the same things in the same layers?",
        "Layers of two models are matched by the mean absolute correlation of their rows, as "
        "vectors over the vocabulary.",
        "Layers that are matched with the layer of the same number; p is the exact probability "
        "that a random match has as many. In the picture every panel has its own scale."),
}
STYLE = """
:root { color-scheme: light dark; --line: #ccc; --faint: #666; --ours: #0b5394; --back: #f5f5f3 }
@media (prefers-color-scheme: dark) {
  :root { --line: #555; --faint: #aaa; --ours: #8ec7ff; --back: #262626 } }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin: 2.6rem 0 .3rem } p { max-width: 46rem; margin: .4rem 0 }
.said { color: var(--faint) }
.tables { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: 14px }
th { font-weight: 600; white-space: nowrap }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; min-width: 4rem;
  border-bottom: 1px solid var(--line) }
td:nth-child(2) { font-weight: 600; color: var(--ours); min-width: 9.5rem }
td:nth-child(3) { min-width: 9.5rem }
.plain td { font-weight: 400; color: unset; min-width: 4rem }
img { max-width: 100%; background: white; padding: .6rem; border-radius: .4rem; margin: .6rem 0;
  box-sizing: border-box }
summary { cursor: pointer; margin: .6rem 0 } nav { margin: 1rem 0 } .missing { background:
  var(--back); padding: .6rem .9rem; border-left: 3px solid var(--line) }
"""


def report(found: Mapping[str, Run], options: Mapping[str, object], weights: Mapping[str, str],
           out: Path) -> pd.DataFrame:
    """Write report.csv and report.html in `out`: the paper's figures beside what was measured.

    `weights`: which weights the names of models stood for, or why there are none. Gives the table.
    """
    table = pd.read_csv(PAPER, keep_default_na=False)
    table = table[table["part"].isin(found)]
    ours = [found[row.part].figures.get(row.what, Figure("")) for row in table.itertuples()]
    table = table.assign(**{name: [getattr(x, name) for x in ours] for name in Figure._fields})
    save_table(table, out / "report.csv")
    links = " · ".join(f'<a href="#{part}">{part}</a>' for part in found)
    sections = [_section(part, run, table[table["part"] == part]) for part, run in found.items()]
    body = [_opening(options), f"<nav>{links}</nav>", *sections, _models(options, weights),
            _details("All options", pd.DataFrame(
                [(k, str(v)) for k, v in options.items()], columns=["option", "value"]))]
    page = ('<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            'content="width=device-width"><title>The paper\'s tables, measured again</title>'
            f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>")
    with whole_file(out / "report.html") as part:
        part.write_text(page, encoding="utf-8")
    return table


def _opening(options: Mapping[str, object]) -> str:
    """The title, and how the report is to be read."""
    names = options["models"]
    other = "" if tuple(names) == MODELS else (  # type: ignore[arg-type]
        '<p class="missing"><b>These are not the paper\'s models.</b> The figures show how the '
        "measurement goes, and reproduce nothing of the paper.</p>")
    return ("<h1>The paper's tables, measured again</h1>"
            "<p>Dar, Geva, Gupta and Berant, <i>Analyzing Transformers in Embedding Space</i> (ACL "
            "2023). Every figure stands beside its control, a case in which nothing should be "
            "found, and beside the paper's own figure where it gives one. A figure says something "
            f"only as far as it leaves its control behind.</p>{other}")


def _section(part: str, run: Run, rows: pd.DataFrame) -> str:
    """A part: what is measured, its figures beside the paper's, its picture, its words."""
    heading, what, how = ABOUT[part]
    top = f'<h2 id="{part}">{escape(heading)}</h2><p>{escape(what)}</p>'
    if run.table is None:
        return f'{top}<p class="missing">{escape(run.said)}</p>'
    shown = rows.assign(paper=[
        "not in the paper" if row.section == "ours" else f"{row.paper} ({row.section})"
        for row in rows.itertuples()])[list(COLUMNS)].rename(columns=COLUMNS)
    words = ""
    if part == "examples":
        words = _details("The ten largest pairs of every head", _pairs(run.table))
    elif part == "displacement":
        words = _details("Words of the head's displacement in every classifier, and of the longest "
                         "displacements in one", _displaced(run.table))
    return "".join([top, f"<p>{escape(how)}</p>", _html(shown), run.picture, words,
                    f'<p class="said">{escape(run.said)}</p>'])


def _pairs(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each head and kind, its pairs side by side."""
    table = table[table["what"].isin(("W_VO", "W_QK"))].rename(columns={"of": "head"})
    return table.groupby(["head", "what"], sort=False)["words"].agg(" | ".join).reset_index()


def _displaced(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of all heads, and of the groups in the first classifier, after training."""
    after = table[table["state"] == "after"]
    heads = after["group"] == "head"
    chosen = pd.concat([after[heads], after[~heads & (after["seed"] == after["seed"].min())]])
    return chosen[["seed", "group", "layer", "plus", "minus"]].rename(columns={
        "seed": "classifier", "plus": "its words", "minus": "words of its negative"})


def _models(options: Mapping[str, object], weights: Mapping[str, str]) -> str:
    """Which weights were read."""
    rows = [(name, role, weights.get(name, "not read"))
            for name, role in zip(options["models"], ROLES)]  # type: ignore[call-overload]
    return "<h2>Models</h2>" + _html(pd.DataFrame(
        rows, columns=["model", "in this run it", "weights (commit or checksum)"]), "plain")


def _html(table: pd.DataFrame, kind: str = "") -> str:
    return (f'<div class="tables">'
            f'{table.to_html(index=False, border=0, classes=kind or None)}</div>')


def _details(title: str, table: pd.DataFrame) -> str:
    return f"<details><summary>{escape(title)}</summary>{_html(table, 'plain')}</details>"


def picture(part: str, table: pd.DataFrame) -> str:
    """The picture of a part, in HTML, with words for those who cannot see it; "" where none is."""
    if part not in PICTURES:
        return ""
    file, figure = io.BytesIO(), PICTURES[part](table)
    figure.savefig(file, format="png", dpi=130)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(describe(figure))}">'
