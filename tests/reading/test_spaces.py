"""Spaces against dense numpy, in float64: every reading, over few and over most tokens."""

import itertools
import re

import numpy as np
import pytest
import torch
from tiny_models import Sizes, close, random, tiny_model, vocabulary_of

from embspace_helpers.reading.factored import FactoredMatrix
from embspace_helpers.reading.spaces import READINGS, Space, keep_k, reading_map, reading_space

D, N = 6, 40  # d and e
EVERYTHING = torch.ones(N, dtype=torch.bool)
FEW, MOST = torch.arange(N) % 5 == 1, torch.arange(N) % 5 != 1


@pytest.fixture(scope="module")
def E():
    """A (d, e) with a mean, and with directions of very different size."""
    return random(D, N) * torch.linspace(0.2, 3, D)[:, None] + 2.0


@pytest.fixture(scope="module")
def vocabulary():
    return vocabulary_of(["<unk>", "<b>&", *(f"item{i}" for i in range(N - 2))])


def dense(E, reading, remove=3):
    """M (E - m) of a reading, written out (d, e)."""
    E = E.double().numpy()
    centred = E - E.mean(1, keepdims=True)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    return {"transpose": E, "pseudo-inverse": np.linalg.pinv(E).T, "centred": centred,
            "top-removed": u[:, remove:] * s[remove:] @ vt[remove:],
            "orthogonal": u @ vt}[reading]  # (E_c E_c.T)^-1/2 E_c


@pytest.fixture(params=itertools.product(READINGS, (FEW, MOST, EVERYTHING)),
                ids=lambda case: f"{case[0]}-{int(case[1].sum())}")
def case(request, E, vocabulary):
    """A space, and its kept columns written out."""
    reading, keep = request.param
    space = reading_space(E, vocabulary, reading, keep)
    return space, dense(E, reading)[:, keep]


# ---- readings


@pytest.mark.parametrize("reading", READINGS)
def test_columns_of_every_reading(E, vocabulary, reading):
    space = reading_space(E, vocabulary, reading)
    R = dense(E, reading)
    close(space.columns(torch.arange(N)), R)
    close(space.columns(), R[:, space.ids])
    close(space.columns(torch.tensor([7, 3, 7])), R[:, [7, 3, 7]])
    close(space.columns([5]), R[:, [5]])
    close(space.columns(torch.tensor(5)), R[:, [5]])
    assert space.d == D and space.name == reading
    assert repr(space) == f"Space {reading!r}: d = 6, lists of 39 tokens"


@pytest.mark.parametrize("remove", [1, 3, D - 1])
def test_top_removed_drops_the_leading_directions(E, vocabulary, remove):
    space = reading_space(E, vocabulary, "top-removed", EVERYTHING, remove)
    close(space.columns(), dense(E, "top-removed", remove))


def test_pseudo_inverse_is_a_right_inverse(E, vocabulary):
    R = reading_space(E, vocabulary, "pseudo-inverse", EVERYTHING).columns()
    close(E @ R.T, np.eye(D))
    h, w = random(5, D, seed=1), random(5, D, seed=2)
    close(h @ w.T, (h @ E) @ (w @ R).T)


def test_orthogonal_is_whitened_and_its_own_right_inverse(E, vocabulary):
    R = reading_space(E, vocabulary, "orthogonal", EVERYTHING).columns()
    close(R @ R.T, np.eye(D))
    x, y = random(4, D, seed=1), random(4, D, seed=2)
    close((x @ R) @ (y @ R).T, x @ y.T)


@pytest.mark.parametrize("reading", READINGS)
def test_readings_in_float32_are_within_rounding_and_leave_E_alone(E, vocabulary, reading):
    E = E.float()
    before = E.clone()
    space = reading_space(E, vocabulary, reading, EVERYTHING)
    R = space.columns()
    assert R.dtype == torch.float32 and R.shape == (D, N) and torch.equal(E, before)
    # M comes from float64 and is rounded once, m from a sum of e numbers, R from one of d.
    M = torch.eye(D) if space.map is None else space.map
    largest = (M.abs() @ (E.abs() + E.mean(1).abs()[:, None])).max().item()
    close(R, dense(E, reading), (N + D + 2) * 2**-24 * largest)


