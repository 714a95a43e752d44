"""Readings, keep_k, top words and tables against dense numpy."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from embspace_helpers.reading.projection import (READINGS, EmbeddingSpace, WordTable, keep_k,
                                         one_thread, reading_matrix)
from embspace_helpers.reading.vocabulary import Vocabulary

D, N = 6, 40  # d and e


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def E():
    """A (d, e) with a mean, and with directions of very different size."""
    return random(D, N) * torch.linspace(0.2, 3, D)[:, None] + 2.0


@pytest.fixture(scope="module")
def vocabulary():
    items = ["<unk>", "<b>&", *(f"item{i}" for i in range(N - 2))]
    model = models.WordLevel(vocab={item: i for i, item in enumerate(items)}, unk_token="<unk>")
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model),
                                              unk_token="<unk>"))


def close(actual, expected, tolerance=1e-8):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=tolerance,
                               atol=tolerance)


# ---- readings


def test_transpose_is_E_itself(E):
    assert reading_matrix(E) is E and reading_matrix(E, "transpose") is E


def test_pseudo_inverse_is_numpys(E):
    R = reading_matrix(E, "pseudo-inverse")
    close(R, np.linalg.pinv(E.numpy()).T)
    close(E @ R.T, np.eye(D))
    h, w = random(5, D, seed=1), random(5, D, seed=2)
    close(h @ w.T, (h @ E) @ (w @ R).T)


def test_centred(E):
    dense = E.numpy() - E.numpy().mean(1, keepdims=True)
    close(reading_matrix(E, "centred"), dense)


@pytest.mark.parametrize("remove", [1, 3, D - 1])
def test_top_removed_drops_the_leading_directions(E, remove):
    dense = E.numpy() - E.numpy().mean(1, keepdims=True)
    u, s, vt = np.linalg.svd(dense, full_matrices=False)
    close(reading_matrix(E, "top-removed", remove), u[:, remove:] * s[remove:] @ vt[remove:])


def test_orthogonal_is_whitened_and_its_own_right_inverse(E):
    R = reading_matrix(E, "orthogonal").numpy()
    u, _, vt = np.linalg.svd(E.numpy() - E.numpy().mean(1, keepdims=True), full_matrices=False)
    close(R, u @ vt)  # (E_c E_c.T)^-1/2 E_c
    close(R @ R.T, np.eye(D))
    x, y = random(4, D, seed=1).numpy(), random(4, D, seed=2).numpy()
    close((x @ R) @ (y @ R).T, x @ y.T)


@pytest.mark.parametrize("reading", READINGS)
def test_readings_in_float32_leave_E_alone(E, reading):
    single = E.float()
    before = single.clone()
    R = reading_matrix(single, reading)
    assert R.dtype == torch.float32 and R.shape == (D, N)
    assert torch.equal(single, before)
    assert (R is single) == (reading == "transpose")
    close(R, reading_matrix(E, reading), 1e-4)


def test_errors_of_the_readings(E):
    with pytest.raises(ValueError, match="no reading 'pca': there are transpose, pseudo-inverse"):
        reading_matrix(E, "pca")
    for wrong in (E.T, random(4, 4), random(4), random(2, 3, 4)):
        with pytest.raises(ValueError, match=r"\(d, e\) with d < e, got \("):
            reading_matrix(wrong)


@pytest.mark.parametrize("remove", [-1, 0, D, D + 1])
def test_remove_is_checked(E, remove):
    with pytest.raises(ValueError, match=f"remove = {remove}, .* between 1 and {D - 1}"):
        reading_matrix(E, "top-removed", remove)


@pytest.mark.parametrize("reading", ["pseudo-inverse", "orthogonal"])
def test_a_singular_E_has_no_inverse(E, reading):
    for flat in (torch.cat([E[:-1], 2 * E[:1] - E[1:2]]), torch.cat([E[:-1], 0 * E[:1]])):
        for dtype in (torch.float64, torch.float32):
            with pytest.raises(ValueError, match=f"'{reading}'.* rank {D - 1}, .* d = {D}"):
                reading_matrix(flat.to(dtype), reading)
    with pytest.raises(ValueError, match="rank 0"):
        reading_matrix(torch.zeros(D, N), reading)


# ---- keep_k


@pytest.mark.parametrize("k", [1, 3, N])
def test_keep_k_against_a_loop(k):
    x = random(5, N)
    expected = torch.zeros_like(x)
    for row, values in enumerate(x.tolist()):
        for i in sorted(range(N), key=lambda i: -abs(values[i]))[:k]:
            expected[row, i] = values[i]
    before = x.clone()
    assert torch.equal(keep_k(x, k), expected)
    assert torch.equal(keep_k(x[2], k), expected[2])
    keep_k(x, k)[:] = 0
    assert torch.equal(x, before)


@pytest.mark.parametrize("k", [0, -1, N + 1])
def test_keep_k_errors(k):
    with pytest.raises(ValueError, match=f"k = {k}, but it must be between 1 and the {N} items"):
        keep_k(random(2, N), k)


# ---- the space


def test_project_scores_only_kept_columns(E, vocabulary):
    keep = torch.zeros(N, dtype=torch.bool)
    keep[[3, 7, 30]] = True
    x = random(4, D, seed=3)
    for reading in READINGS:  # the reading itself is derived from all of E
        space = EmbeddingSpace(E, vocabulary, reading, keep)
        assert space.ids.tolist() == [3, 7, 30]
        close(space.project(x), (x @ reading_matrix(E, reading))[:, [3, 7, 30]])
        close(space.project(x[1]), (x[1] @ reading_matrix(E, reading))[[3, 7, 30]])


def test_lengths_of_kept_columns(E, vocabulary):
    few = torch.arange(N) % 5 == 0
    for keep, reading in ((few, "centred"), (~few, "centred"), (None, "transpose")):
        space = EmbeddingSpace(E, vocabulary, reading, keep)
        R = reading_matrix(E, reading).numpy()[:, space.ids]
        assert space.lengths().shape == space.ids.shape
        close(space.lengths(), np.sqrt((R**2).sum(0)))


def test_default_keep_is_the_vocabularys(E, vocabulary):
    space = EmbeddingSpace(E, vocabulary)
    assert space.ids.tolist() == vocabulary.keep().nonzero().flatten().tolist()
    assert 0 not in space.ids  # <unk>


def test_remove_reaches_the_reading(E, vocabulary):
    everything = torch.ones(N, dtype=torch.bool)
    space = EmbeddingSpace(E, vocabulary, "top-removed", everything, remove=1)
    close(space.R, reading_matrix(E, "top-removed", 1))
    assert EmbeddingSpace(E, vocabulary, keep=everything).R is E  # no copy


@pytest.mark.parametrize("by_magnitude", [False, True])
def test_top_is_the_dense_top(E, vocabulary, by_magnitude):
    space, x = EmbeddingSpace(E, vocabulary, "centred"), random(11, D, seed=4)
    dense = x.numpy() @ (E.numpy() - E.numpy().mean(1, keepdims=True))
    ranked = np.where(vocabulary.keep(), np.abs(dense) if by_magnitude else dense, -np.inf)
    expected = np.argsort(-ranked)[:, :5]
    scores, ids = space.top(x, 5, by_magnitude=by_magnitude)
    assert ids.tolist() == expected.tolist()
    close(scores, np.take_along_axis(dense, expected, 1))
    assert by_magnitude == bool((scores < 0).any())
    for batch in (1, 4, 11):
        parts = space.top(x, 5, batch, by_magnitude)
        assert torch.equal(parts[1], ids)
        close(parts[0], scores)
    one = space.top(x[2], 5, by_magnitude=by_magnitude)
    assert one[1].tolist() == expected[2].tolist() and one[0].shape == (5,)


def test_top_of_no_rows(E, vocabulary):
    scores, ids = EmbeddingSpace(E, vocabulary).top(random(0, D), 5)
    assert scores.shape == ids.shape == (0, 5)


def test_words(E, vocabulary):
    space, x = EmbeddingSpace(E, vocabulary), random(D, seed=5)
    assert space.words(x, 4) == [vocabulary.shown[i] for i in space.top(x, 4)[1]]
    assert len(space.words(x)) == 10


def test_errors_of_the_space(E, vocabulary):
    space, n = EmbeddingSpace(E, vocabulary), int(vocabulary.keep().sum())
    with pytest.raises(ValueError, match=f"E has {N - 1} columns, the vocabulary {N} items"):
        EmbeddingSpace(E[:, 1:], vocabulary)
    with pytest.raises(ValueError, match=rf"keep has shape \(3,\), expected \({N},\)"):
        EmbeddingSpace(E, vocabulary, keep=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="no reading 'pca'"):
        EmbeddingSpace(E, vocabulary, "pca")
    with pytest.raises(ValueError, match=rf"5 entries.*d = {D}: shape \(2, 5\)"):
        space.project(random(2, 5))
    for k in (0, n + 1):
        with pytest.raises(ValueError, match=f"k = {k}.*between 1 and the {n} items"):
            space.top(random(2, D), k)
    for value in (float("nan"), float("inf")):
        damaged, x = E.clone(), random(2, D)
        damaged[1, 2] = x[1, 1] = value
        with pytest.raises(ValueError, match="E has NaN or infinite"):
            EmbeddingSpace(damaged, vocabulary)
        with pytest.raises(ValueError, match="vectors have NaN or infinite"):
            space.top(x, 3)


# ---- tables


def test_table_scores_are_standard_deviations(E, vocabulary):
    space, x = EmbeddingSpace(E, vocabulary), random(2, D, seed=6)
    table = space.table({"first": x[0], "second": x[1]}, k=4, title="Two")
    assert list(table.columns) == ["first", "second"] and table.title == "Two"
    for name, vector in (("first", x[0]), ("second", x[1])):
        scores = space.project(vector).numpy()
        z = np.sort((scores - scores.mean()) / scores.std(ddof=1))[::-1][:4]
        assert [word for word, _ in table.columns[name]] == space.words(vector, 4)
        close([score for _, score in table.columns[name]], z)


def test_table_of_a_zero_vector(E, vocabulary):
    table = EmbeddingSpace(E, vocabulary).table({"x": torch.zeros(D, dtype=E.dtype)}, k=3)
    assert [score for _, score in table.columns["x"]] == [0.0] * 3


def test_errors_of_tables_and_words(E, vocabulary):
    space = EmbeddingSpace(E, vocabulary)
    with pytest.raises(ValueError, match="k = 99.*between 1 and"):
        space.table({"x": random(D)}, k=99)
    with pytest.raises(ValueError, match=rf"one vector \(d,\), got 'x' of shape \(2, {D}\)"):
        space.table({"x": random(2, D)})
    with pytest.raises(ValueError, match=rf"one vector \(d,\), got of shape \(2, {D}\)"):
        space.words(random(2, D))


TABLE = WordTable({"L1N2": [("<b>&", 2.345), ("film", -1.0)], "a < b": [("x", 10.0), ("yy", 0.04)]},
                  "A & B")


def test_text_of_a_table():
    assert repr(TABLE) == ("A & B\n"
                           "L1N2       a < b\n"
                           "<b>& 2.3   x 10.0\n"
                           "film -1.0  yy 0.0")
    assert repr(WordTable({"n": [("word", 1.0)]})) == "n\nword 1.0"


def test_html_of_a_table_is_escaped():
    page = TABLE._repr_html_()
    assert "&lt;b&gt;&amp;" in page and "<b>" not in page
    assert "a &lt; b</th>" in page and "<caption>A &amp; B</caption>" in page
    assert page.count("<tr>") == 3 and page.count("<td") == 4 and page.count("<th ") == 2
    assert page.index("2.3") < page.index("10.0") < page.index("-1.0") < page.index("yy")
    assert "<caption>" not in WordTable(TABLE.columns)._repr_html_()


def test_one_thread_gives_the_threads_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        1 / 0
    assert torch.get_num_threads() == before
