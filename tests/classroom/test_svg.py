"""SVG drawn as plain paths: right, dark where the page is, and proof against cleaners."""

import re
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Affine2D, IdentityTransform

from embspace_helpers.classroom import svg

DARK = {"#ffffff": "#111111", "#FF0000": "#ff8888", "#000000": "#eeeeee"}
NAME = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def figure():
    figure = Figure(figsize=(2, 1))
    figure.add_artist(plt.Line2D([0.25, 0.75], [0.25, 0.25], color="red", linewidth=2,
                                 linestyle="--"))
    figure.text(0.5, 0.5, "$W_{QK}$ & x")
    return figure


def test_outline_steps_from_point_to_point_with_y_downwards():
    square = Path([(0, 0), (10, 0), (10, 20), (0, 0)], closed=True)
    assert svg.outline_of(square, IdentityTransform(), 100) == "m0 100l10 0l0-20z"
    two = Path.make_compound_path(square, square.transformed(Affine2D().translate(5, 0)))
    assert svg.outline_of(two, IdentityTransform(), 100) == "m0 100l10 0l0-20zm5 0l10 0l0-20z"
    curve = Path([(0, 0), (1, 2), (4, 0)], [Path.MOVETO, Path.CURVE3, Path.CURVE3])
    assert svg.outline_of(curve, Affine2D().scale(10), 0) == "m0 0q10-20 40 0"


def test_is_paths_with_colours_as_attributes_and_nothing_a_cleaner_takes_out(figure):
    root = ET.fromstring(svg.draw(figure, "A & B", "A line, < 2 inches.", DARK))
    assert (root.get("width"), root.get("height")) == ("173", "86")
    assert root.get("viewBox") == "0 0 1440 720"
    parts = [element.tag.removeprefix(NAME) for element in root]
    assert parts[:3] == ["title", "desc", "style"] and set(parts[3:]) == {"path"}
    assert [root[0].text, root[1].text] == ["A & B", "A line, < 2 inches."]
    paths = list(root)[3:]
    assert set().union(*(path.keys() for path in paths)) <= {
        "d", "fill", "stroke", "stroke-width", "stroke-dasharray"}
    ground, line = paths[0], next(path for path in paths if path.get("stroke") == "#ff0000")
    assert ground.get("fill") == "#ffffff" and ground.get("d") == "m0 720l1440 0l0-720l-1440 0z"
    assert line.get("d") == "m360 540l720 0" and line.get("stroke-width") == "20"
    assert line.get("fill") == "none" and line.get("stroke-dasharray") == "74 32"
    (text,) = (path.get("d") for path in paths if path.get("fill") == "#000000")
    assert text.count("m") >= 5  # W, Q, K, & and x


def test_every_colour_has_a_dark_one(figure):
    text = svg.draw(figure, "t", "d", DARK)
    style = re.search("<style>(.*)</style>", text)[1]
    assert style.startswith("@media screen and (prefers-color-scheme:dark)")
    assert '.schematic [stroke="#ff0000"]{stroke:#ff8888}' in style
    assert '.schematic [fill="#ffffff"]{fill:#111111}' in style
    with pytest.raises(ValueError, match="no dark colour for #ff0000"):
        svg.draw(figure, "t", "d", {"#ffffff": "#111111", "#000000": "#eeeeee"})


def test_leaves_the_figure_as_it_was(figure):
    figure.dpi = 93
    first = svg.draw(figure, "t", "d", DARK)
    assert figure.dpi == 93 and svg.draw(figure, "t", "d", DARK) == first
