"""How `transformers` is asked for a model: which class and type of weights, without its bars."""

import operator
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from embspace_helpers.reading.model_files import weight_files

DTYPES = ("float32", "float16", "bfloat16", "float64")
STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
TOLD = {"ignore_mismatched_sizes": True, "output_loading_info": True}  # see `check_loaded`


def load_weights(source: str, options: dict[str, Any], dtype: Any) -> tuple[Any, dict[str, Any]]:
    """A model from a folder or GGUF file, and what `transformers` tells about its weights.

    Weights stored in another type than `dtype` are read and converted one by one; otherwise
    `transformers` maps their file.
    """
    kind = auto_class(source, options)
    if "gguf_file" not in options and _converts(source, dtype):
        return _load_converted(kind, source, options, dtype)
    return kind.from_pretrained(
        source, dtype=dtype, use_safetensors=True, **TOLD, **options, **dense(options))


def _converts(source: str, dtype: Any) -> bool:
    """True where a weight in a folder is stored in another type of numbers than `dtype`."""
    from safetensors import safe_open

    stored: set[str | None] = set()
    for file in weight_files(Path(source)) if dtype != "auto" else []:
        with safe_open(file, "pt") as weights:
            keys = weights.keys()
            stored |= {STORED.get(weights.get_slice(key).get_dtype()) for key in keys}
    return not stored <= {None, str(dtype).removeprefix("torch.")}


def _load_converted(kind: Any, source: str, options: dict[str, Any],
                    dtype: Any) -> tuple[Any, dict[str, Any]]:
    """The model, with each weight read from its file only when it is converted.

    From a file that is mapped, the pages that were read stay in memory until the last weight is
    converted: half as much again, for float16 that becomes float32.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(source, **options)
    with torch.device("meta"):  # the class that the Auto class stands for
        model_class = type(kind.from_config(AutoConfig.from_pretrained(source, **options)))
    files = [safe_open(file, "pt", backend="pread") for file in weight_files(Path(source))]
    weights = {key: file.get_slice(key) for file in files for key in file.keys()}  # noqa: SIM118
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, **TOLD)
    model.name_or_path = model.config.name_or_path = source
    if model.can_generate() and (Path(source) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source, local_files_only=True)
    return model, info


def auto_class(source: str, options: dict[str, Any]) -> Any:
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


def dense(options: dict[str, Any]) -> dict[str, Any]:
    """Option that turns a GGUF file's quantised weights into ordinary ones."""
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)} if "gguf_file" in options else {}


@contextmanager
def quiet(everything: bool = False) -> Iterator[None]:
    """Hide the bars and reports of `transformers`, which notebooks would store.

    `everything`: also what is displayed or goes to stderr: converting a GGUF file has a bar that
    no setting hides.
    """
    from transformers.utils import logging

    def hidden(factory: Any, args: Any, kwargs: Any) -> Any:
        return factory(*args, **{**kwargs, "disable": True})

    previous, level = logging.set_tqdm_hook(hidden), logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with ExitStack() as stack:
            if everything:
                from IPython.utils.capture import capture_output

                stack.enter_context(capture_output(stdout=False))
            yield
    finally:
        logging.set_verbosity(level)
        logging.set_tqdm_hook(previous)


def checked_dtype(dtype: object) -> Any:
    """The torch dtype, or "auto". Raises ValueError for what is no type of weights."""
    import torch

    types = {kind: getattr(torch, kind) for kind in DTYPES}
    found = types.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if dtype == "auto" or (isinstance(found, torch.dtype) and found in types.values()):
        return dtype if dtype == "auto" else found
    raise ValueError(f"dtype = {shown(dtype)} is no type of weights: there are "
                     f"{', '.join(DTYPES)} and auto (as stored)")


def checked_seed(seed: Any) -> int:
    """The seed as an int. Raises TypeError for what is none."""
    try:
        return operator.index(seed)  # a NumPy integer as well
    except TypeError:
        raise TypeError(f"seed = {shown(seed)}, but it must be a whole number") from None


def shown(value: object) -> str:
    """A value in short: as it is written where that is no longer than a few words."""
    text = repr(value)
    short = len(text) <= 60 and "\n" not in text
    return text if short else f"an object of type {type(value).__name__}"
