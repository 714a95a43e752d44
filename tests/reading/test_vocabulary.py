"""Readable items and filters, on three tiny tokenizers built here."""

import hashlib
import json
import re
from importlib import resources
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from embspace_helpers.reading.vocabulary import (
    Vocabulary,
    is_coarse,
    load_vocabulary,
    shared_words,
    valence,
)

BYTE_LEVEL = ["<|endoftext|>", "Ġ", "Ċ", "â", "Ġmovie", "movie", "ing", "Ġcaf\u00c3\u00a9", "ĠThe",
              "Ġthe", "Ġof", "Ġ1990", "!", "ĠĠ", "##", "Ġarse", "Arse", "Ġ(", "Ġmovies", "ĉx",
              "\u00f0\u0141\u013a\u0122"]
WORD_PIECE = ["[PAD]", "[UNK]", "[CLS]", "[unused1]", "movie", "##ing", "the", "é", "##s", "!",
              "film", "##9"]
SENTENCE_PIECE = ["<unk>", "<s>", "▁movie", "ing", "▁", "▁the", "▁é", "!", "▁The", "▁film"]
ORDINARY = """assess spices class cocktail therapist gay lesbian god Dickens title analysis
Scunthorpe damnation Essex Sussex shitake cocked peacock cumulative document assassin grape drape
scrape raccoon snigger niggle Hancock Dickinson classic pass passage mass assume button titanic
constitution bass grass embarrass sextant sextet homosexual queer trans woman women girl black
white jew jewish muslim christian islam immigrant blind deaf disabled kill dead death murder drug
drunk blood violence war hate love kiss breast chicken bigot racist sexist sexual gender religion
swallow balls nuts bloody devil heaven pissarro arsenal arsenic hello shell Michelle matsushita
""".split()


def byte_level():
    ids = {piece: i for i, piece in enumerate(BYTE_LEVEL)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=ids, merges=[])),
                                   eos_token="<|endoftext|>")


def word_piece():
    model = models.WordPiece(vocab={p: i for i, p in enumerate(WORD_PIECE)}, unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="[UNK]",
                                   pad_token="[PAD]", cls_token="[CLS]")


def sentence_piece(extra=()):
    pieces = [(p, -float(i)) for i, p in enumerate([*SENTENCE_PIECE, *extra])]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=0)),
                                   unk_token="<unk>", bos_token="<s>")


@pytest.fixture(scope="module")
def bytes_():
    return Vocabulary(byte_level())


def shown_of(vocabulary, mask):
    return [vocabulary.shown[i] for i in mask.nonzero().flatten().tolist()]


# ---- reading pieces


@pytest.mark.parametrize("piece, text, starts, shown", [
    ("Ġmovie", "movie", True, "movie"),
    ("movie", "movie", False, "-movie"),
    ("ing", "ing", False, "-ing"),
    ("Ġcaf\u00c3\u00a9", "café", True, "café"),
    ("Ġ", " ", False, "␠"),
    ("ĠĠ", " ", True, "␠"),
    ("Ċ", "\n", False, "\\n"),
    ("ĉx", "\tx", False, "\\tx"),
    ("â", "\udce2", False, "<E2>"),
    ("\u00f0\u0141\u013a\u0122", "😀", False, "😀"),
    ("!", "!", False, "!"),
    ("Ġ(", "(", True, "("),
    ("##", "##", False, "##"),
])
def test_byte_level_pieces(bytes_, piece, text, starts, shown):
    i = BYTE_LEVEL.index(piece)
    assert (bytes_.texts[i], bytes_.starts_word[i], bytes_.shown[i]) == (text, starts, shown)


@pytest.mark.parametrize("piece, text, starts, shown", [
    ("movie", "movie", True, "movie"), ("##ing", "ing", False, "-ing"), ("!", "!", True, "!"),
    ("é", "é", True, "é"), ("##9", "9", False, "9"),
    ("[unused1]", "[unused1]", True, "[unused1]"),
])
def test_word_piece_pieces(piece, text, starts, shown):
    v, i = Vocabulary(word_piece()), WORD_PIECE.index(piece)
    assert (v.texts[i], v.starts_word[i], v.shown[i]) == (text, starts, shown)


@pytest.mark.parametrize("piece, text, starts, shown", [
    ("▁movie", "movie", True, "movie"), ("ing", "ing", False, "-ing"), ("!", "!", False, "!"),
    ("▁é", "é", True, "é"),
])
def test_sentence_piece_pieces(piece, text, starts, shown):
    v, i = Vocabulary(sentence_piece()), SENTENCE_PIECE.index(piece)
    assert (v.texts[i], v.starts_word[i], v.shown[i]) == (text, starts, shown)


@pytest.mark.parametrize("piece, text, shown", [
    ("<0x0A>", "\n", "\\n"), ("<0xE2>", "\udce2", "<E2>"), ("<0x41>", "A", "-A")])
