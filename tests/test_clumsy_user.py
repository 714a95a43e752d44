"""What a clumsy user meets: wrong inputs get one sentence at once, clear ones are accepted.

Each row is a call, and parts of the sentence it must give: what was given, and what is possible.
"""

import time

import numpy as np
import pytest
import torch

from embspace_helpers import (
    FactoredMatrix,
    Model,
    capture,
    load,
    load_atlas,
    load_classifier,
    load_reviews,
    set_neurons,
    word_pairs,
)
from embspace_helpers.experiments.ablation import ablate_neurons
from embspace_helpers.experiments.atlas import build_atlas
from embspace_helpers.experiments.classifiers import (
    Classifier,
    Recipe,
    accuracy,
    fine_tune,
    predict,
)
from embspace_helpers.experiments.controls import random_directions, share_above, shuffled
from embspace_helpers.experiments.displacement import displacement
from embspace_helpers.experiments.overlap import active_lists
from embspace_helpers.experiments.statistics import bootstrap_interval, jaccard_at_k
from embspace_helpers.reading.activations import final_states, set_values
from embspace_helpers.reading.pairs import copying_score
from embspace_helpers.reading.spaces import keep_k

TEXT = ["This movie was good .", "A story of love and of war ."]


class Things:
    """Twin A and what is read out of it: what the calls below are made on."""

    def __init__(self):
        self.a = load("twin-a")
        self.p, self.v, self.s = self.a.parameters, self.a.vocabulary, self.a.space()
        self.x, self.W = self.p.V(4)[3], self.p.W_VO(1, 1)
        self.c = capture(self.a, TEXT, None)
        self.atlas = build_atlas(Cut(self.a), progress=False)


class Cut:
    """Twin A with its last layer only, so that its atlas takes no time."""

    def __init__(self, model):
        self.name, self.vocabulary, self.space = "", model.vocabulary, model.space
        self.parameters = load("twin-a").parameters
        self.parameters.L, self.parameters.blocks = 1, self.parameters.blocks[5:]


@pytest.fixture(scope="module")
def t():
    return Things()


def quickly(call, t):
    """Return (the error, None) or (None, the result), and refuse to wait."""
    start = time.perf_counter()
    try:
        return None, call(t)
    except Exception as error:
        assert time.perf_counter() - start < 5
        return error, None


