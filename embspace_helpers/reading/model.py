"""One object per model: what was loaded, and everything that is read out of it, on demand.

    smollm2 = load("smollm2")
    smollm2.space("orthogonal").table({"value": smollm2.parameters.V(29)[1189]})

What is asked for is made once and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embspace_helpers.reading.activations import Tokens, tokenize
from embspace_helpers.reading.arrays import as_count, as_index, as_model, as_texts
from embspace_helpers.reading.dictionaries import Dictionary, dictionary_space, fit_dictionaries
from embspace_helpers.reading.judge import JUDGES, Judge
from embspace_helpers.reading.parameters import Parameters
from embspace_helpers.reading.precision import compute_in_float32
from embspace_helpers.reading.sources import known_name, locate
from embspace_helpers.reading.spaces import Space, Sums, as_reading, reading_space
from embspace_helpers.reading.vocabulary import Vocabulary, load_vocabulary, shared_words
from embspace_helpers.reading.weights import read_model

HINTS = {"parameters": ("d", "e", "L", "H", "H_kv", "d_h", "d_ff", "groups", "key_kinds", "blocks",
                        "tied", "parallel", "embedding_scale", "score_scale", "score_cap",
                        "logit_cap"),
         "vocabulary": ("texts", "shown", "counts")}  # what instances have beside their class


class Model:
    """A Transformer to be read.

    `model`: the `transformers` model. `tokenizer`: its own. `name`: what it was loaded by, "" for
    one made here. What follows is made when it is first asked for, and kept: `parameters` (E, K,
    V, W_Q, ... in the paper's shapes), `vocabulary`, `space(reading)`, `dictionary(layer, texts)`,
    `judge`.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, name: str = ""):
        """Keep both; nothing is computed yet."""
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.source: str | None = None  # what `load` found it by, where it can be found again
        self._spaces: dict[tuple[str, int, bool], Space] = {}
        self._dictionaries: dict[tuple, list[Dictionary]] = {}

    def __repr__(self) -> str:
        """Name and sizes."""
        return f"{self.name or 'a model'}: {self.parameters!r}"

    def __getattr__(self, name: str) -> Any:
        """Say where a name lives that somebody guessed to be here."""
        for place, home in (("parameters", Parameters), ("vocabulary", Vocabulary),
                            ("model", nn.Module)):
            if not name.startswith("_") and (hasattr(home, name) or name in HINTS.get(place, ())):
                raise AttributeError(f"a Model has no {name!r} of its own: it is "
                                     f"{place}.{name}, as in model.{place}.{name}")
        raise AttributeError(f"a Model has no {name!r}: there are model, tokenizer, parameters, "
                             "vocabulary, space(reading), dictionary(layer, texts), tokens(texts) "
                             "and judge")

    @cached_property
    def parameters(self) -> Parameters:
        """Every parameter in the paper's shapes."""
        return Parameters(self.model)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens, with the corpus counts of a bundled model."""
        return load_vocabulary(self.model, self.tokenizer)

    @cached_property
    def sums(self) -> Sums:
        """All that readings need of E beside a view of it: its mean column and E E.T."""
        return Sums(self.parameters.E)

    @cached_property
    def sums_out(self) -> Sums:
        """The same of E_out."""
        return self.sums if self.parameters.tied else Sums(self.parameters.E_out)

    def tokens(self, texts: Sequence[str] | str, length: int = 256) -> Tokens:
        """Token ids of every text, at most `length` each; see `tokenize`."""
        return tokenize(self, texts, length)

    # ---- spaces

    def space(self, reading: str = "transpose", keep: Tensor | None = None,
              remove: int = 3, output: bool = False) -> Space:
        """The embedding space of this model in one of the `READINGS`, over the tokens `keep` (e,).

        `keep`: default `vocabulary.keep()`, all that is printable and fit for a classroom.
        `output`: of E_out, in which an untied model's writers are read. Raises ValueError for
        another reading.
        """
        reading, p = as_reading(reading), self.parameters
        output = output and not p.tied
        if (reading, remove, output) not in self._spaces:
            E, sums = (p.E_out, self.sums_out) if output else (p.E, self.sums)
            self._spaces[reading, remove, output] = reading_space(
                E, self.vocabulary, reading, None, remove, sums)
        space = self._spaces[reading, remove, output]
        return space if keep is None else space.only(keep)

    def dictionary(self, layer: int, texts: Sequence[str] | str | None = None, reads: str = "ff",
                   keep: Tensor | None = None, whitened: bool = False, **options: Any) -> Space:
        """The space in which readers of a layer are read: the states that stand for tokens there.

        `reads`: "ff" for FF keys, "attention" for W_Q, W_K and W_V. `texts`: a little unlabelled
        text; None: every token alone (see `fit_dictionaries`, which takes the `options`). The
        first call runs the model once and fits all layers; later ones are looked up.
        """
        layer = as_index(layer, self.parameters.L, "layer")
        found = self.dictionaries(texts, reads, **options)[layer]
        return dictionary_space(self, found, keep, whitened, f"dictionary of layer {layer}")

    def dictionaries(self, texts: Sequence[str] | str | None = None, reads: str = "ff",
                     **options: Any) -> list[Dictionary]:
        """The regressions behind `dictionary`, one a layer, with their R²."""
        texts, key = _key(texts, reads, options)
        if key not in self._dictionaries:
            self._dictionaries[key] = fit_dictionaries(self, texts, reads, **options)
        return self._dictionaries[key]

    def fit_dictionaries(self, texts: Sequence[str] | str | None = None, **options: Any) -> None:
        """Fit what both blocks read in one run of the model, for `dictionary` to look up.

        Half the work of two first calls, one with "ff" and one with "attention".
        """
        blocks, L = ("ff", "attention"), self.parameters.L
        keys = [_key(texts, block, options)[1] for block in blocks]
        if all(key in self._dictionaries for key in keys):
            return
        found = fit_dictionaries(self, _key(texts, "ff", options)[0], blocks, **options)
        self._dictionaries |= {key: found[i * L : (i + 1) * L] for i, key in enumerate(keys)}

    # ---- the judge

    @cached_property
    def judge(self) -> Judge:
        """The judge of this model's word lists: another model's embedding (see `JUDGES`).

        Raises ValueError for a model without one; `judged_by` makes a judge of any other model.
        """
        if self.name not in JUDGES:
            raise ValueError(f"no judge is set for {self.name or 'this model'!r}: there are judges "
                             f"for {', '.join(JUDGES)}; judged_by(load(name)) makes one")
        return self.judged_by(load(JUDGES[self.name], dtype="auto"))

    def judged_by(self, other: Model) -> Judge:
        """A judge of this model's lists, from the embedding of `other`.

        Two models with one vocabulary: of words seen at least 200 times; else of shared words.
        """
        other = as_model(other)
        if other.vocabulary.shown == self.vocabulary.shown:
            seen = 200 if self.vocabulary.counts is not None else 0
            ids = self.vocabulary.keep(whole_words=True, min_count=seen).nonzero().squeeze(1)
            return Judge(other.parameters.E, ids, len(self.vocabulary))
        ids, judge_ids = shared_words(self.vocabulary, other.vocabulary)
        return Judge(other.parameters.E, ids, len(self.vocabulary), judge_ids)


def _key(texts: Sequence[str] | str | None, reads: str,
         options: dict[str, Any]) -> tuple[Sequence[str] | None, tuple]:
    """The texts as a list, and by what their dictionaries are looked up."""
    texts = None if texts is None else as_texts(texts)
    marks = {name: np.asarray(x).tobytes() if isinstance(x, Tensor | np.ndarray) else repr(x)
             for name, x in options.items()}
    return texts, (texts and tuple(texts), repr(reads), *sorted(marks.items()))


def load(name: str | Path, *, untrained: bool = False, seed: int | None = None,
         dtype: torch.dtype | str = "float32") -> Model:
    """Load a model to be read: a known name ("smollm2"), a folder, a .gguf file or a hub name.

    `untrained`: the same architecture with random weights, drawn from `seed` (default 0): the
    control of what training wrote. `dtype`: "float16" halves the memory of SmolLM2, whose weights
    are stored so: they stay mapped in their file, and give the very numbers of "float32", a little
    slower (see `compute_in_float32`). Raises ModelNotFound, which says what there is and what to
    do.
    """
    name = known_name(name) or name
    if seed is not None and not untrained:
        raise ValueError(f"seed = {seed} draws untrained weights: load({str(name)!r}, "
                         f"untrained=True, seed={seed})")
    drawn = as_count(seed or 0, name="seed", least=0) if untrained else None
    model, tokenizer = read_model(locate(name), dtype, drawn)
    found = Model(compute_in_float32(model), tokenizer, f"{name}{', untrained' * untrained}")
    found.source = None if untrained else found.name
    return found
