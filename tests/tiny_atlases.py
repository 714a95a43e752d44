"""Tiny models whose tokens are words, pieces of words and doubles, and two of them as twins."""

import json
from copy import deepcopy

import numpy as np
import torch
from tiny_models import byte_level, random, tiny, tiny_in_float32

from embspace_helpers import Model
from embspace_helpers.experiments.atlas_lists import group_vectors

TOKENS = ["<unk>", "Ġterrible", "terrible", "ĠTerrible", "Ġfilm", "ing", "Ġfilms", "é",
          *(f"Ġword{letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCDE"), "Ċ"]
HEADS = ("VO_reads", "VO_writes", "QK_query", "QK_key")
SUBHEADS = ("W_Q", "W_K", "W_V", "W_O")
ROWS = {  # vectors of each group in a layer, with 2 directions a head
    "gpt2": {"K": 20, "V": 20} | dict.fromkeys(SUBHEADS, 12) | dict.fromkeys(HEADS, 6),
    "llama": {"gate": 20, "up": 20, "V": 20, "W_Q": 24, "W_K": 12, "W_V": 12, "W_O": 24}
    | dict.fromkeys(HEADS, 8),
    "bert": {"K": 20, "V": 20} | dict.fromkeys(SUBHEADS, 12) | dict.fromkeys(HEADS, 8),
}


def worded(kind="gpt2", tokens=TOKENS, model=None):
    """A tiny model, in float64 if none is given, with the tokens above."""
    return Model(model or tiny(kind), byte_level(tokens, unk_token="<unk>"))


def vectors_of(model, atlas):
    """The vector of every row of an atlas, (rows, d), by its group, layer, index and sign."""
    places = {}

    def row(group, layer, index):
        if (group, layer) not in places:
            places[group, layer] = group_vectors(model.parameters, group, layer, 2)[0]
        return places[group, layer][index]

    rows = zip(*(atlas.rows[column] for column in ("group", "layer", "index", "sign")))
    return torch.stack([sign * row(group, layer, index) for group, layer, index, sign in rows])


def lists_of(atlas):
    """Ids and scores of all rows of an atlas, (rows, k) each."""
    return tuple(np.concatenate(x) for x in list(zip(*atlas.files.lists()))[1:])


def save_twin(folder, name, seed, layers=2):
    """A tiny GPT-2 of random weights, in the folder where a bundled model is looked for."""
    model = tiny_in_float32("gpt2")
    while len(model.transformer.h) < layers:
        model.transformer.h.append(deepcopy(model.transformer.h[-1]))
    model.config.n_layer = layers
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(random(*p.shape, seed=1000 * seed + i))
    model.save_pretrained(folder / name)
    byte_level(TOKENS, unk_token="<unk>").save_pretrained(folder / name)
    (folder / name / "token_counts.json").write_text(json.dumps([200] * 38 + [199] * 2))


def tiny_twins(folder, patch):
    """Tiny twins in the place of the bundled ones, with an empty cache folder beside them."""
    for seed, name in enumerate(("twin-a", "twin-b")):
        save_twin(folder / "bundled", name, seed)
    patch.setattr("embspace_helpers.reading.sources.BUNDLED", folder / "bundled")
    patch.setenv("EMBSPACE_CACHE", str(folder / "cache"))
    return folder / "bundled"
