"""The texts of the bundled language models: IMDB's reviews, their tokenizer, one stream of ids.

Texts: the train and unsupervised parts; every text that also stands in the test part is dropped,
and a held-out 2 % (chosen by a hash of the text) is never trained on.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from embspace_helpers.classroom.reviews import read_imdb, text_hash
from embspace_helpers.reading.files import whole_file

END = "<|endoftext|>"
HELD_OUT_SHARE = 0.02


def read_corpus(source: str | Path) -> tuple[list[str], list[str]]:
    """Return (training texts, held-out texts): no duplicates, nothing that is in the test part."""
    test = set(read_imdb("test", source)["text"])
    texts = [t for split in ("train", "unsupervised") for t in read_imdb(split, source)["text"]]
    texts = [t for t in dict.fromkeys(texts) if t not in test]
    held_out = [t for t in texts if text_hash(t) < HELD_OUT_SHARE]
    return [t for t in texts if text_hash(t) >= HELD_OUT_SHARE], held_out


def train_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of `size` tokens, GPT-2's way (` word` is one token)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Return one stream of token ids (uint16): every text followed by the end-of-text token."""
    end = tokenizer.convert_tokens_to_ids(END)
    stream = [np.empty(0, dtype=np.uint16)]
    for start in range(0, len(texts), 2000):
        batch = tokenizer.backend_tokenizer.encode_batch(texts[start : start + 2000])
        stream += [np.array([*e.ids, end], dtype=np.uint16) for e in batch]
    return np.concatenate(stream)


def cut(source: str | Path, work: Path, size: int,
        given: PreTrainedTokenizerFast | None) -> None:
    """Read the corpus, cut it with the `given` tokenizer or a new one, and leave it in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    train, held_out = read_corpus(source)
    tokenizer = given or train_tokenizer(train, size)
    tokenizer.save_pretrained(work / "tokenizer")
    _save(work / "train.npy", encode(train, tokenizer))
    facts = {"train_reviews": len(train), "held_out_reviews": len(held_out),
             "held_out_bytes": sum(len(t.encode("utf-8")) for t in held_out),
             "trained_size": None if given else size}
    (work / "facts.json").write_text(json.dumps(facts))
    _save(work / "held_out.npy", encode(held_out, tokenizer))  # last: the rest is whole by then


def _save(path: Path, stream: np.ndarray) -> None:
    with whole_file(path) as part, open(part, "wb") as file:
        np.save(file, stream)


def prepare(source: str | Path, work: Path, size: int,
            tokenizer_from: Path | None) -> dict[str, Any]:
    """Read, tokenize and cache the corpus in `work`; a second call reads the cache.

    Returns tokenizer, train and held_out (streams of ids), train_reviews, held_out_reviews and
    held_out_bytes. Raises ValueError for a tokenizer of more tokens than `size`, or a cache cut by
    another one.
    """
    given = PreTrainedTokenizerFast.from_pretrained(tokenizer_from) if tokenizer_from else None
    if given and len(given) > size:
        raise ValueError(f"the tokenizer of {tokenizer_from} has {len(given)} tokens, "
                         f"the model has room for {size}")
    if not (work / "held_out.npy").exists():
        cut(source, work, size, given)
    facts = json.loads((work / "facts.json").read_text())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    trained = facts.pop("trained_size", len(tokenizer))  # None: the tokenizer was given
    if (tokenizer.get_vocab() != given.get_vocab()) if given else trained != size:
        asked = f"that of {tokenizer_from}" if given else f"one trained to {size} tokens"
        raise ValueError(f"{work} holds a corpus cut by a {'trained' if trained else 'given'} "
                         f"tokenizer of {len(tokenizer)} tokens, this run asks for {asked}: "
                         "delete the folder or name another (--work)")
    return {"tokenizer": tokenizer, "train": np.load(work / "train.npy"),
            "held_out": np.load(work / "held_out.npy"), **facts}
