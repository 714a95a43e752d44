"""Loading by name, folder and GGUF file; the real models are those `make test` has fetched."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tiny_gguf import write_gguf
from transformers.utils import logging

import embspace_helpers.workshop.fetch as fetching
from embspace_helpers.reading import sources
from embspace_helpers.reading.sources import ModelNotFound, load_model, load_untrained
from embspace_helpers.reading.vocabulary import load_vocabulary

OFFLINE = """
import os, socket, sys
def refuse(*_): raise SystemExit("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from embspace_helpers.reading.sources import load_model
for name in sys.argv[1:]:
    load_model(name)
"""


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2")


@pytest.fixture(scope="module")
def minilm():
    return load_model("minilm")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def continued(model, tokenizer, prompt, tokens):
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0]
    return tokenizer.decode(ids[inputs.input_ids.shape[1] :])


def sentence_cosine(model, tokenizer, one, other):
    """Cosine of the mean last hidden states, which MiniLM was trained to make meaningful."""
    inputs = [tokenizer(text, return_tensors="pt") for text in (one, other)]
    means = [model(**tokens).last_hidden_state[0].mean(0) for tokens in inputs]
    return torch.cosine_similarity(*means, dim=0).item()


def test_models_come_ready_to_read(smollm2, minilm):
    for model, tokenizer in (smollm2, minilm):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_smollm2_agrees_with_the_published_configuration(smollm2):
    # HuggingFaceTB/SmolLM2-135M-Instruct, config.json; GGUF holds no spread of initial weights
    published = dict(
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, vocab_size=49152, hidden_act="silu", rms_norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        max_position_embeddings=8192, initializer_range=1 / 24,
    )  # fmt: skip
    model, _ = smollm2
    assert {key: getattr(model.config, key) for key in published} == published
    assert model.config.rope_parameters["rope_theta"] == 100_000
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.num_parameters() == 134_515_008
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_smollm2_writes_sense_and_the_same_every_time(smollm2):
    once, again = (continued(*smollm2, "The capital of France is", 8) for _ in range(2))
    assert once.startswith(" Paris") and once == again


def test_smollm2_tokens(smollm2):
    _, tokenizer = smollm2
    for text in ("The capital of France is", " café 日本\n\n  x = 1984", "don't  2024!"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("The capital, in  2024") == (
        ["The", "Ġcapital", ",", "Ġin", "ĠĠ", "2", "0", "2", "4"]
    )


def test_minilm_is_the_encoder_and_tells_meanings_apart(minilm):
    model, tokenizer = minilm
    assert type(model) is transformers.BertModel and model.num_parameters() == 22_713_216
    assert tokenizer.tokenize("Unbelievable films") == ["unbelievable", "films"]
    near = sentence_cosine(model, tokenizer, "A cat sits on the mat.", "A kitten rests on a rug.")
    far = sentence_cosine(model, tokenizer, "A cat sits on the mat.", "Interest rates rose again.")
    assert near > 0.5 > 0.2 > far


def test_known_names_load_offline_without_a_word():
    run = [sys.executable, "-c", OFFLINE, "minilm", "smollm2", "twin-a"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_twins_share_vocabulary_and_shape_but_not_weights():
    (one, tokenizer), (other, same) = load_model("twin-a"), load_model("twin-b")
    assert type(one) is transformers.GPT2LMHeadModel
    assert tokenizer.get_vocab() == same.get_vocab()
    assert one.config.vocab_size == len(tokenizer) and one.config.tie_word_embeddings
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (one, other)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(one.transformer.wte.weight, other.transformer.wte.weight)


def test_wide_w_shares_the_twins_vocabulary_and_no_shape():
    (twin, tokenizer), (wide, same) = load_model("twin-a"), load_model("wide-w")
    assert type(wide) is transformers.GPT2LMHeadModel
    assert tokenizer.get_vocab() == same.get_vocab()
    shapes = [[getattr(model.config, key) for key in ("n_embd", "n_layer", "n_head", "vocab_size")]
              for model in (twin, wide)]
    assert shapes == [[192, 6, 3, 8192], [256, 8, 4, 8192]]
    counts = [load_vocabulary(model, tokenizer).counts for model in (twin, wide)]
    assert torch.equal(*counts)


@pytest.mark.parametrize("name", ["twin-a", "twin-b", "wide-w"])
def test_bundled_models_have_learnt_the_text(name):
    model, tokenizer = load_model(name)
    untrained, _ = load_untrained(name)
    text = "This is one of the best movies I have ever seen."
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert model(ids, labels=ids).loss < 0.7 * untrained(ids, labels=ids).loss
    assert len(continued(model, tokenizer, "This movie is", 10)) > 10


def test_dtype_can_be_chosen():
    for dtype in (torch.float16, "float16"):
        model, _ = load_model("minilm", dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_untrained_depends_on_the_seed_alone_and_leaves_the_random_state(minilm):
    before = torch.get_rng_state()
    first, tokenizer = load_untrained("minilm", seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    weights = [model.embeddings.word_embeddings.weight for model in (
        first, load_untrained("minilm", seed=1)[0], load_untrained("minilm", seed=2)[0], minilm[0]
    )]  # fmt: skip
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])
    assert weights[0][1:].std().item() == pytest.approx(first.config.initializer_range, rel=0.01)
    assert not first.training and not any(p.requires_grad for p in first.parameters())
    assert tokenizer.get_vocab() == minilm[1].get_vocab()
    assert [p.shape for p in first.parameters()] == [p.shape for p in minilm[0].parameters()]


@pytest.mark.parametrize(
    "kind", ["GPT2LMHeadModel", "LlamaForCausalLM", "BertForMaskedLM", "BertModel"]
)
def test_folder_loads_as_what_its_configuration_says(kind, minilm, tmp_path):
    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    architecture = getattr(transformers, kind)
    saved = architecture(architecture.config_class(**small, vocab_size=30522))
    saved.save_pretrained(tmp_path)
    minilm[1].save_pretrained(tmp_path)
    model, _ = load_model(tmp_path)
    assert type(model) is architecture
    assert torch.equal(model.get_input_embeddings().weight, saved.get_input_embeddings().weight)


def test_gguf_file_loads_dense_and_converts(tmp_path, capfd):
    values = write_gguf(tmp_path / "tiny.gguf")
    model, _ = load_model(tmp_path / "tiny.gguf")
    assert capfd.readouterr().err == ""
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, values)
    fetching._convert("tiny", tmp_path / "tiny.gguf")
    assert not (tmp_path / "tiny.gguf").exists()
    converted, digits = load_model(tmp_path)
    assert torch.equal(converted.model.layers[0].mlp.down_proj.weight, values.half().float())
    assert converted.config.rms_norm_eps == 1e-5
    assert digits.tokenize("ab  12") == ["ab", "ĠĠ", "1", "2"]


def test_bars_are_hidden_while_loading_only(capfd):
    with sources.quiet():
        list(logging.tqdm(range(3)))
    assert capfd.readouterr().err == ""
    list(logging.tqdm(range(3)))
    assert "3/3" in capfd.readouterr().err


def test_missing_fetch_says_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match="not in the cache folder .*helpers.fetch smol"):
        load_model("smollm2")


def test_damaged_fetch_says_what_is_wrong(monkeypatch, tmp_path):
    shutil.copytree(sources.cache_folder() / "minilm", tmp_path / "minilm")
    (tmp_path / "minilm" / "tokenizer.json").unlink()
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match="damaged .*tokenizer.json is missing.*fetch minilm"):
        load_untrained("minilm")


def test_missing_bundled_model_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "BUNDLED", tmp_path)
    with pytest.raises(ModelNotFound, match="twin-b is not in this copy of the package"):
        load_model("twin-b")


KNOWN = [
    ("SmolLM2", "smollm2"),
    (" twin-A ", "twin-a"),
    ("Twin A", "twin-a"),
    ("twin_a", "twin-a"),
    ("TWINB", "twin-b"),
    ("wide.w", "wide-w"),
    ("twin", None),
    ("gpt2", None),
    ("owner/twin-a", None),
    ("", None),
    (None, None),
]


@pytest.mark.parametrize(("given", "meant"), KNOWN)
def test_known_names_in_any_writing(given, meant):
    assert sources.known_name(given) == meant
    if meant:
        assert sources.locate(given) == sources.locate(meant)


UNKNOWN = [
    ("smolm2", "no model 'smolm2' (did you mean 'smollm2'?); without a network there are twin-a"),
    ("Smol LM", "did you mean 'smollm2'"),
    ("twin-c", "did you mean 'twin-"),
    ("twinn_a", "did you mean 'twin-a'"),
    ("all-MiniLM-L6-v2", "did you mean 'minilm'"),
    ("SmolLM2-135M-Instruct", "did you mean 'smollm2'"),
    ("./nowhere", "no file or folder './nowhere'"),
    ("~/nowhere", "no file or folder '~/nowhere'"),
    (Path("nowhere"), "no file or folder 'nowhere'"),
    ("weights/none.gguf", "no file or folder 'weights/none.gguf'"),
    ("none.GGUF", "no file or folder 'none.GGUF'"),
    ("a/b/c", "no file or folder 'a/b/c'"),
    ("", "no name was given ('')"),
    ("  ", "no name was given ('  ')"),
    ("a model of mine", "'a model of mine' is no known name, file or folder, and cannot be a name"),
    ("http://hub/x", "no file or folder 'http://hub/x'"),
    ("modèle", "cannot be a name on the hub"),
    ("film--reader", "cannot be a name on the hub"),
    ("config.yaml\n", "is no known name"),
    (__file__, "test_sources.py' is no .gguf file; a model in safetensors is given by its folder"),
]


@pytest.mark.parametrize("ask", [load_model, load_untrained, sources.locate, sources.fingerprint])
@pytest.mark.parametrize(("name", "said"), UNKNOWN)
def test_unknown_names_are_told_without_a_network(name, said, ask, no_network, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFound, match=re.escape(said)) as caught:
        ask(name)
    assert str(caught.value).endswith("with one, any name on the hub.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (None, "not by None; without a network there are twin-a, twin-b"),
        (42, "not by 42;"),
        (["twin-a"], "not by ['twin-a'];"),
        (b"twin-a", "not by b'twin-a';"),
        (torch.nn.Linear(2, 2), "not by Linear(in_features=2, out_features=2, bias=True);"),
        (torch.nn.Sequential(torch.nn.ReLU()), "not by an object of type Sequential;"),
    ],
)
@pytest.mark.parametrize("ask", [load_model, load_untrained, sources.locate, sources.fingerprint])
def test_a_name_of_another_type_is_told_at_once(name, said, ask, no_network):
    with pytest.raises(TypeError, match=re.escape(said)):
        ask(name)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"dtype": "float17"}, ValueError, "dtype = 'float17' is no type of weights: there are "),
        ({"dtype": torch.int8}, ValueError, "dtype = torch.int8 is no type of weights"),
        ({"dtype": None}, ValueError, "float32, float16, bfloat16, float64 and auto (as stored)"),
        ({"seed": 1.5}, TypeError, "seed = 1.5, but it must be a whole number"),
    ],
)
def test_options_that_cannot_be(options, error, said):
    with pytest.raises(error, match=re.escape(said)):
        load_untrained("twin-a", **options)
    if "dtype" in options:
        with pytest.raises(error, match=re.escape(said)):
            load_model("twin-a", **options)
