"""Factored matrices against the dense matrix, in float64."""

import itertools
import re

import numpy as np
import pytest
import torch
from tiny_models import Sizes, close, dense_best, random

from embspace_helpers.reading.factored import FactoredMatrix
from embspace_helpers.reading.largest import largest_entries

D, R = 6, 3  # d and r
SHAPES = [(12, 12, 4), (12, 9, 4), (9, 12, 4), (5, 12, 7), (7, 3, 5), (1, 4, 1)]  # m, n, r


def matrix(m, n, r, seed=0):
    return FactoredMatrix(random(m, r, seed=seed), random(r, n, seed=seed + 1))


@pytest.fixture(params=SHAPES, ids=str)
def W(request):
    return matrix(*request.param)


def dense(W):
    """The matrix written out, in numpy."""
    return W.left.numpy() @ W.right.numpy()


# ---- products


def test_shape_transpose_rows_and_text(W):
    m, n = W.shape
    close(W.dense(), dense(W))
    assert dense(W).shape == (m, n) and W.T.shape == (n, m)
    close(W.T.dense(), dense(W).T)
    for row in {0, m - 1}:
        close(W[row], dense(W)[row])
    assert repr(W) == f"FactoredMatrix ({m}, {n}) = ({m}, {W.r}) @ ({W.r}, {n})"


@pytest.mark.parametrize("give", [
    lambda x: x, torch.Tensor.numpy, torch.Tensor.tolist, torch.nn.Parameter,
    lambda x: np.asfortranarray(x.numpy())])
def test_vectors_and_matrices_of_any_kind_on_either_side(W, give):
    m, n = W.shape
    x, X, y, Y = random(m, seed=5), random(4, m, seed=6), random(n, seed=7), random(n, 2, seed=8)
    for found, expected in ((give(x) @ W, x.numpy() @ dense(W)),
                            (W @ give(y), dense(W) @ y.numpy())):
        assert type(found) is torch.Tensor and found.dtype == torch.float64
        close(found, expected)
    for found, expected in ((give(X) @ W, X.numpy() @ dense(W)),
                            (W @ give(Y), dense(W) @ Y.numpy())):
        assert type(found) is FactoredMatrix and found.r == W.r
        close(found.dense(), expected)


def test_what_is_multiplied_takes_the_matrix_s_type():
    W, x = matrix(*SHAPES[0]), random(12, seed=5)
    for other in (x.float(), x.half(), x.float().numpy()):
        assert (other @ W).dtype == (W @ other).dtype == torch.float64
        close(other @ W, np.asarray(other, dtype=np.float64) @ dense(W))
    single = FactoredMatrix(W.left.float(), W.right.float())
    assert (x @ single).dtype == torch.float32 and (np.ones(12) @ single).dtype == torch.float32
    whole = torch.arange(12)
    close(whole @ W, whole.double().numpy() @ dense(W))


def test_torch_s_own_product_knows_the_matrix():
    W, x = matrix(*SHAPES[1]), random(12, seed=5)
    close(torch.matmul(x, W), x.numpy() @ dense(W))
    with pytest.raises(TypeError):
        x * W


@pytest.mark.parametrize("r, other", [(4, 2), (2, 4), (3, 3)])
def test_a_product_of_two_matrices_has_the_thinner_inner_size(r, other):
    W, Z = matrix(12, 9, r), matrix(9, 7, other, seed=5)
    product = W @ Z
    assert type(product) is FactoredMatrix and product.r == min(r, other)
    close(product.dense(), dense(W) @ dense(Z))


def test_products_go_on_without_ever_being_written_out():
    n = 2000
    W = FactoredMatrix(random(n, R), random(R, n, seed=1))
    with Sizes() as sizes:
        Z = W @ W.T @ W
        Z.norm(), Z.trace(), Z.cosine(W), Z.moments(), Z.svd(2), Z @ W.left[:, 0], W.left.T @ Z
    assert sizes.largest <= 2 * n * R
    x = random(n, seed=2).numpy()
    expected = x @ W.left.numpy()
    for factor in (W.right, W.right.T, W.left.T, W.left, W.right):
        expected = expected @ factor.numpy()
    close(x @ Z / n**2, expected / n**2)  # each of the two inner products sums n numbers


def test_factors_are_kept_as_they_are_and_lists_become_factors():
    left, right = random(12, R), random(9, R, seed=1)
    W = FactoredMatrix(left, right.T)
    assert W.left.data_ptr() == left.data_ptr() and W.right.data_ptr() == right.data_ptr()
    assert FactoredMatrix([[1.0], [2.0]], [[3.0, 4.0]]).dense().tolist() == [[3, 4], [6, 8]]
    close(FactoredMatrix(left.numpy(), right.numpy().T).dense(), left @ right.T)


