"""The course's figure style: colour-blind safe, legible, every figure with a takeaway for a title."""

from collections.abc import Sequence

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito (2008), told apart by all common kinds of colour vision; in order of use
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#7A7A7A"  # controls
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE = {
    "figure.dpi": 100, "figure.constrained_layout.use": True, "figure.figsize": (7.5, 3.6),
    "font.size": 10.5, "axes.titlesize": 11, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.8,
    "lines.markersize": 4.5, "image.cmap": "viridis",
}


def panels(takeaway: str, *titles: str, width: float = 9.5, height: float = 3.6,
           share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, one per title, under a sentence that says what to see."""
    if not titles:
        raise ValueError("panels needs at least one title")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(titles), figsize=(width, height), sharey=share_y,
                                    squeeze=False)
        figure.suptitle(takeaway, x=0.01, ha="left", fontsize=12, fontweight="bold")
        for ax, title in zip(axes[0], titles):
            ax.set_title(title)
        interactive = matplotlib.is_interactive()  # a notebook's first figure turns it on
    matplotlib.interactive(interactive)  # and rc_context would turn it off: no figure would show
    return figure, list(axes[0])


def curve(ax: Axes, x: Sequence, y: Sequence, intervals: Sequence[tuple[float, float]] | None = None,
          label: str | None = None, index: int = 0, control: bool = False) -> None:
    """One curve with its 95 % band; `index` picks colour and marker, a control is grey, dashed."""
    colour = GREY if control else COLOURS[index % len(COLOURS)]
    ax.plot(x, y, color=colour, label=label, linestyle="--" if control else "-",
            marker=None if control else MARKERS[index % len(MARKERS)], linewidth=1.8, markersize=4.5)
    if intervals is not None:
        low, high = zip(*intervals)
        ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def dots(ax: Axes, names: Sequence[str], values: Sequence[float],
         intervals: Sequence[tuple[float, float]], label: str | None = None, index: int = 0,
         offset: float = 0.0) -> None:
    """One dot with its 95 % interval per name, names down the side, first on top."""
    places = [len(names) - 1 - i + offset for i in range(len(names))]
    below = [max(0.0, v - low) for v, (low, _) in zip(values, intervals)]
    above = [max(0.0, high - v) for v, (_, high) in zip(values, intervals)]
    ax.errorbar(values, places, xerr=[below, above], fmt=MARKERS[index % len(MARKERS)], capsize=2,
                color=COLOURS[index % len(COLOURS)], label=label, markersize=5, linewidth=1.4)
    ax.set_yticks(range(len(names)), list(names)[::-1])


def chance_line(ax: Axes, value: float, label: str = "chance", horizontal: bool = True) -> None:
    """A thin grey line where chance lies."""
    (ax.axhline if horizontal else ax.axvline)(value, color=GREY, linestyle=":", linewidth=1.4,
                                               label=label)


def caption(ax: Axes, x: str, y: str, columns: int = 1) -> None:
    """Axis labels (with units), and a legend in so many columns if anything has a label."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False, fontsize=9, ncols=columns)
