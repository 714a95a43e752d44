"""Readable shares: lists, thresholds and controls written out, and vectors known to be readable."""

import pytest
import torch
from scipy import stats
from tiny_configs import MODELS, POST_NORM
from tiny_models import close, random, tiny_model

from embspace_helpers.experiments.controls import mixtures, random_directions
from embspace_helpers.experiments.readability import (
    DRAWS,
    FINAL,
    READINGS,
    census,
    coherence,
    kurtosis,
    random_control,
    readable_share,
    reading_of,
    sample_rows,
)
from embspace_helpers.reading.judge import Judge

IDS = torch.arange(1, 39)  # the words of a tiny model
TEXTS = [" ".join(map(str, range(start, start + 25))) for start in range(1, 13)]
COLUMNS = ["vectors", "less_mean", "mixtures", "mixtures_less_mean", "random"]


@pytest.fixture(scope="module")
def gpt2():
    """A tiny model with a layer of 20 neurons."""
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def judge():
    """Another embedding of the same words."""
    return Judge(random(9, 40, seed=5), IDS, 40)


def test_coherence_is_the_judges_of_the_top_words_of_both_signs(gpt2, judge):
    space, rows = gpt2.space("orthogonal"), random(7, 12)
    found = coherence(space, judge, rows, k=6, batch=3)
    assert found.shape == (2, 7)
    for one, x in zip(found, (rows, -rows)):
        close(one, judge.coherence(space.only(judge.keep).top(x, 6)[1]))
    assert coherence(space, judge, rows[:0]).shape == (2, 0)


def test_only_words_that_the_judge_knows_are_listed(gpt2):
    few = Judge(random(9, 40, seed=5), IDS[:15], 40)
    rows = random(5, 12)
    close(coherence(gpt2.space(), few, rows), coherence(gpt2.space(keep=few.keep), few, rows))


def test_kurtosis_is_that_of_the_scores(gpt2):
    space, rows = gpt2.space(), random(7, 12)
    close(kurtosis(space, rows, batch=3), stats.kurtosis(space.project(rows), axis=1))
    assert kurtosis(space, rows[:0]).shape == (0,)


def test_shares_and_controls_against_the_threshold_written_out(gpt2, judge):
    space, rows = gpt2.space(keep=judge.keep), gpt2.parameters.K(1)
    found = readable_share(gpt2, rows, space, judge).set_index("sign")
    control = coherence(space, judge, random_directions(DRAWS, 12).double()).flatten()
    assert control.shape == (2 * DRAWS,)
    threshold = control.quantile(0.95)
    mixed = mixtures(rows)[0]
    tested = (rows, rows - rows.mean(0), mixed, mixed - rows.mean(0),
              random_directions(DRAWS, 12, seed=1).double())
    for name, x in zip(COLUMNS, tested):
        share = (coherence(space, judge, x) > threshold).double().mean(1)
        close(found[name].to_numpy(), share, 1e-6)
    assert (found["random"] - 0.05).abs().max() < 0.04  # as in one of twenty


def test_the_mean_taken_off_may_be_that_of_the_whole_layer(gpt2, judge):
    space, rows = gpt2.space(keep=judge.keep), gpt2.parameters.K(1)
    given = readable_share(gpt2, rows[:6], space, judge, mean=rows.mean(0))
    own = readable_share(gpt2, rows[:6] - rows.mean(0), space, judge)
    close(given["less_mean"], own["vectors"])
    none = readable_share(gpt2, rows[:6], space, judge, mean=torch.zeros(12))
    close(none["less_mean"], none["vectors"])
    close(none["mixtures_less_mean"], none["mixtures"])


def test_a_control_that_is_known_is_used(gpt2, judge):
    space, rows = gpt2.space(), gpt2.parameters.K(0)
    control = random_control(space, judge)
    alone, given = (readable_share(gpt2, rows, space, judge, control=c) for c in (None, control))
    assert alone.equals(given)
    assert random_control(space, judge, seed=4).threshold != control.threshold


def test_vectors_along_a_theme_are_readable_more_than_mixtures_and_their_other_sign_is_not():
    model = tiny_model("gpt2")
    theme = torch.arange(40) % 3  # three themes of thirteen words
    centres = 3 * torch.eye(12, dtype=torch.float64)[:3]
    with torch.no_grad():
        noise = 2 * random(40, 12, seed=3)
        noise[:, :3] *= 0.2  # where the themes lie, there is little
        model.model.transformer.wte.weight.copy_(centres[theme] + noise)
    judge = Judge(centres.T[:, theme] + 0.3 * random(12, 40, seed=4), IDS, 40, remove=0)
    rows = centres.repeat(30, 1) + 0.1 * random(90, 12)
    found = readable_share(model, rows, model.space("centred"), judge).set_index("sign")
    assert found.loc["+", "vectors"] > 0.95
    assert found.loc["-", "vectors"] < 0.1
    assert found.loc["+", "mixtures"] < 0.9  # they lie in the themes' three directions


