"""Largest entries, word pairs and copying scores against the dense (e, e) matrix."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from embspace_helpers.reading import pairs
from embspace_helpers.reading.models import load_model
from embspace_helpers.reading.pairs import (Pairs, copying_score, entry_moments, largest_entries,
                                    word_classes, word_pairs)
from embspace_helpers.reading.parameters import Parameters
from embspace_helpers.reading.projection import READINGS, EmbeddingSpace
from embspace_helpers.reading.vocabulary import Vocabulary, load_vocabulary

D, R = 6, 3  # d and r
ITEMS = ["<unk>", "Ġmovie", "movie", "ĠMovie", "Ġmovies", "Ġglass", "Ġglas", "Ġglasses", "Ġis",
         "Ġi", "Ġbody", "Ġbodies", "Ġfilm", "Ġfilms", "Ġ", "Ċ", "Ġbox", "boxes", "Ġdog", "dog's",
         "ing", "ings", "Ġthi", "Ġthis", "Ġhero", "Ġheroes", "Ġgoes", "!", "Ġ<b>", "Ġgood", "Ġbad",
         "Ġbads", "Ġus", "Ġbus", "Ġbu", "Ġactor", "Ġact", "Ġactors", "Ġgo", "Ġclass"]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_vocabulary(items):
    ids = {item: i for i, item in enumerate(items)}
    return Vocabulary(PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=ids, merges=[])), unk_token="<unk>"))


@pytest.fixture(scope="module")
def vocabulary():
    return make_vocabulary(ITEMS)


@pytest.fixture(scope="module")
def E():
    return random(D, len(ITEMS)) * torch.linspace(0.2, 3, D)[:, None] + 0.5


def dense_best(scores, k, smallest=False, left_out=None):
    """Scores and places [(row, column)] of the k best entries of a matrix, in promised order."""
    scores = np.asarray(scores)
    rows, columns = np.nonzero(np.ones_like(scores) if left_out is None else ~np.asarray(left_out))
    values = scores[rows, columns]
    order = np.lexsort((columns, rows, values if smallest else -values))[:k]
    return values[order], list(zip(rows[order].tolist(), columns[order].tolist()))


def check(A, B, k, *, smallest=False, skip=None, block=512):
    left_out = None
    if skip is not None:
        left_out = (skip[0][:, None] == skip[1]) & (skip[0] >= 0)[:, None]
    scores, rows, columns = largest_entries(A, B, k, smallest=smallest, skip=skip, block=block)
    expected, places = dense_best(A @ B.T, k, smallest, left_out)
    close(scores, expected)
    assert list(zip(rows.tolist(), columns.tolist())) == places


def close(actual, expected, tolerance=1e-8):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=tolerance,
                               atol=tolerance)


# ---- largest entries


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("block", [1, 3, 7, 10, 512])
def test_against_dense_whatever_the_block(block, smallest):
    A, B = random(20, R), random(31, R, seed=1)
    for k in (1, 2, 17, 20 * 31):
        check(A, B, k, smallest=smallest, block=block)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 10, 300])
def test_rows_of_very_different_length(k, seed):
    """Most blocks are never computed here; not one entry may be missed for it."""
    lengths = torch.logspace(2, -2, 60, dtype=torch.float64)
    mixed = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    A, B = random(60, R, seed=seed) * lengths[mixed, None], random(60, R, seed=9) * lengths[:, None]
    for smallest in (False, True):
        check(A, B, k, smallest=smallest, block=4)


def test_only_blocks_that_can_matter_are_computed(monkeypatch):
    computed, product = [], pairs._product
    monkeypatch.setattr(pairs, "_product", lambda *args: computed.append(1) or product(*args))
    even = torch.nn.functional.normalize(random(100, R))
    check(even, even, 5, block=10)
    assert len(computed) == 100
    computed.clear()
    check(even * torch.logspace(0, -3, 100)[:, None], even, 5, block=10)
    assert 10 <= len(computed) <= 30


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("block", [2, 5, 512])
def test_ties_by_row_then_column(block, smallest):
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randint(-2, 3, (n, 2), generator=generator).double() for n in (23, 18))
    for k in (1, 5, 40, 200, 23 * 18):
        check(A, B, k, smallest=smallest, block=block)
        check(A, B, min(k, 300), smallest=smallest, block=block,
              skip=(torch.arange(23) % 7, torch.arange(18) % 7))


def test_all_entries_alike(monkeypatch):
    """Equal entries that come too late are not even looked at."""
    seen, add = [], pairs._Best.add
    monkeypatch.setattr(pairs._Best, "add",
                        lambda self, new, places: seen.append(len(new)) or add(self, new, places))
    for A in (torch.zeros(30, R), torch.ones(30, R)):
        check(A, A, 70, block=4)
        assert sum(seen) < 300  # of 900
        seen.clear()


@pytest.mark.parametrize("block", [3, 8, 512])
@pytest.mark.parametrize("classes", [1.5, 4, 12])
def test_left_out_entries(classes, block):
    rows, columns = (random(20, seed=2) * classes).long(), (random(15, seed=3) * classes).long()
    assert (rows < 0).any() and (columns < 0).any()
    A, B = random(20, R), random(15, R, seed=1)
    shared = int(((rows[:, None] == columns) & (rows >= 0)[:, None]).sum())
    assert shared > 0
    for smallest, k in itertools.product((False, True), (1, 30, 20 * 15 - shared)):
        check(A, B, k, smallest=smallest, skip=(rows, columns), block=block)
    with pytest.raises(ValueError, match=f"k = {301 - shared}, but .* between 1 and the "
                                         rf"{300 - shared} entries there are \({shared} are left"):
        largest_entries(A, B, 301 - shared, skip=(rows, columns))


def test_a_left_out_diagonal_that_is_best_everywhere():
    A = torch.nn.functional.normalize(random(50, D))
    labels = torch.arange(50)
    check(A, A, 20, skip=(labels, labels), block=8)


def test_float32_is_within_rounding_of_float64():
    A, B = random(200, 32), random(150, 32, seed=1)
    scores, rows, columns = largest_entries(A.float(), B.float(), 50, block=64)
    assert scores.dtype == torch.float32
    expected, places = dense_best(A @ B.T, 50)
    close(scores, expected, 1e-5)
    assert list(zip(rows.tolist(), columns.tolist())) == places


def test_factors_are_left_alone_and_need_no_gradient():
    A, B = random(9, R).requires_grad_(), random(8, R, seed=1)
    before = A.detach().clone(), B.clone()
    scores, _, _ = largest_entries(A, B, 3, smallest=True)
    assert not scores.requires_grad
    assert torch.equal(A, before[0]) and torch.equal(B, before[1])


class Sizes(TorchDispatchMode):
    """Records the size of the largest tensor that any operation gives out."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("make", [random, lambda *shape: torch.zeros(*shape)])
