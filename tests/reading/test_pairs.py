"""Word pairs and copying scores against the dense (e, e) matrix."""

import itertools

import numpy as np
import pytest
import torch
from tiny_models import byte_level, close, dense_best, random, tiny_model, word_piece

from embspace_helpers.reading.factored import FactoredMatrix
from embspace_helpers.reading.pairs import SAME, Pairs, copying_score, word_classes, word_pairs
from embspace_helpers.reading.spaces import READINGS, reading_space
from embspace_helpers.reading.vocabulary import Vocabulary

D, R = 6, 3  # d and r
ITEMS = ["<unk>", "Ġmovie", "movie", "ĠMovie", "Ġmovies", "Ġglass", "Ġglas", "Ġglasses", "Ġis",
         "Ġi", "Ġbody", "Ġbodies", "Ġfilm", "Ġfilms", "Ġ", "Ċ", "Ġbox", "boxes", "Ġdog", "dog's",
         "ing", "ings", "Ġthi", "Ġthis", "Ġhero", "Ġheroes", "Ġgoes", "!", "Ġ<b>", "Ġgood", "Ġbad",
         "Ġbads", "Ġus", "Ġbus", "Ġbu", "Ġactor", "Ġact", "Ġactors", "Ġgo", "Ġclass"]


def make_vocabulary(items):
    return Vocabulary(byte_level(items, unk_token="<unk>"))


@pytest.fixture(scope="module")
def vocabulary():
    return make_vocabulary(ITEMS)


@pytest.fixture(scope="module")
def E():
    return random(D, len(ITEMS)) * torch.linspace(0.2, 3, D)[:, None] + 0.5


@pytest.fixture(scope="module")
def W():
    return FactoredMatrix(random(D, R, seed=3), random(R, D, seed=4))


# ---- classes of words


def classed(vocabulary, same):
    """Groups of two or more items with one label, as sets of tokens."""
    labels = word_classes(vocabulary, same)
    assert labels.dtype == torch.int64 and labels.shape == (len(ITEMS),)
    groups = [{ITEMS[i] for i in (labels == c).nonzero().flatten()} for c in labels.unique()]
    return sorted((g for g in groups if len(g) > 1), key=min)


def test_tokens_are_all_their_own(vocabulary):
    assert classed(vocabulary, "token") == []


def test_words_regardless_of_case_and_marks(vocabulary):
    assert classed(vocabulary, "word") == [{"Ġmovie", "movie", "ĠMovie"}]


def test_stems_need_a_shorter_word_of_three_letters(vocabulary):
    assert classed(vocabulary, "stem") == sorted([
        {"Ġmovie", "movie", "ĠMovie", "Ġmovies"}, {"Ġglass", "Ġglasses"}, {"Ġbody", "Ġbodies"},
        {"Ġfilm", "Ġfilms"}, {"Ġbox", "boxes"}, {"Ġdog", "dog's"}, {"Ġbad", "Ġbads"},
        {"Ġactor", "Ġactors"}, {"Ġhero", "Ġheroes"}], key=min)


def test_endings_come_off_again_and_again():
    v = make_vocabulary(["<unk>", "Ġlenses", "Ġlens", "Ġlen", "lens's"])
    assert word_classes(v, "stem").tolist() == [0, 1, 1, 1, 1]


def test_word_pieces_and_the_error():
    v = Vocabulary(word_piece(["[UNK]", "movie", "##movie", "##s", "movies", "Movie"]))
    assert word_classes(v, "word").tolist() == [0, 1, 1, 3, 4, 1]
    assert word_classes(v, "stem").tolist() == [0, 1, 1, 3, 1, 1]
    with pytest.raises(ValueError, match="apart by 'lemma': there are token, word, stem$"):
        word_classes(v, "lemma")


# ---- pairs of words


def dense_pairs(space, other, W, unit=False):
    """The whole matrix over kept words, (e_kept, e_kept'), by the formula."""
    one, two = space.columns().numpy(), other.columns().numpy()  # (d, e_kept)
    if unit:
        one, two = one / np.linalg.norm(one, axis=0), two / np.linalg.norm(two, axis=0)
    return one.T @ W.left.numpy() @ W.right.numpy() @ two


