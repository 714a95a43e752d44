"""Training a very small model from made-up reviews: batches, exact resume, the folder."""

import json
import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_corpus import tiny_imdb
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from embspace_helpers import load
from embspace_helpers.reading.sources import BUNDLED, MODELS
from embspace_helpers.reading.vocabulary import load_vocabulary
from embspace_helpers.workshop import pretrain
from embspace_helpers.workshop.corpus import prepare
from embspace_helpers.workshop.pretrain import (
    RECIPES,
    PretrainRecipe,
    batch_at,
    decay_start,
    main,
    new_model,
    new_optimizer,
    rate_at,
    resume,
    sample_text,
    save_checkpoint,
    steps_of,
    train,
    write_folder,
)

TINY = PretrainRecipe(seed=1, d=16, layers=1, heads=2, vocabulary=300, context=16, epochs=1.3,
                      batch=8, learning_rate=1e-2, warmup_steps=4)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """So small a model gains nothing from more threads, and loses much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_imdb(tmp_path_factory.mktemp("imdb"))


@pytest.fixture(scope="module")
def data(source, tmp_path_factory):
    return prepare(source, tmp_path_factory.mktemp("work"), TINY.vocabulary, None)


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """The command, from the reviews to the folder, with the tiny recipe."""
    out, precision = tmp_path_factory.mktemp("out"), torch.get_float32_matmul_precision()
    arguments = ["twin-a", "--data", str(source), "--out", str(out / "twin-a"),
                 "--work", str(out / "corpus"), "--device", "cpu", "--micro", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pretrain.RECIPES, "twin-a", TINY)
        main(arguments)
        first = AutoModelForCausalLM.from_pretrained(out / "twin-a", dtype=torch.float32)
        main(arguments)  # again: nothing is left to train
    torch.set_float32_matmul_precision(precision)
    return out / "twin-a", first


def run(data, out, recipe=TINY, **options):
    model = new_model(recipe)
    log = train(model, data, recipe, out, "cpu", micro=4, **options)
    return model, log


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    return out, *run(data, out)


def same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def without_seconds(log):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in log["curve"]]


# ---- batches and steps


def test_every_epoch_covers_each_piece_once_in_another_order():
    stream, recipe = np.arange(8 * 16 * 5 + 40, dtype=np.uint16), replace(TINY, epochs=1.5)
    per_epoch, total = steps_of(recipe, stream)
    assert (per_epoch, total) == (5, 8)
    firsts = []
    for epoch in range(3):
        batches = torch.stack([batch_at(stream, epoch * 5 + i, recipe) for i in range(5)])
        assert batches.shape == (5, 8, 16) and batches.dtype == torch.int64
        pieces = batches.flatten(0, 1)
        assert (pieces.diff() == 1).all()  # each a run of the stream
        assert len(set(pieces.flatten().tolist())) == pieces.numel()  # none twice
        firsts.append(pieces[:, 0])
    places = [(f // 16).tolist() for f in firsts]
    assert places[0] != places[1] != places[2] and places[0] != sorted(places[0])
    assert len({int(f[0]) % 16 for f in firsts}) > 1  # cut at another offset


def test_texts_too_short_for_one_batch(tmp_path, data):
    for n in (0, 100, 8 * 16 + 15):
        with pytest.raises(ValueError, match=f"training text is too short: .* {n} tokens.* 8 x 16"):
            run({**data, "train": data["train"][:n]}, tmp_path)
    with pytest.raises(ValueError, match="held-out text is too short: 15 tokens.* 16$"):
        run({**data, "held_out": data["held_out"][:15]}, tmp_path)
    assert steps_of(replace(TINY, epochs=1), data["train"][: 8 * 16 + 16]) == (1, 1)


def test_batches_are_a_function_of_step_and_recipe(data):
    stream = data["train"]
    assert torch.equal(batch_at(stream, 3, TINY), batch_at(stream, 3, TINY))
    assert not torch.equal(batch_at(stream, 3, TINY), batch_at(stream, 4, TINY))
    assert not torch.equal(batch_at(stream, 3, TINY), batch_at(stream, 3, replace(TINY, seed=2)))


def test_learning_rate_schedule():
    recipe = replace(TINY, warmup_steps=10, learning_rate=0.5, decay_share=0.2)
    rates = [rate_at(step, 100, recipe) for step in range(100)]
    assert decay_start(100, recipe) == 80
    assert rates[:10] == pytest.approx([0.05 * i for i in range(1, 11)])
    assert rates[10:81] == [0.5] * 71
    assert rates[80:] == pytest.approx([0.5 * (20 - i) / 20 for i in range(20)])
    assert rates[:80] == [rate_at(step, 1000, recipe) for step in range(80)]


def test_new_model_follows_the_recipe():
    model, again = new_model(TINY), new_model(TINY)
    assert same_weights(model, again)
    assert not same_weights(model, new_model(replace(TINY, seed=2)))
    c = model.config
    assert (c.vocab_size, c.n_embd, c.n_layer, c.n_head, c.n_positions) == (300, 16, 1, 2, 16)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert c.activation_function == "gelu" and c.embd_pdrop == c.attn_pdrop == c.resid_pdrop == 0


@pytest.mark.parametrize("seed", [1, 3])
def test_new_weights_are_those_of_the_default_generator_at_the_seed(seed):
    model = new_model(replace(TINY, seed=seed))
    torch.manual_seed(seed)
    assert same_weights(model, GPT2LMHeadModel(model.config))


def random_state_is_left_alone(call):
    """Whether the numbers that the caller draws are the same with and without a call between."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    call()
    return torch.equal(torch.rand(3), expected)


