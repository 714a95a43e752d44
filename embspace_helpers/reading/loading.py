"""How `transformers` is asked for a model: which class and type of weights, without its bars."""

import operator
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

DTYPES = ("float32", "float16", "bfloat16", "float64")


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


def checked_seed(seed: object) -> int:
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
