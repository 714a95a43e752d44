"""A model's files, read by `transformers`. A bad file is named in one sentence: BadModelFile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embspace_helpers.reading.sources import advice

if TYPE_CHECKING:  # these take seconds to import, so functions import them when called
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
              "vocab.json", "vocab.txt")  # of these a folder has at least one


class BadModelFile(ValueError):
    """A file of a model cannot be used; the message names the file and says what to do."""


def read_model(path: Path, dtype: torch.dtype | str = "float32",
               seed: int | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (eval mode, no gradients) and tokenizer, from a folder or .gguf file.

    `dtype`: of the weights, or "auto": as stored. Weights stored in it stay in their file, which
    is mapped; others are converted, and take memory. `seed`: None, or random weights are drawn in
    float32, from the seed alone, and converted. The caller's random state is left as it was.
    Raises BadModelFile, and ValueError for another dtype.
    """
    import torch

    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r} is no type of weights: there are {', '.join(DTYPES)} "
                         "(as stored)")
    config, tokenizer = read_tokenizer(path)
    stored = config.dtype or torch.float32
    with quiet():
        with _blamed(path, "config.json"), torch.device("meta"):  # takes no memory for weights
            kind = _auto_class(path, config)
            kind.from_config(config)
        if seed is None:
            model = _stored(kind, path, dtype)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # torch.manual_seed reseeds GPUs too
                model = kind.from_config(config, dtype=torch.float32)
            model = model.to(stored if dtype == "auto" else getattr(torch, dtype))
    return model.eval().requires_grad_(False), tokenizer


def read_tokenizer(path: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Configuration and tokenizer, from a folder or .gguf file. Raises BadModelFile."""
    from transformers import AutoConfig, AutoTokenizer

    folder, options = _options(path)
    with quiet():
        with _blamed(path, "config.json"):
            config = AutoConfig.from_pretrained(folder, **options)
        with _blamed(path, "tokenizer*"):
            if path == folder and not any((path / file).is_file() for file in TOKENIZERS):
                raise FileNotFoundError(f"there is none of {', '.join(TOKENIZERS)}")
            return config, AutoTokenizer.from_pretrained(folder, **options)


def _stored(kind: Any, path: Path, dtype: str) -> PreTrainedModel:
    """The model with its stored weights: all there, none of another shape. Raises BadModelFile."""
    from safetensors import safe_open
    from transformers import GgufConfig

    folder, options = _options(path)
    if path == folder:
        for file in path.glob("*.safetensors"):
            with _blamed(file), safe_open(file, "np"):
                pass
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    with _blamed(path, "", OSError):  # an absent file; all else that can be wrong was found above
        model, info = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, **options,
                                           ignore_mismatched_sizes=True, output_loading_info=True)
    # a pooler may be missing: few encoders come with one, and nothing here reads it
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    others = sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    if missing or others:
        raise BadModelFile(f"the weights in {path} do not fit the configuration: {len(missing)} "
                           f"tensors are missing and {len(others)} have another shape, such as "
                           f"{(missing + others)[0]}: {advice(path)}")
    return model


def _options(path: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and options for `from_pretrained`: no network, and no code of a model is run."""
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    return (path, options) if path.is_dir() else (path.parent, options | {"gguf_file": path.name})


def _auto_class(path: Path, config: Any) -> Any:
    """The `transformers` Auto class for what the configuration says the weights are."""
    import transformers

    name = (config.architectures or [""])[0]
    if path.is_file() or name.endswith(("ForCausalLM", "LMHeadModel")):  # GGUF files name none;
        return transformers.AutoModelForCausalLM  # all that load are decoders
    if name.endswith(("ForMaskedLM", "ForPreTraining")) and name != "ElectraForPreTraining":
        return transformers.AutoModelForMaskedLM
    return transformers.AutoModel


@contextmanager
def _blamed(path: Path, part: str = "", kind: type[Exception] = Exception) -> Iterator[None]:
    """An error while a file, or `part` of a folder, is read becomes BadModelFile.

    Not so where something else is amiss: a library that is missing, too little memory.
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except kind as error:
        file = path / part if path.is_dir() else path
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
        raise BadModelFile(f"{file} is absent, damaged, cut off or of another kind ({text}): "
                           f"{advice(path)}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the bars and reports of `transformers`, which notebooks would store."""
    from IPython.utils.capture import capture_output
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with capture_output(stdout=False):
            yield
    finally:
        logging.set_verbosity(level)
