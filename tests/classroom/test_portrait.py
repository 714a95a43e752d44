"""The portrait of a model: measured on tiny models of several architectures, and drawn."""

import matplotlib.pyplot as plt
import pytest
import torch
from tiny_configs import ENCODERS
from tiny_models import close, random, tiny, word_level

from embspace_helpers import FactoredMatrix, Model
from embspace_helpers.classroom import portrait as module
from embspace_helpers.classroom.plots import describe
from embspace_helpers.classroom.portrait import (
    ablation_of,
    chosen_layers,
    copying_of_heads,
    draw,
    facts,
    portrait,
    text_of,
)
from embspace_helpers.experiments.readability import census, coherence, reading_of
from embspace_helpers.reading.activations import capture
from embspace_helpers.reading.judge import Judge

WORDS = [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(38)]
TEXTS = [" ".join(WORDS[start:start + 9:step]) for start, step in ((0, 1), (5, 1), (20, 1), (9, 2))]
IDS = torch.arange(1, 39)


def tiny_model(kind):
    """A tiny model whose tokens are words."""
    ends = ("cls_token", "sep_token") if kind in ENCODERS else ("bos_token", "eos_token")
    tokenizer = word_level(["<s>", *WORDS, "</s>"], **dict(zip(ends, ("<s>", "</s>"))))
    return Model(tiny(kind), tokenizer)


@pytest.fixture(scope="module")
def judge():
    return Judge(random(6, 38, seed=5), IDS, 40, torch.arange(38))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "gemma2", "bert", "modernbert"])
def test_a_portrait_of_every_kind(kind, judge):
    model = tiny_model(kind)
    p, found = model.parameters, portrait(model, TEXTS, judge, 10)
    assert set(found.shares["group"]) == {p.key_kinds[0], "V"}
    assert len(found.shares) == 3 * p.L and (found.shares["sign"] == "+").all()
    assert found.copying.shape == (p.L, p.H)
    assert [line.split("N")[0] for line in found.neurons] == ["L0", "L1", "L1"]
    assert (found.effect is None) == (not p.entry.causal)
    figure = draw(found)
    lines = text_of(found)
    assert len(lines) == 6 and all(line in figure.get_supxlabel() for line in lines)
    assert "keys" in describe(figure) and lines[0] in describe(figure)
    plt.close(figure)


def test_facts():
    assert facts(tiny_model("gpt_neox")) == (
        "GPT-NeoX, decoder · 2 layers · d = 12 · 20 neurons · 3 heads · LayerNorm · "
        "rotary positions · untied · parallel blocks")
    assert facts(tiny_model("qwen2")).startswith(
        "Llama, decoder · 2 layers · d = 16 · 20 neurons, gated · 4 heads in 2 groups · RMSNorm")
    assert "encoder" in facts(tiny_model("bert")) and "in the stream" in facts(tiny_model("bert"))


def test_layers_are_spread_from_the_first_to_the_last(monkeypatch):
    model = tiny_model("gpt2")
    assert chosen_layers(model) == [0, 1] and chosen_layers(model, 1) == [0]
    monkeypatch.setattr(model.parameters, "L", 30)
    assert chosen_layers(model) == [0, 6, 12, 17, 23, 29]


def test_the_shares_are_the_census_and_the_neuron_its_most_coherent(judge):
    model = tiny_model("gpt2")
    found = portrait(model, TEXTS, judge, 20)
    expected = census(model, ("K",), ("transpose", "dictionary"), [1], 20, TEXTS, judge)
    shares = found.shares.query("group == 'K' and layer == 1")
    assert shares["vectors"].tolist() == expected.query("sign == '+'")["vectors"].tolist()
    better = shares.loc[shares["vectors"].idxmax(), "reading"]
    space = reading_of(model, "K", 1, better, TEXTS, judge.keep)
    best = coherence(space, judge, model.parameters.K(1))[0].argmax()
    assert found.neurons[-1].startswith(f"L1N{best} looks for")
    assert ", ".join(space.words(model.parameters.K(1)[best], 6)) in found.neurons[-1]


def test_a_head_that_writes_what_its_dictionary_reads_copies(monkeypatch):
    model = tiny_model("gpt_neox")
    p = model.parameters
    copying = copying_of_heads(model, TEXTS)
    read, out = model.dictionary(0, TEXTS, "attention"), model.space(output=True)
    U = torch.linalg.pinv(read.columns().T)  # (d, e_kept): reads each word where it stands
    W = U @ out.columns().T @ torch.linalg.pinv(out.columns() @ out.columns().T)  # (d, d)
    one = FactoredMatrix(W, torch.eye(p.d).double())
    monkeypatch.setattr(p, "W_VO", lambda layer, head: one)
    assert copying_of_heads(model, TEXTS)[0, 0] > copying.max() + 0.5


def test_the_ablated_neurons_own_words_fall_by_arithmetic_in_the_last_layer():
    model = tiny_model("gpt2")
    p = model.parameters
    with torch.no_grad():  # no norm in the way: its value is a column of E, with a large factor
        p.V(1)[3] = 3 * p.E[:, 7]
    cache = capture(model, TEXTS, None, ("states", "neurons"), skip=1, layers=[1])
    own, others = ablation_of(model, cache, 1, 3)
    active = cache.neurons[1][:, 3].abs().max()
    assert active > 0.1 and own < others - 0.05
    close(ablation_of(model, cache, 1, 3), (own, others))


def test_drawing_an_encoder_says_why_nothing_was_ablated(judge):
    found = portrait(tiny_model("bert"), TEXTS, judge, 10)
    assert text_of(found)[-1].endswith("between the last state and the logits")
    assert module.LAYERS == 6
