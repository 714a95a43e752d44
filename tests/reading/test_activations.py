"""Capturing and changing activations, on tiny random models of every type in the table."""

import pytest
import torch
from tiny_configs import BERT_KINDS, DECODERS, MODELS, POST_NORM
from tiny_models import tiny
from transformers.activations import ACT2FN

from embspace_helpers.reading.activations import (
    capture,
    final_states,
    hooked,
    sample_places,
    set_neurons,
    set_values,
    tokenize,
)
from embspace_helpers.reading.model import Model
from embspace_helpers.reading.parameters import Parameters

TEXTS = ["1 2 3 4 5 6", "7 8 9", "3 1 4 1 5 9 2 6 5"]


class Tokenizer:
    """Numbers in a text are its ids."""

    def __call__(self, texts, truncation, max_length):
        return {"input_ids": [[int(w) for w in text.split()][:max_length] for text in texts]}


def as_read(model, tokenizer=None):
    return Model(model, tokenizer or Tokenizer())


def named(kind):
    return as_read(tiny(kind))


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


def run(kind, **options):
    return capture(named(kind), TEXTS, **{"positions": None, "batch": 2} | options)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def zero_if_none(bias):
    return 0.0 if bias is None else bias


def test_positions_come_in_reading_order(kind):
    record = run(kind)
    assert record.token.tolist() == [int(w) for text in TEXTS for w in text.split()]
    assert record.text.tolist() == [0] * 6 + [1] * 3 + [2] * 9
    assert record.position.tolist() == [*range(6), *range(3), *range(9)]
    assert len(record) == 18


def test_neurons_are_the_activation_of_the_keys(kind):
    record, config = run(kind), tiny(kind).config
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    act = ACT2FN[next(getattr(config, name) for name in names if getattr(config, name, None))]
    first, *second = record.keys.values()
    close(record.neurons, act(first) * (second[0] if second else 1))


@pytest.mark.parametrize("kind", DECODERS)
def test_coefficients_times_values_are_what_a_layer_writes(kind):
    record, p = run(kind), Parameters(tiny(kind))
    assert set(record.keys) == set(p.key_kinds)
    attention = record.subheads[1] @ p.vectors("W_O", 1) + zero_if_none(p.b_O(1))
    ff = record.neurons[1] @ p.V(1) + zero_if_none(p.b_V(1))
    block = p.blocks[1]
    if kind in POST_NORM:
        attention = block.post_attention_layernorm(attention)
        ff = block.post_feedforward_layernorm(ff)
    assert attention.std() > 0.05 and ff.std() > 0.05
    close(record.states[1], record.states[0] + attention + ff)
    close(p.written("ff", 1, record.neurons[1]), ff)
    close(p.written("attention", 1, record.subheads[1]), attention)


