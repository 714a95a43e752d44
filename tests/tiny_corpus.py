"""A tiny copy of IMDB to train on, with a duplicate and a text that is also in the test part."""

import numpy as np
import pandas as pd
from tiny_reviews import imdb_folder

LEAK = "Zyzzyva leaked from the test part."
TWICE = "Quokka stands here twice and only once is kept."


def texts(n, seed):
    """n different reviews of few words, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    words = np.array("the film was a great dull story with bad good acting and plot".split())
    return [" ".join(rng.choice(words, 14)) + f" {seed}{i}" for i in range(n)]


def tiny_imdb(path):
    """A folder laid out like the hub's. Returns the path."""
    parts = {"train": [*texts(90, 1), TWICE, LEAK],
             "unsupervised": [*texts(60, 2), TWICE.replace(" ", "<br /> ", 1), LEAK],
             "test": ["Another.", LEAK]}
    return imdb_folder(path, **{split: pd.DataFrame({"text": part, "label": 0})
                                for split, part in parts.items()})