def test_training_leaves_the_random_state_of_its_caller_alone(data, tmp_path):
    assert random_state_is_left_alone(lambda: new_model(TINY))
    assert random_state_is_left_alone(lambda: run(data, tmp_path, stop_at=1))
    model = new_model(TINY)
    assert random_state_is_left_alone(lambda: sample_text(model, data["tokenizer"]))
    assert not random_state_is_left_alone(lambda: torch.rand(1))  # what is not to happen


def test_a_sample_is_that_of_the_default_generator_at_zero(data):
    model, tokenizer = new_model(TINY), data["tokenizer"]
    ids = tokenizer("the film", return_tensors="pt")
    torch.manual_seed(0)
    expected = model.eval().generate(**ids, max_new_tokens=5, do_sample=True, top_k=50,
                                     pad_token_id=0)
    found = sample_text(model, tokenizer, "the film", tokens=5)
    assert found == tokenizer.decode(expected[0], skip_special_tokens=True)
    assert found == sample_text(model, tokenizer, "the film", tokens=5)
    assert found.startswith("the film") and found != sample_text(model, tokenizer, "the film", 4)
    assert sample_text(model, tokenizer)  # 80 tokens, of which the model has room for 16


@pytest.mark.parametrize("name", [name for name in RECIPES if name in MODELS])
def test_the_bundled_models_were_made_by_their_recipes(name):
    log = json.loads((BUNDLED / name / "training_log.json").read_text("utf-8"))
    recipe = RECIPES[name]
    assert PretrainRecipe(**log["recipe"]) == recipe
    p = load(name).parameters
    assert (p.d, p.L, p.H, p.e) == (recipe.d, recipe.layers, recipe.heads, recipe.vocabulary)


def test_a_model_of_pythias_architecture(data, tmp_path):
    recipe = replace(TINY, architecture="GPT-NeoX", d=32)
    model, log = run(data, tmp_path, recipe)
    assert log["curve"][-1]["held_out_loss"] < math.log(recipe.vocabulary) - 1
    write_folder(tmp_path, "untied", model, data, log, "cpu")
    found = load(tmp_path)
    p = found.parameters
    assert not p.tied and (p.d, p.L, p.H, p.e) == (32, 1, 2, 300)
    assert found.model.config.rope_parameters["partial_rotary_factor"] == 0.25
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "GPT-NeoX's architecture" in card and "untied embeddings, rotary" in card


