"""Stitched tiny models, against a plain pass of the layers one by one."""

import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny_models import byte_level, close, random, tiny, tiny_model, word_level

from embspace_helpers import Model, capture
from embspace_helpers.experiments.classifiers import Classifier, predict
from embspace_helpers.experiments.kernels import Translation, embedding_kernel
from embspace_helpers.experiments.stitching import (
    ALL,
    common_ends,
    displacement_only,
    margin,
    margins,
    paired_states,
    pairs_right,
    positions,
    run_from,
    side_by_side,
    stitch,
    streams,
)

TEXTS = ["1 2 3 4 5", "6 7", "9 9 9 8"]


def identity(d):
    return Translation(torch.eye(d), torch.zeros(d))


def a_classifier(kind, seed=0):
    classifier = Classifier(tiny_model(kind), 1, seed).double().eval()
    return classifier.requires_grad_(False)


def test_streams_are_the_states_behind_the_blocks_before(kind):
    model = tiny_model(kind)
    found = list(streams(model, model.tokens(TEXTS), batch=2))
    cache = capture(model, TEXTS, None, "states")
    order = torch.cat([s.texts for s in found])
    assert sorted(order.tolist()) == [0, 1, 2]
    for layer in range(model.parameters.L):
        expected = torch.cat([cache.states[layer][cache.text == t] for t in order])
        close(positions(found, layer + 1), expected)


def test_only_the_layers_asked_for_are_kept(kind):
    model = tiny_model(kind)
    tokens = model.tokens(TEXTS)
    (found,) = streams(model, tokens, [1])
    assert set(found.states) == {1}
    assert found.mask.sum(1).tolist() == sorted(map(len, tokens))


def test_all_layers_stand_side_by_side():
    model = tiny_model("gpt2")
    (found,) = side_by_side(streams(model, model.tokens(TEXTS), [2, 0]))
    close(positions([found], ALL), torch.cat([positions([found], i) for i in (0, 2)], -1))
    first = Translation(torch.cat([torch.eye(12), torch.zeros(12, 12)]), torch.zeros(12))
    close(first(found.states[ALL]), found.states[0])


def test_a_model_stitched_to_itself_is_the_classifier(kind):
    model, classifier = tiny_model(kind), a_classifier(kind)
    d, L = model.parameters.d, model.parameters.L
    every = {layer: (layer, identity(d)) for layer in range(L + 1)}
    found = stitch(model, classifier, TEXTS, every, last=1)
    praise = predict(classifier, TEXTS)
    close(found[L - 1][0].sigmoid(), praise, 1e-5)
    assert abs(found[L - 2][0].sigmoid() - praise).max() > 1e-3
    whole = stitch(model, classifier, TEXTS, {0: (L, identity(d))}, last=0)[0]
    close(whole[0].sigmoid(), praise, 1e-5)


def test_last_layers_run_as_in_the_model(kind):
    model = tiny_model(kind)
    (found,) = streams(model, model.tokens(TEXTS))
    ids, mask = found.ids, found.mask
    with torch.no_grad():
        expected = model.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    for last in range(model.parameters.L + 1):
        states = run_from(model, found.states[model.parameters.L - last], mask, last)
        close(states[mask.bool()], expected[mask.bool()])
    assert len(list(model.parameters.entry.layers(model.model.base_model))) == model.parameters.L


def test_an_error_leaves_the_guest_whole(kind):
    model = tiny_model(kind)
    with pytest.raises(Exception, match="."):
        run_from(model, random(1, 3, model.parameters.d + 1), torch.ones(1, 3).long(), 1)
    assert list(model.parameters.entry.layers(model.model.base_model)) == model.parameters.blocks
    assert not any(block._forward_pre_hooks for block in model.parameters.blocks)


def test_a_stitch_is_kernel_layers_and_head_by_hand():
    host, classifier = tiny_model("qwen2"), a_classifier("gpt2")
    kernel = embedding_kernel(host, tiny_model("gpt2"))
    found = stitch(host, classifier, TEXTS[:1], {"it": (1, kernel)}, last=1)["it"]
    states = capture(host, TEXTS[:1], None, "states").states[0]  # (positions, d_B)
    block = classifier.model.parameters.blocks[1]
    with torch.no_grad():
        causal = torch.full((len(states), len(states)), -torch.inf).triu(1).double()[None, None]
        out = block((states @ kernel.matrix.double())[None], attention_mask=causal)
        out = out[0] if isinstance(out, tuple) else out
        logits = classifier.head(out.reshape(-1, 12)).mean(0)
    close(found[0, 0], logits[1] - logits[0], 1e-5)


def test_several_classifiers_and_stitches_at_once():
    host, many = tiny_model("qwen2"), [a_classifier("gpt2", s) for s in range(3)]
    wanted = {"one": (1, embedding_kernel(host, tiny_model("gpt2"))),
              "two": (2, Translation(random(16, 12).float(), torch.ones(12)))}
    found = stitch(host, many, TEXTS, wanted, last=1)
    for key, value in wanted.items():
        assert found[key].shape == (3, 3)
        for row, classifier in zip(found[key], many):
            close(row, stitch(host, classifier, TEXTS, {key: value}, last=1)[key][0])
    again = margins(streams(host, host.tokens(TEXTS), batch=1), 3, many, wanted, last=1)
    close(again["two"], found["two"], 1e-6)


def test_padding_does_not_count():
    classifier = a_classifier("gpt2")
    states, mask = random(1, 5, 12), torch.tensor([[1, 1, 1, 0, 0]])
    close(margin(classifier, states, mask, 1), margin(classifier, states[:, :3], mask[:, :3], 1))


def test_pairs_right_do_not_depend_on_zero():
    found, praise = random(2, 60), random(60, seed=1) > 0.3
    for row, share in zip(found, pairs_right(found, praise)):
        close(share, roc_auc_score(praise, row), 1e-6)
    assert torch.equal(pairs_right(found + 9, praise), pairs_right(found, praise))


def test_only_the_displacement_is_left():
    before, classifier = tiny_model("gpt2"), a_classifier("gpt2")
    block = classifier.model.parameters.blocks[1]
    moved = random(*block.mlp.c_fc.weight.shape)
    block.mlp.c_fc.weight += moved
    found = displacement_only(classifier, before).model.parameters.blocks
    close(found[1].mlp.c_fc.weight, moved)
    assert not found[0].mlp.c_fc.weight.any() and found[1].mlp.c_fc.bias.any()
    assert not torch.equal(block.mlp.c_fc.weight, moved)  # a copy was changed


def test_places_where_tokens_of_both_end():
    one = Model(tiny("gpt2"), byte_level([" ", "a", "b", "c"]))
    two = Model(tiny("mistral"), word_level(["?", "ab", "c"], unk_token="?"))
    texts = ["ab c", "c ab c"]
    found = common_ends(one, two, texts)  # one reads byte by byte, two word by word
    assert found.tolist() == [[0, 1, 0], [0, 3, 1], [1, 0, 0], [1, 3, 1], [1, 5, 2]]
    states = list(streams(one, one.tokens(texts), [1], batch=1))
    picked = paired_states(states, 1, found[:, :2])
    cache = capture(one, texts, None, "states").states[0]
    close(picked, cache[[1, 3, 4, 7, 9]])


def test_wrong_input_is_told():
    model = tiny_model("gpt2")
    with pytest.raises(ValueError, match="no number of last layers 3"):
        run_from(model, random(1, 3, 12), torch.ones(1, 3).long(), 3)
    with pytest.raises(ValueError, match="no layer 7"):
        list(streams(model, model.tokens(TEXTS), [7]))