def test_no_tensor_is_larger_than_a_few_blocks(make):
    block, k = 64, 20
    for n in (200, 1000):
        A = make(n, R)
        with Sizes() as sizes:
            largest_entries(A, A, k, block=block, skip=(torch.arange(n), torch.arange(n)))
            entry_moments(A, A)
        assert block**2 <= sizes.largest <= 2 * block**2 + k
    assert sizes.largest < n**2 / 100


def test_errors_of_largest_entries():
    A, B = random(5, R), random(4, R)
    for wrong in (random(4, R + 1), random(R), random(2, 4, R)):
        for call in (lambda: largest_entries(A, wrong, 1), lambda: entry_moments(A, wrong)):
            with pytest.raises(ValueError, match=r"got \(5, 3\) and \(" + str(wrong.shape[0])):
                call()
    for k in (0, -1, 21):
        with pytest.raises(ValueError, match=f"k = {k}, but it must be .* 20 entries there are$"):
            largest_entries(A, B, k)
    for value in (torch.nan, torch.inf):
        damaged = B.clone()
        damaged[1, 2] = value
        for pair in ((A, damaged), (damaged, A)):
            with pytest.raises(ValueError, match="factors have NaN or infinite"):
                largest_entries(*pair, 1)
    with pytest.raises(ValueError, match=r"shapes \(4,\) and \(4,\), expected \(5,\) and \(4,\)"):
        largest_entries(A, B, 1, skip=(torch.arange(4), torch.arange(4)))


