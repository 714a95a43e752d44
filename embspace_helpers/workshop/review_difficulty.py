"""How hard the reviews that ship are: what a bag of words makes of them."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from embspace_helpers.classroom.reviews import HUB_NAME, read_embedded, read_imdb


def bag_of_words(source: str | Path = HUB_NAME) -> pd.Series:
    """Accuracy of a bag of words trained on IMDB: on its test part, and on the embedded splits.

    Tf-idf of words seen in five reviews or more, logistic regression: how hard the embedded set is
    for a reader who knows words only. Raises what `read_imdb` raises.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train = read_imdb("train", source)
    words = make_pipeline(TfidfVectorizer(min_df=5, sublinear_tf=True),
                          LogisticRegression(C=3, max_iter=300))
    words.fit(train["text"], train["label"])
    parts = {"IMDB test": read_imdb("test", source)}
    parts |= {f"embedded {name}": part for name, part in read_embedded().groupby("split")}
    return pd.Series(
        {name: words.score(part["text"], part["label"]) for name, part in parts.items()})


def main(arguments: list[str] | None = None) -> None:
    """Print the accuracies; ends with a sentence where IMDB cannot be had."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.reviews",
        description="How hard are the embedded reviews for a bag of words trained on IMDB?")
    parser.add_argument("--data", default=HUB_NAME, help="hub name or folder (default %(default)s)")
    try:
        print(bag_of_words(parser.parse_args(arguments).data).round(3).to_string())
    except FileNotFoundError as error:
        sys.exit(str(error))
