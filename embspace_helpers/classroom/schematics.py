"""Drawings of the ideas: what is read, what is written, and through which matrix."""

from itertools import pairwise

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from embspace_helpers.classroom import plots

E_BLUE, F_ORANGE, DICTIONARY_GREEN = plots.COLOURS[:3]  # as in all figures
READ, WRITTEN = plots.COLOURS[3], E_BLUE
BLOCK = "#EEF1F4"


def canvas(takeaway: str, width: float = 9.5, height: float = 2.9) -> Axes:
    """An empty drawing of so many inches, one unit an inch, under a sentence that says it all."""
    _, (ax,) = plots.panels(takeaway, "", width=width, height=height)
    ax.set(xlim=(0, width), ylim=(0, height - 0.4))
    ax.set_axis_off()
    return ax


def box(ax: Axes, x: float, y: float, text: str, width: float = 1.3, height: float = 0.55,
        colour: str = "#444444") -> None:
    """A box with a text, its centre at (x, y)."""
    ax.add_patch(plt.Rectangle((x - width / 2, y - height / 2), width, height, facecolor=BLOCK,
                               edgecolor=colour, linewidth=1.4, zorder=2))
    ax.text(x, y, text, ha="center", va="center", fontsize=10, color=colour, zorder=3)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "",
          colour: str = "#444444", shift: tuple[float, float] = (0.08, 0.0),
          align: str = "left") -> None:
    """An arrow with a text beside its middle."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.6})
    ax.text((start[0] + end[0]) / 2 + shift[0], (start[1] + end[1]) / 2 + shift[1], text,
            ha=align, va="center", fontsize=9.5, color=colour)


def stream() -> None:
    """The residual stream: blocks read it through E', and add to it what is read through E."""
    ax = canvas("Blocks read the stream through $E'$ and add to it through $E$")
    ax.plot([1.35, 8.05], [0.6, 0.6], color="#444444", linewidth=5, solid_capstyle="butt", zorder=1)
    ax.text(4.7, 0.22, "residual stream, $d$ numbers a position", ha="center", fontsize=9.5)
    box(ax, 0.7, 0.6, "token\ncolumn of $E$", 1.3, 0.7, E_BLUE)
    box(ax, 8.75, 0.6, "logits\n$h\\,E$", 1.3, 0.7, E_BLUE)
    for x, name, reader, writer in ((2.9, "attention, layer $l$", "$W_Q, W_K, W_V$", "$W_O$"),
                                    (5.9, "feed-forward, layer $l$", "$K$", "$V$")):
        box(ax, x + 0.55, 1.95, name, 2.3)
        arrow(ax, (x, 0.7), (x, 1.65), f"reads: {reader}\nthrough $E'$", READ, (-0.08, 0), "right")
        arrow(ax, (x + 1.1, 1.65), (x + 1.1, 0.7), f"writes: {writer}\nthrough $E$", WRITTEN)


def dictionary() -> None:
    """The dictionary of a layer: from a token's embedding to the state that stands for it there."""
    ax = canvas("A key of layer $l$ never meets an embedding. It meets what the layers made of it")
    box(ax, 1.2, 1.95, "embedding $e_i$\nof the token", 1.7, 0.7, E_BLUE)
    box(ax, 4.6, 1.95, "layers 0 to $l-1$", 1.9, 0.7)
    box(ax, 8.1, 1.95, "state $x$ that\nlayer $l$ reads", 1.8, 0.7)
    box(ax, 8.1, 0.45, "key $k$", 1.8, 0.5, READ)
    arrow(ax, (2.05, 1.95), (3.65, 1.95))
    arrow(ax, (5.55, 1.95), (7.2, 1.95))
    arrow(ax, (8.1, 0.7), (8.1, 1.6), "fires by $x \\cdot k$", READ)
    arrow(ax, (1.2, 1.6), (1.2, 0.45), colour=DICTIONARY_GREEN)
    arrow(ax, (1.2, 0.45), (7.2, 0.45), "dictionary of layer $l$: $e_i W_l$, the best linear guess "
          "of $x$", DICTIONARY_GREEN, (0, 0.2), "center")


