"""Tokens that two models share, matched by their strings: what makes their spaces comparable.

Dar et al. (2023), section 5, compare models with one vocabulary; by strings, any two will do.
"""

import torch
from torch import Tensor

from embspace_helpers.reading.arrays import as_model
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.vocabulary import Vocabulary


def shared_tokens(a: Model, b: Model) -> tuple[Tensor, Tensor]:
    """Ids in a, (m,), and ids in b, (m,), of the tokens whose strings are equal; a's in order.

    Equal are the bare text and whether it starts a word ("movie" is not "-movie"), whatever mark
    a tokenizer writes them with. Special tokens are left out; of doubles the first is taken, so
    that no id stands twice. Raises ValueError where no token is shared.
    """
    a, b = as_model(a), as_model(b)
    first, second = _places(a.vocabulary), _places(b.vocabulary)
    ids = torch.tensor([(i, second[key]) for key, i in first.items() if key in second])
    if not len(ids):
        raise ValueError(f"{a.name or 'the first model'} and {b.name or 'the second'} share no "
                         "token: nothing of one can be compared with the other")
    return ids[:, 0], ids[:, 1]


def _places(vocabulary: Vocabulary) -> dict[tuple[str, bool], int]:
    """The id of every token that is not special, by its text and whether it starts a word."""
    places: dict[tuple[str, bool], int] = {}
    for i, key in enumerate(zip(vocabulary.texts, vocabulary.starts_word)):
        if i not in vocabulary.special:
            places.setdefault(key, i)
    return places
