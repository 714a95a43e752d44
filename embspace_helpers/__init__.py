"""Helpers of the course *Analyzing Transformers in embedding space*.

    from embspace_helpers import load

    smollm2 = load("smollm2")
    smollm2.space().table({"value": smollm2.parameters.V(29)[1189]})

Four rooms, and arrows between them go one way; the ideas themselves are written out in the
notebooks.

- `reading`: a model as words. `load` gives a `Model`: parameters, vocabulary, spaces, dictionaries
  and judge, on demand
- `experiments`: atlas, overlap, ablation, classifiers and their displacement, controls, statistics
- `classroom`: figures, exercises, movie reviews
- `workshop`: for the course's developers: fetching and training models, running notebooks

The names below are imported when they are first used.
"""

from importlib import import_module
from typing import Any

# The everyday names, and where they live.
_HOMES = {
    "load": "reading.model", "Model": "reading.model", "FactoredMatrix": "reading.factored",
    "Space": "reading.spaces", "Vocabulary": "reading.vocabulary", "WordTable": "reading.tables",
    "word_pairs": "reading.pairs", "capture": "reading.activations",
    "set_neurons": "reading.activations", "load_atlas": "experiments.atlas",
    "load_classifier": "experiments.classifiers", "load_reviews": "classroom.reviews",
    "check": "classroom.exercises", "expect": "classroom.exercises",
}
__all__ = list(_HOMES)

# `python -m embspace_helpers.fetch` finds its command there; each command is a file of that folder.
__path__.append(f"{__path__[0]}/workshop/commands")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"embspace_helpers has no {name!r}: there are {', '.join(_HOMES)}; "
                             "all else is imported from its room, as in "
                             "`from embspace_helpers.classroom import plots`")
    return getattr(import_module(f"embspace_helpers.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