def gated_neuron() -> None:
    """A gated neuron: two keys read, their product decides how much of the value is written."""
    ax = canvas("A gated neuron: the gate opens, the up key sets the sign, the value is written")
    box(ax, 0.8, 1.25, "state $x$", 1.1)
    box(ax, 3.2, 2.05, "gate key $k^{gate}$", 1.8, colour=READ)
    box(ax, 3.2, 0.45, "up key $k^{up}$", 1.8, colour=READ)
    box(ax, 5.9, 2.05, "silu: open or shut", 1.7)
    box(ax, 5.9, 1.25, "product", 1.1)
    box(ax, 8.3, 1.25, "value $v$", 1.3, colour=WRITTEN)
    arrow(ax, (1.35, 1.4), (2.3, 2.0), colour=READ)
    arrow(ax, (1.35, 1.1), (2.3, 0.5), colour=READ)
    arrow(ax, (4.1, 2.05), (5.05, 2.05))
    ax.text(4.55, 2.22, "$x \\cdot k^{gate}$", ha="center", fontsize=9.5)
    arrow(ax, (5.9, 1.77), (5.9, 1.53))
    arrow(ax, (4.1, 0.45), (5.35, 1.12), "$x \\cdot k^{up}$, either sign", shift=(0.12, -0.12))
    arrow(ax, (6.45, 1.25), (7.65, 1.25))
    ax.text(7.05, 1.42, "activation", ha="center", fontsize=9.5)
    arrow(ax, (8.3, 0.97), (8.3, 0.4), "added to the stream", WRITTEN, (-0.08, 0), "right")


def head() -> None:
    """A head as two products of thin factors: what reads and what writes."""
    _, axes = plots.panels("A head is two thin factors twice: one pair matches, one pair moves",
                           "W_QK: what it matches", "W_VO: what it moves", height=2.6)
    names = ("$W_Q$", "$W_K^T$", "$W_{QK}$"), ("$W_V$", "$W_O$", "$W_{VO}$")
    for ax, (left, right, product), written in zip(axes, names, (False, True)):
        for (x, y, width, height), text, colour in (
                ((0.0, 0.0, 0.5, 3.0), left, READ),
                ((1.3, 2.5, 3.0, 0.5), right, WRITTEN if written else READ),
                ((5.6, 0.0, 3.0, 3.0), f"{product}\n$(d, d)$, rank $d_h$", "#444444")):
            ax.add_patch(plt.Rectangle((x, y), width, height, facecolor=BLOCK, edgecolor=colour,
                                       linewidth=1.4))
            ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=11,
                    color=colour)
        for x, y, text, size in ((0.9, 1.5, "·", 18), (4.95, 1.5, "=", 18),
                                 (0.25, -0.5, "$(d, d_h)$", 9), (2.8, 1.9, "$(d_h, d)$", 9)):
            ax.text(x, y, text, fontsize=size, ha="center")
        ax.set(xlim=(-0.3, 9), ylim=(-0.8, 3.2), aspect="equal")
        ax.set_axis_off()


def overlap() -> None:
    """The overlap experiment: the words of the most active neurons against those of the state."""
    ax = canvas("How many of the state's top words do the most active neurons list?")
    for y, number in ((2.2, 1), (1.25, 2), (0.3, 5)):
        arrow(ax, (1.55, y), (2.4, y), f"$c_{number}$", WRITTEN, (0, 0.17), "center")
        box(ax, 0.85, y, f"neuron {number}, $v_{number}$", 1.4, 0.45, WRITTEN)
        box(ax, 3.25, y, f"top 50 of $v_{number}$", 1.65, 0.45, WRITTEN)
        arrow(ax, (4.1, y), (5.0, 1.25), colour=WRITTEN)
    ax.text(0.85, 0.78, "...", ha="center", va="center", fontsize=12)
    box(ax, 5.75, 1.25, "union\nof five lists", 1.45, 0.8, WRITTEN)
    box(ax, 8.7, 2.15, "state $h$ at this\nposition, normed", 1.5, 0.6)
    arrow(ax, (8.7, 1.85), (8.7, 1.5))
    box(ax, 8.7, 1.25, "top 50 of $h$", 1.5, 0.5)
    arrow(ax, (6.5, 1.25), (7.9, 1.25), "share in\nthe union", shift=(0, 0.27), align="center")
    ax.text(5.75, 0.25, "control: the union of another position", ha="left", fontsize=9.5,
            color=plots.GREY)


