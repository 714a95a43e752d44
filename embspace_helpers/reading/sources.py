"""Load a model and its tokenizer: bundled, fetched, or anything `transformers` can load.

Known names and files never touch the network; a hub name may, with the short patience of `hub`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import platformdirs

from embspace_helpers.reading.model_files import BadModelFile as BadModelFile  # others look here
from embspace_helpers.reading.model_files import check_files, check_loaded, file_errors
from embspace_helpers.reading.weights import (
    auto_class,
    checked_dtype,
    checked_seed,
    load_weights,
    quiet,
    shown,
)

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
LOCAL = {"local_files_only": True, "trust_remote_code": False}  # no network, no code of a model
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


def known_name(name: object) -> str | None:
    """The name of MODELS that is meant, whatever its case, spaces and hyphens; None if none is.

    "SmolLM2", " twin-A " and "twin_a" are known.
    """
    return _plain_names().get(_plain(str(name)))


def load_model(
    name: str | Path, dtype: torch.dtype | str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (eval mode, no gradients) and tokenizer.

    `name`: one of `model_names()`, a folder, a .gguf file, or a name on the Hugging Face hub.
    `dtype`: of the weights, or "auto": as stored. Weights stored in it stay in their file, which
    is mapped; others are converted, and take memory. Raises ModelNotFound, BadModelFile, and
    TypeError for a name of another type; each says in a sentence what there is and what to do.
    """
    from transformers import AutoTokenizer

    dtype = checked_dtype(dtype)
    source, options = locate(name)
    folder, advice = Path(source), _advice(Path(source))
    check_files(folder, options, advice)
    with quiet("gguf_file" in options), file_errors(folder, options, advice):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model, info = load_weights(source, options, dtype)
    check_loaded(folder, info, options, advice)
    return model.eval().requires_grad_(False), tokenizer


