"""One object per model: what it gives, when it is made, and what it says about wrong names."""

import math

import pytest
import torch
from tiny_models import close, numbers, random, tiny, tiny_model

from embspace_helpers import Model, load
from embspace_helpers.reading import model as module
from embspace_helpers.reading.spaces import READINGS

TEXTS = ["5 7 9 11 13 2 4 6", "8 3 5 1 7 12 20 31"]


@pytest.fixture
def counted(monkeypatch):
    """Names of the parts that were made, in order, as often as they were."""
    made = []

    def count(name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, **options: (
            made.append(name), real(*given, **options))[1])

    for name in ("Parameters", "load_vocabulary", "Sums", "reading_space", "fit_dictionaries"):
        count(name)
    return made


def test_nothing_is_made_before_it_is_asked_for_and_all_of_it_once(counted):
    model = Model(tiny("gpt2"), numbers())
    assert counted == []
    assert model.parameters is model.parameters and counted == ["Parameters"]
    assert model.vocabulary is model.vocabulary and counted[1:] == ["load_vocabulary"]
    assert model.sums is model.sums and counted[2:] == ["Sums"]
    assert model.space() is model.space("transpose") and counted[3:] == ["reading_space"]
    assert model.space("orthogonal") is not model.space()
    assert model.space("top-removed", remove=2) is not model.space("top-removed")
    assert counted[4:] == ["reading_space"] * 3


def test_the_output_side_of_an_untied_model_is_a_space_of_its_own():
    tied, untied = tiny_model("gpt2"), tiny_model("gpt_neox")
    assert tied.space(output=True) is tied.space()
    space, p = untied.space("orthogonal", output=True), untied.parameters
    assert space is untied.space("orthogonal", output=True)
    assert space is not untied.space("orthogonal")
    x, centred = random(3, p.d), p.E_out - p.E_out.mean(1, keepdim=True)
    close(untied.space(output=True).project(x), x @ p.E_out[:, space.ids])
    close((space.map @ centred) @ (space.map @ centred).T, torch.eye(p.d))  # of E_out, not of E


def test_dictionaries_of_all_layers_are_fitted_once_for_each_text_and_option(counted):
    model = tiny_model("gpt2")
    model.dictionary(0, TEXTS)
    again = model.dictionary(1, tuple(TEXTS), whitened=True)
    assert counted.count("fit_dictionaries") == 1 and len(model.dictionaries(TEXTS)) == 2
    assert again.name == "dictionary of layer 1"
    model.dictionary(0, TEXTS[0])
    model.dictionary(0, [TEXTS[0]])
    assert counted.count("fit_dictionaries") == 2
    model.dictionary(0, ["".join(TEXTS)])  # the same letters in another list
    model.dictionary(0)
    model.dictionary(0, TEXTS, reads="attention")
    model.dictionary(0, TEXTS, only=torch.arange(40) % 2 == 0)
    model.dictionary(0, TEXTS, only=torch.arange(40) % 2 == 1)
    assert counted.count("fit_dictionaries") == 7


def test_one_run_of_the_model_fits_the_dictionaries_of_both_blocks(counted):
    apart, model = tiny_model("gpt_neox"), tiny_model("gpt_neox")
    wanted = {reads: apart.dictionaries(TEXTS, reads) for reads in ("ff", "attention")}
    assert counted.count("fit_dictionaries") == 2
    model.fit_dictionaries(TEXTS)
    model.fit_dictionaries(tuple(TEXTS))  # the same texts: nothing is run
    for reads, dictionaries in wanted.items():
        for one, other in zip(model.dictionaries(TEXTS, reads), dictionaries, strict=True):
            close(one.W, other.W)
            assert one.n == other.n
    assert counted.count("fit_dictionaries") == 3
    assert not torch.equal(model.dictionaries(TEXTS)[1].W, wanted["attention"][1].W)


def test_a_space_scores_with_the_embedding_alone():
    model = Model(tiny("gpt2"), numbers())
    E, x = model.model.transformer.wte.weight.detach(), random(12)  # (e, d), (d,)
    keep = torch.zeros(40, dtype=torch.bool)
    keep[[3, 8, 21]] = True
    assert model.space(keep=keep).ids.tolist() == [3, 8, 21]
    best = [3, 8, 21][int((E[keep] @ x).argmax())]
    assert model.space(keep=keep).words(x, 1) == [str(best)]
    assert model.space(keep=keep).E is model.space().E  # a view, no copy