def alignment() -> None:
    """Two rows compared over the tokens: by two long vectors, or through one small matrix."""
    ax = canvas("Two ways to one correlation: by long vectors, or through a small matrix",
                height=3.6)
    long, short = "8,191 numbers, one a token", "kernel $C_A C_B^\\top$, 192 × 192"
    box(ax, 0.9, 2.4, "row $x$ of A", 1.4, colour=E_BLUE)
    box(ax, 8.6, 2.4, "row $y$ of B", 1.4, colour=READ)
    box(ax, 4.75, 2.75, f"$x\\,E_A$: {long}", 3.4, 0.42, E_BLUE)
    box(ax, 4.75, 2.2, f"$y\\,E_B$: {long}", 3.4, 0.42, READ)
    box(ax, 4.75, 1.35, "correlation of $x$ and $y$", 2.3, 0.5)
    box(ax, 4.75, 0.4, short, 2.7, 0.5)
    arrow(ax, (1.6, 2.5), (3.0, 2.75), "$E_A$", E_BLUE, (0, 0.2))
    arrow(ax, (7.9, 2.35), (6.5, 2.2), "$E_B$", READ, (0, 0.2))
    arrow(ax, (4.75, 1.97), (4.75, 1.62), "the long way")
    arrow(ax, (4.75, 0.67), (4.75, 1.08), "the short way")
    arrow(ax, (0.9, 2.1), (3.35, 0.4), colour=E_BLUE)
    arrow(ax, (8.6, 2.1), (6.15, 0.4), colour=READ)


def stitch() -> None:
    """Zero-shot stitching: the first layers of the host, a kernel, the last layers of the guest."""
    ax = canvas("A stitch: the host's first layers, a kernel, the guest's last three", 10, 1.9)
    parts = [("review", 0.55, 0.8, plots.GREY), *((f"B, {i}", 1.65 + 0.9 * i, 0.65, "#444444")
                                                  for i in range(3)),
             ("kernel\n$E_B E_A^+$", 4.7, 1.0, E_BLUE),
             *((f"A, {i}", 5.75 + 0.85 * (i - 3), 0.65, READ) for i in (3, 4, 5)),
             ("head of A", 8.45, 0.85, READ),
             ("praise\nor blame", 9.5, 0.8, plots.GREY)]
    for name, x, width, colour in parts:
        box(ax, x, 0.95, name, width, 0.6, colour)
    for (_, x, width, _), (_, following, its, _) in pairwise(parts):
        arrow(ax, (x + width / 2, 0.95), (following - its / 2, 0.95))
    ax.text(2.55, 0.3, "host, only pretrained", ha="center", color="#444444")
    ax.text(7.2, 0.3, "guest, fine-tuned", ha="center", color=READ)


def displacement() -> None:
    """What fine-tuning wrote: weights after less weights before, row by row, read as words."""
    ax = canvas("A displacement is what training added, and it has the shape of a weight")
    box(ax, 1.2, 1.9, "weights after\nfine-tuning", 1.7, 0.7, READ)
    box(ax, 1.2, 0.6, "weights before:\npretrained", 1.7, 0.7, plots.GREY)
    box(ax, 4.6, 1.25, "displacement\nafter less before", 1.9, 0.75)
    box(ax, 8.0, 1.25, "words of praise\nor of blame?", 1.8, 0.75, F_ORANGE)
    arrow(ax, (2.05, 1.9), (3.65, 1.4), "plus", READ, (0, 0.22), "center")
    arrow(ax, (2.05, 0.6), (3.65, 1.1), "minus", plots.GREY, (0, -0.22), "center")
    arrow(ax, (5.55, 1.25), (7.1, 1.25), "each row, as words", F_ORANGE, (0, 0.2), "center")
    ax.text(4.6, 0.2, "the head starts at random numbers: these are its weights before",
            ha="center", fontsize=9.5, color=plots.GREY)
