"""The largest entries of a product against the dense matrix, in float64."""

import itertools
import re

import pytest
import torch
from tiny_models import Sizes, close, dense_best, random

from embspace_helpers.reading import largest
from embspace_helpers.reading.factored import FactoredMatrix
from embspace_helpers.reading.largest import largest_entries

D, R = 6, 3  # d and r


@pytest.fixture(autouse=True, params=[False, True], ids=["float32", "bf16"])
def coarse(request, monkeypatch):
    """Both ways, whatever this processor does: bf16 works everywhere, if slowly."""
    monkeypatch.setattr(largest, "bf16_is_fast", lambda: request.param)
    return request.param


def check(A, B, k, *, smallest=False, skip=None, block=512):
    left_out = None
    if skip is not None:
        left_out = (skip[0][:, None] == skip[1]) & (skip[0] >= 0)[:, None]
    scores, rows, columns = largest_entries(A, B, k, smallest=smallest, skip=skip, block=block)
    expected, places = dense_best(A @ B.T, k, smallest, left_out)
    close(scores, expected)
    assert list(zip(rows.tolist(), columns.tolist())) == places


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


@pytest.fixture
def computed(monkeypatch):
    """The types of the blocks that are computed."""
    types, product = [], largest._product
    monkeypatch.setattr(largest, "_product",
                        lambda A, *args: types.append(A.dtype) or product(A, *args))
    return types


def test_only_blocks_that_can_matter_are_computed(computed, coarse):
    even = torch.nn.functional.normalize(random(100, R))
    check(even, even, 5, block=10)
    assert computed.count(torch.bfloat16 if coarse else torch.float32) > 80
    computed.clear()
    check(even * torch.logspace(0, -3, 100)[:, None], even, 5, block=10)
    assert len(computed) <= 30


def test_long_rows_that_never_meet_cost_nothing(computed):
    """A is long where B is short, as W_Q and W_K of many heads are."""
    scale = torch.tensor([30.0, 1.0, 1 / 30], dtype=torch.float64)
    A, B = (random(200, R, seed=n) * random(200, 1, seed=n + 5).abs() for n in range(2))
    check(A, B, 5, block=10)
    as_they_are = len(computed)
    computed.clear()
    check(A * scale, B / scale, 5, block=10)
    assert len(computed) < 1.2 * as_they_are < 200


def test_bf16_leaves_little_for_float32(computed, coarse):
    A, B = random(300, 16), random(280, 16, seed=1)
    check(A, B, 10, block=20)
    fine, rough = (computed.count(dtype) for dtype in (torch.float32, torch.bfloat16))
    assert (fine < 30 < rough) if coarse else (fine > 30 and not rough)


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
    seen, merge = [], largest._Best._merge
    monkeypatch.setattr(largest._Best, "_merge", lambda self, new, places: (
        seen.append(len(new)) or merge(self, new, places)))
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
    B = torch.nn.functional.normalize(A + 1e-3 * random(50, D, seed=1))  # with A, (i, j) = (j, i)
    assert (A @ B.T).argmax(1).tolist() == list(range(50))
    labels = torch.arange(50)
    check(A, B, 20, skip=(labels, labels), block=8)


def test_float32_is_within_rounding_of_float64():
    A, B = random(200, 32).float(), random(150, 32, seed=1).float()
    exact, sizes = A.double() @ B.double().T, A.double().abs() @ B.double().abs().T
    rounding = 32 * 2**-24 * sizes.max().item()  # 32 products and sums, whatever their order
    expected, places = dense_best(exact, 51)
    assert (expected[:-1] - expected[1:]).min() > 2 * rounding  # so that the order is certain
    scores, rows, columns = largest_entries(A, B, 50, block=64)
    assert scores.dtype == torch.float32
    close(scores, expected[:50], rounding)
    assert list(zip(rows.tolist(), columns.tolist())) == places[:50]


def test_factors_are_left_alone_and_need_no_gradient():
    A, B = random(9, R).requires_grad_(), random(8, R, seed=1)
    before = A.detach().clone(), B.clone()
    scores, _, _ = largest_entries(A, B, 3, smallest=True)
    assert not scores.requires_grad
    assert torch.equal(A, before[0]) and torch.equal(B, before[1])


@pytest.mark.parametrize("make", [random, torch.zeros])
def test_no_tensor_is_larger_than_a_few_blocks(make):
    block, k = 64, 20
    for n in (200, 1000):
        A = make(n, R)
        with Sizes() as sizes:
            largest_entries(A, A, k, block=block, skip=(torch.arange(n), torch.arange(n)))
            FactoredMatrix(A, A.T).moments()
        assert block**2 <= sizes.largest <= 2 * block**2 + k
    assert sizes.largest < n**2 / 100


