"""Firing areas against loops over positions, on tiny models in float64."""

import pandas as pd
import pytest
import torch
from tiny_configs import DECODERS
from tiny_models import close, random, tiny_model

from embspace_helpers.experiments.firing import (
    ReadStates,
    area_under_curve,
    firing_areas,
    firing_table,
    read_states,
    seen_often,
)
from embspace_helpers.reading.activations import capture

ROWS = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [3, 1, 4, 1, 5, 9, 2, 6, 5], [11]]
TEXTS = [" ".join(map(str, row)) for row in ROWS]


def many_texts(n=60, e=40, seed=0):
    """Texts of numbers, in which every one of them stands often."""
    rows = torch.randint(1, e - 1, (n, 20), generator=torch.Generator().manual_seed(seed))
    return [" ".join(map(str, row)) for row in rows.tolist()]


# ---- what blocks read


@pytest.mark.parametrize("kind", DECODERS)
def test_states_that_are_read_give_the_pre_activations(kind):
    model = tiny_model(kind)
    p = model.parameters
    found = read_states(model, TEXTS, batch=2)
    cache = capture(model, TEXTS, None, "keys", skip=1)
    rows = sorted((row for row in ROWS if len(row) > 1), key=len)
    assert found.token.tolist() == [i for row in rows for i in row[1:]]
    assert found.following.tolist() == [i for row in rows for i in [*row[2:], -1]]
    order = sorted(range(len(cache)), key=lambda i: (len(ROWS[cache.text[i]]), i))
    for layer in range(p.L):
        bias = p.b_K(layer)
        used = found.states[layer] @ p.K(layer).T + (0 if bias is None else bias)
        close(used, cache.keys[p.key_kinds[0]][layer][order])


def test_layers_and_attention_blocks():
    model = tiny_model("llama")
    p, found = model.parameters, read_states(tiny_model("llama"), TEXTS, [1], "attention")
    cache = capture(model, TEXTS, None, "values", skip=1)
    order = sorted(range(len(cache)), key=lambda i: (len(ROWS[cache.text[i]]), i))
    values = found.states[1] @ p.W_V(1).transpose(0, 1).flatten(1)  # (n, H_kv d_h)
    moved = cache.values[1][order] - values
    close(moved, moved[0].expand_as(moved))  # the bias
    assert list(found.states) == [1] and values.std() > 0.1


def test_texts_of_one_token_have_no_position():
    with pytest.raises(ValueError, match="no text has a second position"):
        read_states(tiny_model("gpt2"), ["3", "4"])


# ---- areas


def test_area_against_all_comparisons_ties_counting_half():
    high, low = (random(6, n, seed=n).mul(2).round() for n in (5, 7))
    wins = (high[:, :, None] > low[:, None]).double() + 0.5 * (high[:, :, None] == low[:, None])
    close(area_under_curve(high, low), wins.mean((1, 2)))
    close(area_under_curve(low, high), 1 - wins.mean((1, 2)))
    assert (wins == 0.5).any() and wins.mean((1, 2)).std() > 0.01


def test_tokens_seen_often_here_and_next():
    model = tiny_model("gpt2")
    found = read_states(model, TEXTS)
    keep = torch.ones(40, dtype=torch.bool)
    keep[2] = False
    assert seen_often(model, found, keep, 2).nonzero().flatten().tolist() == [
        i for i in range(40) if i != 2 and sum(row[1:].count(i) for row in ROWS) >= 2]
    following = [i for row in ROWS for i in row[2:]]
    assert seen_often(model, found, keep, 2, ahead=True).nonzero().flatten().tolist() == [
        i for i in range(40) if i != 2 and following.count(i) >= 2]


def planted(ahead=False):
    """Readers that fire on the tokens that E names, here or one position before them."""
    model = tiny_model("gpt2")
    token = torch.randint(1, 39, (4000,), generator=torch.Generator().manual_seed(3))
    E = model.parameters.E
    states = E.T[token.roll(-1) if ahead else token]
    following = token.roll(-1)
    following[-1] = -1
    found = ReadStates({0: states}, token, following)
    return found, model.space("transpose", seen_often(model, found, torch.ones(40, dtype=bool)))


