"""Fine-tuning tiny models: what is free, what is learned, what is stored."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_configs import BERT_KINDS
from tiny_models import close, tiny_model
from tiny_reviews import TINY, reviews, tiny_folder

from embspace_helpers import Model, capture, load
from embspace_helpers.experiments import classifiers
from embspace_helpers.experiments.classifiers import (
    Classifier,
    Recipe,
    accuracy,
    batches,
    bundled_seeds,
    fine_tune,
    load_classifier,
    predict,
    read_facts,
    save_changes,
    share_weights,
)
from embspace_helpers.reading.activations import padded
from embspace_helpers.reading.sources import ModelNotFound, fingerprint

RECIPE = Recipe(seed=2, free_layers=2, epochs=8, batch=8, length=40, learning_rate=1e-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 with a tokenizer."""
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder):
    """The tiny GPT-2. One for all tests: a classifier changes a copy."""
    return load(folder)


def weights(model):
    return {name: p.clone() for name, p in model.model.named_parameters()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# ---- the classifier


def test_logits_are_the_mean_over_the_positions_of_the_head_of_the_unnormed_state(kind):
    model = tiny_model(kind)
    texts = ["1 2 3 4 5", "6 7", "9 9 9 8"]
    cache = capture(model, texts, positions=None, keep="states")
    classifier = Classifier(model, 1).double().eval()
    with torch.no_grad():
        found = classifier(*padded(model.tokens(texts)))
        for t in range(3):
            logits = cache.states[-1][cache.text == t] @ classifier.head.weight.T
            close(found[t], logits.mean(0))


def test_every_architecture_becomes_a_classifier(kind):
    classifier = Classifier(tiny_model(kind), 1).double().eval()
    with torch.no_grad():
        both = classifier(*padded([[1, 2, 3], [4, 5, 6, 7]]))
        short = classifier(*padded([[1, 2, 3]]))
    close(both[:1], short)
    assert both.dtype == torch.float64 and both.shape == (2, 2)


def test_a_classifier_changes_a_copy_and_leaves_its_model_as_it_was(kind):
    model = tiny_model(kind)
    before, texts = weights(model), ["1 2 3", "4 5"]
    states = capture(model, texts, None, "states").states
    norm = model.parameters.final_norm()
    normed = None if norm is None else norm(states)
    classifier = Classifier(model, 2)
    with torch.no_grad():
        for p in classifier.parameters():
            p.mul_(2)
    assert equal(weights(model), before)
    assert torch.equal(capture(model, texts, None, "states").states, states)
    assert all(p.requires_grad for p in model.model.parameters())  # as it came
    assert (norm is None) == (kind in BERT_KINDS)
    if norm is not None:
        assert model.parameters.final_norm() is norm and torch.equal(norm(states), normed)
        assert (normed - states).abs().mean() > 0.1


def test_a_classifiers_model_is_read_like_any_other(model):
    found = Classifier(model, 1).model
    assert isinstance(found, Model) and found.vocabulary.shown == model.vocabulary.shown
    for layer in range(3):
        assert torch.equal(found.parameters.V(layer), model.parameters.V(layer))
        assert found.parameters.V(layer).data_ptr() != model.parameters.V(layer).data_ptr()
    assert torch.equal(found.space().columns(), model.space().columns())
    assert found.source is None  # no atlas of it is taken for that of its model


def test_a_model_kept_in_16_bits_can_be_fine_tuned(folder):
    kept = load(folder, dtype="float16")
    classifier = Classifier(kept, 1)
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}
    assert kept.model.dtype == torch.float16
    assert predict(classifier, ["the film is fine"]).shape == (1,)


def test_only_the_matrices_of_the_last_layers_and_the_head_are_free(model):
    free = list(Classifier(model, 2).free())
    matrices = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert free == [f"base.h.{i}.{m}.weight" for i in (1, 2) for m in matrices] + [
        "head.weight", "head.bias"]


@pytest.mark.parametrize("layers", [-1, 4])
def test_impossible_free_layers(model, layers):
    with pytest.raises(ValueError, match=f"free_layers = {layers}, but the model has 3 layers"):
        Classifier(model, layers)


