"""The k largest of many scores against torch.topk of all of them: numbers are only moved."""

import pytest
import torch
from tiny_models import close, random

from embspace_helpers.reading.ranking import (
    BLOCK,
    TILE,
    block_ends,
    both_ends,
    product_and_ends,
    top_k,
)

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


@pytest.mark.parametrize("m", [9, BLOCK, TILE, TILE + 5, 2 * TILE + 3 * BLOCK + 5])
def test_products_tile_by_tile_know_the_ends_of_their_blocks(m):
    x, columns = random(3, 12), random(m, 12, seed=1).T
    scores, high, low = product_and_ends(x, columns, torch.empty(4, m, dtype=x.dtype))
    close(scores, x @ columns)
    assert high.shape == low.shape == (3, m // BLOCK)
    assert torch.equal(high, block_ends(scores)) and torch.equal(low, block_ends(scores, False))
    k = min(m, 20)
    for largest, ends in ((True, high), (False, low)):
        values, places = top_k(scores, k, largest, ends)
        assert torch.equal(values, scores.topk(k, largest=largest).values)
        assert torch.equal(scores.gather(1, places), values)
