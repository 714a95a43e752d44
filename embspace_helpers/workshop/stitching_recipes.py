"""The recipes that `measure_stitching` measures: guest, host, maps, and the choice of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from embspace_helpers.classroom.reviews import read_imdb, text_hash
from embspace_helpers.experiments.classifiers import (
    Classifier,
    load_classifier,
    read_facts,
    share_weights,
)
from embspace_helpers.experiments.kernels import (
    Translation,
    embedding_kernel,
    fitted,
    matched,
    word_kernel,
)
from embspace_helpers.experiments.label_free import (
    closeness,
    foresight,
    likelihood,
    own_text,
    random_tokens,
)
from embspace_helpers.experiments.stitching import (
    ALL,
    LAST,
    Stream,
    common_ends,
    paired_states,
    positions,
    side_by_side,
    streams,
)
from embspace_helpers.reading.activations import Tokens
from embspace_helpers.reading.model import Model, load
from embspace_helpers.reading.shared_tokens import shared_tokens

FIT, ZERO, JUDGED = 200, 60, 100  # unlabelled reviews: to fit on, find zero on, choose l by
WRITTEN, DRAWN = 128, 400  # texts that the guest writes itself, rows of random tokens
BATCH = {"cpu": 16, "cuda": 512}  # texts
Wanted = dict[tuple[str, int], tuple[int, Translation]]  # (recipe, layer) -> (layer, translation)
Texts = Sequence[str] | Tokens


class Guest:
    """The classifiers of one model, in 16 bits to be fast, and the texts they are fitted with."""

    def __init__(self, files: Sequence[Path], data: str | Path, device: str = "cpu"):
        """Load all; unlabelled reviews come in the order of their hash."""
        first: Classifier | None = None
        self.many: dict[str, dict[int, Classifier]] = {}  # kind -> seed -> classifier
        for file in files:
            facts = read_facts(file)
            self.name, seed = facts["model"], facts["recipe"]["seed"]
            shuffled = facts["recipe"].get("shuffled_labels", False)
            kind = facts.get("task") or ("shuffled labels" if shuffled else "")
            classifier = load_classifier(self.name, path=file)
            classifier.to(device).base.bfloat16()
            first = first or classifier
            share_weights(classifier.base, first.base)  # what was frozen is one and the same
            self.many.setdefault(kind, {})[seed] = classifier
        self.model = placed(load(self.name), device)
        self.layer = self.model.parameters.L - LAST
        texts = read_imdb("unsupervised", data)["text"].drop_duplicates()
        texts = sorted(texts, key=lambda text: text_hash(f"fit {text}"))[: FIT + ZERO + JUDGED]
        self.fit, self.zero = texts[:FIT], texts[FIT : FIT + ZERO]
        self.judged = texts[FIT + ZERO :]

    @cached_property
    def written(self) -> Tokens:
        """Text of its own."""
        return own_text(self.model, WRITTEN)

    @property
    def unchanged(self) -> Translation:
        """The translation of the guest into itself."""
        d = self.model.parameters.d
        return Translation(torch.eye(d), torch.zeros(d))

    def speaks_like(self, host: Model) -> bool:
        """Whether the two have one vocabulary."""
        return host.vocabulary.shown == self.model.vocabulary.shown

    def states(self, texts: Texts) -> list[Stream]:
        """Its streams where the classifier's layers begin."""
        return list(Host(self.model, (self.layer,)).streams(texts))


@dataclass(frozen=True)
class Host:
    """A model that reads the texts, and the layers that are tried (`ALL`: these, side by side)."""

    model: Model
    layers: tuple[int, ...]

    def streams(self, texts: Texts, wanted: Iterable[int] | None = None) -> Iterator[Stream]:
        """Its streams over texts, or rows of tokens, at the wanted layers (default: all)."""
        wanted = self.layers if wanted is None else tuple(wanted)
        rows = [self.model.tokens(t)[0] if isinstance(t, str) else t for t in texts]
        asked = self.layers if ALL in wanted else wanted
        found = streams(self.model, rows, asked, BATCH[self.model.model.device.type])
        return side_by_side(found) if ALL in wanted else found


def placed(model: Model, device: str) -> Model:
    """The model, its weights moved to `device`."""
    model.model.to(device)
    return model


# ---------------------------------------------------------------- recipes