def test_maps_are_small_and_tell_whether_they_centre(E):
    for reading in READINGS:
        M, centred = reading_map(E, reading)
        assert (M is None) == (reading in ("transpose", "centred"))
        assert M is None or (M.shape == (D, D) and M.dtype == E.dtype)
        assert centred == (reading not in ("transpose", "pseudo-inverse"))
    assert reading_map(E) == (None, False)


@pytest.mark.parametrize("reading", ["pca", "", None, 3, ["transpose"]])
def test_readings_that_there_are_not(E, vocabulary, reading):
    said = f"no reading {reading!r}: there are transpose, pseudo-inverse, centred, top-removed, ort"
    for make in (reading_map, lambda E, reading: reading_space(E, vocabulary, reading)):
        with pytest.raises(ValueError, match="^" + re.escape(said)):
            make(E, reading)


@pytest.mark.parametrize("remove, said", [
    (-1, "between 1 and the 5"), (0, "between 1 and the 5"), (6, "between 1 and the 5"),
    (1.5, "a whole number, between 1 and the 5")])
def test_remove_is_checked(E, vocabulary, remove, said):
    with pytest.raises(ValueError, match=f"^remove = {remove}, .* {said} directions there are$"):
        reading_space(E, vocabulary, "top-removed", remove=remove)


@pytest.mark.parametrize("reading", ["pseudo-inverse", "orthogonal"])
def test_a_singular_E_has_no_inverse(E, vocabulary, reading):
    for flat in (torch.cat([E[:-1], 2 * E[:1] - E[1:2]]), torch.cat([E[:-1], 0 * E[:1]])):
        for dtype in (torch.float64, torch.float32):
            with pytest.raises(ValueError, match=f"no '{reading}' .* rank {D - 1}, .* d = {D}$"):
                reading_space(flat.to(dtype), vocabulary, reading)
    with pytest.raises(ValueError, match="rank 0"):
        reading_space(torch.zeros(D, N), vocabulary, reading)


# ---- keep_k


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 3, N])
def test_keep_k_against_a_loop(k, dtype):
    x = random(5, N, dtype=dtype)
    expected = torch.zeros_like(x)
    for row, values in enumerate(x.tolist()):
        for i in sorted(range(N), key=lambda i: -abs(values[i]))[:k]:
            expected[row, i] = values[i]
    before = x.clone()
    assert torch.equal(keep_k(x, k), expected)
    assert torch.equal(keep_k(x[2], k), expected[2])
    keep_k(x, k)[:] = 0
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_keep_k_keeps_k_of_equal_entries(dtype):
    x = torch.tensor([[2.0, -2, 2, -2, 1], [3, 1, 1, -1, 0]], dtype=dtype)
    kept = keep_k(x, 2)
    assert kept.count_nonzero(1).tolist() == [2, 2]
    assert kept.abs().sum(1).tolist() == [4, 4] and torch.equal(kept[kept != 0], x[kept != 0])


@pytest.mark.parametrize("k, said", [(0, "between 1 and"), (-1, "between 1 and"),
                                     (N + 1, "between 1 and"), (1.5, "a whole number, between 1")])
def test_impossible_numbers_to_keep(k, said):
    with pytest.raises(ValueError, match=f"^k = {k}, but it must be {said}.* {N} entries there ar"):
        keep_k(random(2, N), k)


# ---- scores


def test_scores_are_products_with_the_columns(case):
    space, R = case
    x = random(4, D, seed=3)
    close(space.project(x), x.numpy() @ R)
    close(space.project(x[1]), x[1].numpy() @ R)
    every = dense(space.E, space.name)
    close(space.scores(x), x.numpy() @ every)
    close(space.scores(x[1]), x[1].numpy() @ every)
    assert space.project(random(0, D)).shape == (0, R.shape[1])