# ---- moments


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_moments_against_dense(dtype):
    A, B = random(37, R) + 0.3, random(23, R, seed=1) * 5 - 1
    dense = (A @ B.T).numpy()
    found = entry_moments(A.to(dtype), B.to(dtype))
    close(found, (dense.mean(), dense.std()), 1e-10 if dtype == torch.float64 else 1e-6)


def test_moments_of_equal_entries():
    assert entry_moments(torch.zeros(4, 2), torch.zeros(5, 2)) == (0.0, 0.0)
    assert entry_moments(torch.ones(4, 2), torch.ones(5, 2)) == (2.0, 0.0)


# ---- classes of words


def classed(vocabulary, same):
    """Groups of two or more items with one label, as sets of tokens."""
    labels = word_classes(vocabulary, same)
    assert labels.dtype == torch.int64 and labels.shape == (len(ITEMS),)
    groups = [{ITEMS[i] for i in (labels == c).nonzero().flatten()} for c in labels.unique()]
    return sorted((g for g in groups if len(g) > 1), key=min)


def test_items_are_all_their_own(vocabulary):
    assert classed(vocabulary, "item") == []


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
    ids = {p: i for i, p in enumerate(["[UNK]", "movie", "##movie", "##s", "movies", "Movie"])}
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]"))
    v = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]"))
    assert word_classes(v, "word").tolist() == [0, 1, 1, 3, 4, 1]
    assert word_classes(v, "stem").tolist() == [0, 1, 1, 3, 1, 1]
    with pytest.raises(ValueError, match="by 'lemma': there are item, word, stem"):
        word_classes(v, "lemma")


# ---- pairs of words


def dense_pairs(space, other, left, right, unit=False):
    """The whole matrix over kept words, (e_kept, e_kept'), by the formula."""
    one = space.project(torch.eye(D, dtype=left.dtype)).numpy()  # (d, e_kept)
    two = other.project(torch.eye(D, dtype=left.dtype)).numpy()
    if unit:
        one, two = one / np.linalg.norm(one, axis=0), two / np.linalg.norm(two, axis=0)
    return one.T @ (left @ right.T).numpy() @ two


def check_pairs(space, left, right, k, *, right_space=None, drop=None, smallest=False, unit=False):
    other = right_space or space
    dense = dense_pairs(space, other, left, right, unit)
    dense = (dense - dense.mean()) / dense.std()
    left_out = None
    if drop:
        labels = word_classes(space.vocabulary, drop)
        left_out = (labels[space.ids][:, None] == labels[other.ids]).numpy()
        assert left_out.any() and not left_out.all()
    found = word_pairs(space, left, right, k, right_space=right_space, drop=drop,
                       smallest=smallest, unit=unit)
    expected, places = dense_best(dense, k, smallest, left_out)
    close(found.scores, expected, 1e-8 if left.dtype == torch.float64 else 1e-4)
    assert list(zip(found.left_ids.tolist(), found.right_ids.tolist())) == [
        (int(space.ids[i]), int(other.ids[j])) for i, j in places]
    return found


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("drop", [None, "item", "word", "stem"])
@pytest.mark.parametrize("reading", READINGS)
def test_word_pairs_against_dense(E, vocabulary, reading, drop, smallest):
    left, right = random(D, R, seed=3), random(D, R, seed=4)
    few = torch.arange(len(ITEMS)) % 3 == 1  # R is (d, e_kept) then, and (d, e) otherwise
    for keep, unit in itertools.product((None, few), (False, True)):
        space = EmbeddingSpace(E, vocabulary, reading, keep)
        check_pairs(space, left, right, 30, drop=drop, smallest=smallest, unit=unit)


