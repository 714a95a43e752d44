"""Controls: shuffled pairs, random directions, rotations and mixtures, against known data."""

import pytest
import torch
from tiny_models import close, random

from embspace_helpers.experiments.controls import (
    mixtures,
    random_directions,
    random_rotation,
    share_above,
    shuffled,
)


@pytest.mark.parametrize("n", [2, 3, 10, 101])
def test_shuffled_is_a_permutation_without_a_fixed_point(n):
    rows = torch.arange(n)[:, None].repeat(1, 2)
    for seed in range(10):
        order = shuffled(rows, seed)[:, 0]
        assert sorted(order.tolist()) == list(range(n))
        assert not (order == torch.arange(n)).any()
    assert torch.equal(shuffled(rows, 3), shuffled(rows, 3))


def test_shuffled_depends_on_the_seed_and_keeps_rows_whole():
    rows = random(50, 4)
    assert not torch.equal(shuffled(rows, 0), shuffled(rows, 1))
    assert {tuple(r) for r in shuffled(rows).tolist()} == {tuple(r) for r in rows.tolist()}


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_rows_to_shuffle(n):
    with pytest.raises(ValueError, match=f"{n} row cannot be shuffled: at least 2"):
        shuffled(torch.zeros(n, 3))


def test_random_directions_are_standard_normal():
    x = random_directions(300, 50, seed=1)
    assert x.shape == (300, 50) and torch.equal(x, random_directions(300, 50, seed=1))
    assert not torch.equal(x, random_directions(300, 50, seed=2))
    assert abs(x.mean()) < 0.03 and abs(x.std() - 1) < 0.03


@pytest.mark.parametrize("n, d", [("5", 5), (5, 2.5), (-1, 5), (5, 0)])
def test_random_directions_come_in_whole_numbers(n, d):
    with pytest.raises(ValueError, match="must be a whole number|must be at least"):
        random_directions(n, d)
    assert random_directions(0, 5).shape == (0, 5)


def test_share_above_counts_chance_for_the_control_itself():
    control = random_directions(1, 4000)[0]
    assert share_above(control, control).mean() == pytest.approx(0.05, abs=0.001)
    other = random_directions(1, 4000, seed=1)[0]
    assert share_above(other, control).mean() == pytest.approx(0.05, abs=0.015)
    assert share_above(control, control, quantile=0.5).mean() == pytest.approx(0.5, abs=0.001)
    assert share_above(torch.tensor([-9.0, 9.0]), control).tolist() == [0, 1]


def test_nothing_is_above_an_empty_control():
    with pytest.raises(ValueError, match="the control is empty"):
        share_above(torch.ones(3), torch.tensor([]))


def test_mixtures_keep_mean_and_covariance_and_combine_all_matrices_alike():
    x = random(3000, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 5
    mixed, doubled = mixtures(x, 2 * x)
    close(doubled, 2 * mixed)
    torch.testing.assert_close(mixed.mean(0), x.mean(0), rtol=0, atol=0.3)
    torch.testing.assert_close(mixed.T.cov(), x.T.cov(), rtol=0.15, atol=0.7)
    assert (mixed - x).abs().mean() > 1  # and are not the rows themselves
    assert not torch.equal(mixed, mixtures(x, seed=2)[0])


def test_a_random_rotation_leans_nowhere():
    traces = torch.stack([random_rotation(16, seed).trace() for seed in range(200)])
    assert traces.mean().abs() < 0.3  # plain QR: about -2
    for d in (1, 2, 5, 16):
        Q = random_rotation(d, 3)
        # in float32: products of unit vectors, each a sum of d numbers that are off by 6e-8
        torch.testing.assert_close(Q @ Q.T, torch.eye(d), atol=1e-5, rtol=0)
        assert torch.linalg.det(Q) > 0.99
    assert torch.equal(random_rotation(5, 1), random_rotation(5, 1))
    assert not torch.equal(random_rotation(5, 1), random_rotation(5, 2))
