"""Checks of `doctor` on the models: each returns a sentence, or raises Problem.

Libraries are imported inside the functions: one that is missing must not stop the other checks.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from embspace_helpers.workshop.checks import PACKAGE, SET_UP_AGAIN, SHOWN, Problem, some

BUNDLED, CHECKSUMS = PACKAGE / "bundled", PACKAGE / "data" / "checksums.json"
FETCH = "python -m embspace_helpers.fetch"


class Reading(NamedTuple):
    """A feed-forward value vector and words that must be among its first eight."""

    layer: int
    neuron: int
    words: frozenset[str]


READINGS = {
    "twin-a": Reading(0, 204, frozenset({"episode", "episodes", "season", "seasons"})),
    "minilm": Reading(0, 1196, frozenset({"army", "military", "power"})),
    "smollm2": Reading(29, 1189, frozenset({"medical", "Patients", "patient", "patients"})),
}


# ---- files


def bundled_hash(path: Path) -> str:
    """SHA-256 of a bundled file; of a text with line ends as in the repository."""
    content = path.read_bytes()
    if path.suffix != ".safetensors":  # git may write texts with Windows' line ends
        content = content.replace(b"\r\n", b"\n")
    return hashlib.sha256(content).hexdigest()


def bundled_hashes() -> dict[str, str]:
    """SHA-256 of every bundled file but the model cards, by path."""
    files = sorted(path for path in BUNDLED.rglob("*") if path.is_file() and path.suffix != ".md")
    return {path.relative_to(BUNDLED).as_posix(): bundled_hash(path) for path in files}


def checksums() -> dict[str, Any]:
    """The stored SHA-256 sums: of bundled files, and of the fetched models' weights."""
    return json.loads(CHECKSUMS.read_text("utf-8"))


def write_checksums() -> Path:
    """Store the bundled files' SHA-256 sums as they are now; those of fetched models stay."""
    CHECKSUMS.write_text(
        json.dumps(checksums() | {"bundled": bundled_hashes()}, indent=1) + "\n", "utf-8"
    )
    return CHECKSUMS


def bundled_models() -> str:
    """Every bundled file is as it was published."""
    expected, found = checksums()["bundled"], bundled_hashes()
    wrong = [
        f"{name} {'has changed' if name in found else 'is missing'}"
        for name, digest in expected.items()
        if found.get(name) != digest
    ]
    if wrong:
        raise Problem(some(wrong), "run: git checkout -- embspace_helpers/bundled")
    return f"{len(expected)} files, SHA-256 as published"


def fetched_model(name: str) -> str:
    """A fetched model is in the cache folder, every file as it was made."""
    from embspace_helpers.reading.sources import cache_folder
    from embspace_helpers.workshop.fetch import MANIFEST, changed, damage

    folder = cache_folder() / name
    if not folder.is_dir():
        raise Problem(f"it is not in {cache_folder()}", f"run with a network: {FETCH} {name}")
    again = f"run with a network: {FETCH} {name} --force"
    if problem := damage(folder):
        raise Problem(f"{problem}, in {folder}", again)
    hashes = json.loads((folder / MANIFEST).read_text("utf-8")).get("hashes")
    if problem := changed(folder, hashes or checksums()["fetched"][name]):
        raise Problem(f"{problem}, in {folder}", again)
    if not hashes:
        return f"weights as published, other files by size; `{FETCH} {name} --force` adds the rest"
    return f"{len(hashes)} files, SHA-256 as when they were made, in {folder}"


# ---- readings, without a network


@contextmanager
def network_closed(what: str) -> Iterator[None]:
    """Refuse every connection to another machine; Problem if one was tried, handled or not."""
    tried: list[str] = []

    def refuse(host: object, *_: object, **__: object) -> None:
        tried.append(str(host))
        raise OSError("doctor has closed the network")

    def connect(_: socket.socket, address: object) -> None:
        refuse(address)

    try:
        with patch("socket.getaddrinfo", refuse), patch("socket.socket.connect", connect):
            yield
    except Exception:
        if not tried:
            raise
    if tried:
        raise Problem(f"{what} asked for {tried[0]}", "set HF_HUB_OFFLINE=1 and report this.")


@contextmanager
def sentences(name: str) -> Iterator[None]:
    """A model that is absent or damaged as a Problem; the helper's errors say what to do."""
    try:
        yield
    except (LookupError, ValueError) as error:
        raise Problem(f"{name} cannot be loaded", str(error).strip().splitlines()[0]) from None


def first_words(name: str, layer: int, neuron: int, n: int = 8) -> list[str]:
    """First words of a feed-forward value vector, read with the model's embedding."""
    from embspace_helpers import load

    with sentences(name):
        model = load(name)
    scores = model.parameters.V(layer)[neuron] @ model.parameters.E  # (e,)
    words = [model.tokenizer.decode(i).strip() for i in scores.topk(n).indices]
    return list(dict.fromkeys(words))  # "medical" with and without a space in front is one word


def reading(name: str) -> str:
    """One neuron's words come out as they must."""
    layer, neuron, expected = READINGS[name]
    with network_closed(f"reading {name}"):
        words = first_words(name, layer, neuron)
    if missing := sorted(expected - set(words)):
        raise Problem(
            f"L{layer}N{neuron} should write {', '.join(missing)} but writes {', '.join(words)}",
            f"{SET_UP_AGAIN} If it stays so, the model's files are not ours: {FETCH} --force",
        )
    return f"L{layer}N{neuron} writes {', '.join(words[:SHOWN])}"


def offline() -> str:
    """Every model's configuration and tokenizer load with the network closed."""
    from embspace_helpers.reading.sources import MODELS, locate
    from embspace_helpers.reading.weights import read_tokenizer

    for name in MODELS:
        with network_closed(f"loading {name}"), sentences(name):
            read_tokenizer(locate(name))
    return f"all {len(MODELS)} models load with the network closed"
