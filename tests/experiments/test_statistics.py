"""Agreement and intervals against sets, loops and known data; tables of results."""

import numpy as np
import pandas as pd
import pytest
import torch

from embspace_helpers.experiments.controls import random_directions
from embspace_helpers.experiments.statistics import (
    bootstrap_interval,
    count_text,
    group_interval,
    jaccard_at_k,
    mean_text,
    overlap_at_k,
    permutation_p_value,
    ratio_interval,
    replace_rows,
    save_table,
)
from embspace_helpers.reading.judge import Judge


def lists(n, k, size=30, seed=0):
    """n lists of k different ids below size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(size, generator=generator)[:k] for _ in range(n)])


# ---- agreement


def test_overlap_and_jaccard_against_sets():
    first, second = lists(20, 8), lists(20, 12, seed=1)
    pairs = [(set(a), set(b)) for a, b in zip(first.tolist(), second.tolist())]
    assert sum(len(a & b) for a, b in pairs) > 0
    overlap = [len(a & b) / 8 for a, b in pairs]
    jaccard = [len(a & b) / len(a | b) for a, b in pairs]
    np.testing.assert_allclose(overlap_at_k(first, second), overlap, rtol=1e-6)
    np.testing.assert_allclose(jaccard_at_k(first, second), jaccard, rtol=1e-6)
    assert overlap_at_k(first, first).tolist() == jaccard_at_k(first, first).tolist() == [1.0] * 20


@pytest.mark.parametrize("measure", [overlap_at_k, jaccard_at_k])
def test_paired_lists_are_checked(measure):
    for first, second in ((lists(2, 3), lists(3, 3)), (lists(2, 3), lists(2, 3)[0]),
                          (lists(2, 3)[0], lists(2, 3))):
        with pytest.raises(ValueError, match=r"same n, got \(.*\) and \("):
            measure(first, second)
    with pytest.raises(ValueError, match="lists hold token ids, whole numbers.* got torch.float32"):
        measure(lists(2, 3).float(), lists(2, 3))


def test_empty_lists_share_nothing():
    empty = torch.zeros(3, 0, dtype=torch.long)
    assert overlap_at_k(lists(3, 4), empty).tolist() == [0, 0, 0]
    assert jaccard_at_k(lists(3, 4), empty).tolist() == [0, 0, 0]


def test_agreement_of_many_lists_is_that_of_each_pair():
    first, second = lists(600, 5), lists(600, 7, seed=1)  # more than are compared at once
    each = [overlap_at_k(a[None], b[None]) for a, b in zip(first, second)]
    assert torch.equal(overlap_at_k(first, second), torch.cat(each))


# ---- coherence


def naive_coherence(E, judge_ids, row_of, words, remove):
    vectors = E.numpy().astype(float).T[judge_ids]
    vectors -= vectors.mean(0)
    u, s, vt = np.linalg.svd(vectors, full_matrices=False)
    vectors = u[:, remove:] * s[remove:] @ vt[remove:]
    cosines = []
    for i, a in enumerate(words):
        for j, b in enumerate(words):
            if i != j:
                x, y = vectors[row_of[a]], vectors[row_of[b]]
                cosines.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    return np.mean(cosines)


@pytest.mark.parametrize("remove", [0, 2])
def test_coherence_against_a_double_loop(remove):
    E = random_directions(6, 40) + 1.5  # (d, e) of the judge
    ids = torch.tensor([3, 5, 8, 9, 12, 20, 21, 29])  # in the vocabulary under test
    judge_ids = torch.tensor([39, 0, 7, 8, 1, 2, 30, 31])
    judge = Judge(E, ids, size=30, judge_ids=judge_ids, remove=remove)
    assert judge.keep.nonzero().flatten().tolist() == ids.tolist() and judge.keep.shape == (30,)
    chosen = ids[lists(7, 4, size=8)]
    row_of = {word: row for row, word in enumerate(ids.tolist())}
    expected = [naive_coherence(E, judge_ids, row_of, words, remove) for words in chosen.tolist()]
    np.testing.assert_allclose(judge.coherence(chosen), expected, atol=1e-5)


def test_judge_of_the_same_vocabulary_and_the_limits_of_coherence():
    E = torch.tensor([[1.0, 1, -1, -1, 0], [0, 0, 0, 0, 9]])  # two camps, one word unknown
    judge = Judge(E, torch.arange(4), size=5, remove=0)
    values = judge.coherence(torch.tensor([[0, 1], [2, 3], [0, 2], [1, 3]]))
    assert values.tolist() == pytest.approx([1, 1, -1, -1])


def test_errors_of_the_judge():
    judge = Judge(random_directions(4, 10), torch.tensor([1, 2, 3]), size=10, remove=1)
    with pytest.raises(ValueError, match="does not know: read with keep=judge.keep"):
        judge.coherence(torch.tensor([[1, 4]]))
    for wrong in (torch.tensor([1, 2]), torch.tensor([[1], [2]])):
        with pytest.raises(ValueError, match=r"\(n, k\) with k >= 2, got \("):
            judge.coherence(wrong)
    with pytest.raises(ValueError, match="2 words under test but 3 of the judge's"):
        Judge(random_directions(4, 10), torch.tensor([1, 2]), 10, torch.tensor([1, 2, 3]))
    for words, remove, most in ((3, 2, 2), (9, 4, 4), (9, -1, 4)):
        with pytest.raises(ValueError, match=f"remove = {remove},.* below {most}: .* {words} words "
                                             "in d = 4"):
            Judge(random_directions(4, 10), torch.arange(words), 10, remove=remove)


# ---- intervals, p-values


def test_bootstrap_interval_covers_about_95_of_100():
    samples = random_directions(100, 60, seed=2)
    found = [bootstrap_interval(sample, resamples=300, seed=i) for i, sample in enumerate(samples)]
    assert 88 <= sum(low <= 0 <= high for low, high in found) <= 99
    assert all(low < sample.mean() < high for (low, high), sample in zip(found, samples))
    widths = [high - low for low, high in found]
    assert np.mean(widths) == pytest.approx(2 * 1.96 / 60**0.5, rel=0.1)


def test_bootstrap_interval_is_reproducible():
    sample = random_directions(1, 50)[0]
    assert bootstrap_interval(sample) == bootstrap_interval(sample, seed=0)
    assert bootstrap_interval(sample) != bootstrap_interval(sample, seed=1)
    assert bootstrap_interval(torch.full((5,), 0.25)) == (0.25, 0.25)
    assert all(type(bound) is float for bound in bootstrap_interval(sample))


@pytest.mark.parametrize("values, message", [
    (torch.tensor([1.0]), r"at least 2 values.*\(1,\)"),
    (torch.tensor([]), r"at least 2 values.*\(0,\)"),
    (torch.zeros(3, 2), r"at least 2 values.*\(3, 2\)"),
    (torch.tensor([1.0, float("nan")]), "NaN or infinite"),
    (torch.tensor([1.0, float("inf")]), "NaN or infinite"),
])
def test_errors_of_the_interval(values, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values)


def test_permutation_p_value():
    a, b = random_directions(2, 40, seed=3)
    assert permutation_p_value(a + 2, b) < 0.002
    assert permutation_p_value(a - 2, b) > 0.99  # one-sided
    assert permutation_p_value(a, b, seed=4) == permutation_p_value(a, b, seed=4)


def test_permutation_p_value_is_uniform_under_the_null():
    samples = random_directions(120, 30, seed=5)
    p = np.array([permutation_p_value(x[:15], x[15:], resamples=200) for x in samples])
    assert 0.4 < p.mean() < 0.6 and (p < 0.05).mean() < 0.12
    assert 0.1 < (p < 0.25).mean() < 0.4 and 0.1 < (p > 0.75).mean() < 0.4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_permutation_p_value_refuses_nan(value):
    damaged, whole = torch.tensor([value, 1, 2]), torch.tensor([1.0, 2, 3])
    for pair in ((damaged, whole), (whole, damaged)):
        with pytest.raises(ValueError, match="1 of 3 values are NaN or infinite"):
            permutation_p_value(*pair)


def test_mean_text():
    values = torch.tensor([[0.0, 1.0], [0.0, 1.0]] * 50)
    low, high = bootstrap_interval(values.flatten(), 500)
    assert mean_text(values) == f"0.50 ({low:.2f} to {high:.2f})"
    assert mean_text(-values) == f"−0.50 (−{high:.2f} to −{low:.2f})"


def test_count_text():
    assert count_text(torch.tensor([True] * 9 + [False])) == "9 of 10 (0.60 to 0.98)"
    assert count_text(torch.ones(30)) == "30 of 30 (0.89 to 1.00)"


def test_group_interval_resamples_whole_groups():
    groups = torch.arange(40).repeat_interleave(25)
    offsets = torch.randn(40, generator=torch.Generator().manual_seed(0))
    values = offsets[groups]  # within a group all are equal: 40 values, not 1,000
    low, high = group_interval(values, groups)
    assert low < values.mean() < high
    assert (high - low) == pytest.approx(2 * 1.96 * offsets.std().item() / 40**0.5, rel=0.15)
    single = bootstrap_interval(values)
    assert high - low > 3 * (single[1] - single[0])
    loose = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    wide, narrow = group_interval(loose, groups), bootstrap_interval(loose)
    assert wide[1] - wide[0] == pytest.approx(narrow[1] - narrow[0], rel=0.4)
    with pytest.raises(ValueError, match="at least 2 groups, got 1"):
        group_interval(values, torch.zeros(1000))


def test_a_group_interval_is_the_ratio_interval_of_sums_and_counts():
    groups = torch.tensor([4, 4, 7, 7, 7, 1, 9, 9])
    values = torch.tensor([0.5, 0.25, 1.0, 2.0, 0.125, 3.0, -1.0, 0.75])
    sums = torch.stack([values[groups == g].sum() for g in (1, 4, 7, 9)])
    mean, low, high = ratio_interval(sums, torch.tensor([1, 2, 3, 2]))
    assert group_interval(values, groups) == (low, high)
    assert mean == values.mean().item() and low < mean < high
    assert group_interval(values, groups, 50, seed=3) == ratio_interval(
        sums, torch.tensor([1, 2, 3, 2]), 50, seed=3)[1:]
    with pytest.raises(ValueError, match="1 of 8 values are NaN"):
        group_interval(values.masked_fill(groups == 1, float("nan")), groups)


def test_ratio_interval():
    bottom = torch.rand(400, generator=torch.Generator().manual_seed(0)) + 0.5
    noise = torch.randn(400, generator=torch.Generator().manual_seed(1))
    ratio, low, high = ratio_interval(3 * bottom + noise, bottom)
    assert low < 3 < high and low < ratio < high
    assert high - low == pytest.approx(2 * 1.96 / 400**0.5, rel=0.15)  # the mean of bottom is 1
    assert ratio_interval(3 * bottom, bottom) == pytest.approx((3, 3, 3))


@pytest.mark.parametrize("top, bottom", [([1.0], [1.0]), ([1.0, 2.0], [1.0]),
                                         ([1.0, 2.0], [1.0, 2.0, 3.0])])
def test_ratios_need_pairs(top, bottom):
    with pytest.raises(ValueError, match="at least 2 pairs of values"):
        ratio_interval(torch.tensor(top), torch.tensor(bottom))


# ---- tables of results


def test_a_table_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "table.csv"
    save_table(pd.DataFrame({"a": [1, 2]}), path)

    class Broken(pd.DataFrame):
        def to_csv(self, file, **kwargs):
            file.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_table(Broken({"a": [3]}), path)
    assert pd.read_csv(path)["a"].tolist() == [1, 2]


def test_rows_measured_anew_replace_those_with_the_same_key(tmp_path):
    file, key = tmp_path / "overlap.csv", ["model", "reading", "source"]
    rows = [{"model": m, "reading": r, "source": s, "layer": layer, "mean": 0.5}
            for m in ("b", "a") for r in ("x", "y") for s in ("imdb", "embedded")
            for layer in (1, 0, -1)]
    pd.DataFrame(rows).to_csv(file, index=False)
    again = {"model": "b", "reading": "y", "source": "imdb", "mean": 0.1}
    new = pd.DataFrame([again | {"layer": layer} for layer in (3, 1)])
    found = replace_rows(new, file, key)
    assert len(found) == 7 * 3 + 2  # all other readings and sources stay, here two rows for three
    measured = found[found["mean"] == 0.1]
    assert (measured[key] == ["b", "y", "imdb"]).all(axis=None)
    assert measured["layer"].tolist() == [3, 1]  # in the order given
    assert found[found["model"] == "a"]["layer"].tolist() == [1, 0, -1] * 4
    assert found["model"].is_monotonic_increasing and found.index.tolist() == [*range(23)]
    assert pd.read_csv(file)["mean"].unique().tolist() == [0.5]  # nothing is written


def test_rows_of_a_file_that_is_not_there_or_empty_are_the_new_ones(tmp_path):
    new = pd.DataFrame({"model": ["b", "a"], "seed": [1, 2], "shuffled": [True, False]})
    expected = new.iloc[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(replace_rows(new, tmp_path / "no.csv", ["model"]), expected)
    new.iloc[:0].to_csv(tmp_path / "empty.csv", index=False)
    pd.testing.assert_frame_equal(replace_rows(new, tmp_path / "empty.csv", ["model"]), expected)


def test_results_of_one_classifier_after_the_other(tmp_path):
    table, key = str(tmp_path / "t.csv"), ["model", "shuffled", "seed"]
    row = {"model": "b", "seed": 1, "shuffled": False, "imdb": 0.5}
    for new in (row, row | {"seed": 2}, row | {"shuffled": True}, row | {"model": "a"},
                row | {"imdb": 0.8124}):
        save_table(replace_rows(pd.DataFrame([new]), table, key), table)
    assert pd.read_csv(table).to_numpy().tolist() == [
        ["a", 1, False, 0.5], ["b", 1, False, 0.8124], ["b", 2, False, 0.5], ["b", 1, True, 0.5]]
