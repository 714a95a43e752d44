"""Files of models: broken ones are named in a sentence that says what to do; fingerprints."""

import hashlib
import json
import re
import shutil
import socket

import pytest
import transformers
from tiny_gguf import write_gguf

from embspace_helpers.reading import sources
from embspace_helpers.reading.sources import BadModelFile, ModelNotFound, load_model, load_untrained


@pytest.fixture(scope="module")
def minilm():
    return load_model("minilm")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


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


def index(**weights):
    def change(folder):
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        content = {"weight_map": weights} if weights else {}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content), "utf-8")

    return change


BAD_WEIGHTS = [
    (cut("model.safetensors", 1_000_000), "model.safetensors is damaged, cut off or no safetens"),
    (cut("model.safetensors", 100), "model.safetensors is damaged, cut off"),
    (cut("model.safetensors", 0), "model.safetensors is damaged, cut off"),
    (write("model.safetensors", b"<!DOCTYPE html>" * 9), "model.safetensors is damaged, cut off"),
    (lambda folder: (folder / "model.safetensors").unlink(), "twin has no model.safetensors: copy"),
    (pickled, "has no model.safetensors, and pytorch_model.bin is not read, since such a file can "
     "run code: save the model again as safetensors"),
    (index(x="other.safetensors"), "other.safetensors is missing, though model.safetensors.index"),
    (index(), "model.safetensors.index.json cannot be read (no weight_map"),
    (set_config(n_layer=7), "model.safetensors lacks transformer.h.6.attn.c_attn.bias and 11 more"),
    (set_config(vocab_size=99), "holds transformer.wte.weight in another shape than the config"),
]
BAD_OTHERS = [
    (write("config.json", b"{n_embd"), "config.json cannot be read as JSON (Expecting property"),
    (write("config.json", b""), "config.json cannot be read as JSON"),
    (write("config.json", b"\xff\xfe"), "config.json cannot be read as JSON"),
    (write("config.json", b"[]"), "config.json is no JSON object"),
    (write("config.json", b"{}"), "config.json has no model_type"),
    (set_config(model_type="martian"), "config.json asks for the model_type 'martian', which tr"),
    (set_config(model_type="martian", auto_map={"AutoConfig": "x.C"}), "code that comes with a mo"),
    (set_config(architectures=3), "config.json has architectures 3, which is no list of names"),
    (set_config(n_embd="many"), "config.json describes no model that can be made (Validation err"),
    (set_config(activation_function="magic"), "no model that can be made (KeyError: 'magic')"),
    (write("tokenizer.json", b"{hello"), "tokenizer.json cannot be read as JSON"),
    (write("tokenizer.json", b"{}"), "twin cannot be read (KeyError"),
    (write("tokenizer_config.json", b"{"), "tokenizer_config.json cannot be read as JSON"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "twin has no tokenizer (tokenizer.json"),
]


@pytest.mark.parametrize(("spoil", "said"), BAD_WEIGHTS + BAD_OTHERS)
def test_a_bad_file_is_named_with_what_to_do(spoil, said, twin, no_network, capfd):
    spoil(twin)
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
    with pytest.raises(ModelNotFound, match="holds no weights"):
        sources.fingerprint(twin)


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


@pytest.mark.parametrize("size", [0, 3, 8, 60, 600, 1500, 50_000, -1])
def test_a_gguf_file_that_is_cut_off_is_named(size, tmp_path, capfd):
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(BadModelFile, match=r"tiny.gguf is (no GGUF file|damaged, cut off)"):
        load_model(file)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"GGUF", b"<!DO", "tiny.gguf is no GGUF file (it does not start with GGUF)"),
        (b"GGUF\x03", b"GGUF\x09", "damaged, cut off or of another GGUF version"),
        (b"llama", b"lhama", "no configuration that transformers can use (GGUF model with arch"),
        (b"ggml.model", b"ggml.madel", "tiny.gguf holds no tokenizer that transformers can use"),
    ],
)
def test_a_gguf_file_of_another_kind_is_named(old, new, said, tmp_path):
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    file.write_bytes(file.read_bytes().replace(old, new))
    for load in (load_model, load_untrained):
        with pytest.raises(BadModelFile, match=re.escape(said)):
            load(file)


def test_fingerprint_reads_a_file_once_until_it_changes(monkeypatch, twin):
    first = sources.fingerprint(twin)
    assert first == hashlib.sha256((twin / "model.safetensors").read_bytes()).hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert sources.fingerprint(str(twin)) == first
    (twin / "part.safetensors").write_bytes(b"more")
    assert sources.fingerprint(twin) != first
    (twin / "part.safetensors").unlink()
    (twin / "model.safetensors").write_bytes(b"other")
    assert sources.fingerprint(twin) == hashlib.sha256(b"other").hexdigest()