def test_lengths_of_kept_columns(case):
    space, R = case
    close(space.lengths, np.linalg.norm(R, axis=0))


@pytest.mark.parametrize("by_magnitude", [False, True])
def test_top_is_the_dense_top(case, by_magnitude):
    space, R = case
    x = random(11, D, seed=4)
    products = x.numpy() @ R
    order = np.argsort(-(np.abs(products) if by_magnitude else products))[:, :5]
    for batch in (1, 4, 256):
        scores, ids = space.top(x, 5, batch, by_magnitude)
        assert ids.tolist() == space.ids[order].tolist()
        close(scores, np.take_along_axis(products, order, 1))
    assert by_magnitude <= bool((scores < 0).any())
    scores, ids = space.top(x[2], 5, by_magnitude=by_magnitude)
    close(scores, products[2][order[2]])
    assert ids.tolist() == space.ids[order[2]].tolist()


def test_top_of_everything_and_of_no_rows(case):
    space, R = case
    assert sorted(space.top(random(D), R.shape[1])[1].tolist()) == space.ids.tolist()
    scores, ids = space.top(random(0, D), 5)
    assert scores.shape == ids.shape == (0, 5)


def test_words(E, vocabulary):
    space, x = reading_space(E, vocabulary), random(D, seed=5)
    assert space.words(x, 4) == [vocabulary.shown[i] for i in space.top(x, 4)[1]]
    assert len(space.words(x)) == 10


def test_default_keep_is_the_vocabularys(E, vocabulary):
    space = reading_space(E, vocabulary)
    assert torch.equal(space.keep, vocabulary.keep())
    assert space.ids.tolist() == vocabulary.keep().nonzero().flatten().tolist()
    assert 0 not in space.ids  # <unk>


# ---- standard deviations


def test_scores_in_standard_deviations_are_those_of_all_kept_scores(case):
    space, R = case
    x = random(7, D, seed=6)
    products = x.numpy() @ R
    mean, sd = products.mean(1, keepdims=True), products.std(1, ddof=1, keepdims=True)
    close(space.standardise(x, space.project(x)), (products - mean) / sd)
    scores, _ = space.top(x, 3)
    close(space.standardise(x, scores), (-np.sort(-products)[:, :3] - mean) / sd)
    both = torch.stack([scores, scores], 1)  # (n, 2, k), as both ends are
    close(space.standardise(x, both)[:, 1], space.standardise(x, scores))


def test_moments_and_covariance_are_those_of_the_kept_columns(case):
    space, R = case
    kept = space.E.numpy()[:, space.keep]
    mean, covariance = space.moments
    close(mean, kept.mean(1))
    close(covariance, np.cov(kept))
    close(space.covariance, np.cov(R))
    x = random(D, seed=7).numpy()
    close(x @ space.covariance.numpy() @ x, (x @ R).var(ddof=1))


def test_moments_of_float32_are_summed_in_float64(E, vocabulary):
    far = (E + 1e4).float()  # squares lose in float32 what the covariance is made of
    for keep in (FEW, MOST):
        kept = far.double().numpy()[:, keep]
        mean, covariance = Space(far, vocabulary, keep=keep).moments
        close(mean / 1e4, kept.mean(1) / 1e4)
        # Squares of 1e8, of which each is off by 1e-16: 1e-8, for e of them a little more.
        close(covariance, np.cov(kept), N * 1e8 * 2**-52)


def test_a_single_token_has_no_deviation(E, vocabulary):
    one = reading_space(E, vocabulary, "centred", torch.arange(N) == 5)
    x = random(2, D)
    assert one.standardise(x, one.project(x)).tolist() == [[0.0], [0.0]]
    assert one.words(x[0], 1) == ["item3"]


