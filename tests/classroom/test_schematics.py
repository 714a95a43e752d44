"""Schematics draw what they say, inside their frame."""

import matplotlib.colors
import matplotlib.pyplot as plt
import pytest

from embspace_helpers.classroom import schematics


@pytest.mark.parametrize(
    ("name", "texts"),
    [("stream", ["residual stream", "writes: $V$", "through $E'$"]),
     ("dictionary", ["state $x$", "$e_i W_l$", "key $k$"]),
     ("alignment", ["row $x$ of A", "the short way"]), ("stitch", ["B, 2", "head of A"]),
     ("displacement", ["after less before", "as words"]),
     ("overlap", ["union", "top 50 of $h$", "another position"])],
)
def test_schematic_has_its_parts_inside_the_frame(name, texts):
    getattr(schematics, name)()
    figure = plt.gcf()
    (ax,) = figure.axes
    found = [text.get_text() for text in ax.texts]
    for wanted in texts:
        assert any(wanted in text for text in found), wanted
    figure.canvas.draw()
    frame = figure.bbox
    for text in ax.texts:
        box = text.get_window_extent()
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1, text.get_text()
    plt.close(figure)


def test_a_heads_factors_have_the_colours_of_reading_and_writing():
    schematics.head()
    match, move = plt.gcf().axes
    edges = [[matplotlib.colors.to_hex(patch.get_edgecolor()).upper() for patch in ax.patches]
             for ax in (match, move)]
    read, written = schematics.READ, schematics.WRITTEN
    assert edges[0][:2] == [read, read] and edges[1][:2] == [read, written]
    assert [text.get_text() for text in move.texts][:2] == ["$W_V$", "$W_O$"]
    plt.close("all")