def test_sentence_piece_bytes(piece, text, shown):
    v = Vocabulary(sentence_piece([piece]))
    assert (v.texts[-1], v.starts_word[-1], v.shown[-1]) == (text, False, shown)
    assert v.keep()[-1] == (piece == "<0x41>")


def test_special_items_are_never_kept():
    for tokenizer, special in ((byte_level(), BYTE_LEVEL[:1]), (word_piece(), WORD_PIECE[:4]),
                               (sentence_piece(), SENTENCE_PIECE[:2])):
        v = Vocabulary(tokenizer)
        assert {v.shown[i] for i in v.special} == set(special)
        assert not v.keep(ascii=False, classroom=False)[sorted(v.special)].any()


def test_an_embedding_larger_than_the_tokenizer():
    n = len(BYTE_LEVEL)
    v = Vocabulary(byte_level(), size=n + 3)
    assert len(v) == len(v.texts) == len(v.shown) == n + 3
    assert v.shown[-1] == f"<unused{n + 2}>" and v.special >= {n, n + 1, n + 2}
    assert v.keep(ascii=False).shape == (n + 3,) and not v.keep(ascii=False)[n:].any()


def test_an_embedding_smaller_than_the_tokenizer():
    v = Vocabulary(byte_level(), size=6)
    assert len(v.texts) == 6 and v.special == {0}


# ---- filters


def test_default_filter(bytes_):
    assert shown_of(bytes_, bytes_.keep()) == [
        "movie", "-movie", "-ing", "The", "the", "of", "1990", "!", "##", "(", "movies"]


def test_filter_not_only_ascii(bytes_):
    more = set(shown_of(bytes_, bytes_.keep(ascii=False))) - set(shown_of(bytes_, bytes_.keep()))
    assert more == {"café", "<E2>", "😀", "\\tx"}


def test_filter_alphabetic(bytes_):
    assert shown_of(bytes_, bytes_.keep(alphabetic=True)) == [
        "movie", "-movie", "-ing", "The", "the", "of", "movies"]


def test_filter_whole_words(bytes_):
    assert shown_of(bytes_, bytes_.keep(whole_words=True)) == ["movie", "The", "the", "movies"]
    assert "café" in shown_of(bytes_, bytes_.keep(whole_words=True, ascii=False))


def test_filter_by_count():
    counts = list(range(len(BYTE_LEVEL)))
    v = Vocabulary(byte_level(), counts=counts)
    at = BYTE_LEVEL.index("Ġthe")
    assert shown_of(v, v.keep(min_count=at))[0] == "the"
    assert shown_of(v, v.keep(min_count=at + 1))[0] == "of"
    assert torch.equal(Vocabulary(byte_level(), counts=torch.tensor(counts)).counts, v.counts)


def test_filter_by_list(bytes_):
    assert shown_of(bytes_, bytes_.keep(only=["the", "ing", "café"])) == ["-ing", "the"]
    assert shown_of(bytes_, bytes_.keep(only=iter(["!"]))) == ["!"]


def test_filters_join(bytes_):
    mask = bytes_.keep(only=["movie", "of"], whole_words=True)
    assert mask.dtype == torch.bool and shown_of(bytes_, mask) == ["movie"]


def test_errors_of_the_filters(bytes_):
    with pytest.raises(ValueError, match="min_count needs.*counts="):
        bytes_.keep(min_count=1)
    with pytest.raises(ValueError, match="no token passes"):
        bytes_.keep(only=["nothing"])
    counted = Vocabulary(byte_level(), counts=[1] * len(BYTE_LEVEL))
    with pytest.raises(ValueError, match="no token passes"):
        counted.keep(min_count=2)
    with pytest.raises(ValueError, match=rf"shape \(3,\).*{len(BYTE_LEVEL)} tokens"):
        Vocabulary(byte_level(), counts=[1, 2, 3])


# ---- words and ids


def test_ids(bytes_):
    assert bytes_.id("movie") == BYTE_LEVEL.index("Ġmovie")
    assert bytes_.id("café") == BYTE_LEVEL.index("Ġcaf\u00c3\u00a9")
    assert bytes_.ids(["The", "the"]) == [8, 9]
    assert Vocabulary(word_piece()).id("film") == WORD_PIECE.index("film")
    assert Vocabulary(sentence_piece()).id("film") == SENTENCE_PIECE.index("▁film")


@pytest.mark.parametrize("word, piece", [
    ("of", "Ġof"), ("1990", "Ġ1990"), ("!", "!"), ("(", "Ġ("), ("-ing", "ing"), ("-movie", "movie"),
])
def test_id_takes_what_tables_print(bytes_, word, piece):
    assert bytes_.id(word) == BYTE_LEVEL.index(piece)
    assert bytes_.shown[bytes_.id(word)] == word


def test_of_doubles_id_takes_the_one_that_starts_a_word():
    v = Vocabulary(sentence_piece(["90", "▁90", "(", "▁("]))
    for word in ("90", "("):
        assert v.shown.count(word) == 2 and v.id(word) == v.texts.index(word) + 1
        assert v.starts_word[v.id(word)]