@pytest.mark.parametrize("ahead", [False, True])
def test_readers_fire_on_the_words_planted_and_not_on_those_of_others(ahead):
    found, space = planted(ahead)
    readers = random(30, 12)
    own, others = firing_areas(found, space, readers, 0, ahead, k=4)
    assert own.min() > 0.95 and 0.4 < others.mean() < 0.6
    elsewhere = firing_areas(found, space, readers, 0, not ahead, k=4)[0]
    assert 0.4 < elsewhere.mean() < 0.6
    against = firing_areas(found, space, -readers, 0, ahead, k=4)[0]
    assert against.min() > 0.95  # the list of the other sign is another list


def test_the_words_without_what_all_readers_share():
    """Own lists name what all share, and others' are as good; without the mean they differ."""
    found, space = planted()
    shared = random(30, 12) + 2 * random(1, 12, seed=9)
    own, others = firing_areas(found, space, shared, 0, k=4)
    less, less_others = firing_areas(found, space, shared, 0, k=4, listed=shared - shared.mean(0))
    assert own.mean() > less.mean() > 0.7  # readers fire as they are, with what all share
    assert others.mean() > 0.8 and less_others.mean() < 0.6


def test_a_reading_that_is_wrong_is_at_chance():
    found, space = planted()
    space.map, readers = random(12, 12, seed=5), random(40, 12)
    own, _ = firing_areas(found, space, readers, 0, k=4)
    assert 0.35 < own.mean() < 0.65


def test_every_word_counts_alike_however_often_it_stands():
    """One listed word stands everywhere and is missed, three are found: three quarters."""
    model = tiny_model("gpt2")
    token = torch.cat([torch.full((3000,), 1), torch.arange(2, 39).repeat(100)])
    states = torch.zeros(len(token), 12, dtype=torch.float64)
    states[:, 0] = ((token >= 2) & (token <= 4)).double() - (token == 1).double()
    found = ReadStates({0: states}, token, token)
    space = model.space("transpose", seen_often(model, found, torch.ones(40, dtype=bool)))
    space.top = lambda x, k: (None, torch.tensor([[1, 2, 3, 4]] * len(x)))
    own, _ = firing_areas(found, space, torch.eye(12, dtype=torch.float64)[[0, 0]], 0, k=4)
    close(own, torch.full((2,), 0.75, dtype=torch.float64))


def test_what_is_refused():
    found, space = planted()
    with pytest.raises(ValueError, match="at least 2"):
        firing_areas(found, space, random(1, 12), 0)
    model = tiny_model("gpt2")
    with pytest.raises(ValueError, match="stand nowhere"):
        firing_areas(found, model.space("transpose", torch.ones(40, dtype=bool)), random(2, 12), 0)


# ---- the table


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_row_for_every_setting(kind):
    model, texts = tiny_model(kind), many_texts()
    keep = model.vocabulary.keep()
    model.vocabulary.keep = lambda **_: keep  # numbers are no words
    found = read_states(model, texts[30:], [1])
    table = firing_table(model, texts[:30], found, n=12, least=2)
    settings = table[["kind", "reading", "words", "token"]]
    assert not settings.duplicated().any()
    assert set(settings.drop_duplicates(["words", "token"])[["words", "token"]].itertuples(
        index=False, name=None)) == {("all", "here"), ("new", "here"), ("all", "next")}
    assert len(table) == (2 * 4 + 5) * (len(model.parameters.key_kinds) + 1)
    assert set(table.query("reading == 'next dictionary'")["token"]) == {"next"}
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    space = model.space("transpose", seen_often(model, found, least=2))
    drawn = torch.randperm(20, generator=torch.Generator().manual_seed(1))[:12]
    own, others = firing_areas(found, space, model.parameters.K(1)[drawn], 1)
    row = table.query("reading == 'E' and words == 'all' and token == 'here'").iloc[0]
    assert row["mean"] == pytest.approx(own.mean().item())
    assert row["others"] == pytest.approx(others.mean().item())
    keys = model.parameters.K(1)
    own, _ = firing_areas(found, space, keys[drawn], 1, listed=keys[drawn] - keys.mean(0))
    less = table.query("reading == 'E less the mean' and words == 'all' and token == 'here'")
    assert less.iloc[0]["mean"] == pytest.approx(own.mean().item())
    dictionary = table.query("reading == 'dictionary' and words == 'all' and token == 'here'")
    assert isinstance(table, pd.DataFrame) and dictionary["mean"].min() > 0.55
