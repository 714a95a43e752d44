"""Noise in place of states."""

import torch
from tiny_models import close, random, tiny_model

from embspace_helpers.experiments.noise import noise_in_place, token_noise
from embspace_helpers.experiments.stitching import Stream, streams


def test_noise_has_the_mean_and_spread_of_the_states_at_real_positions():
    mask = torch.ones(40, 50, dtype=torch.long)
    mask[:20, 30:] = 0
    states = random(40, 50, 6) * 3 + 2 + 100 * (1 - mask[..., None])  # padding is far away
    stream = Stream(torch.arange(40), torch.randint(0, 900, (40, 50)), mask, {2: states})
    for change in (noise_in_place, token_noise):
        (found,) = change([stream])
        real, drawn = (s.states[2][mask.bool()] for s in (stream, found))
        close(drawn.mean(0), real.mean(0), 0.3)
        close(drawn.std(0), real.std(0), 0.1)
        assert (drawn - real).abs().mean() > 1


def test_token_noise_is_one_vector_a_token_and_free_noise_is_not():
    model = tiny_model("gpt2")
    found = list(streams(model, [[3, 4, 3, 5, 3], [4, 3]], [1], batch=1))
    short, long = (s.states[1][0] for s in token_noise([found[0], found[1]]))
    assert torch.equal(long[0], long[2]) and torch.equal(long[0], long[4])
    assert not torch.equal(long[0], long[1]) and len(short) == 2
    (free,) = noise_in_place(found[1:])
    assert not torch.equal(free.states[1][0, 0], free.states[1][0, 2])
    again = next(noise_in_place(found[1:]))
    assert torch.equal(again.states[1], free.states[1])
