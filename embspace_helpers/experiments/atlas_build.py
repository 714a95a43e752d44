"""Building an atlas, a layer at a time: in one go, in several, or by several processes.

A layer needs nothing of the others. What is there already stays, so that a build which was cut
off, even by a kill, goes on with the layers that are missing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from embspace_helpers.experiments.atlas_files import (
    VERSION,
    layer_path,
    missing_layers,
    write_layer,
)
from embspace_helpers.experiments.atlas_lists import (
    DICTIONARY,
    IN,
    OUT,
    Lister,
    as_reading,
    groups_of,
    layer_lists,
    side_of,
)
from embspace_helpers.reading.arrays import as_count, as_texts
from embspace_helpers.reading.judge import JUDGES, Judge
from embspace_helpers.reading.model import Model, load
from embspace_helpers.reading.sources import cache_folder, fingerprint, known_name

WORDS, DIRECTIONS = 20, 4  # of a list; of a head
REVIEWS = 40  # embedded ones, on which dictionaries are fitted where no texts are given


class Build:
    """The atlas of a model in the making, in the files of `folder`.

    `reading`: of `Model.space`, or "dictionary" (see `reading_map`), fitted on `texts`. Coherence
    is the `judge`'s (NaN without one). `k` words a list, `directions` singular directions a head.
    `about`: what the files say beside all that. A GPU makes the scores, if there is one. Memory
    beyond the model: see `Lister`, of which an untied model has two, and what a dictionary takes.
    """

    def __init__(self, model: Model, folder: str | Path, reading: str = "orthogonal", *,
                 texts: Sequence[str] | str | None = None, judge: Judge | None = None,
                 k: int = WORDS, directions: int | None = None,
                 about: dict[str, str] | None = None):
        """Check what is wanted; nothing is computed yet."""
        p, reading = model.parameters, as_reading(reading)
        most = min(DIRECTIONS, p.d_h) if directions is None else directions
        self.model, self.folder, self.judge = model, Path(folder), judge
        self.k = as_count(k)
        self.directions = as_count(most, p.d_h, "directions", "singular directions of a head")
        self.texts = None if texts is None else as_texts(texts)
        self.about = {
            "version": VERSION, "reading": reading, "directions": str(self.directions),
            "k": str(self.k), "L": str(p.L), "d": str(p.d), "e": str(p.e),
            "groups": " ".join(groups_of(p)),
            "sides": " ".join(side_of(p, group) for group in groups_of(p)), **(about or {})}

    @cached_property
    def listers(self) -> dict[str, Lister]:
        """What computes the lists of each side, on the GPU if there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return {side: Lister(self.model, self.k, self.judge, device, side)
                for side in ((IN,) if self.model.parameters.tied else (IN, OUT))}

    def missing(self) -> list[int]:
        """The layers that are not there yet, or are of other weights."""
        return missing_layers(self.folder, self.about)

    def layer(self, layer: int) -> None:
        """Compute a layer, and write its file."""
        lists = layer_lists(self.model, layer, self.listers, self.about["reading"],
                            self.directions, self.texts)
        write_layer(layer_path(self.folder, layer), lists, self.about)


# ---- known models


def atlas_path(name: str, reading: str = "orthogonal") -> Path:
    """The folder in which `load_atlas` keeps an atlas, in the cache folder."""
    return cache_folder() / "atlas" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{reading}"


def source_of(model: Model | str | Path) -> str:
    """The name by which a model can be found again; "" for one that was made here."""
    return (model.source or "") if isinstance(model, Model) else str(known_name(model) or model)


def wanted(name: str, reading: str, texts: Sequence[str] | None) -> dict[str, str]:
    """What the files of a model's atlas say: other weights, judge or texts, another atlas."""
    judge = JUDGES.get(name)
    found = {"model": name, "reading": reading, "judge": judge or "", "fingerprint":
             " ".join(fingerprint(n) for n in (name, judge) if n)}
    if reading == DICTIONARY:
        found["texts"] = hashlib.sha256("\n".join(texts or ()).encode()).hexdigest()
    return found


def texts_of(reading: str, texts: Sequence[str] | str | None) -> list[str] | None:
    """The texts that a reading needs: those given, or embedded reviews; None where it needs none.

    Raises ValueError for texts that the reading has no use for.
    """
    if reading != DICTIONARY:
        if texts is not None:
            raise ValueError(f"texts are for the reading {DICTIONARY!r}, {reading!r} needs none")
        return None
    if texts is None:
        from embspace_helpers import load_reviews  # only where they are needed

        texts = load_reviews("train", REVIEWS)["text"].tolist()
    return as_texts(texts)


def known_build(model: Model | str | Path, reading: str = "orthogonal",
                texts: Sequence[str] | str | None = None) -> Build:
    """The build of a model that can be found again, into the cache folder.

    `model`: a name is loaded, and so is the judge of a known one. Raises what `load` raises.
    """
    reading, name = as_reading(reading), source_of(model)
    texts = texts_of(reading, texts)
    loaded = model if isinstance(model, Model) else load(name)
    return Build(loaded, atlas_path(name, reading), reading, texts=texts,
                 judge=loaded.judge if name in JUDGES else None,
                 about=wanted(name, reading, texts))