def test_a_coarse_word_can_be_asked_for_by_name(bytes_):
    assert bytes_.id("arse") == BYTE_LEVEL.index("Ġarse")


@pytest.mark.parametrize("word, hint", [
    ("Movie", "near it: movie"), ("movieland", "near it: movie, movies"), ("THE", "the, The"),
    ("ing", "near it: -ing"), ("19", "near it: 1990"), ("ARSE", "pieces\\)"),
])
def test_a_word_that_is_no_item_is_named_with_its_neighbours(bytes_, word, hint):
    with pytest.raises(ValueError, match=f"^'{word}' is not one token.*{hint}$"):
        bytes_.id(word)
    with pytest.raises(ValueError, match=word):
        bytes_.ids(["the", word])


@pytest.mark.parametrize("word", ["zebra", "<|endoftext|>"])
def test_no_hint_where_nothing_is_near(bytes_, word):
    with pytest.raises(ValueError,
                       match=f"^'{re.escape(word)}' is not one token [^;]*$"):
        bytes_.id(word)


@pytest.mark.parametrize("word", ["", " ", 3, None])
def test_what_is_no_word_is_refused(bytes_, word):
    with pytest.raises(ValueError, match="expected a word such as 'movie'.* got "):
        bytes_.id(word)


def test_shared_words_ignore_case_and_take_no_word_twice():
    cased, uncased, other = (Vocabulary(t()) for t in (byte_level, word_piece, sentence_piece))
    for first, second in ((cased, uncased), (cased, other), (uncased, cased), (other, uncased)):
        mine, theirs = shared_words(first, second)
        words = [first.shown[i] for i in mine.tolist()]
        assert words == [second.shown[i] for i in theirs.tolist()]
        assert words == sorted({"movie", "the"} | ({"film"} & {*first.texts} & {*second.texts}),
                               key=first.id)


def test_a_word_that_one_vocabulary_has_only_with_a_capital_is_shared():
    pieces = [("<unk>", 0.0), ("▁Movie", -1.0)]
    model = Tokenizer(models.Unigram(pieces, unk_id=0))
    capital = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>"))
    cased = Vocabulary(byte_level())
    assert [ids.tolist() for ids in shared_words(cased, capital)] == [[4], [1]]
    assert [ids.tolist() for ids in shared_words(capital, cased)] == [[1], [4]]


def test_shared_words_show_no_coarse_word():
    v = Vocabulary(byte_level())
    assert BYTE_LEVEL.index("Ġarse") not in shared_words(v, v)[0].tolist()


def test_no_shared_words():
    other = [("<unk>", 0.0), ("▁zebra", -1.0)]
    zebra = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(other, unk_id=0)), unk_token="<unk>")
    with pytest.raises(ValueError, match="share no whole word"):
        shared_words(Vocabulary(byte_level()), Vocabulary(zebra))


# ---- classroom filter


def test_classroom_filter_is_on_and_can_be_turned_off(bytes_):
    assert {"arse", "-Arse"}.isdisjoint(shown_of(bytes_, bytes_.keep()))
    assert {"arse", "-Arse"} <= set(shown_of(bytes_, bytes_.keep(classroom=False)))


def test_classroom_filter_is_a_hash_of_the_letters():
    data = (resources.files("embspace_helpers") / "data" / "classroom.txt").read_text("utf-8")
    assert hashlib.sha256(b"arse").hexdigest()[:16] in data and "b'arse'" not in data
    assert hashlib.sha256(b"damnation").hexdigest()[:16] not in data
    for text in ("arse", "ARSE", " arse", "-arse!"):
        assert is_coarse(text)
    lines = [line for line in data.splitlines() if not line.startswith("#")]
    assert len(lines) > 500 and lines == sorted(set(lines))
    assert all(re.fullmatch("[0-9a-f]{16}", line) for line in lines)


def test_no_ordinary_word_is_hidden():
    assert [word for word in ORDINARY if is_coarse(word)] == []


@pytest.mark.parametrize("text", ["", "123", "\n", "\udce2", "😀"])
def test_items_without_letters_are_not_hidden(text):
    assert not is_coarse(text)


# ---- loading


def test_load_vocabulary_takes_the_counts_of_the_folder(tmp_path):
    n = len(BYTE_LEVEL) + 2
    model = SimpleNamespace(config=SimpleNamespace(_name_or_path=str(tmp_path), vocab_size=n))
    assert load_vocabulary(model, byte_level()).counts is None
    (tmp_path / "token_counts.json").write_text(json.dumps(list(range(n))))
    v = load_vocabulary(model, byte_level())
    assert len(v) == n and v.counts.tolist() == list(range(n))


def test_valence_of_whole_words():
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(
        ["Ġgreat", "ĠGreat", "great", "Ġhorrible", "Ġtable", "!", "Ġgr"])}, []))
    found = valence(Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer)))
    assert found[0] == found[1] == pytest.approx(3.1)  # case does not matter
    assert found[3] == pytest.approx(-2.5)
    assert found.isnan().tolist() == [False, False, True, False, True, True, True]