def test_values_are_what_single_words_move(kind):
    """A text of one item: every head can only look at it, so its subheads are what is offered."""
    model = tiny(kind)
    p, record = Parameters(model), capture(as_read(model), ["5", "9"], positions=None)
    offered = record.values.unflatten(-1, (p.H_kv, p.d_h)).repeat_interleave(p.H // p.H_kv, 2)
    assert record.values.shape == (2, 2, p.H_kv * p.d_h)
    close(offered.flatten(2), record.subheads)


@pytest.mark.parametrize("kind", BERT_KINDS)
def test_the_last_state_of_an_encoder(kind):
    model, record = tiny(kind), run(kind)
    for t, text in enumerate(TEXTS):
        ids = torch.tensor([[int(w) for w in text.split()]])
        expected = model.base_model(ids).last_hidden_state[0].detach()
        close(record.states[1][record.text == t], expected)


def test_batches_and_samples_change_nothing(kind):
    whole = run(kind)
    single, sample = run(kind, batch=1), run(kind, positions=5, seed=3)
    for name in ("states", "neurons", "subheads"):
        close(getattr(single, name), getattr(whole, name))
    at = [(whole.text == t).logical_and(whole.position == p).nonzero().item()
          for t, p in zip(sample.text, sample.position)]
    assert len(sample) == 5 and at == sorted(at)
    close(sample.states, whole.states[:, at])
    assert sample.token.tolist() == whole.token[at].tolist()


def test_only_what_is_asked_for():
    record = run("gpt2", keep=("neurons",))
    assert record.states is record.subheads is record.values is None and record.keys == {}
    assert record.neurons.shape == (2, 18, 20)
    with pytest.raises(ValueError, match="cannot keep 'heads': there are states, keys"):
        run("gpt2", keep=("heads",))


def test_length_cuts_texts_and_skip_their_beginnings():
    assert run("gpt2", length=4, skip=2).position.tolist() == [2, 3, 2, 2, 3]
    with pytest.raises(ValueError, match="no positions: all 3 texts have at most 9 tokens"):
        run("gpt2", skip=9)


def test_sample_places():
    drawn = sample_places([50, 50], 30, seed=1)
    assert drawn.shape == (30, 2) and len({tuple(p) for p in drawn.tolist()}) == 30
    assert drawn.tolist() == sorted(drawn.tolist())
    assert torch.equal(drawn, sample_places([50, 50], 30, seed=1))
    assert not torch.equal(drawn, sample_places([50, 50], 30, seed=2))
    assert len(sample_places([2, 3], 30)) == 5


def test_texts_are_cut_to_what_model_and_tokenizer_take():
    model, tokenizer, text = tiny("gpt2"), Tokenizer(), " ".join(["7"] * 50)  # 32 positions
    assert [len(tokenize(as_read(model, tokenizer), [text], n)[0]) for n in (5, 40)] == [5, 32]
    tokenizer.model_max_length = 9
    assert len(tokenize(as_read(model, tokenizer), [text], 40)[0]) == 9


@pytest.mark.parametrize("kind, most", [
    ("bert", 32), ("roberta", 30), ("distilbert", 32), ("mpnet", 30), ("llama", 32)])
def test_a_text_of_all_positions_can_be_run_and_no_longer_one(kind, most):
    model = tiny(kind)
    row, = tokenize(as_read(model), [" ".join(["7"] * 50)], 40)
    assert len(row) == most
    model(torch.tensor([row]))
    if kind != "llama":  # rotary positions go on
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.tensor([[*row, 7]]))


@pytest.mark.parametrize("texts, message", [
    ([], "list of strings"), (["1 2", "", "3"], r"texts \[1\] are empty")])
def test_texts_that_cannot_be_run(texts, message):
    with pytest.raises(ValueError, match=message):
        tokenize(named("gpt2"), texts, 5)


def test_hooks_are_removed_even_after_an_error():
    model = tiny("gpt2")
    module = model.base_model.h[0]

    def fail(*_):
        raise RuntimeError("in the hook")

    with pytest.raises(RuntimeError, match="in the hook"), hooked([(module, fail, False),
                                                                  (module, fail, True)]):
        model(torch.tensor([[1, 2]]))
    one, far = torch.tensor([0]), torch.tensor([99])
    with pytest.raises(IndexError), set_neurons(as_read(model), 0, one, far, one, 0.0):
        model(torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="batch = 0"):
        capture(as_read(model), ["1 2", "1 39"], batch=0)
    for part in model.modules():
        assert not part._forward_hooks and not part._forward_pre_hooks


# ---- changes


@pytest.mark.parametrize("number", [-1, 99])
def test_neurons_and_heads_that_do_not_exist(number):
    model = tiny("gpt2")
    p, one = Parameters(model), torch.tensor([0])
    wrong = torch.tensor([number])
    with (pytest.raises(ValueError, match=f"neurons are 0 to {p.d_ff - 1}, but .{number}. were"),
          set_neurons(as_read(model), 0, one, one, wrong, 0.0)):
        pass
    with (pytest.raises(ValueError, match=f"key-value heads are 0 to {p.H_kv - 1}, but"),
          set_values(as_read(model), 0, one, one, number)):
        pass


@pytest.mark.parametrize("positions, skip", [(0, 0), (-5, 0), (3, -1)])
def test_numbers_of_positions_that_make_no_sense(positions, skip):
    with pytest.raises(ValueError, match="must be at least [01]"):
        sample_places([4, 5], positions, skip)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_neuron_set_to_a_value_writes_so_much_more_of_its_row(kind):
    model, before = tiny(kind), run(kind, batch=3)
    p = Parameters(model)
    # the batch holds the texts by length: 1, 0, 2
    row, place = torch.tensor([1, 2]), torch.tensor([4, 0])
    with set_neurons(as_read(model), 0, row, place, torch.tensor([3, 7]), torch.tensor([0.0, 5.0])):
        after = run_model(model)
    moved = after.states[0] - before.states[0]
    changed = before.neurons[0].clone()
    changed[4, 3], changed[9, 7] = 0, 5
    expected = torch.zeros_like(moved)
    expected[4] = -before.neurons[0, 4, 3] * p.V(0)[3]
    expected[9] = (5.0 - before.neurons[0, 9, 7]) * p.V(0)[7]
    if kind in POST_NORM:
        expected = p.written("ff", 0, changed) - p.written("ff", 0, before.neurons[0])
    close(moved, expected)
    close(run_model(model).states, before.states)  # and nothing stays behind


