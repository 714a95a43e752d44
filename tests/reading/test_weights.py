"""How weights come into memory: mapped or converted one by one, the same as `transformers` has."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from embspace_helpers.reading import sources
from embspace_helpers.reading.sources import load_model, load_untrained


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
    source, options = sources.locate(name)
    other = sources.auto_class(source, options).from_pretrained(source, dtype=dtype, **options)
    assert type(model) is type(other) and model.config.to_dict() == other.config.to_dict()
    assert model.config.name_or_path == model.name_or_path == source
    for mine, theirs in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert mine[0] == theirs[0] and torch.equal(mine[1], theirs[1])
    for mine, theirs in zip(model.buffers(), other.buffers(), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    if model.can_generate():
        assert model.generation_config.to_dict() == other.generation_config.to_dict()


MEASURE = """
import re
from pathlib import Path
from transformers.models.llama import modeling_llama
from embspace_helpers.reading.sources import load_model
load_model("twin-a")
size = lambda key: int(re.search(key + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")
before = size("VmRSS")
load_model("smollm2", "float32")
print((size("VmHWM") - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="there is no /proc")
def test_converting_takes_little_more_memory_than_the_converted_weights():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True)
    assert 513 < float(done.stdout) < 513 + 120, done.stderr  # the weights, and the tokenizer's 30


def test_untrained_weights_are_drawn_in_float32_then_converted():
    full, half = load_untrained("twin-a", 3)[0], load_untrained("twin-a", np.int64(3), "float16")[0]
    for one, other in zip(full.parameters(), half.parameters(), strict=True):
        assert torch.equal(one.half(), other)
    assert load_untrained("twin-a", dtype="auto")[0].dtype == load_model("twin-a", "auto")[0].dtype
