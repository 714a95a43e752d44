"""What can be said of a stitch without labels, and the texts that come from nowhere."""

import torch
from tiny_models import close, random, tiny, tiny_model

from embspace_helpers import Model
from embspace_helpers.experiments.kernels import Translation
from embspace_helpers.experiments.label_free import (
    closeness,
    foresight,
    likelihood,
    own_text,
    random_tokens,
    zero_point,
)
from embspace_helpers.experiments.stitching import streams
from embspace_helpers.reading.activations import padded

TEXTS = ["1 2 3 4 5", "6 7", "9 9 9 8"]


def identity(d):
    return Translation(torch.eye(d), torch.zeros(d))


def test_likelihood_is_that_of_the_language_model():
    model = tiny_model("gpt2")
    tokens = model.tokens(TEXTS)
    found = likelihood(model, streams(model, tokens, batch=2), 1, identity(12), last=1)
    ids, mask = padded(tokens)
    with torch.no_grad():
        scores = model.model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    expected = [scores[i, t, ids[i, t + 1]] for i, row in enumerate(tokens)
                for t in range(len(row) - 1)]
    close(found, torch.stack(expected).mean(), 1e-6)


def test_tokens_of_the_host_that_the_guest_lacks_do_not_count():
    model = tiny_model("gpt2")
    tokens = model.tokens(["1 2 3 4 5"])
    ids = torch.arange(40)
    ids[[3, 5]] = -1
    found = likelihood(model, streams(model, tokens), 1, identity(12), last=1, ids=ids)
    with torch.no_grad():
        scores = model.model(torch.tensor(tokens)).logits[0].log_softmax(-1)
    close(found, (scores[0, tokens[0][1]] + scores[2, tokens[0][3]]) / 2, 1e-6)


def test_the_zero_point_moves_the_mean():
    own, stitched = random(2, 50), 3 * random(2, 70, seed=1) + 4
    moved = stitched - zero_point(own, stitched)
    close(moved.mean(1), own.mean(1))
    close(moved - moved.mean(1, keepdim=True), stitched - stitched.mean(1, keepdim=True))


def test_a_model_writes_text_of_its_own():
    model = Model(tiny("gpt2").float(), tiny_model("gpt2").tokenizer)
    found = own_text(model, 5, 7, seed=1)
    assert [len(row) for row in found] == [7] * 5 and max(map(max, found)) < 40
    assert found == own_text(model, 5, 7, seed=1) != own_text(model, 5, 7, seed=2)


def test_foresight_agrees_with_the_model_itself():
    model = tiny_model("gpt2")
    tokens = model.tokens(TEXTS)
    found = list(streams(model, tokens, batch=2))
    with torch.no_grad():
        logits = [model.model(input_ids=s.ids, attention_mask=s.mask).logits for s in found]
    own = [x.argmax(-1) for x in logits]
    told = foresight(model, found, 1, identity(12), own, last=1)
    assert told["agreement"] == 1
    close(told["likelihood"], likelihood(model, found, 1, identity(12), last=1), 1e-6)
    best = torch.cat([x.log_softmax(-1).amax(-1)[:, :-1][s.mask[:, 1:].bool()]
                      for x, s in zip(logits, found)])
    close(told["confidence"], best.mean(), 1e-6)
    assert foresight(model, found, 1, identity(12), [x + 1 for x in own], 1)["agreement"] == 0


def test_closeness_is_the_frechet_distance():
    X = random(4000, 3)
    assert abs(closeness(X, X)) < 1e-9
    close(closeness(X + 2, X), -12 / X.T.cov().trace(), 1e-6)  # the means alone differ
    close(closeness(3 * X, X), -(4 + 9 * (X.mean(0) * 2 / 3).square().sum() / X.T.cov().trace()
                                 * 1), 1e-2)  # the spread alone: (3 - 1)^2 of the variance
    mixed = X @ torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=X.dtype)
    assert closeness(mixed, X) < -0.1


def test_random_tokens_come_as_often_as_in_the_texts():
    model = tiny_model("gpt2")
    rows = random_tokens(model, 5, 20)
    assert [len(row) for row in rows] == [20] * 5
    assert rows == random_tokens(model, 5, 20) != random_tokens(model, 5, 20, seed=1)
    assert len(random_tokens(model, 1, 400)[0]) == model.parameters.positions == 32
    counts = [0] * model.parameters.e
    counts[3], counts[7] = 3, 1
    model = Model(model.model, model.tokenizer, model.name)
    model.vocabulary.counts = torch.tensor(counts)
    drawn = torch.tensor(random_tokens(model, 50, 40)).flatten()
    assert set(drawn.tolist()) == {3, 7} and abs((drawn == 3).float().mean() - 0.75) < 0.05
