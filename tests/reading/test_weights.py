"""Weights and tokenizers from files: the same as `transformers` has; bad files are named."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from tiny_gguf import write_gguf
from transformers.utils import logging

import embspace_helpers.workshop.fetch as fetching
from embspace_helpers.reading import sources, weights
from embspace_helpers.reading.sources import locate
from embspace_helpers.reading.vocabulary import load_vocabulary
from embspace_helpers.reading.weights import BadModelFile, read_model


def load_model(name, dtype="float32"):
    return read_model(locate(name), dtype)


def load_untrained(name, seed=0, dtype="float32"):
    return read_model(locate(name), dtype, seed)


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2")


@pytest.fixture(scope="module")
def minilm():
    return load_model("minilm")


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


def test_untied_u_shares_the_twins_vocabulary_and_has_two_embeddings():
    (_, tokenizer), (model, same) = load_model("twin-a"), load_model("untied-u")
    assert type(model) is transformers.GPTNeoXForCausalLM
    assert tokenizer.get_vocab() == same.get_vocab()
    E, E_out = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert E.shape == E_out.shape == (8192, 192) and E.data_ptr() != E_out.data_ptr()
    cosines = torch.nn.functional.cosine_similarity(E - E.mean(0), E_out - E_out.mean(0))
    assert cosines.abs().mean() < 0.2


@pytest.mark.parametrize("name", ["twin-a", "twin-b", "wide-w", "untied-u"])
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


def test_an_electra_that_discriminates_loads_without_its_head(minilm, tmp_path):
    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    saved = transformers.ElectraForPreTraining(transformers.ElectraConfig(
        **small, embedding_size=8, vocab_size=30522))
    saved.save_pretrained(tmp_path)
    minilm[1].save_pretrained(tmp_path)
    model, _ = load_model(tmp_path)
    assert type(model) is transformers.ElectraModel
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
    with weights.quiet():
        list(logging.tqdm(range(3)))
    assert capfd.readouterr().err == ""
    list(logging.tqdm(range(3)))
    assert "3/3" in capfd.readouterr().err


@pytest.mark.parametrize("dtype", ["float17", torch.int8, None])
def test_a_dtype_of_no_weights(dtype):
    for seed in (None, 0):
        with pytest.raises(ValueError, match=r"int8|float17|None.*there are float32, float16, bf"):
            read_model(locate("twin-a"), dtype, seed)


# ---- in memory


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc")
@pytest.mark.parametrize(("dtype", "mapped"), [("float16", 1), ("auto", 1), ("float32", 0)])
def test_weights_of_the_stored_type_stay_in_their_file(dtype, mapped):
    model, _ = load_model("smollm2", dtype)
    maps = [line.split() for line in Path("/proc/self/maps").read_text("utf-8").splitlines()]
    spans = [[int(end, 16) for end in line[0].split("-")] for line in maps
             if line[-1].endswith("smollm2/model.safetensors")]
    for parameter in model.parameters():
        place = parameter.data_ptr()
        assert any(start <= place < end for start, end in spans) == mapped


@pytest.mark.parametrize("name", ["twin-a", "minilm"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_those_that_transformers_loads(name, dtype):
    before = torch.get_rng_state()
    model, _ = load_model(name, dtype)
    assert torch.equal(before, torch.get_rng_state())
    source, kind = str(locate(name)), {"twin-a": transformers.GPT2LMHeadModel,
                                       "minilm": transformers.BertModel}[name]
    other = kind.from_pretrained(source, dtype=dtype, local_files_only=True)
    assert type(model) is type(other) and model.config.to_dict() == other.config.to_dict()
    assert model.config.name_or_path == model.name_or_path == source
    for mine, theirs in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert mine[0] == theirs[0] and torch.equal(mine[1], theirs[1])
    for mine, theirs in zip(model.buffers(), other.buffers(), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    if model.can_generate():
        assert model.generation_config.to_dict() == other.generation_config.to_dict()


def test_untrained_weights_are_drawn_in_float32_then_converted():
    full, half = load_untrained("twin-a", 3)[0], load_untrained("twin-a", 3, "float16")[0]
    for one, other in zip(full.parameters(), half.parameters(), strict=True):
        assert torch.equal(one.half(), other)
    assert load_untrained("twin-a", dtype="auto")[0].dtype == load_model("twin-a", "auto")[0].dtype


# ---- bad files


@pytest.fixture
def twin(tmp_path):
    """A copy of twin-a that a test may spoil."""
    folder = tmp_path / "twin"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(sources.BUNDLED / "twin-a" / name, folder)
    return folder


def cut(file, size):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:size])


def write(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def set_config(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps(config | values), "utf-8")

    return change


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def in_shards(folder):
    model, _ = load_model(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5MB")
    (folder / "model-00001-of-00004.safetensors").unlink()


BAD_WEIGHTS = [
    (cut("model.safetensors", 1_000_000), "model.safetensors is absent, damaged, cut off or of an"),
    (cut("model.safetensors", 100), "model.safetensors is absent, damaged, cut off"),
    (cut("model.safetensors", 0), "model.safetensors is absent, damaged, cut off"),
    (write("model.safetensors", b"<!DOCTYPE html>" * 9), "model.safetensors is absent, damaged"),
    (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors fou"),
    (pickled, "no file named model.safetensors found"),
    (in_shards, "No such file or directory: "),
    (set_config(n_layer=7), "12 tensors are missing and 0 have another shape, such as "),
    (set_config(vocab_size=99), "0 tensors are missing and 1 have another shape, such as "),
]
BAD_OTHERS = [
    (write("config.json", b"{n_embd"), "config.json' is not a valid JSON file"),
    (write("config.json", b""), "config.json' is not a valid JSON file"),
    (write("config.json", b"\xff\xfe"), "config.json' is not a valid JSON file"),
    (write("config.json", b"[]"), "config.json is absent, damaged, cut off or of another kind"),
    (write("config.json", b"{}"), "Should have a `model_type` key in its config.json"),
    (set_config(model_type="martian"), "config.json is absent, damaged, cut off or of another kin"),
    (set_config(model_type="martian", auto_map={"AutoConfig": "x.C"}), "contains custom code"),
    (set_config(architectures=3), "config.json is absent, damaged, cut off or of another kind"),
    (set_config(n_embd="many"), "Field 'n_embd' expected int, got str (value: 'many')"),
    (set_config(activation_function="magic"), "another kind (KeyError: 'magic')"),
    (write("tokenizer.json", b"{hello"), "tokenizer* is absent, damaged, cut off or of another ki"),
    (write("tokenizer.json", b"{}"), "tokenizer* is absent, damaged, cut off or of another kind"),
    (write("tokenizer_config.json", b"{"), "tokenizer* is absent, damaged, cut off or of another"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "there is none of tokenizer.json, token"),
]


@pytest.mark.parametrize(("spoil", "said"), BAD_WEIGHTS + BAD_OTHERS)
def test_a_bad_file_is_named_with_what_to_do(spoil, said, twin, no_network, capfd):
    spoil(twin)
    capfd.readouterr()
    with pytest.raises(BadModelFile, match=re.escape(said)) as caught:
        load_model(twin)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    if (spoil, said) in BAD_OTHERS:
        with pytest.raises(BadModelFile, match=re.escape(said)):
            load_untrained(twin)


def test_a_model_without_weights_can_be_drawn(twin):
    (twin / "model.safetensors").unlink()
    assert load_untrained(twin)[0].config.n_layer == 6


def test_an_encoder_without_a_pooler_loads(minilm, tmp_path):
    minilm[0].save_pretrained(tmp_path, state_dict={
        key: value for key, value in minilm[0].state_dict().items() if "pooler" not in key})
    minilm[1].save_pretrained(tmp_path)
    assert load_model(tmp_path)[0].config.hidden_size == 384


def test_bad_files_of_known_models_say_how_to_get_them_anew(monkeypatch, tmp_path, twin):
    monkeypatch.setattr(sources, "BUNDLED", tmp_path / "bundled")
    shutil.copytree(twin, tmp_path / "bundled" / "twin-a")
    cut("model.safetensors", 100)(tmp_path / "bundled" / "twin-a")
    with pytest.raises(BadModelFile, match="install the package again.$"):
        load_model("twin-a")
    shutil.copytree(sources.cache_folder() / "minilm", tmp_path / "minilm")
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path))
    size = (tmp_path / "minilm" / "model.safetensors").stat().st_size
    write("model.safetensors", b"x" * size)(tmp_path / "minilm")
    with pytest.raises(BadModelFile, match="fetch --force minilm` once with a network.$"):
        load_model("minilm")


def test_an_error_that_no_file_causes_is_not_told_as_one(monkeypatch, twin):
    def fail(*_, **__):
        raise KeyError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(transformers.GPT2LMHeadModel, "_load_pretrained_model", fail)
        with pytest.raises(KeyError, match="a bug"):
            load_model(twin)


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("size", [0, 3, 8, 60, 600, 1500, 50_000, -1])
def test_a_gguf_file_that_is_cut_off_is_named(size, seed, tmp_path, capfd):
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(BadModelFile, match=r"tiny.gguf is absent, damaged, cut off or of another"):
        read_model(file, seed=seed)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"GGUF", b"<!DO", "so it is not a GGUF file"),
        (b"GGUF\x03", b"GGUF\x09", "tiny.gguf is GGUF v9; this reader handles"),
        (b"llama", b"lhama", "GGUF model with architecture lhama is not supported"),
        (b"ggml.model", b"ggml.madel", "Cannot build a tokenizer from a GGUF file"),
    ],
)
def test_a_gguf_file_of_another_kind_is_named(old, new, said, seed, tmp_path):
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    file.write_bytes(file.read_bytes().replace(old, new))
    with pytest.raises(BadModelFile, match=re.escape(said)) as caught:
        read_model(file, seed=seed)
    assert "tiny.gguf" in str(caught.value)