def run_model(model):
    return capture(as_read(model), TEXTS, positions=None, batch=3)


@pytest.mark.parametrize("kind", MODELS)
def test_a_head_whose_values_are_zero_moves_nothing(kind):
    model = tiny(kind)
    p, before = Parameters(model), run(kind, batch=3)
    lengths = [3, 6, 9]  # the texts by length
    row = torch.tensor([r for r, n in enumerate(lengths) for _ in range(n)])
    place = torch.tensor([i for n in lengths for i in range(n)])
    head = p.H_kv - 1
    with set_values(as_read(model), 0, row, place, head):
        after = run_model(model)
    changed = torch.tensor([p.kv_head(h) == head for h in range(p.H)]).repeat_interleave(p.d_h)
    assert before.subheads[0][:, changed].abs().mean() > 0.01
    close(after.subheads[0][:, changed], torch.zeros_like(after.subheads[0][:, changed]))
    close(after.subheads[0][:, ~changed], before.subheads[0][:, ~changed])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_value_is_missed_only_from_its_place_on(kind):
    model, before = tiny(kind), run(kind, batch=3)
    with set_values(as_read(model), 0, torch.tensor([2]), torch.tensor([4]), torch.tensor([0])):
        after = run_model(model)
    moved = (after.subheads[0] - before.subheads[0]).abs().amax(1)
    assert moved[: 9 + 4].max() == 0 and (moved[9 + 4 :] > 1e-4).all()


@pytest.mark.parametrize("kind", DECODERS)
def test_final_states_give_the_logits_with_and_without_a_change(kind):
    model = tiny(kind)
    p, ids = Parameters(model), [[int(w) for w in text.split()] for text in TEXTS]
    place = torch.tensor([5, 1, 3])
    plain = final_states(as_read(model), ids, place, batch=2)
    for i, row in enumerate(ids):
        close(p.logits(plain[i]), model(torch.tensor([row])).logits[0, place[i]].detach())
    neuron = torch.tensor([2, 9, 4])

    def off(chosen):
        rows = torch.arange(len(chosen))
        return set_neurons(as_read(model), 1, rows, place[chosen], neuron[chosen], 0.0)

    changed = final_states(as_read(model), ids, place, off, batch=2)
    for i, row in enumerate(ids):
        with set_neurons(as_read(model), 1, 0, place[i], neuron[i], 0.0):
            close(p.logits(changed[i]), model(torch.tensor([row])).logits[0, place[i]].detach())
    assert (changed - plain).abs().amax(1).min() > 1e-7  # little where a GELU is far below 0


def test_final_states_at_several_places_of_a_row():
    model, ids = tiny("gpt2"), [[1, 2, 3, 4], [5, 6]]
    found = final_states(as_read(model), ids, torch.tensor([[3, 0], [1, 1]]))
    assert found.shape == (2, 2, 12)
    for i, place in enumerate(([3, 1], [0, 1])):
        close(found[:, i], final_states(as_read(model), ids, torch.tensor(place)))


def test_final_states_refuses_places_outside():
    with pytest.raises(ValueError, match="1 of 2 positions lie outside"):
        final_states(named("gpt2"), [[1, 2], [3]], torch.tensor([1, 1]))


def test_some_layers_are_kept_and_the_others_refused(kind):
    whole, some = run(kind), run(kind, layers=[1])
    for name in ("states", "neurons", "subheads", "values"):
        close(getattr(some, name)[1], getattr(whole, name)[1])
        close(getattr(some, name)[-1], getattr(whole, name)[1])
        close(getattr(some, name)[1, 3], getattr(whole, name)[1, 3])
    assert len(some.states) == 2 and some.states.dtype == whole.states.dtype
    with pytest.raises(ValueError, match="layer 0 was not kept: .* asked for 1"):
        some.states[0]
    with pytest.raises(ValueError, match="no layer 2: layers are 0 to 1"):
        run(kind, layers=[2])
