"""Figures: panels, intervals, and that a notebook shows every one of them."""

import matplotlib
import nbformat
import pytest
from nbclient import NotebookClient

matplotlib.use("Agg")

from embspace_helpers import plots


def test_panels_have_their_titles_and_a_takeaway():
    figure, axes = plots.panels("All is well", "left", "right")
    assert [ax.get_title(loc="left") for ax in axes] == ["left", "right"]
    assert figure.get_suptitle() == "All is well"


def test_panels_need_a_title():
    with pytest.raises(ValueError, match="at least one title"):
        plots.panels("All is well")


def test_curve_draws_its_interval():
    _, (ax,) = plots.panels("t", "p")
    plots.curve(ax, [0, 1], [1.0, 2.0], [(0.5, 1.5), (1.5, 2.5)], label="a")
    low, high = ax.collections[0].get_datalim(ax.transData).intervaly
    assert (low, high) == (0.5, 2.5)
    plots.caption(ax, "x", "y")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a"]


def test_dots_stand_from_top_to_bottom():
    _, (ax,) = plots.panels("t", "p")
    plots.dots(ax, ["first", "second"], [1.0, 2.0], [(0.9, 1.1), (1.8, 2.2)])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["second", "first"]


def test_a_notebook_shows_every_figure():
    source = "from embspace_helpers import plots\nfigure, (ax,) = plots.panels('t', 'p')"
    cells = [nbformat.v4.new_code_cell(source) for _ in range(3)]
    nb = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(nb, kernel_name="python3").execute()
    shown = [any("image/png" in o.get("data", {}) for o in cell.outputs) for cell in nb.cells]
    assert shown == [True, True, True]