def load_untrained(
    name: str | Path, seed: int = 0, dtype: torch.dtype | str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same architecture and tokenizer with random weights, drawn as for a training run.

    The weights depend on `seed` alone: they are drawn in float32, then converted to `dtype`. The
    caller's random state is left as it was. Raises what `load_model` raises; the folder may lack
    weights.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer

    dtype, seed = checked_dtype(dtype), checked_seed(seed)
    source, options = locate(name)
    folder, advice = Path(source), _advice(Path(source))
    check_files(folder, options, advice, weights=False)
    with quiet(), file_errors(folder, options, advice):
        config = AutoConfig.from_pretrained(source, **options)
        kind = auto_class(source, options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        stored = config.dtype or torch.float32
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs too
            model = kind.from_config(config, dtype=torch.float32)
    model = model.to(stored if dtype == "auto" else dtype)
    return model.eval().requires_grad_(False), tokenizer


def fingerprint(name: str | Path) -> str:
    """SHA-256 of a local model's weights (one file: its sha256sum), a hub model's commit.

    Files are read once in a process, unless their size or time changes. Raises what `locate`
    raises, and ModelNotFound for a folder without weights.
    """
    local = _local(name)
    if local is None:
        from embspace_helpers.reading import hub

        with _hub_sentence(str(name).strip()):
            return hub.commit(str(name).strip())
    folder, options = Path(local[0]), local[1]
    files = [folder / options["gguf_file"]] if "gguf_file" in options else (
        sorted(folder.glob("*.safetensors")))
    if not files:
        raise ModelNotFound(f"the folder {folder} holds no weights (*.safetensors)")
    states = [(file, file.stat()) for file in files]
    return _sha256(tuple((str(file), state.st_size, state.st_mtime_ns) for file, state in states))


@lru_cache(maxsize=256)
def _sha256(files: tuple[tuple[str, int, int], ...]) -> str:
    """SHA-256 of files one behind the other, each given by path, size and time of change."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        with open(path, "rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def locate(name: str | Path) -> tuple[str, dict[str, Any]]:
    """Where `from_pretrained` finds the model, and the options it needs there.

    A hub model is downloaded, unless the hub's cache folder has it. Raises ModelNotFound, and
    TypeError for a name of another type.
    """
    local = _local(name)
    if local is not None:
        return local
    from embspace_helpers.reading import hub

    with _hub_sentence(str(name).strip()):
        return str(hub.snapshot(str(name).strip())), dict(LOCAL)


def _local(name: str | Path) -> tuple[str, dict[str, Any]] | None:
    """What `locate` gives for a model on this machine; None for what may be a name on the hub."""
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"a model is given by its name, its folder or its .gguf file (str or Path)"
                        f", not by {shown(name)}; {_possible()}")
    text = os.fspath(name)
    if text.strip() == "":
        raise ModelNotFound(f"no name was given ({text!r}); {_possible()}")
    path = Path(text).expanduser()
    if text not in MODELS and path.exists():
        return _from_path(text, path)
    if known := known_name(text):
        return str(_known_folder(known)), dict(LOCAL)
    _refuse_what_is_no_hub_name(name, text.strip())
    return None


def _from_path(name: str, path: Path) -> tuple[str, dict[str, Any]]:
    """What `locate` gives for a folder or file. Raises ModelNotFound where it holds no model."""
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFound(f"the folder {name!r} has no config.json, so it holds no model; "
                                f"{_possible()}")
        return str(path), dict(LOCAL)
    if path.suffix.lower() != ".gguf":
        raise ModelNotFound(f"the file {name!r} is no .gguf file; a model in safetensors is given "
                            f"by its folder; {_possible()}")
    return str(path.parent), {"gguf_file": path.name, **LOCAL}


def _refuse_what_is_no_hub_name(name: str | Path, text: str) -> None:
    """Raise ModelNotFound for a path, a typo of a known name, or what no hub name looks like."""
    from embspace_helpers.reading import hub

    is_path = text.lower().endswith(".gguf") or text.startswith((".", "~")) or os.path.isabs(text)
    if is_path or not isinstance(name, str) or text.count("/") > 1:
        raise ModelNotFound(f"there is no file or folder {str(name)!r}; {_possible()}")
    if close := _close_name(text):
        raise ModelNotFound(
            f"there is no model {text!r} (did you mean {close!r}?); {_possible()}")
    if not hub.is_hub_name(text):
        raise ModelNotFound(f"{text!r} is no known name, file or folder, and cannot be a name on "
                            f"the hub; {_possible()}")


def _close_name(text: str) -> str | None:
    """The known name that a name without an owner resembles or has in it, None if there is none."""
    if "/" in text:
        return None
    plain, names = _plain(text), _plain_names()
    close = difflib.get_close_matches(plain, names, n=1, cutoff=0.75)
    within = [known for known in names if known in plain]
    return names[(close or within)[0]] if close or within else None


def _plain(name: str) -> str:
    return re.sub(r"[\s._-]+", "", name).casefold()


def _plain_names() -> dict[str, str]:
    return {_plain(name): name for name in MODELS}


def _possible() -> str:
    """What can be loaded: the end of a sentence."""
    return (
        f"without a network there are {', '.join(MODELS)}, your own folders and .gguf files; "
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


def _advice(folder: Path) -> str:
    """What to do about a bad file in a model's folder."""
    if folder.parent == BUNDLED:
        return "install the package again."
    if folder.parent == cache_folder():
        return f"run `{FETCH} --force {folder.name}` once with a network."
    if folder.parent.name == "snapshots":  # in the hub's cache folder
        return f"delete the folder {folder.parents[1]} and load the model again."
    return "copy the file again, or save the model again with `save_pretrained`."


@contextmanager
def hub_errors(name: str | Path, options: dict[str, Any]) -> Iterator[None]:
    """An error while loading parts of a located model becomes BadModelFile (see `file_errors`)."""
    folder = Path(locate(name)[0])
    with file_errors(folder, options, _advice(folder)):
        yield


@contextmanager
def _hub_sentence(name: str) -> Iterator[None]:
    """The hub's refusal becomes ModelNotFound."""
    from embspace_helpers.reading.hub import HubError

    try:
        yield
    except HubError as error:
        raise ModelNotFound(
            f"{name!r} is no known name, file or folder, and could not be had from the Hugging "
            f"Face hub ({error}); {_possible()}"
        ) from None
