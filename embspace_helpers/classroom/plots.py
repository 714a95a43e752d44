"""The course's figure style: colour-blind safe, legible, every title a takeaway."""

import re
from collections.abc import Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

from embspace_helpers.reading.parameters import GROUP_NAMES

# Okabe and Ito (2008), told apart by all common kinds of colour vision; in order of use
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#7A7A7A"  # controls
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE = {
    "figure.dpi": 100, "figure.constrained_layout.use": True, "figure.figsize": (7.5, 3.6),
    "font.size": 10.5, "axes.titlesize": 11, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.axisbelow": True,
}


def panels(takeaway: str, *titles: str, width: float = 9.5, height: float = 3.6,
           share_y: bool = False, kind: type[Figure] = Figure) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, one per title, under a sentence that says what to see."""
    if not titles:
        raise ValueError("panels needs at least one title")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(titles), figsize=(width, height), sharey=share_y,
                                    squeeze=False, FigureClass=kind)
        figure.suptitle(takeaway, x=0.01, ha="left", fontsize=12, fontweight="bold")
        for ax, title in zip(axes[0], titles):
            ax.set_title(title)
        interactive = matplotlib.is_interactive()  # a notebook's first figure turns it on
    matplotlib.interactive(interactive)  # and rc_context would turn it off: no figure would show
    _show_with_alt_text()
    return figure, list(axes[0])


def describe(figure: Figure) -> str:
    """What a figure shows, in words: takeaway, its label, panels, axes, the text below."""
    parts = [figure.get_suptitle(), str(figure.get_label())]
    for ax in figure.axes:
        axes = " by ".join(x for x in (ax.get_ylabel(), ax.get_xlabel()) if x)
        labels = ", ".join(dict.fromkeys(ax.get_legend_handles_labels()[1]))
        found = [x for x in (ax.get_title(loc="left") or ax.get_title(), axes, labels) if x]
        parts += ["; ".join(found)] if found else []
    parts += figure.get_supxlabel().split("\n")
    said = [" ".join(spoken(part).split()).removesuffix(".") for part in parts if part]
    return " ".join(part if part.endswith("?") else f"{part}." for part in said)


def spoken(text: str) -> str:
    """A text without the marks of its formulas: `$W_{QK}$` is W_QK."""
    words = {r"\cdot": "·", r"\top": "T", r"\,": " ", r"\times": "×"}
    for mark, word in words.items():
        text = text.replace(mark, word)
    return re.sub(r"[${}\\]", "", text)


def _show_with_alt_text() -> None:
    """From now on a notebook stores `describe(figure)` as the alt text of every figure."""
    shell = get_ipython()
    if shell is None:
        return
    formatter = shell.display_formatter.formatters["image/png"]
    try:
        draw = formatter.lookup_by_type(Figure)
    except KeyError:  # a terminal, which shows no figures
        return
    if getattr(draw, "__name__", "") != "with_alt_text":
        def with_alt_text(figure: Figure) -> tuple:
            png = draw(figure)
            png, metadata = png if isinstance(png, tuple) else (png, {})
            return png, {**metadata, "alt": describe(figure)}
        formatter.for_type(Figure, with_alt_text)


def curve(ax: Axes, x: Sequence, y: Sequence,
          intervals: Sequence[tuple[float, float]] | None = None, label: str | None = None,
          index: int = 0, control: bool = False) -> None:
    """One curve with its 95 % band; `index` picks colour and marker, a control is grey, dashed."""
    colour = GREY if control else COLOURS[index % len(COLOURS)]
    ax.plot(x, y, color=colour, label=label, linestyle="--" if control else "-",
            marker=None if control else MARKERS[index % len(MARKERS)], linewidth=1.8,
            markersize=4.5)
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


def legend_below(axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them: it takes no room from their width."""
    named: dict = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            named.setdefault(label, handle)
    axes[0].figure.legend(named.values(), named.keys(), loc="outside lower left", frameon=False,
                          fontsize=9.5, ncols=min(len(named), 6))


def heatmap(ax: Axes, table: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str],
            label: str, centre: float | None = None, numbers: bool = False,
            low: float | None = None, high: float | None = None) -> None:
    """A table (n, m) as colours, with a bar for the scale (`label`: what it shows, and its unit).

    `centre`: the value that is white, where both sides of it mean something (chance, zero).
    `numbers`: print each entry. `low`, `high`: ends of the scale, for panels to compare.
    """
    values = np.asarray(table, dtype=float)
    low = np.nanmin(values) if low is None else low
    high = np.nanmax(values) if high is None else high
    if centre is not None:
        reach = max(high - centre, centre - low) or 1.0
        low, high = centre - reach, centre + reach
    image = ax.imshow(values, aspect="auto", vmin=low, vmax=high,
                      cmap="viridis" if centre is None else "PuOr_r")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.9)
    if numbers:
        shades = np.asarray(image.norm(values))  # 0 to 1
        for (i, j), value in np.ndenumerate(values):
            if np.isnan(value):  # an empty cell stays empty
                continue
            shade = shades[i, j]
            dark = abs(shade - 0.5) > 0.33 if centre is not None else shade < 0.6
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if dark else "black")