REFUSED = [
    # words and tables
    (lambda t: t.s.words(t.x, 2.5), "k = 2.5", "whole number", "8008"),
    (lambda t: t.s.words(t.x, "5"), "k = '5'", "whole number"),
    (lambda t: t.s.words(t.x, 0), "k = 0", "between 1 and"),
    (lambda t: t.s.words(t.x, None), "k = None", "whole number"),
    (lambda t: t.s.words(t.x, True), "k = True", "whole number"),
    (lambda t: t.s.words(t.x, 10**6), "1000000", "8008 tokens"),
    (lambda t: t.s.words(torch.zeros(192)), "zero", "no top words"),
    (lambda t: t.s.words(t.p.V(4)), "(768, 192)", "choose a row"),
    (lambda t: t.s.words(t.x[:10]), "(10,)", "d = 192"),
    (lambda t: t.s.words("movie"), "'movie'", "vectors of numbers"),
    (lambda t: t.s.words(None), "None", "vectors of numbers"),
    (lambda t: t.s.words(t.v), "Vocabulary", "vectors of numbers"),
    (lambda t: t.s.words(t.x * float("nan")), "NaN"),
    (lambda t: t.s.words(t.x + 1j), "complex", "real part"),
    (lambda t: t.s.top(t.x, batch=0), "batch = 0", "at least 1"),
    (lambda t: t.s.top(t.x, batch="a"), "batch = 'a'", "whole number"),
    (lambda t: t.s.table({"a": t.x, "b": t.p.V(4)}), "'b'", "(768, 192)"),
    (lambda t: t.s.table({"a": torch.zeros(192)}), "'a'", "zero"),
    (lambda t: t.s.table({"a": t.x}, k=-1), "k = -1", "between 1 and"),
    (lambda t: t.s.only([1, 2, 3]), "list", "mask", "(8192,)"),
    (lambda t: t.s.only("movie"), "str", "only=[...]"),
    (lambda t: t.s.only(torch.arange(8192)), "int64", "mask"),
    (lambda t: t.s.only(torch.zeros(8192, dtype=torch.bool)), "no token"),
    (lambda t: keep_k(t.x, 0), "k = 0", "192 entries"),
    (lambda t: keep_k(t.x, 1.5), "k = 1.5", "whole number"),
    # readings
    (lambda t: t.a.space("E.T"), "'E.T'", "transpose, pseudo-inverse"),
    (lambda t: t.a.space(None), "None", "transpose, pseudo-inverse"),
    (lambda t: t.a.space("orthogonal", keep=5), "int", "mask"),
    (lambda t: t.a.space("top-removed", remove=0), "remove = 0", "191 directions"),
    (lambda t: t.a.space("top-removed", remove=2.5), "remove = 2.5", "whole number"),
    (lambda t: t.a.dictionary(9, TEXT), "layer 9", "0 to 5"),
    (lambda t: t.a.dictionary(0, TEXT, reads="keys"), "'keys'", "'ff' and 'attention'"),
    (lambda t: t.a.dictionary(0, ["movie"]), "at least 2 positions"),
    (lambda t: t.a.dictionary(0, []), "[]", "list of strings"),
    # parameters
    (lambda t: t.p.V("1"), "layer '1'", "0 to 5"),
    (lambda t: t.p.V(1.0), "layer 1.0", "0 to 5"),
    (lambda t: t.p.V(6), "layer 6", "0 to 5"),
    (lambda t: t.p.V(None), "layer None", "0 to 5"),
    (lambda t: t.p.K(0, "gate"), "'gate'", "there are K"),
    (lambda t: t.p.W_Q(0, "1"), "head '1'", "0 to 2"),
    (lambda t: t.p.W_VO(0, 3), "head 3", "0 to 2"),
    (lambda t: t.p.vectors("keys", 0), "'keys'", "K, V, W_Q, W_K, W_V, W_O"),
    (lambda t: t.p.label("V", 0, 9999), "9999", "0 to 767"),
    (lambda t: t.a.K(0), "'K'", "model.parameters.K"),
    (lambda t: t.a.d_ff, "'d_ff'", "model.parameters.d_ff"),
    (lambda t: t.a.id("movie"), "'id'", "model.vocabulary.id"),
    (lambda t: t.a.words, "'words'", "space(reading)"),
    # factored matrices and pairs
    (lambda t: t.W @ t.x[:5], "(192, 192)", "(5,)"),
    (lambda t: t.W @ "movie", "'movie'", "vector or matrix"),
    (lambda t: t.W @ None, "NoneType", "vector or matrix"),
    (lambda t: t.W[192], "192", "0 to 191"),
    (lambda t: t.W.svd(0), "n = 0", "64 singular directions"),
    (lambda t: t.W.svd("all"), "'all'", "whole number"),
    (lambda t: t.W.top_entries(2.5), "k = 2.5", "whole number"),
    (lambda t: t.W.top_entries(10**9), "1000000000", "36864"),
    (lambda t: t.W.cosine(t.x), "(192,)", "same shape"),
    (lambda t: FactoredMatrix(t.W.left, t.W.left), "(192, 64)", "transpose the second"),
    (lambda t: FactoredMatrix(t.x, t.x), "(192,)", "(m, r) and (r, n)"),
    (lambda t: FactoredMatrix(t.W.left, t.W.right[:, :5]).trace(), "(192, 5)", "not square"),
    (lambda t: t.s.over_words(t.W).dense(), "MB", "from the factors"),
    (lambda t: word_pairs(t.s, (t.W.left, t.W.right)), "tuple", "FactoredMatrix (192, 192)"),
    (lambda t: word_pairs(t.s, t.W, k=0), "k = 0", "at least 1"),
    (lambda t: word_pairs(t.s, t.W, drop="plural"), "'plural'", "token, word, stem"),
    (lambda t: word_pairs(t.W, t.s), "FactoredMatrix", "Space first"),
    (lambda t: copying_score(t.s, t.x), "(192,)", "FactoredMatrix"),
    # vocabulary
    (lambda t: t.v.id(""), "''", "'movie'"),
    (lambda t: t.v.id(3), "3", "'movie'"),
    (lambda t: t.v.id("Filmx"), "'Filmx'", "near it"),
    (lambda t: t.v.ids(["movie", ""]), "''", "'movie'"),
    (lambda t: t.v.ids(5), "5", "words"),
    (lambda t: t.v.keep(only=["qqqqqqq"]), "no token passes"),
    (lambda t: t.v.keep(min_count="many"), "'many'", "whole number"),
    # running
    (lambda t: capture(t.a, ["ok then", ""]), "[1]", "empty"),
    (lambda t: capture(t.a, []), "[]", "list of strings"),
    (lambda t: capture(t.a, None), "None", "list of strings"),
    (lambda t: capture(t.a, [1, 2]), "[1, 2]", "list of strings"),
    (lambda t: capture(t.a, TEXT, keep=["state"]), "'state'", "states, keys, neurons"),
    (lambda t: capture(t.a, TEXT, positions=0), "positions = 0", "at least 1"),
    (lambda t: capture(t.a, TEXT, positions="all"), "'all'", "whole number"),
    (lambda t: capture(t.a, TEXT, skip=100), "at most 100 tokens"),
    (lambda t: capture(t.a, TEXT, length=0), "length = 0", "at least 1"),
    (lambda t: capture(t.a, TEXT, batch=0), "batch = 0", "at least 1"),
    (lambda t: capture(t.a.model, TEXT), "GPT2LMHeadModel", "Model(model, tokenizer)"),
    (lambda t: capture("twin-a", TEXT), "'twin-a'", "load('twin-a')"),
    (lambda t: capture(Model(t.a.model, Foreign()), TEXT), "30000", "8192", "different models"),
    (lambda t: set_neurons(t.a, 9, 0, 0, 0).__enter__(), "layer 9", "0 to 5"),
    (lambda t: set_neurons(t.a, 0, 0, 0, 9999).__enter__(), "9999", "0 to 767"),
    (lambda t: set_values(t.a, 0, 0, 0, 7).__enter__(), "7", "0 to 2"),
    (lambda t: final_states(t.a, [[1, 2]], torch.tensor([5])), "outside their row"),
    (lambda t: active_lists(t.a, capture(t.a, TEXT, keep="states"), t.s, "V", 0), "neurons"),
    (lambda t: ablate_neurons(t.a, capture(t.a, TEXT, keep="states"), 0, torch.tensor([1]),
                              t.s.ids), "states and neurons"),
    # atlas
    (lambda t: t.atlas.search(), "at least one word"),
    (lambda t: t.atlas.search(""), "at least one word"),
    (lambda t: t.atlas.search(3), "3", "strings"),
    (lambda t: t.atlas.search(None), "None", "strings"),
    (lambda t: t.atlas.search("qqqqqqq"), "'qqqqqqq'", "not one token"),
    (lambda t: t.atlas.search("film", n=-5), "n = -5", "at least 1"),
    (lambda t: t.atlas.search("film", n=2.5), "n = 2.5", "whole number"),
    (lambda t: t.atlas.search("film", groups="keys"), "'keys'", "K, V, W_Q"),
    (lambda t: t.atlas.search("film", layers=99), "99", "there are 0"),
    (lambda t: t.atlas.search("film", sign=0), "sign 0", "1, -1"),
    (lambda t: t.atlas.table(["L0N1"]), "'L0N1'", "numbers from 0"),
    (lambda t: t.atlas.table([10**9]), "1000000000", "numbers from 0"),
    (lambda t: t.atlas.table([5], k=99), "k = 99", "20"),
    (lambda t: t.atlas.words(10**9), "1000000000", "rows are 0 to"),
    (lambda t: t.atlas.like(t.x[:4], t.a), "(4,)", "d = 192"),
    (lambda t: t.atlas.like(t.x, t.p), "Parameters", "load(name)"),
    (lambda t: load_atlas(None), "None"),
    (lambda t: load_atlas("nope"), "nope", "twin-a"),
    (lambda t: load_atlas(t.p), "twin-a"),
    # loading
    (lambda t: load(None), "None", "twin-a"),
    (lambda t: load(42), "42", "twin-a"),
    (lambda t: load("twin-c"), "twin-c", "twin-a"),
    (lambda t: load(["twin-a"]), "twin-a"),
    (lambda t: load("twin-a", dtype="int8"), "'int8'", "float32"),
    (lambda t: load("twin-a", seed=3), "seed = 3", "untrained=True"),
    (lambda t: load("/no/such/folder"), "/no/such/folder"),
    (lambda t: load_classifier("twin-a", seed=99), "twin-a-seed99", "twin-a-seed1"),
    (lambda t: load_classifier("twin-a", path="nothing.safetensors"), "nothing", "twin-a-seed1"),
    (lambda t: load_reviews(n="10"), "10"),
    (lambda t: load_reviews(n=7), "7", "even"),
    (lambda t: load_reviews("valid"), "'valid'", "train, test"),
    # classifiers and statistics
    (lambda t: Classifier(t.a, 9), "9", "6 layers"),
    (lambda t: Classifier(t.a.model), "GPT2LMHeadModel", "load(name)"),
    (lambda t: accuracy(load_classifier("twin-a"), ["good film"]), "list", "text and label"),
    (lambda t: predict(load_classifier("twin-a"), []), "[]", "list of strings"),
    (lambda t: fine_tune(load_classifier("twin-a"), None, Recipe()), "NoneType", "load_reviews"),
    (lambda t: displacement(t.a, load("wide-w"), "V", 3), "(768, 192)", "(1024, 256)"),
    (lambda t: displacement(t.a, t.a, "keys", 3), "'keys'", "K, V"),
    (lambda t: t.a.judged_by("twin-b"), "'twin-b'", "load('twin-b')"),
    (lambda t: Model(t.a.model, t.a.tokenizer).judge, "judged_by"),
    (lambda t: t.a.judge.coherence(torch.tensor([[1, 2, 3]])), "keep=judge.keep"),
    (lambda t: shuffled(torch.zeros(1, 3)), "at least 2"),
    (lambda t: random_directions("5", 5), "'5'", "whole number"),
    (lambda t: share_above(torch.ones(3), torch.tensor([])), "empty"),
    (lambda t: bootstrap_interval([1.0]), "at least 2 values"),
    (lambda t: jaccard_at_k(torch.zeros(2, 3), torch.zeros(2, 3)), "token ids"),
]


