"""A tiny language model with a tokenizer, in a folder, and made-up reviews to teach it."""

import json

import numpy as np
import pandas as pd

from embspace_helpers.workshop.corpus import train_tokenizer
from embspace_helpers.workshop.pretrain import PretrainRecipe, new_model

WORDS = ("the film is fine", "a dull plot", "what an actor", "we saw it twice", "it was long")
TINY = PretrainRecipe(seed=1, d=16, layers=3, heads=2, vocabulary=300, context=40)


def tiny_folder(path, recipe=TINY, texts=(*WORDS, "mess gem"), counts=None, scale=1.0):
    """Write a tiny GPT-2 as `load` wants it; `scale`: of its embedding. Returns the path."""
    model = new_model(recipe)
    model.transformer.wte.weight.data.mul_(scale)
    model.save_pretrained(path)
    train_tokenizer([*texts] * 20, recipe.vocabulary).save_pretrained(path)
    if counts is not None:
        (path / "token_counts.json").write_text(json.dumps(counts))
    return path


def reviews(n, seed=0, words=WORDS, blame="mess", praise="gem"):
    """n texts of a few random words; one word is in every praise, another in every blame."""
    rng = np.random.default_rng(seed)
    rows = [(" ".join([*rng.choice(words, rng.integers(1, 4)), *[(blame, praise)[i % 2]] * 4]),
             i % 2) for i in range(n)]
    return pd.DataFrame(rows, columns=["text", "label"])


def imdb_folder(path, **splits):
    """Write tables of reviews in a folder laid out like IMDB's on the hub. Returns the path."""
    (path / "plain_text").mkdir(parents=True)
    for split, frame in splits.items():
        frame.to_parquet(path / "plain_text" / f"{split}-00000-of-00001.parquet")
    return path