def test_errors_of_largest_entries():
    A, B = random(5, R), random(4, R)
    for wrong in (random(4, R + 1), random(R), random(2, 4, R)):
        with pytest.raises(ValueError, match=re.escape(f"got (5, 3) and {tuple(wrong.shape)}")):
            largest_entries(A, wrong, 1)
    for k, limits in ((0, "at least 1"), (-1, "at least 1"), (1.5, "a whole number, at least 1"),
                      (21, "between 1 and the 20 entries there are")):
        with pytest.raises(ValueError, match=f"^k = {k}, but it must be {limits}$"):
            largest_entries(A, B, k)
    for value in (torch.nan, torch.inf):
        damaged = B.clone()
        damaged[1, 2] = value
        for pair in ((A, damaged), (damaged, A)):
            with pytest.raises(ValueError, match="factors have NaN or infinite"):
                largest_entries(*pair, 1)
    with pytest.raises(ValueError, match=r"shapes \(4,\) and \(4,\), expected \(5,\) and \(4,\)"):
        largest_entries(A, B, 1, skip=(torch.arange(4), torch.arange(4)))


# ---- what the screen may leave out


@pytest.mark.parametrize("sizes", [(1, 1), (1e12, 1e-12), (1e30, 1e-3)])
def test_scores_are_those_of_float64_to_the_last_bit(sizes):
    A, B = (random(300, 8, seed=n).float() * size for n, size in enumerate(sizes))
    exact = (A.double()[:, None] * B.double()).sum(2).float()
    expected, places = dense_best(exact, 40)
    for block in (30, 512):
        scores, rows, columns = largest_entries(A, B, 40, block=block)
        assert scores.tolist() == expected.tolist()
        assert list(zip(rows.tolist(), columns.tolist())) == places


@pytest.mark.parametrize("sizes", [(1e-150, 1e-100), (1e200, 1e-200), (1e100, 1e100), (0, 1)])
def test_numbers_beyond_float32(sizes):
    A, B = (random(60, R, seed=n) * size for n, size in enumerate(sizes))
    scores, rows, columns = largest_entries(A, B, 30, block=7)
    expected, places = dense_best(A @ B.T, 30)
    assert list(zip(rows.tolist(), columns.tolist())) == places
    close(scores / (expected[0] or 1), expected / (expected[0] or 1))


def test_numbers_whose_products_vanish_in_float64():
    A = random(60, R) * 1e-200
    assert largest_entries(A, A, 5, block=7)[0].tolist() == [0] * 5


@pytest.mark.parametrize("r", [1, 4, 64])
@pytest.mark.parametrize("scale", [1, 1e6])
def test_products_are_off_by_less_than_the_margins(r, scale):
    """Numbers just between two of bf16's, all of one sign: what rounding does worst."""
    generator = torch.Generator().manual_seed(r)
    step = torch.linspace(1, scale, r, dtype=torch.float64) ** 0.5
    A, B = (1 + 2.0**-8 * torch.randint(0, 129, (64, r), generator=generator) + 2.0**-9
            for _ in range(2))
    A, B = A * step, B.double() / step
    screen = largest._Screen(A, B, 16)
    for x, y in itertools.product(range(4), repeat=2):
        exact = (A @ B.T)[screen.A.order[x]][:, screen.B.order[y]] / screen.unit
        size = screen.A.longest[x] * screen.B.longest[y]
        fine = screen.A.blocks[x] @ screen.B.blocks[y].T
        rough = screen.A.blocks[x].bfloat16() @ screen.B.blocks[y].bfloat16().T
        assert (fine.double() - exact).abs().max() <= screen.slack + screen.fine * size
        assert (rough.double() - exact).abs().max() <= (
            screen.slack + screen.rough * size)
        assert (exact <= size * (1 + 1e-12) + screen.slack).all() and size <= 1


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_balanced_sides_have_the_same_covariance(rank):
    A, B = (random(500, rank, seed=n) @ random(rank, 8, seed=n + 2) for n in range(2))
    T, T2, unit, slack = largest._balance(A, B)
    close(unit * T @ T2.T, torch.eye(8), 1e-6)
    assert 0 < slack < 1e-8
    first, second = ((X @ S).T @ (X @ S) for X, S in ((A, T), (B, T2)))
    close(first / first.norm(), torch.diag(first.diagonal()) / first.norm(), 1e-5)
    if rank == 8:
        close(first / first.norm(), second / second.norm(), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whether_an_entry_reaches_a_threshold(dtype):
    for shift in (0.0, -10.0, 10.0):
        products = (random(20, 30) + shift).to(dtype)
        top = products.max().item()
        step = abs(top) * torch.finfo(dtype).eps * 4
        assert largest._reaches(products, top) and largest._reaches(products, top - step)
        assert not largest._reaches(products, top + step)


def test_bf16_is_used_only_where_it_is_measured_to_be_fast(monkeypatch):
    seconds = iter([1.0] * 6 + [3.0] * 6 + [2.0] * 6 + [3.0] * 6)
    monkeypatch.undo()
    largest.bf16_is_fast.cache_clear()
    monkeypatch.setattr(largest, "repeat", lambda *_, **__: [next(seconds) for _ in range(6)])
    assert largest.bf16_is_fast()
    assert largest.bf16_is_fast()  # measured once
    largest.bf16_is_fast.cache_clear()
    assert not largest.bf16_is_fast()
    largest.bf16_is_fast.cache_clear()