class Foreign:
    """Another model's tokenizer: its tokens are numbered beyond twin A's."""

    def __call__(self, texts, **options):
        return {"input_ids": [[1, 30000] for _ in texts]}


@pytest.mark.parametrize("row", REFUSED, ids=range(len(REFUSED)))
def test_wrong_inputs_get_one_sentence(row, t, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    call, *parts = row
    error, result = quickly(call, t)
    assert error is not None, f"accepted: {result!r}"
    assert isinstance(error, ValueError | LookupError | AttributeError | TypeError)
    text = str(error.args[0] if error.args else error)
    assert all(part in text for part in parts), text
    assert "\n" not in text and len(text) < 420, text


ACCEPTED = [
    (lambda t: t.s.words(t.x.numpy(), 3), lambda t: t.s.words(t.x, 3)),
    (lambda t: t.s.words(t.x.tolist(), 3), lambda t: t.s.words(t.x, 3)),
    (lambda t: t.s.words(tuple(t.x.tolist()), 3), lambda t: t.s.words(t.x, 3)),
    (lambda t: t.s.words(t.x.double(), 3), lambda t: t.s.words(t.x, 3)),
    (lambda t: t.s.words(t.x.half(), 3), lambda t: t.s.words(t.x, 3)),
    (lambda t: t.s.words(t.x, 3.0), lambda t: t.s.words(t.x, 3)),
    (lambda t: t.s.words(t.x, np.int64(3)), lambda t: t.s.words(t.x, 3)),
    (lambda t: t.s.words(t.x.clone().requires_grad_(), 3), lambda t: t.s.words(t.x, 3)),
    (lambda t: t.s.table(t.x, k=3).columns[""], lambda t: t.s.table({"": t.x}, k=3).columns[""]),
    (lambda t: t.a.space(" Orthogonal ").name, lambda t: "orthogonal"),
    (lambda t: t.a.space(keep=t.v.keep().numpy()).ids.tolist(), lambda t: t.s.ids.tolist()),
    (lambda t: (t.x.numpy() @ t.W).tolist(), lambda t: (t.x @ t.W).tolist()),
    (lambda t: (t.W @ t.x.double()).tolist(), lambda t: (t.W @ t.x).tolist()),
    (lambda t: t.p.V(np.int64(4))[3].tolist(), lambda t: t.x.tolist()),
    (lambda t: t.v.id(" movie"), lambda t: t.v.id("movie")),
    (lambda t: t.v.ids("movie"), lambda t: [t.v.id("movie")]),
    (lambda t: t.v.keep(only="movie").tolist(), lambda t: t.v.keep(only=["movie"]).tolist()),
    (lambda t: capture(t.a, TEXT[0]).token.tolist(),
     lambda t: capture(t.a, TEXT[:1]).token.tolist()),
    (lambda t: capture(t.a, tuple(TEXT), keep="states").neurons, lambda t: None),
    (lambda t: t.atlas.search(["film", "story"], n=2).index.tolist(),
     lambda t: t.atlas.search("film", "story", n=2).index.tolist()),
    (lambda t: t.atlas.search("film, story", n=2).index.tolist(),
     lambda t: t.atlas.search("film story", n=2).index.tolist()),
    (lambda t: t.atlas.search(*["film"] * 300, n=2).index.tolist(),
     lambda t: t.atlas.search("film", n=2).index.tolist()),
    (lambda t: t.atlas.table(5).columns, lambda t: t.atlas.table([5]).columns),
    (lambda t: t.atlas.like(t.x.numpy(), Cut(t.a), n=2).index.tolist(),
     lambda t: t.atlas.like(t.x, Cut(t.a), n=2).index.tolist()),
    (lambda t: load("Twin-A").source, lambda t: "twin-a"),
    (lambda t: len(load_reviews(n=10.0)), lambda t: 10),
    (lambda t: predict(load_classifier("twin-a"), TEXT[0]).shape, lambda t: (1,)),
]


@pytest.mark.parametrize("row", ACCEPTED, ids=range(len(ACCEPTED)))
def test_inputs_that_can_only_be_meant_one_way_are_accepted(row, t):
    given, meant = row
    assert given(t) == meant(t)
