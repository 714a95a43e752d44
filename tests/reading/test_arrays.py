"""Vectors of any kind, counts, exact sums and threads."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from tiny_models import Sizes, close, random, tiny_model

from embspace_helpers.reading.arrays import (
    all_finite,
    as_count,
    as_index,
    as_model,
    as_vector,
    as_vectors,
    gram,
    one_thread,
    row_sums,
)

# ---- threads


def test_one_thread_gives_the_threads_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_one_thread_can_be_put_on_a_function():
    before = torch.get_num_threads()
    assert one_thread()(torch.get_num_threads)() == 1
    assert torch.get_num_threads() == before


# ---- sums


@pytest.mark.parametrize("chunk", [1, 7, 40, 4096])
def test_sums_are_those_of_float64_whatever_the_chunk(chunk):
    E = random(5, 40).float()
    exact = E.double().numpy()
    for found, expected in ((gram(E, chunk), exact @ exact.T), (row_sums(E, chunk), exact.sum(1))):
        assert found.dtype == torch.float64
        close(found, expected)


def test_sums_lose_nothing_to_a_large_mean():
    E = random(3, 50_000).float() + 1000  # in float32 alone a sum of squares, 5e10, is off by 1e3
    exact = E.double().numpy()
    close(gram(E) / 5e4, exact @ exact.T / 5e4)
    close(row_sums(E) / 5e4, exact.mean(1))


def test_sums_of_no_columns_are_zero():
    assert torch.equal(gram(torch.empty(3, 0)), torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(row_sums(torch.empty(3, 0)), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_entry_is_found_wherever_it_stands(bad, dtype):
    for shape, place in itertools.product(((1, 1000), (20, 50), (50, 20)), (0, 500, 999)):
        x = random(1000).to(dtype).reshape(shape)
        assert all_finite(x, 64) and all_finite(x.T, 64) and all_finite(x[0])
        x.view(-1)[place] = bad
        assert not all_finite(x, 64) and not all_finite(x.T, 64)
    assert all_finite(torch.empty(0))


def test_looking_for_bad_entries_copies_nothing():
    E = random(300, 100).T
    with Sizes() as sizes:
        all_finite(E, 500), all_finite(E.T, 500)
        row_sums(E, 50), gram(E[:, :200], 50)
    assert sizes.largest <= 100 * 100  # of 30,000 numbers; a sum is (100, 100)


# ---- vectors


@pytest.mark.parametrize("make", [
    torch.Tensor.numpy, torch.Tensor.tolist, lambda x: list(x.numpy()),
    lambda x: tuple(x.unbind()), lambda x: x.double().numpy(), torch.Tensor.half,
    torch.Tensor.bfloat16, lambda x: x.int(), lambda x: x.requires_grad_(),
    lambda x: x.numpy()[::-1][::-1], lambda x: np.asfortranarray(x.numpy()),
])
def test_vectors_of_any_kind_become_tensors(make):
    whole = torch.arange(-6.0, 6.0).reshape(3, 4)  # whole numbers, which every type holds exactly
    for x in (whole, whole[1]):
        for dtype in (torch.float32, torch.float64):
            found = as_vectors(make(x.clone()), 4, dtype)
            assert found.dtype == dtype and not found.requires_grad
            assert torch.equal(found, x.to(dtype))


def test_arrays_that_numpy_turned_or_locked_are_taken_without_a_warning():
    x = np.arange(12.0).reshape(3, 4)
    locked = x.copy()
    locked.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(as_vectors(x[::-1], 4), torch.tensor(x[::-1].copy()).float())
        assert torch.equal(as_vectors(locked, 4), torch.tensor(x).float())


def test_a_tensor_of_the_right_kind_is_not_copied():
    x = random(3, 4)
    assert as_vectors(x, 4, torch.float64).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("wrong", ["a film", None, [1, "a"], [[1, 2], [3]], {"x": 1}, object()])
def test_what_is_no_vector_is_shown(wrong):
    with pytest.raises(ValueError, match=rf"^expected vectors of numbers, \(d,\) or \(n, d\) with "
                                         rf"d = 4, got 'x' {type(wrong).__name__} ['\"]"):
        as_vectors(wrong, 4, name=" 'x'")


@pytest.mark.parametrize("shape", [(), (3,), (4, 3), (2, 3, 4), (0,)])
def test_vectors_of_another_shape(shape):
    with pytest.raises(ValueError) as error:
        as_vectors(torch.zeros(shape), 4, name=" 'x'")
    assert str(error.value) == (f"expected vectors (d,) or (n, d) with d = 4, got 'x' of shape "
                                f"{shape}")


def test_vectors_with_entries_that_are_no_real_numbers():
    for value in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(ValueError, match="^the vectors 'x' have NaN or infinite entries$"):
            as_vectors(torch.tensor([1.0, value]), 2, name=" 'x'")
    with pytest.raises(ValueError, match="complex entries: take their real part"):
        as_vectors(torch.ones(2, dtype=torch.complex64), 2)
    assert as_vectors(torch.empty(0, 4), 4).shape == (0, 4)


def test_one_vector():
    assert as_vector([1, 2], 2).tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"one vector \(d,\), got 'x' of shape \(1, 2\): choose a"):
        as_vector([[1, 2]], 2, name=" 'x'")


# ---- counts and indices


@pytest.mark.parametrize("k", [5, 5.0, np.int64(5), torch.tensor(5), torch.tensor(5.0)])
def test_whole_numbers_of_any_kind_count(k):
    found = as_count(k, 5)
    assert found == 5 and type(found) is int


@pytest.mark.parametrize("k, said", [
    (0, "k = 0, but it must be between 1 and the 5 words there are"),
    (6, "k = 6, but it must be between 1 and the 5 words there are"),
    (-1.0, "k = -1, but it must be between 1 and the 5 words there are"),
    (2.5, "k = 2.5, but it must be a whole number, between 1 and the 5 words there are"),
    (True, "k = True, but it must be a whole number, between 1 and the 5 words there are"),
    ("3", "k = '3', but it must be a whole number, between 1 and the 5 words there are"),
    (None, "k = None, but it must be a whole number, between 1 and the 5 words there are"),
])
def test_a_count_out_of_range_is_told_with_its_range(k, said):
    with pytest.raises(ValueError) as error:
        as_count(k, 5, things="words")
    assert str(error.value) == said


def test_a_count_without_a_limit():
    assert as_count(10**6) == 10**6 and as_count(0, least=0) == 0
    with pytest.raises(ValueError, match="^batch = 0, but it must be at least 1$"):
        as_count(0, name="batch")


@pytest.mark.parametrize("i", [0, 2, np.int64(2), torch.tensor(2)])
def test_indices_of_any_kind(i):
    found = as_index(i, 3, "layer")
    assert found == i and type(found) is int


@pytest.mark.parametrize("i, shown", [
    (3, "3"), (-1, "-1"), (1.0, "1.0"), (True, "True"), ("1", "'1'"), (None, "None"),
    (torch.tensor([1, 2]), r"tensor\(\[1, 2\]\)"),
])
def test_an_index_out_of_range_is_told_with_its_range(i, shown):
    with pytest.raises(ValueError, match=f"^no layer {shown} in E: layers are 0 to 2$"):
        as_index(i, 3, "layer", " in E")


# ---- models


def test_what_is_no_model_is_told_how_to_get_one():
    m = tiny_model("gpt2")
    assert as_model(m) is m
    with pytest.raises(ValueError, match="got the name 'twin-a': model = load\\('twin-a'\\)$"):
        as_model("twin-a")
    with pytest.raises(ValueError, match=r"got GPT2LMHeadModel: .* Model\(model, tokenizer\)"):
        as_model(m.model)
    with pytest.raises(ValueError, match="got Parameters"):
        as_model(m.parameters)