def test_weight_decay_is_for_matrices_only():
    model = new_model(TINY)
    decayed, plain = new_optimizer(model, TINY, "cpu").param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim == 2 for p in decayed["params"]) and all(p.ndim == 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


# ---- training and resuming


def test_the_loss_goes_down(straight, data):
    _, _, log = straight
    per_epoch, total = steps_of(TINY, data["train"])
    assert log["step"] == log["total"] == total == log["curve"][-1]["step"]
    assert log["curve"][-1]["tokens"] == total * 8 * 16
    assert [e["step"] for e in log["curve"]] == list(range(2, total + 1, 2))
    assert per_epoch // 10 == 2 and per_epoch < total
    for part in ("train_loss", "held_out_loss"):
        losses = [entry[part] for entry in log["curve"]]
        assert losses[0] > 5 and losses[-1] < losses[0] - 1.5


def test_a_stopped_and_resumed_run_equals_a_straight_one(straight, data, tmp_path):
    _, model, log = straight
    per_epoch, total = steps_of(TINY, data["train"])
    assert decay_start(total, TINY) < total - 1
    for stop in (3, per_epoch, total - 1):  # between two log entries, two epochs, in the decay
        assert run(data, tmp_path, stop_at=stop)[1]["step"] == stop
    resumed, again = run(data, tmp_path)
    assert same_weights(resumed, model)
    assert without_seconds(again) == without_seconds(log)
    assert again["seconds"] > 0


def test_a_run_killed_between_checkpoints_equals_a_straight_one(straight, data, tmp_path,
                                                                 monkeypatch):
    _, model, log = straight

    def killed(stream, step, recipe):
        if step == 13:
            raise KeyboardInterrupt
        return batch_at(stream, step, recipe)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "batch_at", killed)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path, checkpoint_every=5)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["log"]["step"] == 10
    resumed, again = run(data, tmp_path)
    assert same_weights(resumed, model) and without_seconds(again) == without_seconds(log)


def test_other_epochs_are_allowed_before_the_decay(data, tmp_path):
    shorter = replace(TINY, epochs=0.6)
    total, longer = steps_of(shorter, data["train"])[1], steps_of(TINY, data["train"])[1]
    stop = decay_start(total, shorter)
    run(data, tmp_path / "resumed", stop_at=stop)  # planned for 1.3 epochs
    resumed, log = run(data, tmp_path / "resumed", shorter)
    straight, expected = run(data, tmp_path / "straight", shorter)
    assert stop < total < longer and log["step"] == log["total"] == total
    assert log["recipe"]["epochs"] == 0.6
    assert same_weights(resumed, straight)
    assert without_seconds(log) == without_seconds(expected)


@pytest.mark.parametrize("step, total, epochs, new_total", [
    (81, 100, 4, 200), (100, 100, 4, 200),  # the saved run has begun its decay
    (50, 100, 1, 50), (41, 100, 1, 50),  # the new, shorter run would have
])
def test_other_epochs_are_refused_after_the_decay_began(tmp_path, step, total, epochs, new_total):
    path, model, optimizer = saved_at(tmp_path, step, total)
    with pytest.raises(ValueError, match=f"holds step {step} of .*epochs=1.3.*epochs={epochs}"):
        resume(path, model, optimizer, replace(TINY, epochs=epochs), new_total, "cpu", 9)
    assert resume(path, model, optimizer, TINY, total, "cpu", 9)["step"] == step


def test_micro_batches_add_up_to_the_batch(data, tmp_path):
    sums, first = [], {}
    for micro in (8, 2):
        model = new_model(TINY)
        train(model, data, TINY, tmp_path / str(micro), "cpu", micro=micro, stop_at=1)
        saved = torch.load(tmp_path / str(micro) / "checkpoint.pt", weights_only=True)
        sums.append(saved["log"]["recent"])
        first[micro] = saved["optimizer"]["state"][0]["exp_avg"]  # a tenth of the gradient
    assert sums[0] == pytest.approx(sums[1], rel=1e-3) and sums[0] > 5
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in first.values()), 0) > 0.999
    assert first[8].norm() == pytest.approx(float(first[2].norm()), rel=0.01)


@pytest.mark.parametrize("change", [{"seed": 2}, {"learning_rate": 1e-3}, {"batch": 4},
                                    {"seed": 2, "epochs": 4}])
