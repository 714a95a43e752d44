"""Widgets that let a learner try any word, any neuron: thin wraps around plain functions.

Every widget here calls a function that works without it, so that a notebook shows a default that
needs no kernel, and tests can check it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ipywidgets as widgets
import pandas as pd
from IPython.display import display

SLIDER = 40  # more values than these do not fit a slider: a number is typed instead


class Searchable(Protocol):
    """What a search box needs of an atlas."""

    groups: Sequence[str]

    def search(self, *words: str, groups: Any = None, n: int = 10) -> pd.DataFrame:
        """Find the rows whose lists hold the words."""


def look_up(atlas: Searchable, text: str, group: str | None = None,
            n: int = 6) -> pd.DataFrame | None:
    """The n lists of an atlas with most of the words in `text`, parted by spaces or commas.

    `group`: of one group of parameters, default all. Says in a sentence what was searched, which
    words are no token, and when no list has any of them; then returns None.
    """
    words = list(dict.fromkeys(text.replace(",", " ").replace(";", " ").split()))
    if not words:
        print("Type a word, or several with spaces between them.")
        return None
    where = f"group {group}" if group else "all groups"
    if len(words) > 1:
        print(f"{len(words)} words, each looked for by itself: {', '.join(words)} ({where})")
    try:
        found = atlas.search(*words, groups=group, n=n)
    except ValueError as error:
        print(f"{error}.")
        return None
    if not len(found):
        print(f"No list has {' or '.join(words)} among its words ({where}).")
        return None
    return found


def search_box(atlases: Mapping[str, Searchable], text: str = "ocean sea",
               group: str = "V") -> widgets.Widget:
    """A box to type words into, and a choice of model and group: shows what `look_up` finds.

    `atlases`: name of a model -> its atlas. Offers the groups that the chosen model has.
    """
    words = widgets.Text(text, description="words", continuous_update=False)
    names = widgets.Dropdown(options=list(atlases), description="model")
    groups = widgets.Dropdown(description="group")
    shown = widgets.Output()

    def offer(_: Any = None) -> None:
        there = list(atlases[names.value].groups)
        wanted = groups.value or group
        groups.options = there
        groups.value = wanted if wanted in there else there[0]

    def refresh(_: Any = None) -> None:
        shown.clear_output(wait=True)
        with shown:
            found = look_up(atlases[names.value], words.value, groups.value)
            if found is not None:
                display(found)

    offer()
    refresh()
    names.observe(offer, "value")
    for control in (words, names, groups):
        control.observe(refresh, "value")
    return widgets.VBox([widgets.HBox([words, names, groups]), shown])


def try_any(function: Callable, **ranges: tuple[int, int] | str) -> widgets.Widget:
    """Controls for the numbers and texts that `function` takes: `try_any(report, layer=(0, 5))`.

    A number with few values gets a slider, one with many a field to type in, such as the 768
    neurons of a layer. Starts with the function's own defaults, or the first value. A text is
    given as what stands in its box at first: `try_any(verdicts, review="Loved it.")`.
    """
    controls: dict[str, widgets.Widget] = {}
    for name, given in ranges.items():
        if isinstance(given, str):
            controls[name] = widgets.Textarea(given, description=name, continuous_update=False,
                                              layout=widgets.Layout(width="60%"))
            continue
        least, most = given
        kind = widgets.IntSlider if most - least < SLIDER else widgets.BoundedIntText
        start = _default(function, name, least)
        controls[name] = kind(value=start, min=least, max=most, description=name)
        controls[name].continuous_update = False
    return widgets.VBox([widgets.HBox(list(controls.values())),
                         widgets.interactive_output(function, controls)])


def _default(function: Callable, name: str, otherwise: int) -> int:
    given = inspect.signature(function).parameters[name].default
    return otherwise if given is inspect.Parameter.empty else int(given)
