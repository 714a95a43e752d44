"""Kernels and translations, against the products they stand for."""

import pytest
import torch
from tiny_models import byte_level, close, random, tiny, tiny_model

from embspace_helpers import Model
from embspace_helpers.experiments.kernels import (
    Translation,
    common_embeddings,
    embedding_kernel,
    fitted,
    matched,
    random_kernel,
    shuffled_kernel,
    word_kernel,
)

SINGLE = 1e-5  # kernels are kept in float32


@pytest.fixture(scope="module")
def pair():
    """A host of size 16 and a guest of size 12, of one vocabulary."""
    return tiny_model("qwen2"), tiny_model("gpt2")


def test_the_papers_kernel_is_the_pseudo_inverse(pair):
    host, guest = pair
    E_B, E_A = host.parameters.E_out, guest.parameters.E_out
    kernel = embedding_kernel(host, guest)
    close(kernel.matrix, E_B @ torch.linalg.pinv(E_A), SINGLE)
    assert kernel.matrix.shape == (16, 12) and not kernel.offset.any()
    h = random(3, 5, 16)
    close(kernel(h), h @ kernel.matrix.double())


def test_a_model_is_translated_into_itself_unchanged(pair):
    _, guest = pair
    close(embedding_kernel(guest, guest).matrix, torch.eye(12), SINGLE)
    close(word_kernel(guest, guest).matrix, torch.eye(12), SINGLE)


def test_weights_count_tokens_as_often_as_they_say(pair):
    host, guest = pair
    weights = torch.arange(40) % 3 + 1.0
    often = torch.repeat_interleave(torch.arange(40), weights.long())
    E_B, E_A = host.parameters.E_out[:, often], guest.parameters.E_out[:, often]
    close(embedding_kernel(host, guest, weights).matrix, E_B @ torch.linalg.pinv(E_A), SINGLE)
    close(word_kernel(host, guest, weights).matrix, torch.linalg.pinv(E_B.T) @ E_A.T, SINGLE)


def test_models_with_other_vocabularies_meet_in_the_tokens_they_share():
    first = Model(tiny("gpt2"), byte_level([f"Ġ{i}" for i in range(40)]))
    second = Model(tiny("mistral"), byte_level([f"Ġ{i}" for i in range(25, 65)]))
    E_B, E_A, ids = common_embeddings(second, first)
    assert ids.tolist() == list(range(25, 40))
    assert torch.equal(E_A, first.parameters.E_out[:, 25:])
    assert torch.equal(E_B, second.parameters.E_out[:, :15])
    close(embedding_kernel(second, first).matrix, E_B @ torch.linalg.pinv(E_A), SINGLE)


def test_matched_states_have_the_guests_mean_and_size(pair):
    host, guest = pair
    here, there = 3 + random(50, 16), random(70, 12, seed=1) * 2 - 1
    states = matched(embedding_kernel(host, guest), here, there)(here)
    close(states.mean(0), there.mean(0), SINGLE)
    close((states - states.mean(0)).square().sum(1).mean(),
          (there - there.mean(0)).square().sum(1).mean(), SINGLE)


def test_a_fitted_map_finds_an_affine_relation():
    matrix, offset, states = random(16, 12), random(12, seed=1), random(90, 16, seed=2)
    found = fitted(states, states @ matrix + offset, ridge=0)
    close(found.matrix, matrix, SINGLE)
    close(found.offset, offset, SINGLE)
    strong = fitted(states, states @ matrix + offset, ridge=1e9)
    assert strong.matrix.abs().max() < 1e-6
    close(strong.offset, (states @ matrix + offset).mean(0), SINGLE)


def test_a_shuffled_kernel_takes_words_for_others(pair):
    host, guest = pair
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    E_B, E_A = host.parameters.E_out[:, order], guest.parameters.E_out
    close(shuffled_kernel(host, guest, 3).matrix, E_B @ torch.linalg.pinv(E_A), SINGLE)


def test_a_random_kernel_has_the_others_norm(pair):
    kernel = embedding_kernel(*pair)
    drawn = random_kernel(kernel, 1)
    close(drawn.matrix.norm(), kernel.matrix.norm(), SINGLE)
    assert not torch.equal(drawn.matrix, random_kernel(kernel, 2).matrix)


def test_wrong_input_is_told(pair):
    with pytest.raises(ValueError, match="states of size 12 and a kernel for size 16"):
        embedding_kernel(*pair)(random(2, 12))
    with pytest.raises(ValueError, match="4 states of the host and 5 of the guest"):
        fitted(random(4, 3), random(5, 3))
    with pytest.raises(ValueError, match="expected a loaded model"):
        embedding_kernel("twin-b", pair[1])
    assert Translation(torch.eye(2), torch.ones(2))(torch.zeros(1, 2)).tolist() == [[1, 1]]
