"""Draw the README's picture: a neuron of a middle layer, read in two ways.

    python -m embspace_helpers.pictures [--out folder]

Two SVG files, for a light page and for a dark one. The words are read out of SmolLM2 anew.
"""

import argparse
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from embspace_helpers.reading.files import whole_file

FOLDER = Path(".github")
LAYER, NEURON = 8, 902  # the middle neuron of notebook 00
THEMES = {"light": ("#1f2328", "#59636e", "#0072B2", "#007A5A"),  # text, grey, E, dictionary
          "dark": ("#f0f6fc", "#9198a1", "#56B4E9", "#3FD9A8")}
STYLE = "font-family:ui-sans-serif,system-ui,Segoe UI,Helvetica,Arial,sans-serif"


def draw(title: str, lists: Mapping[str, Sequence[str]], theme: str) -> str:
    """An SVG of word lists side by side, each under its name, the first words largest."""
    text, grey, *colours = THEMES[theme]
    longest = max(len(words) for words in lists.values())
    high = 100 + 25 * longest
    alt = f"{title} " + " ".join(f"{name}: {', '.join(words)}." for name, words in lists.items())
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {high}" role="img" '
             f'style="{STYLE}"><title>{escape(alt)}</title>',
             _text(20, 34, title, text, 19, bold=True)]
    for i, (name, words) in enumerate(lists.items()):
        x, colour = 20 + 380 * i, colours[i % len(colours)]
        lines += [_text(x, 70, name, colour, 15, bold=True),
                  f'<rect x="{x}" y="80" width="340" height="2" fill="{colour}"/>']
        lines += [_text(x, 106 + 25 * row, word, text if row < 5 else grey, 17)
                  for row, word in enumerate(words)]
    return "\n".join([*lines, "</svg>", ""])


def _text(x: int, y: int, words: str, colour: str, size: int, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (f'<text x="{x}" y="{y}" fill="{colour}" font-size="{size}"{weight}>'
            f"{escape(words)}</text>")


def read_neuron(reviews: int = 30, k: int = 8) -> dict[str, list[str]]:
    """The top words of the neuron's gate through E and through its layer's dictionary."""
    from embspace_helpers import load, load_reviews  # here: --help need not wait for torch

    smollm2 = load("smollm2", dtype="float16")
    texts = load_reviews("train", source="embedded")["text"].tolist()[:reviews]
    gate = smollm2.parameters.K(LAYER, "gate")[NEURON]
    return {"through E, as the paper reads it": smollm2.space().words(gate, k),
            f"through the dictionary of layer {LAYER}": smollm2.dictionary(LAYER, texts).words(
                gate, k)}


def main(arguments: list[str] | None = None) -> int:
    """Write both files."""
    parser = argparse.ArgumentParser(prog="python -m embspace_helpers.pictures",
                                     description="Draw the README's picture, light and dark.")
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    options = parser.parse_args(arguments)
    lists = read_neuron()
    title = f"What does neuron {NEURON} of SmolLM2's layer {LAYER} look for?"
    for theme in THEMES:
        with whole_file(options.out / f"neuron-{theme}.svg") as part:
            part.write_text(draw(title, lists, theme), encoding="utf-8", newline="\n")
        print(options.out / f"neuron-{theme}.svg")
    return 0