def recipes(host: Host, guest: Guest) -> Wanted:
    """All recipes at all layers. "matched" takes other texts for the host than for the guest."""
    paper = embedding_kernel(host.model, guest.model)
    words = word_kernel(host.model, guest.model)
    middle = Translation((paper.matrix + words.matrix) / 2, paper.offset)
    plain = {"paper": paper, "words": words, "averaged": middle}
    found: Wanted = {(name, i): (i, kernel) for name, kernel in plain.items() for i in host.layers}
    sources: dict[str, Texts] = {"": guest.fit, ", own text": guest.written}
    if guest.speaks_like(host.model):
        sources[", random tokens"] = random_tokens(guest.model, DRAWN)
    last = max(host.layers)
    for name, texts in sources.items():
        half = len(texts) // 2
        (first, x), (second, y) = (pairs(host, guest, t) for t in (texts[:half], texts[half:]))
        here, there = {i: torch.cat([first[i], second[i]]) for i in first}, torch.cat([x, y])
        found |= {("fitted" + name, i): (i, fitted(x, there)) for i, x in here.items()}
        side = torch.cat(list(here.values()), -1)
        found["fitted, all layers" + name, last] = (ALL, fitted(side, there))
        if "random" not in name:
            found |= {("matched" + name, i): (i, matched(paper, first[i], y)) for i in host.layers}
    return found


def pairs(host: Host, guest: Guest, texts: Texts) -> tuple[dict[int, Tensor], Tensor]:
    """Paired states: the host's at each of its layers, (n, d_B), and the guest's, (n, d_A).

    Where the vocabularies differ, of places where a token of each ends.
    """
    if guest.speaks_like(host.model):
        found = list(host.streams(texts))
        return ({i: positions(found, i) for i in host.layers},
                positions(guest.states(texts), guest.layer))
    texts = [t if isinstance(t, str) else guest.model.tokenizer.decode(t) for t in texts]
    places = common_ends(host.model, guest.model, texts)  # (n, 3)
    found = list(host.streams(texts))
    return ({i: paired_states(found, i, places[:, :2]) for i in host.layers},
            paired_states(guest.states(texts), guest.layer, places[:, [0, 2]]))


# ---------------------------------------------------------------- without labels


def choice(host: Host, guest: Guest, wanted: Wanted) -> pd.DataFrame:
    """What every stitch looks like without labels, on unlabelled reviews.

    Columns `likelihood`, `confidence` and `agreement` as `foresight` has them (only the first where
    the vocabularies differ), `closeness` of its states to the guest's. A recipe's `chosen` layer
    is the one with the largest likelihood.
    """
    found = list(host.streams(guest.judged, {i for i, _ in wanted.values()}))
    target = positions(guest.states(guest.judged), guest.layer)
    if guest.speaks_like(host.model):
        last = Host(host.model, (host.model.parameters.L,))
        own = [_best_next(host.model, s) for s in last.streams(guest.judged)]
        told = {key: foresight(guest.model, found, i, t, own) for key, (i, t) in wanted.items()}
    else:
        ids = _ids_of(host.model, guest.model)
        told = {key: {"likelihood": likelihood(guest.model, found, i, t, ids=ids)}
                for key, (i, t) in wanted.items()}
    table = pd.DataFrame([
        {"recipe": recipe, "layer": layer} | told[recipe, layer]
        | {"closeness": closeness(translation(positions(found, i)), target)}
        for (recipe, layer), (i, translation) in wanted.items()])
    best = table.groupby("recipe")["likelihood"].transform("max")
    return table.assign(chosen=table["likelihood"] == best)


def _best_next(host: Model, stream: Stream) -> Tensor:
    """The host's own best next token at every position, (b, positions)."""
    p = host.parameters
    norm = p.final_norm()
    states = stream.states[p.L].float()
    return p.logits(states if norm is None else norm(states)).argmax(-1)


def _ids_of(host: Model, guest: Model) -> Tensor:
    """The guest's id of every token of the host, (e_B,); -1 where there is none."""
    ids = torch.full((host.parameters.e,), -1)
    here, there = shared_tokens(host, guest)
    ids[here] = there
    return ids


def best_layers(table: pd.DataFrame) -> Mapping[str, int]:
    """The chosen layer of every recipe, from what `choice` gives."""
    return table[table["chosen"]].set_index("recipe")["layer"].to_dict()
