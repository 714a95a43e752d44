"""Pictures for the report of `reproduce`: what the paper shows as a curve or a table of layers."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from embspace_helpers.classroom.plots import (
    GREY,
    caption,
    chance_line,
    curve,
    legend_below,
    panels,
)
from embspace_helpers.experiments.overlap import MEAN
from embspace_helpers.reading.parameters import GROUP_NAMES
from embspace_helpers.workshop.measure_alignment import GROUPS
from embspace_helpers.workshop.reproduce_figures import ABOVE, layer_table


def of_jaccard(table: pd.DataFrame) -> Figure:
    """Overlap by layer, a panel for each pair of groups."""
    groups = list(table["groups"].unique())
    figure, axes = panels("Do rows that belong together share their words?", *groups, height=3.2,
                          share_y=True)
    for ax, group in zip(axes, groups):
        rows = table[table["groups"] == group]
        curve(ax, rows["layer"], rows["real"], label="rows that belong together")
        curve(ax, rows["layer"], rows["shuffled"], label="other pairs of the layer", control=True)
        caption(ax, "layer", "Jaccard overlap" if ax is axes[0] else "")
    return _closed(figure, axes)


def of_overlap(table: pd.DataFrame) -> Figure:
    """Share of the state's words by layer, a panel for each group, the state behind its layer."""
    rows = table[(table["layer"] != MEAN) & (table["target"] == "this")]
    untrained = rows["model"].str.endswith(", untrained")
    groups = list(rows["group"].unique())
    figure, axes = panels("Do a state's words occur among those of active parameters?",
                          *[GROUP_NAMES[group] for group in groups], height=3.2, share_y=True)
    for ax, group in zip(axes, groups):
        for other, kind, label in ((False, "real", "as active"),
                                   (False, "permuted", "active at another position")):
            x = rows[(rows["group"] == group) & (untrained == other) & (rows["kind"] == kind)]
            curve(ax, x["layer"], x["mean"], list(zip(x["low"], x["high"])), label,
                  control=kind == "permuted")
        x = rows[(rows["group"] == group) & untrained & (rows["kind"] == "real")]
        ax.plot(x["layer"], x["mean"], color=GREY, linestyle=":", label="an untrained model")
        caption(ax, "layer", "share of the top 50 words" if ax is axes[0] else "")
    return _closed(figure, axes)


def of_alignment(table: pd.DataFrame) -> Figure:
    """Correlation of every pair of layers, a panel for each group, in embedding space."""
    rows = table[table["reading"] == "transpose"]
    figure, axes = panels("Is the diagonal the brightest? Layers of one model by those of the "
                          "other", *GROUPS, width=11, height=2.6)
    for ax, group in zip(axes, GROUPS):
        values = layer_table(rows[rows["group"] == group])
        ax.imshow(values.to_numpy(), cmap="viridis")
        ax.set(xticks=values.columns[::3], yticks=values.index[::3], xlabel="layer",
               ylabel="layer" if ax is axes[0] else "")
        ax.grid(False)
    return _closed(figure, [])


def of_stitching(table: pd.DataFrame) -> Figure:
    """Accuracy by host layer: the mean of the classifiers, from the worst to the best."""
    table = table.assign(share=table["right"] / table["reviews"])
    figure, axes = panels("At which layers of the host does a classifier work?", "the paper's "
                          "translation", "with mean and size matched", height=3.4, share_y=True)
    shown = ((axes[0], "paper", (("every layer", 0, False), ("displacement only", 1, False),
                                 ("untrained host", 3, False), ("shuffled vocabulary", 0, True))),
             (axes[1], "matched", (("every layer", 0, False), ("noise", 0, True))))
    for ax, recipe, kinds in shown:
        for kind, index, control in kinds:
            rows = table[(table["kind"] == kind) & (table["recipe"] == recipe)]
            by = rows.groupby("layer")["share"].agg(["mean", "min", "max"])
            curve(ax, by.index, by["mean"], list(zip(by["min"], by["max"])),
                  "classifiers" if kind == "every layer" else kind, index, control)
        chance_line(ax, 0.5)
        ax.axhline(ABOVE, color=GREY, linewidth=0.8, label="what the paper counts")
        caption(ax, "layer of the host", "accuracy" if ax is axes[0] else "")
    return _closed(figure, axes)


def _closed(figure: Figure, axes: list) -> Figure:
    """The figure with one legend below, no longer held by pyplot."""
    for ax in axes:
        if (legend := ax.get_legend()) is not None:
            legend.remove()
    if axes:
        legend_below(axes)
    plt.close(figure)
    return figure


PICTURES: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "jaccard": of_jaccard, "overlap": of_overlap, "stitching": of_stitching,
    "alignment": of_alignment}
