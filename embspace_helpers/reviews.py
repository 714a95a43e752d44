"""Movie reviews: the IMDB data set of Maas et al. (2011), from the hub or from a local folder."""

import hashlib
import re
from pathlib import Path

import pandas as pd

HUB_NAME = "stanfordnlp/imdb"
SPLITS = ("train", "test", "unsupervised")
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