def test_two_readings_and_two_filters(E, vocabulary):
    reader = EmbeddingSpace(E, vocabulary, "pseudo-inverse", torch.arange(len(ITEMS)) % 2 == 0)
    writer = EmbeddingSpace(E, vocabulary, "transpose", torch.arange(len(ITEMS)) % 3 == 0)
    left, right = random(D, R, seed=3), random(D, R, seed=4)
    for unit in (False, True):
        check_pairs(reader, left, right, 25, right_space=writer, drop="item", unit=unit)


def test_a_right_space_of_another_width(E, vocabulary):
    space, wide = EmbeddingSpace(E, vocabulary), EmbeddingSpace(random(9, len(ITEMS)), vocabulary)
    left, right = random(D, R, seed=3), random(9, R, seed=4)
    found = word_pairs(space, left, right, 4, right_space=wide)
    dense = space.project(left.T).T @ wide.project(right.T)
    assert (found.left_ids[0], found.right_ids[0]) == (
        space.ids[dense.max(1).values.argmax()], wide.ids[dense.max(0).values.argmax()])


def test_grouped_heads_of_a_llama(vocabulary):
    torch.manual_seed(0)
    p = Parameters(LlamaForCausalLM(LlamaConfig(
        vocab_size=len(ITEMS), hidden_size=D, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=6, num_key_value_heads=3, head_dim=2)).double())
    space = EmbeddingSpace(p.E, vocabulary)
    best = [check_pairs(space, *p.W_QK(0, head), 10).words for head in range(6)]
    assert best[0] != best[1]  # the same keys, other queries
    W_V, W_O = p.W_VO(0, 3)
    check_pairs(space, W_V, W_O.T, 10, drop="word")


@pytest.fixture(scope="module")
def twin():
    model, tokenizer = load_model("twin-a")
    return Parameters(model), load_vocabulary(model, tokenizer)


@pytest.mark.parametrize("drop", [None, "stem"])
def test_a_real_head(twin, drop, monkeypatch):
    p, v = twin
    keep = torch.zeros(len(v), dtype=torch.bool)
    keep[v.keep(whole_words=True).nonzero().flatten()[:600]] = True
    space, (W_V, W_O) = EmbeddingSpace(p.E, v, "centred", keep), p.W_VO(p.L - 1, 0)
    monkeypatch.setattr(pairs, "largest_entries", partial(largest_entries, block=100))
    found = word_pairs(space, W_V, W_O.T, 50, drop=drop)
    R = space.project(torch.eye(p.d)).double().numpy()
    dense = R.T @ W_V.double().numpy() @ W_O.double().numpy() @ R
    dense = (dense - dense.mean()) / dense.std()
    labels = word_classes(v, drop or "item")[space.ids].numpy()
    left_out = (labels[:, None] == labels) if drop else None
    expected, places = dense_best(dense, 50, left_out=left_out)
    close(found.scores, expected, 1e-4)
    chosen = zip(found.left_ids.tolist(), found.right_ids.tolist())
    assert set(chosen) == {(int(space.ids[i]), int(space.ids[j])) for i, j in places}


def test_a_zero_matrix_has_scores_of_zero(E, vocabulary):
    space, zero = EmbeddingSpace(E, vocabulary), torch.zeros(D, R, dtype=E.dtype)
    assert word_pairs(space, zero, zero, 3).scores.tolist() == [0.0] * 3
    assert copying_score(space, zero, zero) == 0.0


def test_a_word_of_length_zero(E, vocabulary):
    E = E.clone()
    E[:, 1] = 0
    left, right = random(D, R, seed=3), random(D, R, seed=4)
    space = EmbeddingSpace(E, vocabulary)
    assert word_pairs(space, left, right, len(space.ids)**2, unit=True).scores.isfinite().all()
    assert np.isfinite(copying_score(space, left, right))


