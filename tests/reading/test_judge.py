"""The judge of word lists against sums over pairs of words, written out."""

import itertools

import numpy as np
import pytest
import torch
from tiny_models import close, random, tiny, word_level

from embspace_helpers import Model, load
from embspace_helpers.reading import model as module
from embspace_helpers.reading.judge import JUDGES, Judge

D, SIZE = 6, 30
IDS = torch.tensor([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 1, 4])


def judged_vectors(E, ids, remove):
    """The words' columns: centred, without the leading principal directions, of length 1."""
    words = E.numpy().T[ids]
    words = words - words.mean(0)
    left, sizes, right = np.linalg.svd(words, full_matrices=False)
    sizes[:remove] = 0
    words = left * sizes @ right
    return words / np.linalg.norm(words, axis=1, keepdims=True)


def mean_cosine(vectors):
    pairs = list(itertools.combinations(vectors, 2))
    return sum(one @ other for one, other in pairs) / len(pairs)


@pytest.mark.parametrize("remove", [0, 1, 3])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_coherence_is_the_mean_cosine_of_all_pairs(remove, k):
    E = random(D, SIZE)
    lists = torch.stack([IDS[torch.randperm(len(IDS))[:k]] for _ in range(4)])
    vectors = dict(zip(IDS.tolist(), judged_vectors(E, IDS, remove)))
    expected = [mean_cosine([vectors[i] for i in row]) for row in lists.tolist()]
    close(Judge(E, IDS, SIZE, remove=remove).coherence(lists), expected)


def test_words_have_other_ids_in_the_judges_own_vocabulary():
    E, there = random(D, 50), torch.arange(40, 40 - len(IDS), -1)
    lists = IDS.view(4, 3)
    vectors = judged_vectors(E, there, 3)
    expected = [mean_cosine(vectors[i:i + 3]) for i in range(0, len(IDS), 3)]
    close(Judge(E, IDS, SIZE, there).coherence(lists), expected)


def test_what_it_can_judge_and_what_it_leaves_as_it_was():
    E = random(D, SIZE)
    before = E.clone()
    judge = Judge(E, IDS, SIZE)
    assert judge.keep.nonzero().squeeze(1).tolist() == sorted(IDS.tolist())
    assert judge.keep.shape == (SIZE,) and torch.equal(E, before)


def test_lists_that_belong_together_score_high():
    E = random(D, SIZE) * 0.01
    E[0, IDS[:6]] += 1  # two groups along one axis
    E[0, IDS[6:]] -= 1
    near, far = Judge(E, IDS, SIZE, remove=0).coherence(
        IDS[torch.tensor([[0, 1, 2], [0, 1, 6]])])
    close(near, 1, 0.01)
    close(far, -1 / 3, 0.05)  # of three pairs, one agrees and two are opposed


WRONG = [
    (lambda judge: judge.coherence(IDS), r"lists must be \(n, k\) with k >= 2, got \(12,\)"),
    (lambda judge: judge.coherence(IDS[:, None]), r"k >= 2, got \(12, 1\)"),
    (lambda judge: judge.coherence(torch.tensor([[2, 6]])), "read with keep=judge.keep"),
    (lambda judge: Judge(random(D, SIZE), IDS, SIZE, IDS[1:]), "12 words under test but 11 of the"),
    (lambda judge: Judge(random(D, SIZE), IDS, SIZE, remove=6), "remove = 6, .*below 6"),
    (lambda judge: Judge(random(D, SIZE), IDS[:3], SIZE, remove=2), "remove = 2, .*below 2: .*3 w"),
    (lambda judge: Judge(random(D, SIZE), IDS, SIZE, remove=-1), "remove = -1, .*at least 0"),
]


@pytest.mark.parametrize(("call", "said"), WRONG)
def test_what_cannot_be_judged_is_told(call, said):
    with pytest.raises(ValueError, match=said):
        call(Judge(random(D, SIZE), IDS, SIZE))


# ---- whose judge


def test_known_models_are_judged_by_another_known_one():
    assert set(JUDGES) == set(JUDGES.values()) | {"wide-w", "untied-u"}
    assert all(name != judge for name, judge in JUDGES.items())


def test_the_judge_is_loaded_once_and_only_when_it_is_asked_for(monkeypatch, twin):
    model, loaded = Model(twin.model, twin.tokenizer, "twin-a"), []
    monkeypatch.setattr(module, "load", lambda name, **options: (loaded.append(name),
                                                                 load(name, **options))[1])
    assert loaded == []
    assert model.judge is model.judge and loaded == ["twin-b"]


def test_a_model_of_no_known_name_has_none(twin):
    with pytest.raises(ValueError, match="no judge is set for 'this model': there are judges for "):
        _ = Model(twin.model, twin.tokenizer).judge


WORDS = ["<unk>", *(f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLM")]


def worded(items, seed):
    """A tiny model of 40 words, with an embedding that follows from the seed."""
    model = tiny("gpt2")
    model.transformer.wte.weight.data = random(40, 12, seed=seed)
    return Model(model, word_level(items, unk_token="<unk>"))


def test_one_vocabulary_is_judged_in_all_its_whole_words():
    mine, other = worded(WORDS, 1), worded(WORDS, 2)
    judge = mine.judged_by(other)
    assert judge.keep.tolist() == [False] + [True] * 39
    ids = torch.arange(1, 40)
    vectors = judged_vectors(other.model.transformer.wte.weight.detach().T, ids, 3)
    expected = [mean_cosine(vectors[i:i + 3]) for i in (0, 3, 6)]
    close(judge.coherence(ids[:9].view(3, 3)), expected)


def test_two_vocabularies_are_judged_in_the_words_they_share():
    mine = worded(WORDS[:27] + [f"mine{letter}" for letter in "abcdefghijklm"], 1)
    other = worded(["<unk>", *(f"other{letter}" for letter in "abcdefghijklm"), *WORDS[26:0:-1]], 2)
    judge = mine.judged_by(other)
    ids = torch.arange(1, 27)  # worda to wordz, which the other has from 39 down to 14
    assert judge.keep.nonzero().squeeze(1).tolist() == ids.tolist()
    vectors = judged_vectors(other.model.transformer.wte.weight.detach().T, 40 - ids, 3)
    expected = [mean_cosine(vectors[i:i + 4]) for i in (0, 4)]
    close(judge.coherence(ids[:8].view(2, 4)), expected)
