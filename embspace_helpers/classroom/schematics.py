"""Drawings of the ideas: what is read, what is written, and through which matrix.

A notebook shows a drawing as SVG, light or dark as the page asks, and stores a PNG beside it.
"""

from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.path import Path

from embspace_helpers.classroom import plots, svg

E_BLUE, F_ORANGE, DICTIONARY_GREEN = plots.COLOURS[:3]  # as in all figures
READ, WRITTEN = "#A84E80", E_BLUE  # parameters that read the stream, and that write to it
INK, GREY, PAPER, BLOCK = "#333333", plots.GREY, "#FFFFFF", "#F2F4F7"
# Text needs more contrast than a line: the same hue, darker
TEXT = {F_ORANGE: "#B34F00", DICTIONARY_GREEN: "#007A5A", GREY: "#666666"}
DARK = {PAPER: "#1B1F24", BLOCK: "#2A3038", INK: "#E6E9ED", "#000000": "#E6E9ED",
        E_BLUE: "#56B4E9", READ: "#E79CC8", F_ORANGE: "#FF8F3D", DICTIONARY_GREEN: "#3FD9A8",
        GREY: "#A6ADB5", TEXT[F_ORANGE]: "#FF8F3D", TEXT[DICTIONARY_GREEN]: "#3FD9A8",
        TEXT[GREY]: "#A6ADB5"}
TITLE = 0.4  # inches
Point = tuple[float, float]
# Where a text stands beside a point: its alignments, and its distance in inches
BESIDE = {"above": ("center", "bottom", 0, 0.07), "below": ("center", "top", 0, -0.07),
          "left": ("right", "center", -0.1, 0), "right": ("left", "center", 0.1, 0)}


class Schematic(Figure):
    """A figure that a notebook shows as SVG too. Its label says in words what is drawn."""

    def _repr_svg_(self) -> tuple[str, dict[str, str]]:
        """The SVG, and its alt text."""
        return (svg.draw(self, plots.spoken(self.get_suptitle()), str(self.get_label()), DARK),
                {"alt": plots.describe(self)})


@dataclass(frozen=True)
class Box:
    """A box: its centre, width and height, all in inches."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> Point:
        """The middle of its left side."""
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> Point:
        """The middle of its right side."""
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> Point:
        """The middle of its upper side."""
        return self.x, self.y + self.height / 2

    @property
    def bottom(self) -> Point:
        """The middle of its lower side."""
        return self.x, self.y - self.height / 2


def canvas(takeaway: str, words: str, height: float = 2.6, width: float = 9.5) -> Axes:
    """An empty drawing in inches under a sentence; `words` tell it to those who cannot see it."""
    figure, (ax,) = plots.panels(takeaway, "", width=width, height=height + TITLE, kind=Schematic)
    figure.set_label(" ".join(words.split()))
    figure.set_layout_engine("none")
    ax.set(position=(0, 0, 1, height / (height + TITLE)), xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return ax


def write(ax: Axes, x: float, y: float, text: str, colour: str = INK, size: float = 11,
          align: str = "center", vertical: str = "center") -> None:
    """A text at (x, y)."""
    ax.text(x, y, text, ha=align, va=vertical, fontsize=size, color=TEXT.get(colour, colour))


def box(ax: Axes, x: float, y: float, text: str, width: float = 1.3, height: float = 0.55,
        colour: str = INK, dashed: bool = False) -> Box:
    """A box with a text, its centre at (x, y)."""
    ax.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, facecolor=BLOCK,
                           edgecolor=colour, linewidth=1.5, linestyle="--" if dashed else "-",
                           zorder=2))
    write(ax, x, y, text, colour, 11.5)
    return Box(x, y, width, height)


def arrow(ax: Axes, *points: Point, text: str = "", place: str = "above", colour: str = INK,
          dashed: bool = False) -> None:
    """An arrow through points, a text beside the middle of its longest part."""
    ax.add_patch(FancyArrowPatch(path=Path(points), arrowstyle="-|>", mutation_scale=13,
                                 color=colour, linewidth=1.6, linestyle="--" if dashed else "-",
                                 shrinkA=0, shrinkB=0, joinstyle="miter", capstyle="butt"))
    (x0, y0), (x1, y1) = max(pairwise(points),
                             key=lambda p: abs(p[0][0] - p[1][0]) + abs(p[0][1] - p[1][1]))
    align, vertical, right, up = BESIDE[place]
    if text:
        write(ax, (x0 + x1) / 2 + right, (y0 + y1) / 2 + up, text, colour, 11, align, vertical)


def rail(ax: Axes, start: Point, end: Point, text: str) -> None:
    """The residual stream: a thick line, named below."""
    ax.plot(*zip(start, end), color=INK, linewidth=6, solid_capstyle="butt", zorder=1)
    write(ax, (start[0] + end[0]) / 2, start[1] - 0.16, text, vertical="top")


def stream() -> None:
    """The residual stream: blocks read it through E', and add to it what is read through E."""
    ax = canvas("Blocks read the stream through $E'$ and add to it through $E$", """
        From left to right runs the residual stream, d numbers per position, from a token's column
        of E to the logits, h E. The attention of layer l reads from it with W_Q, W_K and W_V,
        through E', and writes to it with W_O, through E. The feed-forward block of layer l reads
        with its keys K, through E', and writes with its values V, through E.""", 2.35)
    token = box(ax, 0.95, 0.6, "token\ncolumn of $E$", 1.4, 0.7, E_BLUE)
    logits = box(ax, 8.6, 0.6, "logits\n$h\\,E$", 1.4, 0.7, E_BLUE)
    rail(ax, token.right, logits.left, "residual stream, $d$ numbers per position")
    for x, name, reader, writer in ((3.35, "attention, layer $l$", "$W_Q, W_K, W_V$", "$W_O$"),
                                    (6.35, "feed-forward, layer $l$", "$K$", "$V$")):
        block = box(ax, x, 2.0, name, 2.2)
        _, y = block.bottom
        arrow(ax, (x - 0.5, 0.65), (x - 0.5, y), text=f"reads: {reader}\nthrough $E'$",
              place="left", colour=READ)
        arrow(ax, (x + 0.5, y), (x + 0.5, 0.65), text=f"writes: {writer}\nthrough $E$",
              place="right", colour=WRITTEN)