def test_zero_vectors_of_a_batch_have_scores_of_zero(case):
    space, _ = case
    x = torch.stack([torch.zeros(D, dtype=torch.float64), random(D)])
    scores, ids = space.top(x, 3)
    above = space.standardise(x, scores)
    assert scores[0].tolist() == above[0].tolist() == [0.0] * 3 and above[1].abs().min() > 0
    assert set(ids[0].tolist()) <= set(space.ids.tolist())


# ---- tables


def test_table_scores_are_standard_deviations(case):
    space, R = case
    x = random(2, D, seed=6)
    table = space.table({"first": x[0], "second": x[1]}, k=4, title="Two")
    assert list(table.columns) == ["first", "second"] and table.title == "Two"
    for vector, column in zip(x, table.columns.values()):
        scores = vector.numpy() @ R
        z = -np.sort(-(scores - scores.mean()) / scores.std(ddof=1))[:4]
        assert [word for word, _ in column] == space.words(vector, 4)
        close([score for _, score in column], z)


def test_a_table_of_one_vector_needs_no_name(E, vocabulary):
    space, x = reading_space(E, vocabulary), random(D)
    assert space.table(x, 3).columns == {"": space.table({"x": x}, 3).columns["x"]}
    assert len(space.table(x).columns[""]) == 10
    assert list(space.table({7: x, None: x}).columns) == ["7", "None"]


# ---- other tokens, the same map


def test_only_reads_with_the_same_map_and_view(case):
    space, _ = case
    for keep in (FEW, MOST):
        other = space.only(keep)
        fresh = reading_space(space.E, space.vocabulary, space.name, keep)
        assert other.E is space.E and other.map is space.map and other.sums is space.sums
        assert torch.equal(other.ids, keep.nonzero().squeeze(1))
        x = random(3, D)
        for found, expected in zip((*other.top(x, 4), *other.moments, other.lengths),
                                   (*fresh.top(x, 4), *fresh.moments, fresh.lengths)):
            close(found, expected)


def test_only_leaves_the_space_as_it_was(E, vocabulary):
    space = reading_space(E, vocabulary, "orthogonal")
    before = [x.clone() for x in (*space.moments, space.ids, space.keep)]
    moments = space.only(FEW).moments
    assert all(map(torch.equal, (*space.moments, space.ids, space.keep), before))
    assert not torch.equal(moments[0], before[0])


def test_sums_over_E_are_done_once_for_all_spaces_of_a_model(monkeypatch):
    m, count = tiny_model("gpt2"), []
    monkeypatch.setattr("embspace_helpers.reading.spaces.gram",
                        lambda E: count.append(E.shape) or E.double() @ E.T.double())
    for reading in READINGS:
        m.space(reading).table(random(12))
        m.space(reading, FEW).table(random(12), 5)
    assert count.count((12, 40)) == 1


def test_E_is_never_copied(kind):
    """Not by a model's parameters, nor by spaces of any reading, whatever is asked of them."""
    m = tiny_model(kind)
    storage = m.parameters.entry.embedding(m.model.base_model).untyped_storage().data_ptr()
    for reading in READINGS:
        for space in (m.space(reading), m.space(reading, FEW), m.space(reading).only(MOST)):
            assert space.E.untyped_storage().data_ptr() == storage


@pytest.mark.parametrize("reading", READINGS)
def test_no_tensor_is_as_large_as_E(reading):
    d, e = 16, 9000  # sums go over blocks of 4,096 columns, lists over rows
    E, vocabulary = random(e, d).T, vocabulary_of([f"item{i}" for i in range(e)])
    W = FactoredMatrix(random(d, 2), random(2, d))
    few, most = torch.arange(e) % 4 == 1, torch.arange(e) % 4 != 1
    x = random(3, d)
    with Sizes() as sizes:
        all_words = reading_space(E, vocabulary, reading)
        for space in (all_words, all_words.only(most), all_words.only(few)):
            space.top(x), space.table(x[0]), space.words(x[0]), space.project(x), space.scores(x)
            space.lengths, space.moments, space.covariance, space.over_words(W, unit=True)
    assert e <= sizes.largest < d * e / 2


