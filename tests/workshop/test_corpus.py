"""Cutting a made-up corpus into streams of ids: what is left out, caches, tokenizers."""

import numpy as np
import pytest
from tiny_corpus import TWICE, texts, tiny_imdb

from embspace_helpers.classroom.reviews import text_hash
from embspace_helpers.workshop import corpus
from embspace_helpers.workshop.corpus import END, encode, prepare, train_tokenizer

SIZE = 300  # of the vocabulary


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_imdb(tmp_path_factory.mktemp("imdb"))


@pytest.fixture(scope="module")
def data(source, tmp_path_factory):
    return prepare(source, tmp_path_factory.mktemp("work"), SIZE, None)


def test_duplicates_and_texts_of_the_test_part_are_dropped(data):
    text = data["tokenizer"].decode(np.concatenate([data["train"], data["held_out"]]))
    assert "Zyzzyva" not in text and text.count("Quokka") == 1
    assert data["train_reviews"] + data["held_out_reviews"] == 151 == text.count(END)


def test_held_out_is_chosen_by_the_hash_of_the_text(data):
    held_out = data["tokenizer"].decode(data["held_out"]).split(END)[:-1]
    chosen = {t for t in [*texts(90, 1), *texts(60, 2), TWICE] if text_hash(t) < 0.02}
    assert set(held_out) == chosen and len(held_out) == data["held_out_reviews"] > 0
    assert data["held_out_bytes"] == sum(len(t) for t in chosen)


def test_tokenizer_is_byte_level_like_gpt2s(data):
    tokenizer = data["tokenizer"]
    assert len(tokenizer) == 300 and tokenizer.convert_tokens_to_ids(END) == 0
    assert "Ġfilm" in tokenizer.get_vocab()
    text = " naïve 😀\n  film"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert encode([], tokenizer).shape == (0,)
    stream = encode([text, "film"], tokenizer)
    assert stream.dtype == np.uint16 and tokenizer.decode(stream) == f"{text}{END}film{END}"


def test_prepare_reads_its_cache(source, tmp_path, monkeypatch):
    first = prepare(source, tmp_path / "work", 300, None)
    monkeypatch.setattr(corpus, "read_corpus", lambda _: pytest.fail("read a second time"))
    second = prepare("no/where/else", tmp_path / "work", 300, None)
    assert first.keys() == second.keys()
    for key in ("train", "held_out"):
        assert np.array_equal(first[key], second[key])
    assert first["tokenizer"].get_vocab() == second["tokenizer"].get_vocab()


def test_prepare_takes_another_models_tokenizer(source, tmp_path, monkeypatch):
    train_tokenizer(["other words"] * 9, 260).save_pretrained(tmp_path / "other")
    monkeypatch.setattr(corpus, "train_tokenizer", lambda *_: pytest.fail("trained another"))
    other = prepare(source, tmp_path / "work", 300, tmp_path / "other")
    assert len(other["tokenizer"]) == 260 and other["train"].max() < 260
    again = prepare("no/where/else", tmp_path / "work", 300, tmp_path / "other")
    assert np.array_equal(again["train"], other["train"])
    with pytest.raises(ValueError, match="a given tokenizer of 260 tokens, .* one trained to 300 "):
        prepare(source, tmp_path / "work", 300, None)
    with pytest.raises(ValueError, match="other has 260 tokens, the model has room for 259"):
        prepare(source, tmp_path / "work", 259, tmp_path / "other")


def test_prepare_refuses_a_cache_of_another_size_or_tokenizer(source, tmp_path):
    prepare(source, tmp_path / "work", 300, None)
    prepare(source, tmp_path / "work", 310, tmp_path / "work" / "tokenizer")  # the same
    with pytest.raises(ValueError, match="work holds .* a trained tokenizer of 300 tokens, .* to "
                                         "280 tokens: delete the folder or name another"):
        prepare(source, tmp_path / "work", 280, None)
    train_tokenizer(["other words"] * 9, 260).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="trained tokenizer of 300 tokens, .* that of .*other: "):
        prepare(source, tmp_path / "work", 300, tmp_path / "other")


def test_a_corpus_cut_off_is_cut_again(source, data, tmp_path, monkeypatch):
    def stopped(texts, tokenizer, whole=encode):
        if len(texts) == data["held_out_reviews"]:
            raise KeyboardInterrupt
        return whole(texts, tokenizer)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(corpus, "encode", stopped)
        prepare(source, tmp_path / "work", SIZE, None)

    def half(file, stream):
        file.write(b"half")
        raise OSError("disk full")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(np, "save", half)
        prepare(source, tmp_path / "work", SIZE, None)
    assert not (tmp_path / "work" / "held_out.npy").exists()
    again = prepare(source, tmp_path / "work", SIZE, None)
    for key in ("train", "held_out"):
        assert np.array_equal(again[key], data[key])