def dictionary() -> None:
    """The dictionary of a layer: from a token's embedding to the state that stands for it there."""
    ax = canvas("A key of layer $l$ never meets an embedding. It meets what the layers made of it",
                """
        Two ways lead from the embedding e_i of a token to a key k of layer l. Above, the layers 0
        to l - 1 turn it into the state x that layer l reads, and the key fires by x · k. Below, the
        dictionary of layer l, a matrix W_l, turns it into e_i W_l, the best linear guess of x, and
        the key's list of words follows from e_i W_l · k.""")
    token = box(ax, 0.95, 1.3, "embedding $e_i$\nof the token", 1.6, 0.7, E_BLUE)
    layers = box(ax, 3.1, 2.15, "layers 0 to $l-1$", 1.8)
    state = box(ax, 5.85, 2.15, "state $x$ that\nlayer $l$ reads", 1.9, 0.7)
    matrix = box(ax, 3.1, 0.45, "dictionary $W_l$\nof layer $l$", 1.8, 0.7, DICTIONARY_GREEN)
    guess = box(ax, 5.85, 0.45, "$e_i W_l$: the best\nlinear guess of $x$", 1.9, 0.7,
                DICTIONARY_GREEN)
    key = box(ax, 8.6, 1.3, "key $k$\nof layer $l$", 1.4, 0.7, READ)
    arrow(ax, token.top, (token.x, layers.y), layers.left)
    arrow(ax, layers.right, state.left)
    arrow(ax, state.right, (key.x, state.y), key.top, text="fires by $x \\cdot k$")
    arrow(ax, token.bottom, (token.x, matrix.y), matrix.left, colour=DICTIONARY_GREEN)
    arrow(ax, matrix.right, guess.left, colour=DICTIONARY_GREEN)
    arrow(ax, guess.right, (key.x, guess.y), key.bottom, text="its list: $e_i W_l \\cdot k$",
          colour=DICTIONARY_GREEN)


