"""Heads ablated one by one against one place and one pass at a time, on tiny models in float64."""

import pandas as pd
import pytest
import torch
from tiny_models import close, random, tiny_model

from embspace_helpers.experiments.ablation import ablate_moves, matched_words
from embspace_helpers.experiments.head_effects import HEAD_RESULTS, SOURCES, HeadTest
from embspace_helpers.reading.activations import capture

LENGTH, REACH, LAYER = 12, 3, 1
KEEP = torch.ones(40, dtype=torch.bool)


def texts(n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [" ".join(map(str, torch.randint(1, 39, (16,), generator=generator).tolist()))
            for _ in range(n)]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def test(request):
    every = [*texts(), "1 2 3"]  # the last is too short
    return HeadTest(tiny_model(request.param), every[:6], every[6:], REACH, LENGTH, KEEP)


def test_places_are_all_that_have_room_in_long_texts(test):
    assert len(test.tokens) == 6 and all(len(row) == LENGTH for row in test.tokens)
    assert test.places == [(t, i) for t in range(6) for i in range(1, LENGTH - REACH)]
    assert test.token.tolist() == [test.tokens[t][i] for t, i in test.places]
    odd = torch.arange(40) % 2 == 1
    some = HeadTest(test.model, test.fit, texts(3), REACH, LENGTH, odd)
    assert set(some.token.tolist()) <= set(range(1, 40, 2)) and len(some.places) > 5
    assert some.places == sorted(some.places) and torch.equal(some.ids, odd.nonzero().squeeze(1))


def test_what_a_head_may_see(test):
    p, seen = test.model.parameters, test.sees(LAYER)
    assert tuple(seen) == SOURCES
    cache = capture(test.model, [" ".join(map(str, row)) for row in test.tokens], None, "values")
    value = test.model.parameters.queries_keys_values(LAYER)[2]
    bias = 0 if value.bias is None else value.bias.flatten()
    rows = [t * LENGTH + i for t, i in test.places]  # every text has as many positions
    close(seen["state"] @ value.weight.flatten(0, 1).T + bias, cache.values[LAYER, rows])
    with torch.no_grad():
        close(seen["embedding"][5], p.attention_norm(LAYER)(p.E[:, test.token[5]]))
    of_layer = test.model.dictionary(LAYER, test.fit, "attention", keep=KEEP)
    close(seen["dictionary"][7], of_layer.columns(test.token[7:8])[:, 0])


def test_the_place_where_a_head_moves_most(test):
    """Against attention weights of the model's own pass: what all that look there get from it."""
    model, p = test.model, test.model.parameters
    model.model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model.model(torch.tensor(test.tokens), output_attentions=True).attentions[LAYER]
    model.model.set_attn_implementation("float64")
    states = test.sees(LAYER)["state"]
    found = test.most_active(LAYER, states)
    assert found.shape == (p.H, 6)
    for head in range(p.H):
        written = (states - states.mean(0)) @ p.W_V(LAYER, head) @ p.W_O(LAYER, head)
        for text in range(6):
            moved = {row: written[row].norm() * sum(weights[text, head, q, i].item()
                                                    for q in range(i, i + REACH + 1))
                     for row, (t, i) in enumerate(test.places) if t == text}
            assert found[head, text] == max(moved, key=moved.get)
    assert len(found.unique()) > 8


def test_changes_in_standard_deviations_against_a_loop(test):
    model, p, head = test.model, test.model.parameters, 1
    seen = test.sees(LAYER)
    chosen = test.most_active(LAYER, seen["state"])[head]
    places = [test.places[i] for i in chosen]
    change = ablate_moves(model, test.tokens, LAYER, head, places, test.ids, REACH)
    for row in test.head(LAYER, head, seen, chosen):
        x = seen[row["seen"]] - seen[row["seen"]].mean(0)
        columns = {}
        for which in (head, (head + 1) % p.H):
            scores = p.fold((x @ p.W_VO(LAYER, which)).dense(), p.final_norm()) @ p.E_out
            columns[which] = scores[chosen].topk(10, dim=1).indices
        own, other = (change.gather(1, c).mean(1)
                      - change.gather(1, matched_words(c, test.ranks)).mean(1)
                      for c in columns.values())
        spread = change.std(1).sum()
        close(row["own"], own.sum() / spread)
        close(row["other_head"], other.sum() / spread)
        moved = columns[head].roll(1, 0)
        shifted = matched_words(columns[head], test.ranks).roll(1, 0)
        close(row["other_place"],
              (change.gather(1, moved).mean(1) - change.gather(1, shifted).mean(1)).sum() / spread)
        assert row["low"] <= row["own"] <= row["high"]


def test_words_fall_that_a_head_writes_in_the_last_layer():
    """A head that writes one word's embedding, from the state alone: its own words fall."""
    model = tiny_model("gpt2")
    p = model.parameters
    with torch.no_grad():
        p.final_norm().weight.fill_(1.0)
    test = HeadTest(model, texts()[:6], texts()[6:], REACH, LENGTH, KEEP)
    table = test.layer(LAYER).set_index(["head", "seen"])
    assert len(table) == p.H * 3 and (table["texts"] == 6).all()
    state = table.xs("state", level="seen")
    assert state["own"].mean() < -0.3 and state["own"].mean() < state["other_head"].mean()


def test_texts_that_are_too_short():
    with pytest.raises(ValueError, match="1 texts have 12 tokens"):
        HeadTest(tiny_model("gpt2"), texts(3), [*texts(1), "3 4"], REACH, LENGTH, KEEP)


def test_known_final_states_save_a_pass(test):
    places, usual = test.places[3:9], test.usual[3:9]
    args = test.model, test.tokens, LAYER, 0, places, test.ids, REACH
    close(ablate_moves(*args, usual), ablate_moves(*args))
    assert ablate_moves(*args, usual + random(6, REACH + 1, 12)).abs().max() > 1e-3


def test_the_file_that_ships_holds_every_head():
    table = pd.read_csv(HEAD_RESULTS)
    assert not table.duplicated(["model", "layer", "head", "seen"]).any()
    heads = table.drop_duplicates(["model", "layer", "head"])["model"].value_counts().to_dict()
    assert heads == {"smollm2": 30 * 9, "wide-w": 8 * 4, "twin-a": 6 * 3, "twin-b": 6 * 3}
    assert len(table) == 3 * sum(heads.values())
    assert (table["texts"] == 8).all() and (table["source"] == "embedded").all()
    assert (table["low"] <= table["own"]).all() and (table["own"] <= table["high"]).all()
    own = table.pivot_table(index=["model", "layer"], columns="seen", values="own")
    first = own.loc[("smollm2", 0)]  # there the state is the embedding: no position is added
    assert first["embedding"] == first["state"]
    late = own.loc["smollm2"].loc[20:].mean()  # what notebook 04 says of the curves
    assert late["dictionary"] < -1.5 and late["state"] < -2 and abs(late["embedding"]) < 0.3
    assert own.loc["smollm2"].loc[:9].abs().max(axis=None) < 0.2
    middle = own.loc["twin-a"].loc[1:4].mean()
    assert middle["dictionary"] < -1 and middle["embedding"] > -0.2
    for name, fall in (("twin-b", -1.8), ("wide-w", -2.2)):
        later = own.loc[name].loc[1:].mean()
        assert later["dictionary"] == pytest.approx(fall, abs=0.05) and later["embedding"] > -0.25
