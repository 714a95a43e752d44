"""Checks of `doctor` on the machine: each returns a sentence, or raises Problem.

Libraries are imported inside the functions: one that is missing must not stop the other checks.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
LOCK, PROJECT = ROOT / "binder" / "constraints.txt", ROOT / "pyproject.toml"
SET_UP_AGAIN = "run `make lab` again, or the pip line of README.md."
OLDEST_PYTHON, TESTED_PYTHONS = (3, 11), ((3, 11), (3, 12))
MEMORY = 1.8e9  # bytes: what Binder's 2 GB leave to a notebook
DISK = 0.5e9  # bytes in the cache folder: the models while they are made, then the atlases
SHOWN = 4  # names in a line


class Problem(Exception):
    """A check that failed: what is wrong, and what to do."""

    def __init__(self, what: str, do: str) -> None:
        super().__init__(what)
        self.what, self.do = what, do


# ---- Python and packages


def python() -> str:
    """Python is new enough."""
    here, text = sys.version_info[:2], ".".join(map(str, sys.version_info[:3]))
    if here < OLDEST_PYTHON:
        raise Problem(
            f"{text} is too old, the course needs 3.11",
            "install Python 3.11 or 3.12 and run: make clean lab PYTHON=python3.12",
        )
    note = "" if here in TESTED_PYTHONS else " (not tested with it; 3.11 and 3.12 are)"
    return f"{text}{note}, {sys.executable}"


def packages() -> str:
    """Everything needed is installed, within its range; other versions than the lock's are told."""
    wanted = project_requirements()
    found = installed(wanted)
    wrong = [f"{name} is missing" for name, version in found.items() if version is None]
    for requirement in wanted:
        version = found[canonical(requirement.name)]
        if version and not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        raise Problem(some(wrong), SET_UP_AGAIN)
    pins = locked()
    if not pins:
        return f"{len(found)} packages in range; there is no lock here to compare them with"
    other = [
        f"{name} {version} (lock: {pins[name]})"
        for name, version in found.items()
        if version and name in pins and version.split("+")[0] != pins[name]
    ]
    if other:
        return f"{len(found)} packages in range; not the tested version: {some(other)}"
    return f"{len(found)} packages, at the versions of the lock"


def canonical(name: str) -> str:
    """A package's name in the form that compares."""
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def some(items: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def project_requirements() -> list[Requirement]:
    """What the course needs: from pyproject.toml, or from the installed package."""
    import tomllib  # not in a Python that is too old

    from packaging.requirements import Requirement

    if PROJECT.is_file():
        texts = tomllib.loads(PROJECT.read_text("utf-8"))["project"]["dependencies"]
    else:
        texts = importlib.metadata.requires("embspace-helpers") or []
    every = [Requirement(text) for text in texts]
    return [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]


def installed(requirements: list[Requirement]) -> dict[str, str | None]:
    """Versions of the packages named and of all that they need in turn; None for a missing one."""
    from packaging.requirements import Requirement

    found: dict[str, str | None] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(r, extra) for r in requirements for extra in {"", *r.extras}]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonical(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = importlib.metadata.version(name)
            children = map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
            continue
        for child in children:
            if child.marker is None or child.marker.evaluate({"extra": extra}):
                waiting += [(child, e) for e in {"", *child.extras}]
    return dict(sorted(found.items()))


def locked() -> dict[str, str]:
    """The lock's versions by name; empty where there is no lock."""
    if not LOCK.is_file():
        return {}
    lines = LOCK.read_text("utf-8").splitlines()
    pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonical(name): version.strip() for name, version in pins}


# ---- Jupyter


def jupyter() -> str:
    """JupyterLab is there, and its kernel runs this Python."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise Problem("JupyterLab is not installed", SET_UP_AGAIN)
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        spec = KernelSpecManager().get_kernel_spec("python3")
    except NoSuchKernel:
        raise Problem(
            "there is no kernel `python3`", "run: python -m ipykernel install --sys-prefix"
        ) from None
    program = spec.argv[0]
    if os.path.isabs(program) and os.path.abspath(program) != os.path.abspath(sys.executable):
        raise Problem(
            f"the kernel `python3` in {spec.resource_dir} starts another Python, {program}",
            "run: python -m ipykernel install --sys-prefix",
        )
    version = importlib.metadata.version("jupyterlab")
    return f"JupyterLab {version}; its kernel runs this Python"


def kernel() -> str:
    """A kernel starts, away from the course's folder, and finds the helper."""
    from jupyter_client.manager import start_new_kernel

    silent: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as folder:
        try:
            manager, client = start_new_kernel(startup_timeout=30, cwd=folder, **silent)
        except RuntimeError as error:
            raise Problem(f"no kernel starts ({error})", SET_UP_AGAIN) from None
        try:
            reply = client.execute_interactive(
                "import embspace_helpers", timeout=30, output_hook=lambda message: None
            )["content"]
        except TimeoutError:
            raise Problem(
                "a kernel starts but does not answer", "allow local connections in the firewall."
            ) from None
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    if reply["status"] != "ok":
        raise Problem(f"in a notebook: {reply['ename']}: {reply['evalue']}", SET_UP_AGAIN)
    return "a kernel starts and finds the helper"


# ---- room


def memory() -> str:
    """A notebook has the memory that Binder would give it."""
    free = free_memory()
    if free < MEMORY:
        raise Problem(
            f"{free / 1e9:.1f} GB are free, a notebook may need 2 GB",
            "close other programs and running notebooks.",
        )
    return f"{free / 1e9:.1f} GB are free, a notebook needs up to 2 GB"


def free_memory() -> float:
    """Bytes free on this machine, or in this container if that is less."""
    import psutil

    return min(psutil.virtual_memory().available, container_memory())


def container_memory(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes left to this container; infinite where there is no limit."""
    try:
        limit = int((folder / "memory.max").read_text())  # ValueError: "max"
        used = int((folder / "memory.current").read_text())
        rows = (folder / "memory.stat").read_text().splitlines()
        cache = next(int(row.split()[1]) for row in rows if row.startswith("inactive_file "))
    except (OSError, ValueError, StopIteration):
        return float("inf")
    return limit - used + cache


def disk() -> str:
    """The cache folder can be written and has room."""
    from embspace_helpers.reading.sources import cache_folder

    folder = cache_folder()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    elsewhere = "set EMBSPACE_CACHE to a folder on another disk"
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise Problem(f"{there} cannot be written", f"{elsewhere}, or have it made writable.")
    free = shutil.disk_usage(there).free
    if free < DISK:
        raise Problem(
            f"{free / 1e9:.1f} GB are free in {folder}, {DISK / 1e9:.1f} GB are needed",
            f"make room, or {elsewhere}.",
        )
    return f"{free / 1e9:.1f} GB are free in {folder}"