def test_writing_out_has_a_limit_that_can_be_raised():
    W = matrix(12, 9, 2)
    sentence = ("(12, 9) has 108 entries, 0 MB: what is asked of it usually comes from the "
                "factors; dense(limit=108) writes it out all the same")
    with pytest.raises(ValueError) as error:
        W.dense(limit=107)
    assert str(error.value) == sentence
    close(W.dense(limit=108), dense(W))
    for dtype, size in ((torch.float32, "192 MB"), (torch.float64, "384 MB")):
        large = FactoredMatrix(torch.zeros(6000, 1, dtype=dtype), torch.zeros(1, 8000, dtype=dtype))
        with pytest.raises(ValueError, match=f"^.6000, 8000. has 48,000,000 entries, {size}: "):
            large.dense()


# ---- numbers


def test_numbers_of_a_matrix(W):
    Z = FactoredMatrix(random(W.shape[0], 2, seed=5), random(2, W.shape[1], seed=6))
    close(W.norm(), np.linalg.norm(dense(W)))
    close(W.inner(Z), (dense(W) * dense(Z)).sum())
    cosine = (dense(W) * dense(Z)).sum() / np.linalg.norm(dense(W)) / np.linalg.norm(dense(Z))
    close([W.cosine(Z), Z.cosine(W)], [cosine, cosine])
    close([W.cosine(W), W.cosine(-1 * W.left @ FactoredMatrix(torch.eye(W.r).double(), W.right))],
          [1, -1])
    assert type(W.norm()) is type(W.inner(Z)) is type(W.cosine(Z)) is float


def test_diagonal_and_trace_of_a_square_matrix():
    W = matrix(*SHAPES[0])
    close(W.diagonal(), dense(W).diagonal())
    close(W.trace(), dense(W).trace())
    assert type(W.trace()) is float


def test_a_zero_matrix_has_no_length_and_no_direction():
    zero = FactoredMatrix(torch.zeros(4, 2), torch.zeros(2, 5))
    assert zero.norm() == 0.0 == zero.cosine(zero) and zero.moments() == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_factors_that_cancel_have_a_norm_of_nearly_zero(seed):
    left, right = random(40, R, seed=seed).float(), random(R, 40, seed=99 + seed).float()
    W = FactoredMatrix(torch.cat([left, -left], 1), torch.cat([right, 0.1 + right - 0.1]))
    norm = W.norm()
    assert type(norm) is float and type(W.cosine(W)) is float
    # The square is a sum of 4 R^2 numbers of some 40^2, of which each is off by 40 rounding errors.
    assert norm < (4 * R**2 * 40**2 * 40 * 2**-24) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_moments_against_dense(dtype):
    A, B = random(37, R) + 0.3, random(23, R, seed=1) * 5 - 1
    A, B = A.to(dtype), B.to(dtype)
    entries = A.double().numpy() @ B.double().numpy().T
    close(FactoredMatrix(A, B.T).moments(), (entries.mean(), entries.std()))  # both in float64


def test_moments_of_equal_entries():
    assert FactoredMatrix(torch.zeros(4, 2), torch.zeros(2, 5)).moments() == (0.0, 0.0)
    assert FactoredMatrix(torch.ones(4, 2), torch.ones(2, 5)).moments() == (2.0, 0.0)


# ---- singular directions


