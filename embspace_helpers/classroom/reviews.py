"""Movie reviews with a label, praise or blame: a set that ships with the package, or IMDB.

The embedded set was written for this course: it needs no network and may be printed. IMDB (Maas et
al., 2011) comes from the hub or from a local folder.
"""

import argparse
import hashlib
import re
from importlib import resources
from pathlib import Path

import pandas as pd

HUB_NAME = "stanfordnlp/imdb"
SPLITS = ("train", "test", "unsupervised")
EMBEDDED = "embedded"
FILE = "plain_text/{split}-00000-of-00001.parquet"


def clean_text(text: str) -> str:
    """Drop the `<br />` tags of IMDB's HTML and squeeze runs of white space."""
    return re.sub(r"\s+", " ", re.sub(r"<br\s*/?>", " ", text)).strip()


def text_hash(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone: any copy of the data splits alike."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64


def read_imdb(split: str, source: str | Path = HUB_NAME) -> pd.DataFrame:
    """Return the reviews of one split: columns `text` (cleaned) and `label` (1 praise, 0 blame).

    `source` is a hub name (needs a network) or a folder laid out like the hub's
    `stanfordnlp/imdb`; the labels of "unsupervised" are -1.
    Raises ValueError for an unknown split, FileNotFoundError when the source cannot be read.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}: there are {', '.join(SPLITS)}")
    folder = Path(source)
    path = folder / FILE.format(split=split)
    if not path.exists():
        if folder.exists() or str(source).count("/") != 1:
            raise FileNotFoundError(
                f"no file {FILE.format(split=split)} in the folder {folder}: give a folder laid "
                f"out like the hub's {HUB_NAME}, or that name itself"
            )
        path = f"hf://datasets/{source}/{FILE.format(split=split)}"
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # the hub's client and pyarrow raise kinds of their own
        raise FileNotFoundError(f"cannot read {path} ({error}); is there a network?") from error
    return frame.assign(text=frame["text"].map(clean_text))


def read_embedded() -> pd.DataFrame:
    """Return the reviews that ship with the package, all splits.

    Columns `text`, `label` (1 praise, 0 blame), `split`, `genre`, `manner` (plain, florid, ironic,
    mixed) and `verdict`: "said" in words of opinion, as in most reviews, or "shown" by what
    happened ("we talked until the last train").
    """
    file = resources.files("embspace_helpers") / "data" / "reviews.jsonl"
    with file.open(encoding="utf-8") as lines:
        return pd.read_json(lines, lines=True)


def load_reviews(split: str = "train", n: int | None = None, seed: int = 0,
                 source: str | Path = EMBEDDED) -> pd.DataFrame:
    """Return `n` labelled reviews (None: all), half praise and half blame where `n` is given.

    `split`: "train" or "test"; of the embedded set also "hard", whose verdict only a reader who
    understands what happens can tell. `source`: "embedded", or what `read_imdb` takes. Columns
    `text` and `label` (1 praise, 0 blame), more for the embedded set. Which reviews are drawn, and
    their order, follow from a hash of seed and text: any copy of the data gives the same ones, and
    a smaller `n` gives some of those of a larger one.
    Raises ValueError for an unknown split or an `n` that is odd or larger than there is.
    """
    embedded = str(source) == EMBEDDED
    splits = ("train", "test", "hard") if embedded else ("train", "test")
    if split not in splits:
        raise ValueError(f"no split {split!r} of {source} with labels: there are {', '.join(splits)}")
    if embedded:
        frame = read_embedded()
        frame = frame[frame["split"] == split]
    else:
        frame = read_imdb(split, source)
    place = [text_hash(f"{seed} {text}") for text in frame["text"]]
    frame = frame.assign(place=place).sort_values("place", kind="stable").drop(columns="place")
    if n is not None:
        most = 2 * int(frame["label"].value_counts().min())
        if n % 2 or not 0 < n <= most:
            raise ValueError(f"n = {n}, but it must be even, to be half praise and half blame, and "
                             f"at most {most}, what the {split} part has")
        frame = frame.groupby("label").head(n // 2)
    return frame.reset_index(drop=True)


def bag_of_words(source: str | Path = HUB_NAME) -> pd.Series:
    """Accuracy of a bag of words trained on IMDB: on its test part, and on the embedded splits.

    Tf-idf of words seen in five reviews or more, logistic regression: how hard the embedded set is
    for a reader who knows words only.
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
    return pd.Series({name: words.score(part["text"], part["label"]) for name, part in parts.items()})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.reviews",
        description="How hard are the embedded reviews for a bag of words trained on IMDB?")
    parser.add_argument("--data", default=HUB_NAME, help="hub name or folder (default %(default)s)")
    print(bag_of_words(parser.parse_args(arguments).data).round(3).to_string())