def test_errors_of_word_pairs(E, vocabulary):
    space, left, right = EmbeddingSpace(E, vocabulary), random(D, R), random(D, R, seed=1)
    for call in (word_pairs, copying_score):
        with pytest.raises(ValueError, match=r"left must be \(6, r\) and right \(6, r\), got "
                                             r"\(6, 3\) and \(3, 6\): transpose right, as in W_O"):
            call(space, left, right.T)
        for one, two in ((left[:5], right), (left, right[:5]), (left[:, :2], right),
                         (left[:, 0], right[:, 0]), (left, right[:, 0])):
            with pytest.raises(ValueError, match=r"left must be \(6, r\).*\)$"):
                call(space, one, two)
        stranger = EmbeddingSpace(E, make_vocabulary([*ITEMS[:-1], "Ġother"]))
        with pytest.raises(ValueError, match="different vocabularies"):
            call(space, left, right, right_space=stranger)
    keep = torch.zeros(len(ITEMS), dtype=torch.bool)
    keep[[1, 2, 12]] = True
    few = EmbeddingSpace(E, vocabulary, keep=keep)
    with pytest.raises(ValueError, match=r"k = 5.* the 4 entries there are \(5 are left out\)"):
        word_pairs(few, left, right, 5, drop="word")
    with pytest.raises(ValueError, match="there are item, word, stem"):
        word_pairs(few, left, right, 2, drop="text")
    keep = ~keep
    with pytest.raises(ValueError, match="no word in common"):
        copying_score(few, left, right, right_space=EmbeddingSpace(E, vocabulary, keep=keep))


def test_how_pairs_are_shown(vocabulary):
    found = Pairs(torch.tensor([12.34, -0.5]), torch.tensor([1, 28]), torch.tensor([2, 12]),
                  vocabulary, "L1H2 <QK>")
    assert found.words == [("movie", "-movie"), ("<b>", "film")]
    assert repr(found) == "L1H2 <QK>\nleft → right\nmovie → -movie 12.3\n<b> → film -0.5"
    page = found._repr_html_()
    assert "<caption>L1H2 &lt;QK&gt;</caption>" in page and "&lt;b&gt; → film" in page
    assert page.index("12.3") < page.index("-0.5")
    space = EmbeddingSpace(random(D, len(ITEMS)), vocabulary)
    assert word_pairs(space, random(D, R), random(D, R), 2, title="Two").title == "Two"
    assert repr(word_pairs(space, random(D, R), random(D, R), 2)).startswith("left → right\n")


# ---- copying


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("reading", READINGS)
def test_copying_score_against_dense(E, vocabulary, reading, unit):
    left, right = random(D, R, seed=3), random(D, R, seed=4)
    space = EmbeddingSpace(E, vocabulary, reading)
    dense = dense_pairs(space, space, left, right, unit)
    close(copying_score(space, left, right, unit=unit),
          (dense.diagonal().mean() - dense.mean()) / dense.std())


def test_copying_is_judged_on_words_of_both_sides(E, vocabulary):
    space = EmbeddingSpace(E, vocabulary)
    other = EmbeddingSpace(E, vocabulary, "centred", torch.arange(len(ITEMS)) % 4 == 1)
    left, right = random(D, R, seed=3), random(D, R, seed=4)
    dense = dense_pairs(space, other, left, right, unit=True)
    itself = [dense[i, j] for i, j in itertools.product(*map(range, dense.shape))
              if space.ids[i] == other.ids[j]]
    assert 0 < len(itself) < dense.shape[1] + 1
    close(copying_score(space, left, right, right_space=other),
          (np.mean(itself) - dense.mean()) / dense.std())


def test_identity_copies_and_random_does_not(twin):
    p, v = twin
    space, one = EmbeddingSpace(p.E, v, "centred"), torch.eye(p.d)
    assert copying_score(space, one, one) > 5
    assert copying_score(space, one, -one) < -5
    by_chance = [copying_score(space, *(random(p.d, p.d_h, seed=2 * i + j, dtype=torch.float32)
                                        for j in (0, 1))) for i in range(5)]
    assert max(map(abs, by_chance)) < 0.5