def test_singular_directions_are_those_of_the_dense_matrix(W):
    threads = torch.get_num_threads()
    u, s, vt = np.linalg.svd(dense(W), full_matrices=False)
    most = min(*W.shape, W.r)
    for n in {1, most}:
        U, S, Vh = W.svd(n)
        assert (U.shape, S.shape, Vh.shape) == ((W.shape[0], n), (n,), (n, W.shape[1]))
        close(S, s[:n])
        close(U @ torch.diag(S) @ Vh, u[:, :n] * s[:n] @ vt[:n])  # a joint sign cancels
        close(U.T @ U, np.eye(n))
        close(Vh @ Vh.T, np.eye(n))
        assert (U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all()
    assert torch.get_num_threads() == threads
    assert [len(x) for x in (W.svd().S, W.svd(float(most)).S)] == [most] * 2


def test_the_sign_of_a_direction_is_that_of_U_whatever_the_factors():
    W = matrix(*SHAPES[1])
    U, S, Vh = W.svd()
    turned = FactoredMatrix(-W.left, W.right).svd()
    close(turned.U, U)
    close(turned.S, S)
    close(turned.Vh, -Vh)


@pytest.mark.parametrize("n", [0, 4, 1.5])
def test_impossible_numbers_of_directions(n):
    with pytest.raises(ValueError, match=f"^n = {n}, .*between 1 and the 3 singular directions"):
        matrix(12, 9, 3).svd(n)


# ---- errors


@pytest.mark.parametrize("left, right, said", [
    ((6, 3), (4, 6), "(6, 3) and (4, 6)"),
    ((6, 3), (6, 3), "(6, 3) and (6, 3): transpose the second, as in W_K.T"),
    ((6,), (6, 3), "(6,) and (6, 3)"), ((6, 3), (3,), "(6, 3) and (3,)"),
    ((2, 6, 3), (3, 6), "(2, 6, 3) and (3, 6)"),
])
def test_factors_that_do_not_fit_are_told_by_their_shapes(left, right, said):
    with pytest.raises(ValueError) as error:
        FactoredMatrix(torch.zeros(left), torch.zeros(right))
    assert str(error.value) == f"the factors must be (m, r) and (r, n), got {said}"


@pytest.mark.parametrize("multiply, said", [
    (lambda W: torch.zeros(5) @ W, "(5,) by (12, 9): (5,) and (12,) differ"),
    (lambda W: torch.zeros(2, 5) @ W, "(2, 5) by (12, 9): (5,) and (12,) differ"),
    (lambda W: np.zeros(5) @ W, "(5,) by (12, 9): (5,) and (12,) differ"),
    (lambda W: [1.0, 2.0] @ W, "(2,) by (12, 9): (2,) and (12,) differ"),
    (lambda W: W @ torch.zeros(12), "(12, 9) by (12,): (9,) and (12,) differ"),
    (lambda W: W @ np.zeros((12, 2)), "(12, 9) by (12, 2): (9,) and (12,) differ"),
    (lambda W: W @ W, "(12, 9) by (12, 9): (9,) and (12,) differ"),
    (lambda W: W @ torch.zeros(9, 2, 2), "(12, 9) by (9, 2, 2): a vector or matrix is needed"),
    (lambda W: torch.zeros(2, 2, 12) @ W, "(2, 2, 12) by (12, 9): a vector or matrix is needed"),
    (lambda W: W @ torch.tensor(2.0), "(12, 9) by (): a vector or matrix is needed"),
    (lambda W: 3 @ W, "() by (12, 9): a vector or matrix is needed"),
])
def test_products_that_do_not_fit_are_told_by_both_shapes(multiply, said):
    with pytest.raises(ValueError) as error:
        multiply(matrix(12, 9, 3))
    assert str(error.value) == f"cannot multiply {said}"


@pytest.mark.parametrize("other", ["film", None, {"x": 1}])
def test_products_with_what_is_no_matrix(other):
    for multiply in (lambda: matrix(12, 9, 3) @ other, lambda: other @ matrix(12, 9, 3)):
        with pytest.raises(ValueError, match=r"a matrix \(12, 9\) by "
                                             f"{type(other).__name__} .*: a vector or matrix is"):
            multiply()


def test_comparisons_need_two_matrices_of_one_shape():
    W = matrix(12, 9, 3)
    for other, shown in ((W.T, "(9, 12)"), (torch.zeros(9, 9), "(9, 9)"), ("film", "str")):
        for compare in (W.inner, W.cosine):
            with pytest.raises(ValueError) as error:
                compare(other)
            assert str(error.value) == (f"a FactoredMatrix (12, 9) cannot be compared with {shown}"
                                        ": another of the same shape is needed")


def test_only_square_matrices_have_a_diagonal():
    for ask in (FactoredMatrix.trace, FactoredMatrix.diagonal):
        with pytest.raises(ValueError, match=r"of shape \(12, 9\) has no diagonal: it is not squ"):
            ask(matrix(12, 9, 3))


@pytest.mark.parametrize("row", [12, -1, 1.5, "first", None])
def test_rows_that_do_not_exist(row):
    with pytest.raises(ValueError, match=f"^no row {re.escape(repr(row))}: rows are 0 to 11$"):
        matrix(12, 9, 3)[row]


def test_a_matrix_is_not_taken_apart_by_accident():
    with pytest.raises(TypeError, match="not iterable"):
        tuple(matrix(2, 9, 3))


# ---- largest entries


def test_a_matrix_knows_its_largest_entries(W):
    count = W.shape[0] * W.shape[1]
    for smallest, k in itertools.product((False, True), {1, count}):
        found = W.top_entries(k, smallest=smallest, block=3)
        assert all(map(torch.equal, found, largest_entries(W.left, W.right.T, k, block=3,
                                                           smallest=smallest)))
        close(found[0], dense_best(dense(W), k, smallest)[0])