# ---- a model's groups


@pytest.mark.parametrize("kind", MODELS)
def test_the_norms_gain_is_part_of_the_map_of_readers(kind):
    model = tiny_model(kind)
    p = model.parameters
    norms = {"V": None, "W_O": None, **dict.fromkeys(p.key_kinds, p.ff_norm(1)),
             **dict.fromkeys(("W_Q", "W_K", "W_V"), p.attention_norm(1))}
    for group in p.groups:
        rows = p.vectors(group, 1)
        for reading in READINGS[:2]:
            writes = group in ("V", "W_O")
            read = p.vectors(group, 1, fold_norm=True) if writes else p.fold(rows, norms[group])
            assert torch.equal(read, rows) == (
                kind not in POST_NORM if writes else norms[group] is None)
            expected = model.space(reading, output=writes).project(read)
            close(reading_of(model, group, 1, reading).project(rows), expected)
        reads = "attention" if group.startswith("W_") else "ff"
        for reading, whitened in zip(READINGS[2:], (False, True)):
            expected = model.dictionary(1, TEXTS, reads, whitened=whitened).project(rows)
            close(reading_of(model, group, 1, reading, TEXTS).project(rows), expected)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_readers_with_the_gain_meet_a_token_as_the_block_does(kind):
    model = tiny_model(kind)
    p, norm = model.parameters, model.parameters.ff_norm(0)
    E, group = p.E.T, p.key_kinds[0]
    met = E if norm is None else norm(E).detach()  # (e, d): tokens behind the norm
    exact = p.vectors(group, 0) @ met[model.space().ids].T
    found = reading_of(model, group, 0).project(p.vectors(group, 0))
    for word in range(exact.shape[1]):  # one scale and one constant a token, whatever the reader
        scale = torch.corrcoef(torch.stack([exact[:, word], found[:, word]]))[0, 1]
        if norm is None or not p.entry.centred_norm:
            close(scale, 1.0)
    if norm is not None and p.entry.centred_norm:
        constant = p.vectors(group, 0) @ norm.bias.detach()  # of LayerNorm
        size = (E - E.mean(1, keepdim=True)).var(1, unbiased=False).add(norm.eps).sqrt()
        close(exact - constant[:, None], found / size[model.space().ids])


def test_writers_behind_the_final_gain_are_read_as_the_logits_are(gpt2):
    p = gpt2.parameters
    close(reading_of(gpt2, "V", 0, FINAL).project(p.V(0)),
          gpt2.space().project(p.fold(p.V(0), p.final_norm())))
    with pytest.raises(ValueError, match="'final gain' reads what is written, V and W_O; got 'K'"):
        reading_of(gpt2, "K", 0, FINAL)


def test_a_sample_is_evenly_spaced(gpt2):
    rows = gpt2.parameters.V(1)
    assert torch.equal(sample_rows(gpt2, "V", 1, 5), rows[[0, 4, 8, 12, 16]])
    for n in (None, 20, 99):
        assert torch.equal(sample_rows(gpt2, "V", 1, n), rows)


def test_a_census_has_every_group_layer_reading_and_sign(gpt2, judge):
    readings = ("transpose", "dictionary")
    table = census(gpt2, ("K", "W_V"), readings, n=6, texts=TEXTS, judge=judge)
    assert list(table)[:5] == ["group", "layer", "reading", "r2", "sign"]
    assert list(table)[5:] == COLUMNS
    assert len(table) == 2 * 2 * 2 * 2
    fitted = gpt2.dictionaries(TEXTS, "attention")[1]
    line = table.query("group == 'W_V' and layer == 1 and reading == 'dictionary'")
    close(line["r2"], [fitted.r2] * 2)
    assert table.query("reading == 'transpose'")["r2"].isna().all()
    space = gpt2.dictionary(1, TEXTS, "attention", judge.keep)
    expected = readable_share(gpt2, sample_rows(gpt2, "W_V", 1, 6), space, judge,
                              mean=gpt2.parameters.vectors("W_V", 1).mean(0))
    assert line[COLUMNS].reset_index(drop=True).equals(expected[COLUMNS])
    assert len(census(gpt2, ("V",), layers=[1], judge=judge, readings=("orthogonal",))) == 2


def test_of_an_untied_model_the_two_sides_have_thresholds_of_their_own(judge):
    model = tiny_model("olmo2")  # nothing is folded into keys: E and E_out, both without a map
    model.parameters.fold_written = lambda rows, norm: rows
    table = census(model, ("gate", "V"), ("transpose",), [1], texts=TEXTS, judge=judge)
    alone = census(model, ("V",), ("transpose",), [1], texts=TEXTS, judge=judge)
    assert table.query("group == 'V'")[COLUMNS].reset_index(drop=True).equals(alone[COLUMNS])
    control = [random_control(model.space("transpose", judge.keep, output=side), judge)
               for side in (False, True)]
    assert control[0].threshold != control[1].threshold