def test_another_recipe_is_refused(tmp_path, change):
    path, model, optimizer = saved_at(tmp_path, 10, 100)
    with pytest.raises(ValueError, match="this run asks for .*delete it or choose another --out"):
        resume(path, model, optimizer, replace(TINY, **change), 100, "cpu", 9)


def test_other_data_are_refused(tmp_path, data):
    run(data, tmp_path, stop_at=1)
    less = {**data, "train": data["train"][:-1]}
    n = len(less["train"])
    with pytest.raises(ValueError, match=f"a run on {n + 1} training tokens, this run has {n}: "):
        run(less, tmp_path)


def saved_at(folder, step, total):
    model = new_model(TINY)
    optimizer = new_optimizer(model, TINY, "cpu")
    log = {"recipe": TINY.__dict__, "total": total, "curve": [], "seconds": 0.0, "step": step,
           "train_items": 9}
    save_checkpoint(folder / "checkpoint.pt", model, optimizer, log)
    return folder / "checkpoint.pt", model, optimizer


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path, model, optimizer = saved_at(tmp_path, 10, 100)
    before = path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]

    def cut_off(_, file):
        with open(file, "wb") as half:
            half.write(b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        saved_at(tmp_path, 20, 100)
    assert path.read_bytes() == before
    assert resume(path, model, optimizer, TINY, 100, "cpu", 9)["step"] == 10


# ---- what is left behind


def test_the_command_equals_the_function_and_leaves_a_finished_model(finished, straight):
    folder, first = finished
    half = AutoModelForCausalLM.from_pretrained(folder)
    single = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert half.dtype == torch.float16 and single.dtype == torch.float32
    assert same_weights(single, first)  # a second call trained nothing
    for written, trained in zip(single.parameters(), straight[1].parameters(), strict=True):
        assert torch.equal(written, trained.half().float())
    assert json.loads((folder / "training_log.json").read_text())["step"] == straight[2]["step"]


def test_the_folder_has_its_tokenizer_and_counts(finished, data):
    folder, model = finished
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == data["tokenizer"].get_vocab()
    counts = json.loads((folder / "token_counts.json").read_text())
    assert counts == np.bincount(data["train"], minlength=300).tolist()
    assert sum(counts) == len(data["train"]) and len(counts) == model.config.vocab_size
    vocabulary = load_vocabulary(model, tokenizer)
    film = vocabulary.id("film")
    assert vocabulary.counts[film] == (data["train"] == film).sum() > 50


def test_a_model_with_room_for_more_items_than_the_tokenizer(data, tmp_path):
    model, log = run(data, tmp_path, replace(TINY, vocabulary=310, epochs=0.1))
    write_folder(tmp_path, "wider", model, data, log, "cpu")
    counts = json.loads((tmp_path / "token_counts.json").read_text())
    assert len(counts) == 310 and counts[300:] == [0] * 10 and sum(counts) == len(data["train"])


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
def test_everybody_may_read_the_folder(finished):
    modes = {file.name: file.stat().st_mode & 0o777 for file in finished[0].iterdir()}
    assert "model.safetensors" in modes and set(modes.values()) == {0o644}


def test_the_card_has_the_perplexity_of_the_written_weights(finished, data):
    folder, model = finished
    card = (folder / "README.md").read_text()
    rows = data["held_out"][: len(data["held_out"]) // 16 * 16].reshape(-1, 16).astype(np.int64)
    losses = []
    for row in torch.from_numpy(rows):  # in float32, one piece at a time
        with torch.no_grad():
            scores = model(row[None]).logits[0].log_softmax(-1)
        losses += [-float(scores[i, row[i + 1]]) for i in range(15)]
    stated = float(re.search(r"perplexity per token \| \*\*([\d.]+)\*\*", card)[1])
    assert stated == pytest.approx(math.exp(np.mean(losses)), rel=0.02)
    bits = float(re.search(r"([\d.]+) bits per byte", card)[1])
    per_byte = np.mean(losses) / math.log(2) * len(data["held_out"]) / data["held_out_bytes"]
    assert bits == pytest.approx(per_byte, rel=0.02)
    assert "# twin-a" in card and "d = 16" in card and "> This movie" in card
    assert f"{data['train_reviews']:,} reviews" in card