@pytest.mark.parametrize("reading", READINGS)
def test_every_reading_has_a_space(reading):
    assert tiny_model("llama").space(reading.upper()).name == reading


def test_tokens_are_those_of_the_tokenizer():
    model = tiny_model("gpt2")
    assert [list(row) for row in model.tokens(["5 7 9", "8"])] == [[5, 7, 9], [8]]
    assert [list(row) for row in model.tokens("5 7 9", length=2)] == [[5, 7]]


# ---- names


def test_how_a_model_is_shown(twin):
    assert repr(twin).startswith("twin-a: ") and "192" in repr(twin)
    mine = Model(twin.model, twin.tokenizer)
    assert repr(mine).startswith("a model: ") and mine.source is None


@pytest.mark.parametrize(
    ("name", "place"),
    [("K", "parameters"), ("W_VO", "parameters"), ("E", "parameters"), ("d_ff", "parameters"),
     ("L", "parameters"), ("id", "vocabulary"), ("keep", "vocabulary"), ("shown", "vocabulary"),
     ("counts", "vocabulary"), ("state_dict", "model"), ("forward", "model")],
)
def test_a_name_that_lives_elsewhere_is_told_and_is_there(name, place, twin):
    with pytest.raises(AttributeError, match=rf"it is {place}\.{name}, as in model\.{place}\."):
        getattr(twin, name)
    assert hasattr(getattr(twin, place), name)


@pytest.mark.parametrize("name", ["words", "weights", "_hidden", "__len__"])
def test_other_names_are_answered_with_what_there_is(name, twin):
    with pytest.raises(AttributeError, match=rf"no '{name}': there are model, tokenizer, param"):
        getattr(twin, name)
    assert all(hasattr(Model, part) or part in vars(twin) for part in (
        "model", "tokenizer", "parameters", "vocabulary", "space", "dictionary", "tokens", "judge"))


# ---- load


def test_a_loaded_model_computes_in_float32_what_its_file_holds(twin):
    half = load("Twin A", dtype="float16")
    assert (half.name, half.source) == ("twin-a", "twin-a")
    assert not half.model.training
    assert {p.dtype for p in half.model.parameters()} == {torch.float16}
    assert {p.dtype for p in twin.model.parameters()} == {torch.float32}
    assert {p.dtype for p in load("twin-a", dtype="auto").model.parameters()} == {torch.float16}
    ids = torch.tensor([[5, 700, 80]])
    logits = half.model(ids).logits
    assert logits.dtype == torch.float32
    close(logits, twin.model(ids).logits, 1e-4)  # float32 sums in another order


def test_an_untrained_model_is_drawn_as_its_configuration_says():
    before = torch.get_rng_state()
    model = load("twin-a", untrained=True)
    assert torch.equal(before, torch.get_rng_state())
    assert (model.name, model.source) == ("twin-a, untrained", None)
    config, blocks = model.model.config, model.model.transformer.h
    c_fc, c_proj = blocks[2].mlp.c_fc.weight, blocks[2].mlp.c_proj.weight
    close(c_fc.std(), config.initializer_range, 0.01)
    close(c_proj.std(), config.initializer_range / math.sqrt(2 * config.n_layer), 0.01)
    assert (blocks[2].ln_1.weight == 1).all() and (blocks[2].mlp.c_fc.bias == 0).all()


def test_seeds_decide_untrained_weights():
    def first(**options):
        return load("twin-a", untrained=True, **options).parameters.E

    assert torch.equal(first(), first(seed=0)) and not torch.equal(first(), first(seed=1))
    assert torch.equal(first(seed=torch.tensor(1).item()).half(), first(seed=1, dtype="float16"))
    for seed in (1.5, -1, "1", True):
        with pytest.raises(ValueError, match="seed = .*, but it must be .*at least 0"):
            first(seed=seed)
    with pytest.raises(ValueError, match="seed = 1 draws untrained weights: .*untrained=True"):
        load("twin-a", seed=1)