def test_a_classifier_is_made_of_a_loaded_model(model):
    with pytest.raises(ValueError, match=r"expected a Model, as load\(name\) gives it, got GPT2"):
        Classifier(model.model)


def test_the_head_follows_from_the_seed(model):
    heads = [Classifier(model, seed=s).head.weight for s in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


# ---- training


def test_fine_tuning_learns_and_moves_only_what_is_free(model):
    classifier = Classifier(model, 2, seed=2)
    before = {name: p.clone() for name, p in classifier.named_parameters()}
    unchanged = weights(model)
    history = fine_tune(classifier, reviews(160), RECIPE, reviews(40, seed=1))
    assert list(history) == ["epoch", "loss", "accuracy", "minutes"]
    assert history["epoch"].tolist() == [*range(1, 9)]
    assert history["loss"].iloc[-1] < 0.05 < 0.4 < history["loss"].iloc[0] < 0.8
    assert history["accuracy"].iloc[-1] > 0.95 and not classifier.training
    moved = {name for name, p in classifier.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(classifier.free())
    assert equal(weights(model), unchanged)


def test_fine_tuning_leaves_the_random_state_of_its_caller_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fine_tune(Classifier(model, 1), reviews(8), RECIPE)
    assert torch.equal(torch.rand(3), expected)


def test_the_same_seed_gives_the_same_weights(model):
    def run(seed):
        recipe = Recipe(seed=seed, free_layers=1, batch=8, length=40)
        classifier = Classifier(model, 1, seed)
        fine_tune(classifier, reviews(32), recipe)
        return torch.cat([p.flatten() for p in classifier.free().values()]).detach()

    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_batches():
    lengths = np.random.default_rng(0).integers(1, 200, 1003)
    parts = list(batches(lengths, 10, seed=1))
    assert sorted(i for part in parts for i in part) == list(range(1003))
    assert len(parts) == 101 and {len(part) for part in parts} == {10, 3}
    spread = np.mean([np.ptp(lengths[part]) for part in parts])
    assert spread < 25  # of 199: texts of a batch are about as long
    means = np.array([np.mean(lengths[part]) for part in parts])
    assert abs(np.corrcoef(np.arange(101), means)[0, 1]) < 0.3  # and batches come in no order
    assert parts == list(batches(lengths, 10, seed=1)) != list(batches(lengths, 10, seed=2))


def test_predictions_do_not_depend_on_the_batch(model):
    classifier, texts = Classifier(model).double(), reviews(11)["text"].tolist()
    with torch.no_grad():
        classifier.head.weight.mul_(100)
    one, five = (predict(classifier, texts, batch=size) for size in (1, 5))
    close(one, five)
    assert one.std() > 0.001
    right = ((one > 0.5).long().numpy() == reviews(11)["label"]).mean()
    assert accuracy(classifier, reviews(11)) == pytest.approx(right)


def test_one_text_is_a_list_of_one(model):
    classifier = Classifier(model)
    assert torch.equal(predict(classifier, "a dull plot"), predict(classifier, ["a dull plot"]))


def test_reviews_are_a_table(model):
    classifier, texts = Classifier(model), reviews(4)
    for wrong in (None, ["a film"], texts.drop(columns="label"), texts.to_dict()):
        for call in (lambda x: fine_tune(classifier, x, RECIPE), lambda x: accuracy(classifier, x)):
            with pytest.raises(ValueError, match=f"with the columns text and label, .* got "
                                                 f"{type(wrong).__name__}"):
                call(wrong)
    with pytest.raises(ValueError, match="expected texts, a list of strings, got"):
        predict(classifier, [])


# ---- what is kept


@pytest.mark.parametrize("kind_of_path", [str, lambda path: path])
def test_changes_come_back(model, folder, tmp_path, kind_of_path):
    classifier = Classifier(model, 2, seed=2)
    fine_tune(classifier, reviews(64), RECIPE)
    file = tmp_path / "a" / "b.safetensors"
    recipe = {"recipe": {"free_layers": 2, "seed": 2}}
    save_changes(kind_of_path(file), classifier, str(folder), recipe)
    again = load_classifier(kind_of_path(folder), path=kind_of_path(file))
    torch.testing.assert_close(again.head_before, Classifier(model, 2, seed=2).head.weight.detach())
    assert (again.head.weight - again.head_before).norm() > 0.01
    assert not any(p.requires_grad for p in again.parameters()) and not again.training
    for (name, p), (other, q) in zip(classifier.named_parameters(), again.named_parameters()):
        assert name == other
        # displacements of up to 0.3 in float16, which is off by half of one in a thousand
        torch.testing.assert_close(p.detach(), q, rtol=1e-3, atol=2e-4)
    texts = reviews(20, seed=5)["text"].tolist()
    torch.testing.assert_close(predict(classifier, texts), predict(again, texts), rtol=0, atol=0.01)
    # far less than the model itself: two layers of three, no embedding, half the bytes
    assert file.stat().st_size < 0.5 * (folder / "model.safetensors").stat().st_size


def test_changes_are_written_whole_or_not_at_all(model, folder, tmp_path, monkeypatch):
    file = tmp_path / "b.safetensors"
    file.write_text("what was there")

    def cut_off(tensors, path, metadata):
        path.write_text("half")
        raise OSError("disk full")
    monkeypatch.setattr(classifiers, "save_file", cut_off)
    with pytest.raises(OSError, match="disk full"):
        save_changes(file, Classifier(model, 1), str(folder), {"recipe": {}})
    assert file.read_text() == "what was there" and [*tmp_path.iterdir()] == [file]


def test_changes_do_not_fit_other_weights(model, folder, tmp_path):
    file = tmp_path / "b.safetensors"
    save_changes(file, Classifier(model, 1), str(folder), {"recipe": {}})
    other = tiny_folder(tmp_path / "other", replace(TINY, seed=9))
    with pytest.raises(ValueError, match="fine-tuned from other weights than those of"):
        load_classifier(str(other), path=file)


def test_unknown_classifier(tmp_path, monkeypatch):
    monkeypatch.setattr(classifiers, "CLASSIFIERS", tmp_path)
    for seed in (3, 1):
        (tmp_path / f"twin-a-seed{seed}.safetensors").touch()
    assert bundled_seeds("twin-a") == [1, 3] and bundled_seeds("twin-b") == []
    for name in ("twin-a", "Twin A"):
        with pytest.raises(ModelNotFound,
                           match="'twin-a-seed2'; there are twin-a-seed1, twin-a-seed3"):
            load_classifier(name, seed=2)


def test_facts_come_back(model, folder, tmp_path):
    file = tmp_path / "c.safetensors"
    facts = {"recipe": asdict(RECIPE), "reviews": 64, "loss": [0.7, 0.5]}
    save_changes(file, Classifier(model, 1), str(folder), facts)
    about = {"model": str(folder), "fingerprint": fingerprint(folder)}
    assert read_facts(file) == read_facts(str(file)) == facts | about


def test_a_file_that_holds_no_classifier(tmp_path):
    file = tmp_path / "d.safetensors"
    save_file({"weight": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match="d.safetensors holds no classifier"):
        read_facts(file)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="d.safetensors is damaged or no safetensors file"):
        read_facts(file)


def test_the_bundled_classifiers_can_be_read():
    for name, seeds in (("twin-a", [1, 2, 3]), ("twin-b", [1])):
        assert bundled_seeds(name) == seeds
        for seed in seeds:
            facts = read_facts(classifiers.classifier_path(name, seed))
            assert facts["fingerprint"] == fingerprint(name)
            assert Recipe(**facts["recipe"]) == Recipe(seed)


def test_what_was_frozen_is_shared_and_what_was_trained_is_not(model):
    first, second = (Classifier(model, 1, seed) for seed in (1, 2))
    with torch.no_grad():
        for weight in second.free().values():
            weight += 0.1
    before = predict(second, ["the film is fine"])
    share_weights(second.base, first.base)
    assert torch.equal(predict(second, ["the film is fine"]), before)
    there, free = dict(first.named_parameters()), second.free()
    for name, weight in second.base.named_parameters():
        shared = weight.data_ptr() == there[f"base.{name}"].data_ptr()
        assert shared != (f"base.{name}" in free)