def ranked(ax: Axes, words: Sequence[str], scores: Sequence[float], index: int = 0) -> None:
    """A ranked list as bars, the best on top, each with its word; for lists side by side."""
    places = range(len(words))
    ax.barh(places, scores, color=COLOURS[index % len(COLOURS)], alpha=0.75, height=0.72)
    ax.set_yticks(places, words)
    ax.invert_yaxis()
    ax.grid(False, axis="y")


def word_map(ax: Axes, words: Sequence[str], vectors: Tensor, scores: Sequence[float],
             label: str = "score", method: str = "pca", seed: int = 0) -> None:
    """A map of words: `vectors` (n, d) brought to two dimensions, coloured by `scores` (n,).

    Vectors are scaled to length 1 and centred. `method`: "pca" keeps large distances, "tsne"
    neighbourhoods. Words are pushed apart until they can be read, so places are approximate.
    Raises ValueError for fewer than 3 words, sizes that differ, or an unknown method.
    """
    if not len(words) == len(vectors) == len(scores) >= 3:
        raise ValueError(f"a map needs at least 3 words, each with a vector and a score; got "
                         f"{len(words)} words, {len(vectors)} vectors, {len(scores)} scores")
    places = _flat(normalize(vectors, dim=1).numpy(force=True), method, seed)
    low, high = places.min(0), places.max(0)
    places = _spread((places - low) / np.maximum(high - low, 1e-9), [len(w) for w in words])
    shades = ax.scatter(places[:, 0], places[:, 1], c=scores, cmap="viridis_r", s=14)
    ax.figure.colorbar(shades, ax=ax, label=label, shrink=0.8)
    for word, place in zip(words, places):
        ax.annotate(word, place, xytext=(0, 4), textcoords="offset points", ha="center", fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.margins(0.08)
    ax.grid(False)


def _flat(vectors: np.ndarray, method: str, seed: int) -> np.ndarray:
    """Coordinates (n, 2) by PCA or t-SNE."""
    from sklearn.decomposition import PCA  # a second to import, needed by maps only
    from sklearn.manifold import TSNE

    if method == "pca":
        return PCA(2, random_state=seed).fit_transform(vectors)
    if method == "tsne":
        near = min(10.0, (len(vectors) - 1) / 3)
        return TSNE(2, perplexity=near, init="pca", random_state=seed).fit_transform(vectors)
    raise ValueError(f"no map method {method!r}: there are pca, tsne")


def _spread(places: np.ndarray, lengths: Sequence[int], rounds: int = 200) -> np.ndarray:
    """Move points of the unit square until their labels, `lengths` characters wide, are apart."""
    places = places.copy()
    wide = np.add.outer(np.asarray(lengths), np.asarray(lengths)) * 0.0075 + 0.01
    high = 0.042
    order = np.sign(np.subtract.outer(range(len(places)), range(len(places))))
    for _ in range(rounds):
        gaps = places[:, None] - places[None]  # (n, n, 2)
        touch = (abs(gaps[..., 0]) < wide) & (abs(gaps[..., 1]) < high)
        np.fill_diagonal(touch, False)
        if not touch.any():
            break
        up = np.where(gaps[..., 1] == 0, order, np.sign(gaps[..., 1]))
        places[:, 1] += 0.25 * (touch * up * (high - abs(gaps[..., 1]))).sum(1)
        places[:, 0] += 0.02 * (touch * gaps[..., 0]).sum(1)
    return places


def overlap_curves(takeaway: str, curves: dict[str, pd.DataFrame], chance: float,
                   top: float | None = None) -> None:
    """A panel per group of parameters, a curve per label: rows of an overlap table, all groups.

    Rows have group, kind, layer, mean, low and high, as `curve_of` gives them; those of the kind
    "permuted" are the control, grey and dashed. Panels are those of the first curve, which has the
    colour of F, through which these tables are read; no other has that of a reading.
    """
    groups = list(next(iter(curves.values()))["group"].unique())
    _, axes = panels(takeaway, *[GROUP_NAMES[g] for g in groups], height=3.4, share_y=True)
    for ax, group in zip(axes, groups):
        colours = iter((1, 3, 4, 5, 6))
        for label, table in curves.items():
            rows, control = table[table["group"] == group], (table["kind"] == "permuted").all()
            index = 0 if control else next(colours)
            if len(rows):
                curve(ax, rows["layer"], rows["mean"], list(zip(rows["low"], rows["high"])), label,
                      index, control=control)
        chance_line(ax, chance)
        ax.set(xlabel="layer", ylabel="share of the state's top words" if ax is axes[0] else "")
    legend_below(axes)
    axes[0].set_ylim(0, top)
