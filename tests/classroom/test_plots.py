"""Figures: panels, intervals, and that a notebook shows every one of them."""

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient
from tiny_models import random

from embspace_helpers.classroom import plots


@pytest.fixture(autouse=True)
def without_a_screen():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


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


def test_a_control_is_grey_and_dashed_and_others_differ():
    _, (ax,) = plots.panels("t", "p")
    plots.curve(ax, [0, 1], [1.0, 2.0], control=True)
    for index in range(3):
        plots.curve(ax, [0, 1], [1.0, 2.0], index=index)
    control, *others = ax.lines
    assert (control.get_color(), control.get_linestyle()) == (plots.GREY, "--")
    assert len({(line.get_color(), line.get_marker()) for line in others}) == 3
    assert all(line.get_linestyle() == "-" for line in others)
    plots.chance_line(ax, 0.5)
    plots.chance_line(ax, 0.25, "a quarter", horizontal=False)
    assert list(ax.lines[-2].get_ydata()) == [0.5, 0.5]
    assert list(ax.lines[-1].get_xdata()) == [0.25, 0.25]
    assert ax.lines[-1].get_label() == "a quarter"


def test_one_legend_below_all_panels():
    figure, axes = plots.panels("t", "left", "right")
    plots.curve(axes[0], [0, 1], [1.0, 2.0], label="a")
    for ax in axes:
        plots.chance_line(ax, 0.5)
    plots.legend_below(axes)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "chance"]
    figure.canvas.draw()
    below = figure.legends[0].get_window_extent().y1
    assert all(below <= ax.get_tightbbox().y0 for ax in axes)


def test_dots_stand_from_top_to_bottom():
    _, (ax,) = plots.panels("t", "p")
    plots.dots(ax, ["first", "second"], [1.0, 2.0], [(0.9, 1.1), (1.8, 2.2)])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["second", "first"]


def test_a_notebook_shows_every_figure():
    source = "from embspace_helpers.classroom import plots\nfigure, (ax,) = plots.panels('t', 'p')"
    cells = [nbformat.v4.new_code_cell(source) for _ in range(3)]
    nb = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(nb, kernel_name="python3").execute()
    shown = [o for cell in nb.cells for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(shown) == 3
    assert [o.metadata["image/png"]["alt"] for o in shown] == ["t. p."] * 3


def test_alt_text_says_what_is_on_which_axis():
    figure, (left, right) = plots.panels("Much\nsurvives.", "one", "two")
    plots.curve(left, [0, 1], [0.1, 0.2], label="E")
    plots.caption(left, "layer", "share of\nkeys")
    right.set_axis_off()
    assert plots.describe(figure) == "Much survives. one; share of keys by layer; E. two."


def test_heatmap_prints_its_numbers_and_names():
    _, (ax,) = plots.panels("t", "p")
    plots.heatmap(ax, [[0.0, 1.0], [0.5, -1.0]], ["a", "b"], ["x", "y"], "unit", numbers=True)
    assert [t.get_text() for t in ax.texts] == ["0.00", "1.00", "0.50", "-1.00"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert ax.figure.axes[-1].get_ylabel() == "unit"


def test_heatmap_leaves_empty_cells_empty():
    _, (ax,) = plots.panels("t", "h")
    plots.heatmap(ax, [[0.5, float("nan")]], ["a"], ["x", "y"], "unit", numbers=True)
    assert [text.get_text() for text in ax.texts] == ["0.50"]


def test_heatmap_centre_is_in_the_middle_of_the_scale():
    _, (ax,) = plots.panels("t", "p")
    plots.heatmap(ax, [[0.0, 3.0]], ["a"], ["x", "y"], "unit", centre=1.0)
    assert ax.images[0].get_clim() == (-1.0, 3.0)


def test_ranked_list_has_the_best_on_top():
    _, (ax,) = plots.panels("t", "p")
    plots.ranked(ax, ["best", "second"], [2.0, 1.0])
    places = dict(zip([t.get_text() for t in ax.get_yticklabels()], ax.get_yticks()))
    best, second = (ax.transData.transform((0, places[word]))[1] for word in ("best", "second"))
    assert best > second
    assert [bar.get_width() for bar in ax.patches] == [2.0, 1.0]


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_word_map_keeps_groups_apart_and_labels_readable(method):
    centres = torch.eye(2, 10).repeat_interleave(6, 0)  # (12, 10): two groups of six
    vectors = centres + 0.05 * random(12, 10)
    names = [f"word{i}" for i in range(12)]
    _, (ax,) = plots.panels("t", "p")
    plots.word_map(ax, names, vectors, range(12), method=method)
    places = np.asarray(ax.collections[0].get_offsets())
    assert [t.get_text() for t in ax.texts] == names
    inside = [np.linalg.norm(group - group.mean(0), axis=1).max()
              for group in (places[:6], places[6:])]
    assert np.linalg.norm(places[:6].mean(0) - places[6:].mean(0)) > max(inside)
    gaps = abs(places[:, None] - places[None])
    touching = (gaps[..., 0] < 0.04) & (gaps[..., 1] < 0.02)
    assert touching.sum() == 12  # each label touches itself alone


def test_word_map_says_what_it_needs():
    _, (ax,) = plots.panels("t", "p")
    with pytest.raises(ValueError, match="at least 3 words.*2 words, 3 vectors"):
        plots.word_map(ax, ["a", "b"], torch.eye(3), [1, 2, 3])
    with pytest.raises(ValueError, match="no map method 'umap': there are pca, tsne"):
        plots.word_map(ax, ["a", "b", "c"], torch.eye(3), [1, 2, 3], method="umap")


def overlap_rows(groups, kind="real", shift=0.0):
    """Rows of an overlap table: two layers for each group."""
    rows = [(g, layer, "this", kind, 0.1 * layer + shift, 0.1 * layer, 0.1 * layer + 2 * shift)
            for g in groups for layer in (0, 1)]
    return pd.DataFrame(rows, columns=["group", "layer", "target", "kind", "mean", "low", "high"])


def test_overlap_curves_have_a_panel_for_each_group_of_the_first_curve():
    plots.overlap_curves("Words turn up", {
        "trained": overlap_rows(["K", "W_O"], shift=0.5),
        "permuted": overlap_rows(["K", "W_O"], "permuted", 0.1),
        "turned": overlap_rows(["K"], "turned", 0.2)}, chance=0.05, top=0.8)
    figure = plt.gcf()
    assert figure.get_suptitle() == "Words turn up"
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["keys", "output subheads"]
    keys, subheads = figure.axes
    assert [line.get_label() for line in keys.lines] == ["trained", "permuted", "turned", "chance"]
    assert [line.get_label() for line in subheads.lines] == ["trained", "permuted", "chance"]
    trained, permuted, turned, chance = keys.lines
    np.testing.assert_allclose(trained.get_ydata(), [0.5, 0.6])
    assert list(trained.get_xdata()) == [0, 1] and list(chance.get_ydata()) == [0.05, 0.05]
    assert (permuted.get_color(), permuted.get_linestyle()) == (plots.GREY, "--")
    # a control takes no colour away, and a curve has its own in every panel
    assert [line.get_color() for line in (trained, turned)] == [
        plots.COLOURS[1], plots.COLOURS[3]]
    assert subheads.lines[0].get_color() == plots.COLOURS[1]
    assert keys.get_ylim() == subheads.get_ylim() == (0, 0.8)
    assert len(keys.figure.legends[0].get_texts()) == 4
