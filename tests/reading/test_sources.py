"""Names, folders and files: which model is meant, where it lies, what its weights' hash is."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embspace_helpers import load
from embspace_helpers.reading import sources
from embspace_helpers.reading.sources import ModelNotFound, fingerprint, locate

OFFLINE = """
import os, socket, sys
def refuse(*_): raise SystemExit("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from embspace_helpers import load
for name in sys.argv[1:]:
    load(name)
"""


def test_known_names_load_offline_without_a_word():
    run = [sys.executable, "-c", OFFLINE, "minilm", "smollm2", "twin-a"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_missing_fetch_says_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match="not in the cache folder .*helpers.fetch smol"):
        load("smollm2")


def test_missing_bundled_model_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "BUNDLED", tmp_path)
    with pytest.raises(ModelNotFound, match="twin-b is not in this copy of the package"):
        load("twin-b")


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
        assert locate(given) == locate(meant)


UNKNOWN = [
    ("smolm2", "no model 'smolm2' (did you mean 'smollm2'?); without a network there are twin-a"),
    ("Smol LM", "did you mean 'smollm2'"),
    ("twin-c", "did you mean 'twin-"),
    ("twinn_a", "did you mean 'twin-a'"),
    ("all-MiniLM-L6-v2", "did you mean 'minilm'"),
    ("SmolLM2-135M-Instruct", "did you mean 'smollm2'"),
    ("a" * 300, "cannot be a name on the hub"),
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
    (__file__, "test_sources.py' holds no model: a folder has a config.json, and a file ends"),
]


@pytest.mark.parametrize("ask", [load, locate, fingerprint])
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
        (torch.nn.Sequential(torch.nn.ReLU()), "not by Sequential( (0): ReLU() );"),
    ],
)
@pytest.mark.parametrize("ask", [load, locate, fingerprint])
def test_a_name_of_another_type_is_told_at_once(name, said, ask, no_network):
    with pytest.raises(TypeError, match=re.escape(said)):
        ask(name)


def test_fingerprint_reads_a_file_once_until_it_changes(monkeypatch, tmp_path):
    twin = shutil.copytree(sources.BUNDLED / "twin-a", tmp_path / "twin")
    first = fingerprint(twin)
    assert first == hashlib.sha256((twin / "model.safetensors").read_bytes()).hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert fingerprint(str(twin)) == first
    (twin / "part.safetensors").write_bytes(b"more")
    assert fingerprint(twin) != first
    (twin / "part.safetensors").unlink()
    (twin / "model.safetensors").write_bytes(b"other")
    assert fingerprint(twin) == hashlib.sha256(b"other").hexdigest()