# ---- matrices over words


@pytest.mark.parametrize("unit", [False, True])
def test_a_matrix_over_words_is_the_dense_one(case, unit):
    space, R = case
    W = FactoredMatrix(random(D, 3, seed=3), random(3, D, seed=4))
    R = R / np.linalg.norm(R, axis=0) if unit else R
    found = space.over_words(W, unit=unit)
    assert found.r == 3 and found.left.is_contiguous() and found.right.is_contiguous()
    close(found.dense(), R.T @ W.left.numpy() @ W.right.numpy() @ R)


@pytest.mark.parametrize("unit", [False, True])
def test_a_matrix_between_two_spaces(E, vocabulary, unit):
    space = reading_space(E, vocabulary, "pseudo-inverse", MOST)
    wide = reading_space(random(9, N), vocabulary, "centred", FEW)
    W = FactoredMatrix(random(D, 3, seed=3), random(3, 9, seed=4))
    one, two = dense(E, "pseudo-inverse")[:, MOST], dense(wide.E, "centred")[:, FEW]
    if unit:
        one, two = one / np.linalg.norm(one, axis=0), two / np.linalg.norm(two, axis=0)
    close(space.over_words(W, wide, unit).dense(), one.T @ W.dense().numpy() @ two)


def test_matrices_that_do_not_fit(E, vocabulary):
    space = reading_space(E, vocabulary)
    for wrong, shown in ((FactoredMatrix(random(5, 2), random(2, D)), "(5, 6)"),
                         (random(D, D), "(6, 6)"), ("W_QK", "str"), (None, "NoneType")):
        with pytest.raises(ValueError) as error:
            space.over_words(wrong)
        assert str(error.value) == ("W must be a FactoredMatrix (6, 6), as W_VO(layer, head) "
                                    f"gives; got {shown}")
    stranger = reading_space(E, vocabulary_of([f"other{i}" for i in range(N)]))
    W = FactoredMatrix(random(D, 2), random(2, D))
    with pytest.raises(ValueError, match="left and the right space have different vocabularies"):
        space.over_words(W, stranger)


# ---- what is given


@pytest.mark.parametrize("give", [
    torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.float, torch.Tensor.half,
    torch.nn.Parameter, lambda x: x.numpy().astype(np.float32), list,
])
def test_vectors_of_any_kind_are_read(case, give):
    space, R = case
    x = random(3, D, seed=8).half().double()  # numbers that half precision holds
    for vectors in (x, x[1]):
        close(space.project(give(vectors)), vectors.numpy() @ R)
        assert torch.equal(space.top(give(vectors), 3)[1], space.top(vectors, 3)[1])
    assert space.words(give(x[1]), 3) == space.words(x[1], 3)
    assert repr(space.table({"x": give(x[1])}, 3)) == repr(space.table({"x": x[1]}, 3))
    assert repr(space.table(give(x[1]), 3)) == repr(space.table(x[1], 3))


def test_float32_spaces_read_float64_vectors(E, vocabulary):
    space, x = reading_space(E.float(), vocabulary), random(2, D)
    assert space.project(x).dtype == torch.float32
    assert torch.equal(space.project(x), space.project(x.float()))


def test_a_mask_may_be_numpys(E, vocabulary):
    given = FEW.numpy().copy()
    given.flags.writeable = False
    assert torch.equal(reading_space(E, vocabulary, keep=given).ids, FEW.nonzero().squeeze(1))


@pytest.mark.parametrize("keep, given", [
    (torch.ones(3, dtype=torch.bool), "torch.bool of shape (3,)"),
    (torch.ones(N), "torch.float32 of shape (40,)"), (torch.tensor([3, 4]), "torch.int64 of shape"),
    (np.ones((N, 1), bool), "bool of shape (40, 1)"), ([True] * N, "list"), ("movie", "str"),
    ([3, 4], "list"),
])
def test_masks_that_are_none(E, vocabulary, keep, given):
    space = reading_space(E, vocabulary)
    said = f"keep must be a mask of shape (40,), got {given}"
    for make in (lambda: reading_space(E, vocabulary, keep=keep), lambda: space.only(keep)):
        with pytest.raises(ValueError, match="^" + re.escape(said)) as error:
            make()
        assert str(error.value).endswith("Vocabulary.keep(...) makes one, of words with only=[...]")


