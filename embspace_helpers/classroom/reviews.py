"""Movie reviews with a label, praise or blame: a set that ships with the package, or IMDB.

The embedded set was written for this course: it needs no network and may be printed. IMDB (Maas et
al., 2011) comes from the hub or from a local folder.
"""

import hashlib
import numbers
import operator
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from embspace_helpers.reading.sources import shown

HUB_NAME = "stanfordnlp/imdb"
SPLITS = ("train", "test", "unsupervised")
EMBEDDED = "embedded"
FILE = "plain_text/{split}-00000-of-00001.parquet"


def clean_text(text: str) -> str:
    """Drop the `<br />` tags of IMDB's HTML and squeeze runs of white space."""
    return re.sub(r"\s+", " ", re.sub(r"<br\s*/?>", " ", text)).strip()


def text_hash(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone, so that any copy splits alike."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64


def read_imdb(split: str, source: str | Path = HUB_NAME) -> pd.DataFrame:
    """Return the reviews of one split: columns `text` (cleaned) and `label` (1 praise, 0 blame).

    `source` is a folder laid out like the hub's `stanfordnlp/imdb`, or a hub name (a network is
    needed once; see `embspace_helpers.reading.hub` on time-outs); the labels of "unsupervised"
    are -1. Raises ValueError for an unknown split, TypeError for a split or source of another
    type, FileNotFoundError when the source cannot be read.
    """
    split = _checked_split(split, SPLITS)
    file = FILE.format(split=split)
    path = _imdb_file(file, _checked_source(source))
    try:
        frame = pd.read_parquet(path, columns=["text", "label"])
    except Exception as error:  # pyarrow raises kinds of its own
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"{path} cannot be read as a table with text and label ({why}): "
                                "copy it again, or delete it if it is in the hub's cache folder"
                                ) from None
    return frame.assign(text=frame["text"].map(clean_text))


def _imdb_file(file: str, source: str | Path) -> Path:
    """Where a file of IMDB lies: in a folder, or in the hub's cache folder after a download.

    Raises FileNotFoundError.
    """
    from embspace_helpers.reading import hub

    path = Path(source) / file
    if path.is_file():
        return path
    if isinstance(source, Path) or Path(source).exists() or (
            source.count("/") != 1 or not hub.is_hub_name(source)):
        raise FileNotFoundError(
            f"no file {file} in the folder {source}: give a folder laid out like the hub's "
            f"{HUB_NAME}, that name itself, or {EMBEDDED!r} for the reviews that ship"
        )
    try:
        return hub.hub_file(source, file, "dataset")
    except hub.HubError as error:
        raise FileNotFoundError(
            f"the data set {source!r} could not be had from the Hugging Face hub ({error}): "
            f"without a network there are a folder laid out like it and {EMBEDDED!r}, the "
            "reviews that ship"
        ) from None


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
    Raises ValueError for an unknown split or an `n` that is odd or larger than there is, TypeError
    for an argument of another type, FileNotFoundError when the source cannot be read.
    """
    source, seed = _checked_source(source), _checked_seed(seed)
    embedded = str(source).strip().casefold() == EMBEDDED
    splits = ("train", "test", "hard") if embedded else ("train", "test")
    split = _checked_split(split, splits, f" of {source} with labels")
    n = _checked_number(n)
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
            raise ValueError(f"n = {n:g}, but it must be even, to be half praise and half blame, "
                             f"and at most {most}, what the {split} part has")
        frame = frame.groupby("label").head(int(n) // 2)
    return frame.reset_index(drop=True)


# ---- arguments


def _checked_split(split: object, splits: tuple[str, ...], of: str = "") -> str:
    """The split in lower case. Raises ValueError or TypeError where it is none of `splits`."""
    there = f"there are {', '.join(splits)}"
    if not isinstance(split, str):
        raise TypeError(f"split = {shown(split)}, but it must be the name of a split; {there}")
    plain = split.strip().casefold()
    if plain not in splits:
        raise ValueError(f"no split {split!r}{of}: {there}")
    return plain


def _checked_source(source: object) -> str | Path:
    """The source as a str or Path. Raises TypeError where it is neither."""
    if isinstance(source, str) and source.strip():
        return source.strip()
    if isinstance(source, os.PathLike):
        return Path(source)
    raise TypeError(f"source = {shown(source)}, but it must be {EMBEDDED!r}, {HUB_NAME!r} or a "
                    "folder laid out like that")


def _checked_seed(seed: Any) -> int:
    """The seed as an int. Raises TypeError for what is none."""
    try:
        return operator.index(seed)  # a NumPy integer as well
    except TypeError:
        raise TypeError(f"seed = {shown(seed)}, but it must be a whole number") from None


def _checked_number(n: object) -> float | None:
    """The number of reviews. Raises TypeError for what is no number."""
    if n is None:
        return None
    if isinstance(n, numbers.Real) and not isinstance(n, bool):
        return float(n)
    raise TypeError(f"n = {shown(n)}, but it must be an even number, or None for all reviews")