def check_pairs(space, W, k, *, right=None, drop=None, smallest=False, unit=False):
    other = right or space
    dense = dense_pairs(space, other, W, unit)
    dense = (dense - dense.mean()) / dense.std()
    left_out = None
    if drop:
        labels = word_classes(space.vocabulary, drop)
        left_out = (labels[space.ids][:, None] == labels[other.ids]).numpy()
        assert left_out.any() and not left_out.all()
    found = word_pairs(space, W, k, right=right, drop=drop, smallest=smallest, unit=unit)
    expected, places = dense_best(dense, k, smallest, left_out)
    close(found.scores, expected)
    assert list(zip(found.left_ids.tolist(), found.right_ids.tolist())) == [
        (int(space.ids[i]), int(other.ids[j])) for i, j in places]
    return found


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("drop", [None, *SAME])
@pytest.mark.parametrize("reading", READINGS)
def test_word_pairs_against_dense(E, vocabulary, W, reading, drop, smallest):
    few = torch.arange(len(ITEMS)) % 3 == 1  # fewer than half are gathered, more are left out
    for keep, unit in itertools.product((None, few), (False, True)):
        space = reading_space(E, vocabulary, reading, keep)
        check_pairs(space, W, 30, drop=drop, smallest=smallest, unit=unit)


def test_two_readings_and_two_filters(E, vocabulary, W):
    reader = reading_space(E, vocabulary, "pseudo-inverse", torch.arange(len(ITEMS)) % 2 == 0)
    writer = reading_space(E, vocabulary, "transpose", torch.arange(len(ITEMS)) % 3 == 0)
    for unit in (False, True):
        check_pairs(reader, W, 25, right=writer, drop="token", unit=unit)


def test_a_right_space_of_another_width(E, vocabulary):
    space, wide = (reading_space(x, vocabulary) for x in (E, random(9, len(ITEMS))))
    W = FactoredMatrix(random(D, R, seed=3), random(R, 9, seed=4))
    check_pairs(space, W, 4, right=wide)


def test_one_matrix_is_read_from_either_side(E, vocabulary, W):
    space = reading_space(E, vocabulary, "centred")
    found, turned = word_pairs(space, W, 9), word_pairs(space, W.T, 9)
    close(found.scores, turned.scores)
    assert found.left_ids.tolist() == turned.right_ids.tolist()
    assert found.right_ids.tolist() == turned.left_ids.tolist()


def test_the_heads_of_every_architecture(kind):
    m = tiny_model(kind)
    space = m.space("centred")
    best = [check_pairs(space, m.parameters.W_QK(0, head), 10).words
            for head in range(m.parameters.H)]
    assert len({str(words) for words in best}) == m.parameters.H  # also where they share keys
    check_pairs(space, m.parameters.W_VO(1, m.parameters.H - 1), 10, drop="word")


@pytest.mark.parametrize("drop", [None, "stem"])
def test_a_real_head(twin, drop):
    """In float64, over so many words that blocks are cut."""
    p, v = twin.parameters, twin.vocabulary
    keep = torch.zeros(len(v), dtype=torch.bool)
    keep[v.keep(whole_words=True).nonzero().flatten()[:600]] = True
    space = reading_space(p.E.double(), v, "centred", keep)
    W = p.W_VO(p.L - 1, 0)
    check_pairs(space, FactoredMatrix(W.left.double(), W.right.double()), 50, drop=drop)


def test_a_zero_matrix_has_scores_of_zero(E, vocabulary):
    space, zero = reading_space(E, vocabulary), FactoredMatrix(torch.zeros(D, 1), torch.zeros(1, D))
    zero = FactoredMatrix(zero.left.double(), zero.right.double())
    assert word_pairs(space, zero, 3).scores.tolist() == [0.0] * 3
    assert copying_score(space, zero) == 0.0


def test_a_word_of_length_zero(E, vocabulary, W):
    E = E.clone()
    E[:, 1] = 0
    space = reading_space(E, vocabulary)
    assert word_pairs(space, W, len(space.ids)**2, unit=True).scores.isfinite().all()
    assert np.isfinite(copying_score(space, W))