def gated_neuron() -> None:
    """A gated neuron: two keys read, their product decides how much of the value is written."""
    ax = canvas("A gated neuron: the gate opens, the up key sets the sign, the value is written",
                """
        The state x meets two keys. Its product with the gate key goes through silu, which is open
        or shut. Its product with the up key may have either sign. Both are multiplied: this is the
        activation. So many times the value v is added to the residual stream.""", 2.5)
    state = box(ax, 0.8, 1.4, "state $x$", 1.1)
    gate = box(ax, 2.9, 2.15, "gate key $k^{gate}$", 1.75, colour=READ)
    up = box(ax, 2.9, 0.65, "up key $k^{up}$", 1.75, colour=READ)
    silu = box(ax, 5.7, 2.15, "silu: open or shut", 1.8)
    product = box(ax, 5.7, 1.4, "product", 1.1)
    value = box(ax, 8.4, 1.4, "value $v$", 1.3, colour=WRITTEN)
    rail(ax, (7.4, 0.45), (9.4, 0.45), "residual stream")
    arrow(ax, state.top, (state.x, gate.y), gate.left, colour=READ)
    arrow(ax, state.bottom, (state.x, up.y), up.left, colour=READ)
    arrow(ax, gate.right, silu.left, text="$x \\cdot k^{gate}$")
    arrow(ax, silu.bottom, product.top)
    arrow(ax, up.right, (product.x, up.y), product.bottom, text="$x \\cdot k^{up}$, either sign",
          place="below")
    arrow(ax, product.right, value.left, text="activation")
    arrow(ax, value.bottom, (value.x, 0.5), text="added", place="left", colour=WRITTEN)


def head() -> None:
    """A head as two products of thin factors: what reads and what writes."""
    ax = canvas("A head is two thin factors twice: one pair matches, one pair moves", """
        On the left W_Q, d by d_h, times W_K transposed, d_h by d, makes W_QK, d by d and of rank
        d_h: what the head matches. Both factors read the stream. On the right W_V, d by d_h, times
        W_O, d_h by d, makes W_VO, d by d and of rank d_h: what the head moves. W_V reads the
        stream, W_O writes to it.""", 2.3)
    side, thin, base = 1.45, 0.5, 0.4
    for x, title, left, right, product, colour in (
            (0.3, "matches", "$W_Q$", "$W_K^\\top$", "$W_{QK}$", READ),
            (5.0, "moves", "$W_V$", "$W_O$", "$W_{VO}$", WRITTEN)):
        write(ax, x, 2.1, f"{product}: what it {title}", size=12, align="left")
        box(ax, x + thin / 2, base + side / 2, left, thin, side, READ)
        box(ax, x + 0.8 + side / 2, base + side - thin / 2, right, side, thin, colour)
        box(ax, x + 2.75 + side / 2, base + side / 2, f"{product}\n$(d, d)$\nrank $d_h$", side,
            side)
        write(ax, x + 0.65, base + side / 2, "·", size=18)
        write(ax, x + 2.5, base + side / 2, "=", size=16)
        write(ax, x + thin / 2, base - 0.08, "$(d, d_h)$", vertical="top")
        write(ax, x + 0.8 + side / 2, base + side - thin - 0.08, "$(d_h, d)$", vertical="top")


def overlap() -> None:
    """The overlap experiment: the words of the most active neurons against those of the state."""
    ax = canvas("How many of the state's top words do the most active neurons list?", """
        Each of the five most active neurons writes c v, its coefficient times its value. The top
        50 words of each c v, read through F, are united. On the other side the state h at this
        position is normed and read through F: its top 50 words. Counted is the share of them that
        stands in the union. The control is the union of another position.""", 2.95)
    union = box(ax, 5.6, 1.7, "union\nof five lists", 1.4, 0.8, F_ORANGE)
    for y, number, spread in ((2.6, 1, 0.2), (1.7, 2, 0), (0.4, 5, -0.2)):
        neuron = box(ax, 0.95, y, f"neuron {number}: $c_{number} v_{number}$", 1.5, 0.5, WRITTEN)
        words = box(ax, 3.45, y, f"top 50 of $c_{number} v_{number}$", 1.8, 0.5, F_ORANGE)
        arrow(ax, neuron.right, words.left, text="through $F$", colour=F_ORANGE)
        arrow(ax, words.right, (union.left[0], union.y + spread), colour=F_ORANGE)
    for x in (0.95, 3.45):
        write(ax, x, 1.05, "...", size=12)
    state = box(ax, 8.5, 2.6, "state $h$ at this\nposition, normed", 1.7, 0.62)
    words = box(ax, 8.5, 1.7, "top 50 of $h$", 1.5, 0.5, F_ORANGE)
    control = box(ax, 5.6, 0.4, "control: union of\nanother position", 1.75, 0.65, GREY,
                  dashed=True)
    arrow(ax, state.bottom, words.top, text="through $F$", place="left", colour=F_ORANGE)
    arrow(ax, words.left, union.right, text="share in\nthe union")
    arrow(ax, words.bottom, (words.x, control.y), control.right, colour=GREY, dashed=True)


