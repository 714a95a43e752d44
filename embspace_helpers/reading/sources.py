"""Where a model's files lie: the course's models by name, folders, GGUF files, the hub.

Known names and files never touch the network; a hub name may, with the short patience of `hub`.
"""

import difflib
import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path

import platformdirs

from embspace_helpers.reading import hub

FETCH = "python -m embspace_helpers.fetch"
MODELS = {"twin-a": "bundled", "twin-b": "bundled", "wide-w": "bundled", "untied-u": "bundled",
          "minilm": "fetched", "smollm2": "fetched"}  # the course's models, and where they are
POSSIBLE = (f"without a network there are {', '.join(MODELS)}, your own folders and .gguf files; "
            "with one, any name on the hub.")
PLAIN = {name.replace("-", ""): name for name in MODELS}
PACKAGE = Path(__file__).parents[1]
BUNDLED, DATA = PACKAGE / "bundled", PACKAGE / "data"


class ModelNotFound(LookupError):
    """No model by this name; the message says which names there are or what to do."""


def cache_folder() -> Path:
    """Folder of the fetched models: EMBSPACE_CACHE, or the user's cache folder."""
    default = platformdirs.user_cache_dir("embspace", appauthor=False)
    return Path(os.environ.get("EMBSPACE_CACHE") or default).expanduser()


def known_name(name: object) -> str | None:
    """The name of MODELS that is meant, whatever its case, spaces and hyphens; None if none is.

    "SmolLM2", " twin-A " and "twin_a" are known.
    """
    return PLAIN.get(_plain(str(name)))


def _plain(name: str) -> str:
    return re.sub(r"[\s._-]+", "", name).casefold()


def locate(name: str | Path) -> Path:
    """The model's folder or GGUF file; a hub model is downloaded first, if the cache lacks it.

    `name`: of MODELS, a folder, a .gguf file, or a name on the hub. Raises ModelNotFound, and
    TypeError for a name of another type; each says in a sentence what there is and what to do.
    """
    return _local(name) or _from_hub(name)


def fingerprint(name: str | Path) -> str:
    """SHA-256 of a local model's weights (one file: its sha256sum), a hub model's commit.

    Files are read once in a process, unless their size or time changes. Raises what `locate`
    raises, and ModelNotFound for a folder without weights.
    """
    path = _local(name)
    if path is None:
        return _from_hub(name).name
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelNotFound(f"the folder {path} holds no weights (*.safetensors)")
    states = [(file, file.stat()) for file in files]
    return _sha256(tuple((file, state.st_size, state.st_mtime_ns) for file, state in states))


@lru_cache(maxsize=256)
def _sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    """SHA-256 of files one behind the other, each given by path, size and time of change."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


# ---- on this machine


def _local(name: str | Path) -> Path | None:
    """What `locate` gives for a model on this machine; None for what may be a name on the hub."""
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"a model is given by its name, its folder or its .gguf file (str or Path)"
                        f", not by {shown(name)}; {POSSIBLE}")
    text = os.fspath(name)
    path = os.path.expanduser(text)
    if text not in MODELS and os.path.exists(path):  # Path.exists fails for names that are long
        if not path.lower().endswith(".gguf") and not os.path.isfile(f"{path}/config.json"):
            raise ModelNotFound(f"{text!r} holds no model: a folder has a config.json, and a file "
                                f"ends in .gguf; {POSSIBLE}")
        return Path(path)
    if known := known_name(text):
        return _known_folder(known)
    _refuse_what_is_no_hub_name(name, text.strip())
    return None


def _known_folder(name: str) -> Path:
    """Folder of a known model. Raises ModelNotFound when it is absent."""
    bundled = MODELS[name] == "bundled"
    folder = (BUNDLED if bundled else cache_folder()) / name
    if (folder / "config.json").is_file():
        return folder
    raise ModelNotFound(f"{name} is not in this copy of the package ({folder})." if bundled else
                        f"{name} is not in the cache folder {cache_folder()}: run `{FETCH} {name}` "
                        "once with a network.")


def advice(path: Path) -> str:
    """What to do about a bad file, by the folder it is in."""
    folder = path if path.is_dir() else path.parent
    if folder.parent == BUNDLED:
        return "install the package again."
    if folder.parent == cache_folder():
        return f"run `{FETCH} --force {folder.name}` once with a network."
    if folder.parent.name == "snapshots":  # in the hub's cache folder
        return f"delete the folder {folder.parents[1]} and load the model again."
    return "copy the file again, or save the model again with `save_pretrained`."


# ---- on the hub


def _refuse_what_is_no_hub_name(name: str | Path, text: str) -> None:
    """Raise ModelNotFound for a path, a typo of a known name, or what no hub name looks like."""
    if not text:
        raise ModelNotFound(f"no name was given ({str(name)!r}); {POSSIBLE}")
    is_path = text.lower().endswith(".gguf") or text.startswith((".", "~")) or os.path.isabs(text)
    if is_path or not isinstance(name, str) or text.count("/") > 1:
        raise ModelNotFound(f"there is no file or folder {str(name)!r}; {POSSIBLE}")
    close = difflib.get_close_matches(_plain(text), PLAIN, n=1, cutoff=0.75) or [
        known for known in PLAIN if known in _plain(text)]
    if close and "/" not in text:
        raise ModelNotFound(
            f"there is no model {text!r} (did you mean {PLAIN[close[0]]!r}?); {POSSIBLE}")
    if not hub.is_hub_name(text):
        raise ModelNotFound(f"{text!r} is no known name, file or folder, and cannot be a name on "
                            f"the hub; {POSSIBLE}")


def _from_hub(name: str | Path) -> Path:
    """Folder of a hub model in the hub's cache, named by its commit. Raises ModelNotFound."""
    name = str(name).strip()
    try:
        return hub.hub_folder(name)
    except hub.HubError as error:
        raise ModelNotFound(f"{name!r} is no known name, file or folder, and could not be had from "
                            f"the Hugging Face hub ({error}); {POSSIBLE}") from None


def shown(value: object) -> str:
    """A value in short, in one line."""
    return " ".join(repr(value).split())[:60]
