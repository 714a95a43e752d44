"""Files of a model on the disk: which there must be, and what is wrong with a bad one."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json",
    "vocab.txt",
)  # fmt: skip
TOKENIZER_JSON = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json",
)  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")


class BadModelFile(ValueError):
    """A file of a model cannot be used; the message names the file and says what to do."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder that a model is loaded from, [] where there are none.

    Files that an index lists need not exist. Raises ValueError for an index that is none.
    """
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    try:
        shards = set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values())
        return [folder / shard for shard in sorted(shards)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no weight_map of file names: {error}") from None


def check_files(folder: Path, options: dict[str, Any], advice: str, weights: bool = True) -> None:
    """Raise BadModelFile where a model cannot be loaded, as far as can be told at once.

    `options`: what `from_pretrained` is given; with a `gguf_file`, only that it is one is checked.
    `advice`: what to do about a bad file. `weights`: False where none are read.
    """
    if "gguf_file" in options:
        problem = _magic_problem(folder / options["gguf_file"])
    else:
        checks = [_config_problem, *([_weights_problem] if weights else []), _tokenizer_missing]
        problem = next(filter(None, (check(folder) for check in checks)), None)
    if problem:
        raise BadModelFile(_sentence(problem, advice))


@contextmanager
def file_errors(folder: Path, options: dict[str, Any], advice: str) -> Iterator[None]:
    """An error while loading becomes BadModelFile, if a file proves to be its cause.

    After an error each file is read again by itself; where all can be read, or something else is
    amiss (a library that is missing, too little memory), the error is raised as it is.
    """
    try:
        yield
    except (BadModelFile, ImportError, MemoryError):
        raise
    except Exception:
        problem = _find_problem(folder, options)
        if problem is None:
            raise
        raise BadModelFile(_sentence(problem, advice)) from None


def check_loaded(folder: Path, info: dict[str, Any], options: dict[str, Any], advice: str) -> None:
    """Raise BadModelFile where weights were missing or of other shapes, so drawn at random.

    `info`: what `from_pretrained` tells with `output_loading_info`. A pooler may be missing: few
    encoders come with one, and nothing here reads it.
    """
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    others = sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    file = folder / options.get("gguf_file", WEIGHTS if (folder / WEIGHTS).is_file() else INDEX)
    if missing:
        raise BadModelFile(f"{file} lacks {_some(missing)}, which the configuration asks for: "
                           f"{advice}")
    if others:
        raise BadModelFile(f"{file} holds {_some(others)} in another shape than the configuration "
                           f"says: {advice}")


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"


def _sentence(problem: str, advice: str) -> str:
    """The problem, and what to do about it unless the problem says that itself."""
    return problem if problem.endswith(".") else f"{problem}: {advice}"


# ---- what is wrong with a file: a clause that starts with the file, or a whole sentence with
# ---- what to do; None where nothing is wrong


def _find_problem(folder: Path, options: dict[str, Any]) -> str | None:
    """Read every file by itself; what is wrong with the first bad one."""
    if "gguf_file" in options:
        return _gguf_problem(folder, options)
    return (_config_problem(folder) or _unusable_config(folder, options)
            or _weights_problem(folder) or _tokenizer_problem(folder, options))


def _config_problem(folder: Path) -> str | None:
    """The configuration must be a JSON object with a kind of model that `transformers` knows."""
    import transformers

    file = folder / "config.json"
    if problem := _json_problem(file):
        return problem
    config = json.loads(file.read_text("utf-8"))
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return f"{file} has no model_type, so it describes no model"
    if kind not in transformers.CONFIG_MAPPING:
        return (f"{file} asks for the model_type {kind!r}, which transformers "
                f"{transformers.__version__} does not know: a newer version may, but code that "
                "comes with a model is never run.")
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"{file} has architectures {names!r}, which is no list of names"
    return None


def _unusable_config(folder: Path, options: dict[str, Any]) -> str | None:
    """A model must be made from the configuration; no memory is taken for its weights."""
    import torch
    import transformers

    def make() -> None:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        with torch.device("meta"):
            transformers.AutoModel.from_config(config, trust_remote_code=False)

    return _failure(make, f"{folder / 'config.json'} describes no model that can be made")


def _weights_problem(folder: Path) -> str | None:
    """Weights must be there, in safetensors files that can be opened and are whole."""
    from safetensors import SafetensorError, safe_open

    try:
        files = weight_files(folder)
    except (OSError, ValueError) as error:
        return f"{folder / INDEX} cannot be read ({_line(error)})"
    if not files:
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        return f"the folder {folder} has no {WEIGHTS}" + (
            f", and {', '.join(pickles)} is not read, since such a file can run code: save the "
            "model again as safetensors, with `save_pretrained`." if pickles else "")
    for file in files:
        if not file.is_file():
            return f"{file} is missing, though {INDEX} lists it"
        try:
            with safe_open(file, "np"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{file} is damaged, cut off or no safetensors file ({_line(error)})"
    return None


def _tokenizer_missing(folder: Path) -> str | None:
    if any((folder / file).is_file() for file in TOKENIZERS):
        return None
    return (f"the folder {folder} has no tokenizer ({', '.join(TOKENIZERS)}): save it there, with "
            "its `save_pretrained`.")


def _tokenizer_problem(folder: Path, options: dict[str, Any]) -> str | None:
    """The tokenizer must load by itself."""
    import transformers

    files = [folder / name for name in TOKENIZER_JSON if (folder / name).is_file()]
    if problem := next(filter(None, map(_json_problem, files)), None):
        return problem
    make = partial(transformers.AutoTokenizer.from_pretrained, folder, **options)
    return _failure(make, f"the tokenizer in the folder {folder} cannot be read")


def _magic_problem(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        return f"{file} cannot be read ({_line(error)})"
    return None if start == b"GGUF" else f"{file} is no GGUF file (it does not start with GGUF)"


def _gguf_problem(folder: Path, options: dict[str, Any]) -> str | None:
    """The file must be whole, of a kind that `transformers` converts, and hold a tokenizer."""
    import transformers
    from gguf import GGUFReader

    file = folder / options["gguf_file"]
    if _magic_problem(file) or _failure(lambda: GGUFReader(file), ""):
        return _magic_problem(file) or f"{file} is damaged, cut off or of another GGUF version"
    parts = {"configuration": transformers.AutoConfig, "tokenizer": transformers.AutoTokenizer}
    for part, kind in parts.items():
        read = partial(kind.from_pretrained, folder, **options)
        if problem := _failure(read, f"{file} holds no {part} that transformers can use"):
            return f"{problem}: take another GGUF file."
    return None


def _json_problem(file: Path) -> str | None:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return f"{file} cannot be read as JSON ({_line(error)})"
    return None if isinstance(found, dict) else f"{file} is no JSON object"


def _failure(call: Callable[[], object], problem: str) -> str | None:
    """The problem and, in brackets, the error that a call ends with; None where it does not."""
    try:
        call()
    except Exception as error:
        return f"{problem} ({_line(error)})"
    return None


def _line(error: Exception) -> str:
    """An error in a line: its kind where the text alone, as of a KeyError, says little."""
    text = " ".join(str(error).split())[:200].rstrip(".")
    return f"{type(error).__name__}: {text}" if isinstance(error, LookupError) else text