def alignment() -> None:
    """Two rows compared over the tokens: by two long vectors, or through one small matrix."""
    ax = canvas("Two ways to one correlation: by long vectors, or through a small matrix", """
        Two ways lead from a row x of model A and a row y of model B to their correlation. The long
        way, above: x E_A and y E_B are vectors of 8,191 numbers, one a token, and are correlated.
        The short way, below: x and y meet in the kernel, C_A times C_B transposed, which is 192 by
        192.""", 2.6)
    x = box(ax, 0.85, 1.35, "row $x$\nof A", 1.1, 0.7)
    y = box(ax, 8.65, 1.35, "row $y$\nof B", 1.1, 0.7)
    long_x = box(ax, 2.75, 2.2, "$x\\,E_A$: 8,191\nnumbers, one a token", 2.15, 0.7, E_BLUE)
    long_y = box(ax, 6.75, 2.2, "$y\\,E_B$: 8,191\nnumbers, one a token", 2.15, 0.7, E_BLUE)
    found = box(ax, 4.75, 1.35, "correlation\nof $x$ and $y$", 1.6, 0.7)
    kernel = box(ax, 4.75, 0.35, "kernel $C_A C_B^\\top$: 192 × 192", 2.7, 0.5)
    for row, long, near, side in ((x, long_x, long_x.left, kernel.left),
                                  (y, long_y, long_y.right, kernel.right)):
        arrow(ax, row.top, (row.x, long.y), near, colour=E_BLUE)
        arrow(ax, row.bottom, (row.x, kernel.y), side)
    arrow(ax, long_x.right, (4.75, 2.2), found.top, colour=E_BLUE)
    arrow(ax, long_y.left, (4.75, 2.2), found.top, colour=E_BLUE)
    arrow(ax, kernel.top, found.bottom, text="the short way", place="right")
    write(ax, 4.75, 2.27, "the long way", E_BLUE, vertical="bottom")


def stitch() -> None:
    """Zero-shot stitching: the first layers of the host, a kernel, the last layers of the guest."""
    ax = canvas("A stitch: the host's first layers, a kernel, the guest's last three", """
        From left to right: a review, the layers 0 to 2 of the host B, which is only pretrained, the
        kernel E_B times the pseudo-inverse of E_A, the layers 3 to 5 of the guest A, which is
        fine-tuned, the classifier head of A, and its verdict: praise or blame.""", 1.4)
    parts = [("review", 0.8), *((f"B, {i}", 0.6) for i in range(3)), ("kernel\n$E_B E_A^+$", 1.05),
             *((f"A, {i}", 0.6) for i in (3, 4, 5)), ("head\nof A", 0.7),
             ("praise\nor blame", 0.95)]
    gap = 0.24
    x, boxes = 0.12, []
    for name, width in parts:
        boxes.append(box(ax, x + width / 2, 0.95, name, width, 0.65,
                         E_BLUE if "kernel" in name else INK))
        x += width + gap
    for one, following in pairwise(boxes):
        arrow(ax, one.right, following.left)
    for first, last, text in ((1, 3, "host B, only pretrained"), (5, 8, "guest A, fine-tuned")):
        ends = boxes[first].left[0], boxes[last].right[0]
        ax.plot(ends, (0.45, 0.45), color=INK, linewidth=1.5)
        write(ax, sum(ends) / 2, 0.37, text, vertical="top")


def displacement() -> None:
    """What fine-tuning wrote: weights after less weights before, row by row, read as words."""
    ax = canvas("A displacement is what training added, and it has the shape of a weight", """
        The weights after fine-tuning, less the weights before, which are the pretrained ones, are
        the displacement. Each of its rows is read as words, through F: are they words of praise or
        of blame? The head starts at random numbers: these are its weights before.""", 2.5)
    after = box(ax, 1.3, 2.05, "weights after\nfine-tuning", 1.8, 0.7)
    before = box(ax, 1.3, 0.75, "weights before:\npretrained", 1.8, 0.7)
    change = box(ax, 4.6, 1.4, "displacement:\nafter less before", 1.9, 0.7)
    words = box(ax, 8.2, 1.4, "words of praise\nor of blame?", 1.8, 0.7, F_ORANGE)
    arrow(ax, after.right, (change.x, after.y), change.top, text="plus")
    arrow(ax, before.right, (change.x, before.y), change.bottom, text="minus")
    arrow(ax, change.right, words.left, text="each row as words,\nthrough $F$", colour=F_ORANGE)
    write(ax, 4.75, 0.17, "The head starts at random numbers. These are its weights before.")
