"""Tokens that two models share, by their strings."""

import pytest
import torch
from tiny_models import byte_level, tiny, tiny_model, word_piece

from embspace_helpers import load
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.shared_tokens import shared_tokens

WORDS = [f"w{i}" for i in range(34)]


def bpe(pieces, kind="gpt2"):
    return Model(tiny(kind), byte_level([*pieces, *WORDS][:40]))


def test_strings_are_matched_and_not_their_marks():
    a = bpe(["Ġmovie", "movie", "Ġgood", "ing", "Ġ"])
    pieces = ["[UNK]", "good", "##ing", "movie", "##movie", "bad", *(f"x{i}" for i in range(34))]
    b = Model(tiny("bert"), word_piece(pieces))
    ids, others = shared_tokens(a, b)
    assert ids.tolist() == [0, 1, 2, 3]
    assert others.tolist() == [3, 4, 1, 2]


def test_a_model_shares_all_with_itself_but_special_tokens():
    a = tiny_model("gpt2")
    ids, others = shared_tokens(a, a)
    assert ids.tolist() == others.tolist() == list(range(1, 39))


def test_no_id_stands_twice(twin):
    ids, others = shared_tokens(twin, load("wide-w"))
    assert torch.equal(ids, others)
    assert len(ids.unique()) == len(ids) > 8000


def test_nothing_shared_is_said():
    b = Model(tiny("bert"), word_piece(["[UNK]", *(f"x{i}" for i in range(39))]))
    with pytest.raises(ValueError, match="share no token"):
        shared_tokens(bpe([]), b)


def test_a_name_is_no_model(twin):
    with pytest.raises(ValueError, match="load"):
        shared_tokens("twin-a", twin)