def test_a_mask_that_leaves_nothing(E, vocabulary):
    with pytest.raises(ValueError, match="^keep leaves no token: nothing can be listed$"):
        reading_space(E, vocabulary).only(~EVERYTHING)


@pytest.mark.parametrize("wrong", [random(4, 4), random(4), random(2, 3, N), random(N, D)])
def test_embeddings_of_another_shape(vocabulary, wrong):
    with pytest.raises(ValueError, match=re.escape(
            f"E must be (d, e) with d < e, got {tuple(wrong.shape)}: transposed?")):
        reading_space(wrong, vocabulary)


def test_parts_that_do_not_belong_together(E, vocabulary):
    with pytest.raises(ValueError, match=f"^E has {N - 1} columns, the vocabulary {N} tokens: they "
                                         "belong to different models$"):
        Space(E[:, 1:], vocabulary)
    with pytest.raises(ValueError, match=r"^the map must be \(d, d\) with d = 6, got \(5, 6\)$"):
        Space(E, vocabulary, random(5, 6))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_entries_that_are_not_finite(E, vocabulary, value):
    damaged, x, space = E.clone(), random(2, D), reading_space(E, vocabulary)
    damaged[1, 2] = x[1, 1] = value
    with pytest.raises(ValueError, match="^E has NaN or infinite entries: the weights may be dama"):
        reading_space(damaged, vocabulary)
    for read in (space.top, space.project, space.scores, space.words, space.table):
        with pytest.raises(ValueError, match="the vectors have NaN or infinite entries"):
            read(x)


@pytest.mark.parametrize("k, said", [(0, "between"), (N, "between"), (2.5, "a whole number, bet"),
                                     ("3", "a whole number, bet"), (True, "a whole number, bet")])
def test_impossible_numbers_of_words(E, vocabulary, k, said):
    space = reading_space(E, vocabulary)
    for read in (space.top, space.words, space.table):
        with pytest.raises(ValueError, match=f"^k = {k!r}, .* {said}.* 1 and the 39 tokens th"):
            read(random(D), k)


def test_impossible_batches(E, vocabulary):
    with pytest.raises(ValueError, match="^batch = 0, but it must be at least 1$"):
        reading_space(E, vocabulary).top(random(2, D), 3, batch=0)


def test_vectors_that_cannot_be_read(E, vocabulary):
    space = reading_space(E, vocabulary)
    for read in (space.top, space.project, space.scores, space.words, space.table):
        with pytest.raises(ValueError, match=r"or \(n, d\) with d = 6, got of shape \(2, 5\)$"):
            read(random(2, 5))
        with pytest.raises(ValueError, match="^expected vectors of numbers, .* got str 'film'$"):
            read("film")


def test_lists_are_of_one_vector_each(E, vocabulary):
    space = reading_space(E, vocabulary)
    with pytest.raises(ValueError, match=rf"one vector \(d,\), got 'x' of shape \(2, {D}\): cho"):
        space.table({"x": random(2, D)})
    for read in (space.words, space.table):
        with pytest.raises(ValueError, match=rf"one vector \(d,\), got of shape \(2, {D}\): choos"):
            read(random(2, D))


def test_a_zero_vector_has_no_top_words(E, vocabulary):
    space, zero = reading_space(E, vocabulary), torch.zeros(D)
    for read in (space.words, space.table):
        with pytest.raises(ValueError, match="^the vector is zero: all tokens score alike, it has"):
            read(zero)
    with pytest.raises(ValueError, match="^the vector 'x' is zero: "):
        space.table({"x": zero})
