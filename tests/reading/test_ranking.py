"""The k largest of many scores against torch.topk of all of them: numbers are only moved."""

import pytest
import torch
from tiny_models import close, random

from embspace_helpers.reading.ranking import BLOCK, TILE, Scan, both_ends, larger, top_k

SIZES = [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 40 * BLOCK, 40 * BLOCK + 17, 41 * BLOCK - 1]


def integers(n, m, high, seed=0):
    """Scores with many ties, -high to high."""
    return torch.randint(-high, high + 1, (n, m), generator=torch.Generator().manual_seed(seed))


def check_top(scores, k):
    values, columns = top_k(scores, k)
    assert torch.equal(values, scores.topk(k, dim=1).values)
    assert torch.equal(scores.gather(1, columns), values)
    assert all(len(set(row)) == k for row in columns.tolist())


@pytest.mark.parametrize("m", SIZES)
def test_top_k_is_the_top_k_of_everything(m):
    for n in (1, 3):
        for k in {min(m, k) for k in (1, 2, 10, 19, 20, m)}:
            check_top(random(n, m), k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("high", [0, 1, 30])
def test_ties_are_taken_once_each(high, dtype):
    for m in (50 * BLOCK, 50 * BLOCK + 9):
        for k in (1, 5, 24):
            check_top(integers(4, m, high).to(dtype), k)


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 30 * BLOCK, 40 * BLOCK - 1, 40 * BLOCK + 4])
def test_the_best_is_found_wherever_it_stands(place):
    scores = random(2, 40 * BLOCK + 5)
    scores[1, place] = 99
    assert top_k(scores, 3)[1][1, 0] == place


def test_the_best_in_one_block_are_all_found():
    scores = random(2, 40 * BLOCK + 5)
    scores[:, 7 * BLOCK : 7 * BLOCK + 12] += 50
    check_top(scores, 12)


def test_infinities_are_numbers_too():
    scores = random(2, 40 * BLOCK + 5)
    scores[:, ::2] = -torch.inf
    scores[0, 77] = torch.inf
    check_top(scores, 10)


def test_no_rows_have_no_best():
    for m in (9, 40 * BLOCK):
        assert [x.shape for x in top_k(random(0, m), 3)] == [(0, 3), (0, 3)]


# ---- both ends


@pytest.mark.parametrize("m", [9, 40 * BLOCK + 17])
@pytest.mark.parametrize("make", [random, lambda n, m: integers(n, m, 2).float()])
def test_both_ends_are_the_largest_and_the_smallest(m, make):
    scores = make(3, m)
    values, columns = both_ends(scores.clone(), 4)
    assert values.shape == columns.shape == (3, 2, 4)
    assert torch.equal(values[:, 0], scores.topk(4).values)
    assert torch.equal(values[:, 1], (-scores).topk(4).values)
    assert torch.equal(scores.gather(1, columns[:, 0]), values[:, 0])
    assert torch.equal(scores.gather(1, columns[:, 1]), -values[:, 1])


def test_scores_are_given_back_as_they_were():
    scores = random(3, 400)
    given = scores.clone()
    both_ends(given, 5)
    assert torch.equal(given, scores)


# ---- scores that are never held all at once


@pytest.fixture(params=[4 * BLOCK, TILE, 100 * TILE])
def tile(request):
    """Tiles of 4 blocks, so that bounds are set early and often, as they are, and of everything."""
    return request.param


def whole(*shape, seed=0):
    """Small whole numbers: products are exact, and many scores tie."""
    return integers(*shape, 3, seed).double()


def check_scan(scan, scores, k, largest, first=0):
    """Values are those of everything, in their order; equal ones stand in that of columns."""
    values, columns = scan.top(k, largest, first)
    scores = scores[:, :first] if first else scores
    assert torch.equal(values, scores.topk(k, largest=largest).values)
    assert torch.equal(scores.gather(1, columns), values)
    for row, ids in zip(values.tolist(), columns.tolist()):
        assert len(set(ids)) == k
        assert all(i < j for i, j, v, w in zip(ids, ids[1:], row, row[1:]) if v == w)


@pytest.mark.parametrize("make", [random, whole])
@pytest.mark.parametrize("m", [9, BLOCK, 30 * BLOCK, 33 * BLOCK - 1, TILE, 2 * TILE + 197])
def test_a_scan_finds_the_best_of_everything(m, make, tile):
    x, columns = make(5, 6), make(6, m, seed=1)
    scores, k = x @ columns, min(m, 20)
    for signs in ((1,), (-1,), (1, -1)):
        scan = Scan(columns, k, signs, rows=5, tile=tile)
        for part in (slice(0, 5), slice(2, 4), slice(0, 0)):  # one behind the other
            scan.read(x[part])
            for sign in signs:
                if make is whole:
                    check_scan(scan, scores[part], k, sign > 0)
                values, places = scan.top(min(k, 7), sign > 0)
                close(values, scores[part].topk(min(k, 7), largest=sign > 0).values)
                close(scores[part].gather(1, places), values)


@pytest.mark.parametrize("first", [25, BLOCK, 9 * BLOCK, 21 * BLOCK + 7, TILE + 1, 70 * BLOCK])
def test_a_scan_finds_the_best_of_the_first_columns_too(first, tile):
    x, columns = whole(4, 6), whole(6, 70 * BLOCK, seed=1)
    columns[:, first:] *= 3  # those behind are better
    scan = Scan(columns, 20, rows=4, first=first, tile=tile)
    scan.read(x)
    for largest in (True, False):
        check_scan(scan, x @ columns, 10, largest, first)
        check_scan(scan, x @ columns, 20, largest)


@pytest.mark.parametrize("signs", [(1,), (1, -1)])
def test_dropped_columns_are_never_found(signs, tile):
    m = 70 * BLOCK + 9
    x, columns = whole(4, 6), whole(6, m, seed=1)
    dropped = torch.randperm(m, generator=torch.Generator().manual_seed(0))[: m // 3].sort().values
    columns[:, dropped] *= 9
    scan = Scan(columns, 20, signs, 4, dropped=dropped, tile=tile)
    scan.read(x)
    for sign in signs:
        scores = (x @ columns).index_fill_(1, dropped, -sign * torch.inf)
        check_scan(scan, scores, 20, sign > 0)


def test_a_scan_keeps_few_scores_but_all_where_each_is_better_than_the_last():
    m, tile = 400 * BLOCK, 4 * BLOCK
    scan = Scan(random(6, m, seed=1), 3, (1,), rows=5, tile=tile)
    scan.read(random(5, 6))
    assert scan.used < 5 * 50
    scan = Scan(torch.arange(m).double()[None], 3, (1, -1), rows=2, tile=tile)
    scan.read(torch.ones(2, 1, dtype=torch.float64))
    assert scan.used == 2 * 400 and len(scan.kept) >= scan.used
    assert scan.top(3)[1].tolist() == [[m - 1, m - 2, m - 3]] * 2
    assert scan.top(3, largest=False)[1].tolist() == [[0, 1, 2]] * 2


def test_the_larger_in_magnitude_of_both_ends():
    for m, k in ((50, 50), (300, 7)):
        scores = random(3, m)
        scores[:, ::5] = 0
        high, low = top_k(scores, k), top_k(scores, k, largest=False)
        values, columns = larger(*high, *low)
        assert torch.equal(values.abs(), scores.abs().topk(k).values)
        assert torch.equal(scores.gather(1, columns), values)
        assert all(len(set(row)) == k for row in columns.tolist())