@pytest.mark.parametrize("call", [word_pairs, copying_score])
def test_a_matrix_that_is_none_or_does_not_fit_is_told(E, vocabulary, call):
    space = reading_space(E, vocabulary)
    for wrong, shown in (
        (FactoredMatrix(random(D, R), random(R, 5)), "(6, 5)"), (random(D, D), "(6, 6)"),
        ((random(D, R), random(R, D)), "tuple"), ("W_VO", "str"), (None, "NoneType"),
    ):
        with pytest.raises(ValueError) as error:
            call(space, wrong)
        assert str(error.value) == ("W must be a FactoredMatrix (6, 6), as W_VO(layer, head) "
                                    f"gives; got {shown}")


@pytest.mark.parametrize("call", [word_pairs, copying_score])
def test_spaces_that_are_none_or_of_two_vocabularies_are_told(E, vocabulary, W, call):
    stranger = reading_space(E, make_vocabulary([*ITEMS[:-1], "Ġother"]))
    with pytest.raises(ValueError, match="the left and the right space have different vocabular"):
        call(reading_space(E, vocabulary), W, right=stranger)
    with pytest.raises(ValueError, match="^expected a Space first, as model.space.* got Tensor$"):
        call(E, W)
    with pytest.raises(ValueError, match="^expected a Space as right, .* got str$"):
        call(reading_space(E, vocabulary), W, right="transpose")


def test_numbers_of_pairs_that_there_are_not(E, vocabulary, W):
    few = reading_space(E, vocabulary, keep=torch.isin(torch.arange(len(ITEMS)),
                                                       torch.tensor([1, 2, 12])))
    with pytest.raises(ValueError, match=r"k = 5.* the 4 entries there are \(5 are left out\)"):
        word_pairs(few, W, 5, drop="word")
    with pytest.raises(ValueError, match="k = 0, but it must be at least 1"):
        word_pairs(few, W, 0)
    with pytest.raises(ValueError, match="by 'text': there are token, word, stem"):
        word_pairs(few, W, 2, drop="text")
    with pytest.raises(ValueError, match="keep no word in common: no word can be copied"):
        copying_score(few, W, right=few.only(~few.keep))


def test_how_pairs_are_shown(E, vocabulary, W):
    found = Pairs(torch.tensor([12.34, -0.5]), torch.tensor([1, 28]), torch.tensor([2, 12]),
                  vocabulary, "L1H2 <QK>")
    assert found.words == [("movie", "-movie"), ("<b>", "film")]
    assert repr(found) == "L1H2 <QK>\nleft → right\nmovie → -movie 12.3\n<b> → film -0.5"
    page = found._repr_html_()
    assert ">L1H2 &lt;QK&gt;</caption>" in page and "&lt;b&gt; → film" in page
    assert page.index("12.3") < page.index("-0.5")
    space = reading_space(E, vocabulary)
    assert word_pairs(space, W, 2, title="Two").title == "Two"
    assert repr(word_pairs(space, W, 2)).startswith("left → right\n")


# ---- copying


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("reading", READINGS)
def test_copying_score_against_dense(E, vocabulary, W, reading, unit):
    space = reading_space(E, vocabulary, reading)
    dense = dense_pairs(space, space, W, unit)
    close(copying_score(space, W, unit=unit),
          (dense.diagonal().mean() - dense.mean()) / dense.std())


def test_copying_is_judged_on_words_of_both_sides(E, vocabulary, W):
    space = reading_space(E, vocabulary)
    other = reading_space(E, vocabulary, "centred", torch.arange(len(ITEMS)) % 4 == 1)
    dense = dense_pairs(space, other, W, unit=True)
    itself = [dense[i, j] for i, j in itertools.product(*map(range, dense.shape))
              if space.ids[i] == other.ids[j]]
    assert 0 < len(itself) < dense.shape[1] + 1
    close(copying_score(space, W, right=other), (np.mean(itself) - dense.mean()) / dense.std())


def test_identity_copies_and_random_does_not(twin):
    d, d_h, space = twin.parameters.d, twin.parameters.d_h, twin.space("centred")
    one = torch.eye(d)
    assert copying_score(space, FactoredMatrix(one, one)) > 5
    assert copying_score(space, FactoredMatrix(one, -one)) < -5
    by_chance = [FactoredMatrix(random(d, d_h, seed=i, dtype=torch.float32),
                                random(d_h, d, seed=99 + i, dtype=torch.float32)) for i in range(5)]
    assert max(abs(copying_score(space, W)) for W in by_chance) < 0.5
