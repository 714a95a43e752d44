"""Load a model and its tokenizer: bundled, fetched, or anything `transformers` can load.

Known names and files never touch the network; a hub name may.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import platformdirs

if TYPE_CHECKING:  # these take seconds to import, so functions import them when called
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FETCH = "python -m embspace_helpers.fetch"
MANIFEST = "manifest.json"  # written last: a fetched folder that has it is complete


class Entry(NamedTuple):
    """A model known by name: `where` it is ("bundled" or "fetched") and `what` it is."""

    where: str
    what: str


MODELS = {
    "twin-a": Entry("bundled", "GPT-2-like decoder trained on movie reviews"),
    "twin-b": Entry("bundled", "twin-a trained again from another seed"),
    "wide-w": Entry("bundled", "wider and deeper than the twins, on their texts and vocabulary"),
    "minilm": Entry("fetched", "all-MiniLM-L6-v2, a BERT-like sentence encoder"),
    "smollm2": Entry("fetched", "SmolLM2-135M-Instruct, a Llama-like decoder"),
}
PACKAGE = Path(__file__).parents[1]
BUNDLED, DATA = PACKAGE / "bundled", PACKAGE / "data"


class ModelNotFound(LookupError):
    """No model by this name; the message says which names there are or what to do."""


def model_names() -> list[str]:
    """Names `load_model` knows without a network."""
    return list(MODELS)


def cache_folder() -> Path:
    """Folder of the fetched models: EMBSPACE_CACHE, or the user's cache folder."""
    default = platformdirs.user_cache_dir("embspace", appauthor=False)
    return Path(os.environ.get("EMBSPACE_CACHE") or default).expanduser()


def damage(folder: Path) -> str | None:
    """What is wrong with a fetched folder, by its manifest (None: every file is there)."""
    try:
        files = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return f"{MANIFEST} is missing or unreadable"
    for name, size in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None


def load_model(
    name: str | Path, dtype: torch.dtype | str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (eval mode, no gradients) and tokenizer.

    `name`: one of `model_names()`, a folder, a .gguf file, or a name on the Hugging Face hub.
    Raises ModelNotFound, which says what there is and what to do.
    """
    from transformers import AutoTokenizer

    source, options = locate(str(name))
    with quiet(), hub_errors(str(name), options):
        auto_class = _auto_class(source, options)
        model = auto_class.from_pretrained(source, dtype=dtype, **options, **_dense(options))
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    return model.eval().requires_grad_(False), tokenizer


def load_untrained(
    name: str | Path, seed: int = 0, dtype: torch.dtype | str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same architecture and tokenizer with random weights, drawn as for a training run.

    The weights depend on `seed` alone; the caller's random state is left as it was.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer

    source, options = locate(str(name))
    with quiet(), hub_errors(str(name), options):
        config = AutoConfig.from_pretrained(source, **options)
        auto_class = _auto_class(source, options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs as well
        model = auto_class.from_config(config, dtype=torch.float32)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return model.to(dtype).eval().requires_grad_(False), tokenizer


def fingerprint(name: str | Path) -> str:
    """SHA-256 of a local model's weights (one file: its sha256sum), a hub model's commit.

    Raises ModelNotFound for a folder without weights.
    """
    from huggingface_hub import hf_hub_download

    source, options = locate(str(name))
    if not options:
        with hub_errors(source, options):
            return Path(hf_hub_download(source, "config.json")).parent.name
    folder, digest = Path(source), hashlib.sha256()
    files = [folder / options["gguf_file"]] if "gguf_file" in options else (
        sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")))
    if not files:
        raise ModelNotFound(f"the folder {folder} holds no weights (*.safetensors, *.bin)")
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def locate(name: str) -> tuple[str, dict[str, Any]]:
    """Where `from_pretrained` finds the model, and the options it needs there."""
    path = Path(name).expanduser()
    if name in MODELS:
        return str(_known_folder(name)), {"local_files_only": True}
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), {"gguf_file": path.name, "local_files_only": True}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFound(f"the folder {name!r} has no config.json, so it holds no model.")
        return str(path), {"local_files_only": True}
    if path.suffix == ".gguf" or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise ModelNotFound(f"there is no file or folder {name!r}. {_known_names()}")
    close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.75)
    if close and "/" not in name:
        hint = f"did you mean {close[0]!r}?"
        raise ModelNotFound(f"there is no model {name!r}: {hint} {_known_names()}")
    return name, {}


def _known_names() -> str:
    return (
        f"Without a network there are {', '.join(MODELS)}, your own folders and .gguf files; "
        "with one, any name on the hub."
    )


def _known_folder(name: str) -> Path:
    """Folder of a known model. Raises ModelNotFound when it is absent or damaged."""
    if MODELS[name].where == "bundled":
        if not (BUNDLED / name / "config.json").is_file():
            raise ModelNotFound(f"{name} is not in this copy of the package ({BUNDLED / name}).")
        return BUNDLED / name
    folder = cache_folder() / name
    if not folder.is_dir():
        state = f"is not in the cache folder {cache_folder()}"
    elif problem := damage(folder):
        state = f"is damaged in the cache folder {cache_folder()} ({problem})"
    else:
        return folder
    raise ModelNotFound(f"{name} {state}: run `{FETCH} {name}` once with a network.")


def _auto_class(source: str, options: dict[str, Any]) -> Any:
    """The `transformers` Auto class for what the configuration says the weights are."""
    import transformers

    if "gguf_file" in options:  # GGUF files name no architecture; all that load are decoders
        return transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.from_pretrained(source, **options)
    architecture = (config.architectures or [""])[0]
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return transformers.AutoModelForCausalLM
    if architecture.endswith(("ForMaskedLM", "ForPreTraining")):
        return transformers.AutoModelForMaskedLM
    return transformers.AutoModel


def _dense(options: dict[str, Any]) -> dict[str, Any]:
    """Option that turns a GGUF file's quantised weights into ordinary ones."""
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)} if "gguf_file" in options else {}


@contextmanager
def quiet() -> Iterator[None]:
    """Hide `transformers`' own bars, which notebooks would store; the hub's bars stay."""
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    def hidden(factory: Any, args: Any, kwargs: Any) -> Any:
        return factory(*args, **{**kwargs, "disable": True})

    previous, gguf_bar = logging.set_tqdm_hook(hidden), gguf.tqdm
    gguf.tqdm = partial(gguf_bar, disable=True)
    try:
        yield
    finally:
        gguf.tqdm = gguf_bar
        logging.set_tqdm_hook(previous)


@contextmanager
def hub_errors(name: str, options: dict[str, Any]) -> Iterator[None]:
    """A failed hub look-up becomes a sentence; errors in local files (they have options) pass."""
    try:
        yield
    except (OSError, ValueError) as error:
        if options:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelNotFound(
            f"{name!r} is no known name and no folder, and could not be had from the Hugging Face "
            f"hub ({reason}). {_known_names()}"
        ) from None  # the chain of causes is pages long and says no more
