"""Schematics draw what they say: legible, nothing on top of another, in both sets of colours."""

import colorsys
from itertools import combinations

import matplotlib.colors
import matplotlib.pyplot as plt
import nbformat
import pytest
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.transforms import Bbox
from nbclient import NotebookClient

from embspace_helpers.classroom import schematics
from embspace_helpers.workshop.comparison import settle

PARTS = {
    "stream": ["residual stream", "writes: $V$", "through $E'$"],
    "dictionary": ["state $x$", "$e_i W_l$", "key $k$"],
    "gated_neuron": ["silu", "either sign"],
    "head": ["$W_K^\\top$", "rank $d_h$"],
    "alignment": ["row $x$\nof A", "the short way"],
    "stitch": ["B, 2", "head\nof A"],
    "displacement": ["after less before", "as words"],
    "overlap": ["union", "top 50 of $h$", "another position"],
}


@pytest.fixture(params=PARTS)
def name(request):
    return request.param


@pytest.fixture
def ax(name):
    plt.switch_backend("Agg")
    getattr(schematics, name)()
    figure = plt.gcf()
    figure.canvas.draw()
    yield figure.axes[0]
    plt.close("all")


def drawn(artist) -> Bbox:
    """Where a text or a box stands, in inches."""
    return artist.get_window_extent().transformed(artist.figure.dpi_scale_trans.inverted())


def boxes(ax):
    return [drawn(patch) for patch in ax.patches if isinstance(patch, Rectangle)]


def arrows(ax):
    return [patch._path_original for patch in ax.patches if isinstance(patch, FancyArrowPatch)]


def test_has_its_parts(name, ax):
    found = [text.get_text() for text in ax.texts]
    for wanted in PARTS[name]:
        assert any(wanted in text for text in found), wanted


def test_texts_stand_in_the_frame_in_their_box_and_apart(ax):
    texts = {text.get_text(): drawn(text) for text in ax.texts}
    width, height = ax.figure.get_size_inches()
    for text, place in texts.items():
        assert min(place.x0, place.y0) >= 0 and place.x1 <= width and place.y1 <= height, text
        for box in boxes(ax):
            if Bbox.intersection(box, place):
                assert box.x0 < place.x0 and place.x1 < box.x1, text
                assert box.y0 < place.y0 and place.y1 < box.y1, text
    for (one, place), (other, near) in combinations(texts.items(), 2):
        assert not Bbox.intersection(place, near), f"{one} and {other}"


def test_no_arrow_runs_through_a_text_or_a_box(ax):
    for path in arrows(ax):
        for text in ax.texts:
            assert not path.intersects_bbox(drawn(text), filled=False), text.get_text()
        for box in boxes(ax):
            inside = Bbox([[box.x0 + 0.05, box.y0 + 0.05], [box.x1 - 0.05, box.y1 - 0.05]])
            assert not path.intersects_bbox(inside, filled=False)


def test_arrows_go_from_one_box_or_stream_to_another(ax):
    places = boxes(ax)
    lines = [(*line.get_xdata(), *line.get_ydata()) for line in ax.lines]
    places += [Bbox([[x0, y0 - 0.05], [x1, y1 + 0.05]]) for x0, x1, y0, y1 in lines]
    for path in arrows(ax):
        ends = [[i for i, b in enumerate(places)
                 if b.x0 - 0.03 < x < b.x1 + 0.03 and b.y0 - 0.03 < y < b.y1 + 0.03]
                for x, y in (path.vertices[0], path.vertices[-1])]
        assert all(ends) and ends[0] != ends[1], path.vertices


def test_a_heads_factors_have_the_colours_of_reading_and_writing():
    schematics.head()
    (ax,) = plt.gcf().axes
    texts = [text.get_text() for text in ax.texts]
    factors = [text for text in texts if text.startswith("$W") and len(text) < 11]
    assert factors == ["$W_Q$", "$W_K^\\top$", "$W_V$", "$W_O$"]
    edges = [matplotlib.colors.to_hex(patch.get_edgecolor()).upper() for patch in ax.patches]
    read, written, ink = schematics.READ, schematics.WRITTEN, schematics.INK
    assert edges == [read, read, ink, read, written, ink]
    plt.close("all")


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4
                        for x in matplotlib.colors.to_rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_stand_out_in_light_and_dark():
    grounds = {schematics.PAPER, schematics.BLOCK}
    lines = schematics.DARK.keys() - grounds
    texts = lines - schematics.TEXT.keys()
    for ground in grounds:
        for colour in lines:
            least = 4.5 if colour in texts else 3
            assert contrast(colour, ground) >= least, (colour, ground)
            assert contrast(schematics.DARK[colour], schematics.DARK[ground]) >= 4.5, colour


def test_a_dark_colour_keeps_its_hue():
    for light in (schematics.E_BLUE, schematics.F_ORANGE, schematics.DICTIONARY_GREEN,
                  schematics.READ):
        for other in (schematics.DARK[light], schematics.TEXT.get(light, light)):
            hues = [colorsys.rgb_to_hsv(*matplotlib.colors.to_rgb(c))[0] for c in (light, other)]
            assert abs(hues[0] - hues[1]) < 0.04, light  # of a turn


def test_a_notebook_stores_svg_and_png_with_their_words_and_the_same_every_time():
    source = "from embspace_helpers.classroom import schematics\nschematics.overlap()"
    cells = [nbformat.v4.new_code_cell(source) for _ in range(2)]
    NotebookClient(nbformat.v4.new_notebook(cells=cells), kernel_name="python3").execute()
    (first,), (second,) = (cell.outputs for cell in cells)
    svg, alt = first.data["image/svg+xml"], first.metadata["image/svg+xml"]["alt"]
    assert svg == second.data["image/svg+xml"] and len(svg) < 60_000
    assert first.metadata["image/png"]["alt"] == alt
    assert alt.startswith("How many of the state's top words do the most active neurons list? Each")
    assert "<title>How many" in svg and "<desc>Each of" in svg
    assert len(first.data["image/png"]) < 80_000  # 60 kB
    assert settle([first], [second])[2] == []
    del second.data["image/svg+xml"]
    assert settle([first], [second])[2] == ["image/svg+xml: 1 stored, 0 now"]
