"""Install the course's packages into the environment whose Python runs this file.

    python embspace_helpers/workshop/install.py [--extras test,dev] [options for pip ...]

Run by its path, before anything is installed: it needs nothing but Python and pip. Versions are
those of the lock, `binder/constraints.txt`.

On Linux the package index's torch brings CUDA along, which this course does not use. So torch's
CPU build comes first, from download.pytorch.org (or a mirror that EMBSPACE_TORCH_INDEX names), if
that host answers within seconds. If it does not, the package index's build is taken. Elsewhere
the package index has the CPU build. pip asks the host, so pip's proxy and certificates count.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "binder" / "constraints.txt"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
SILENCE, PATIENCE = 5, 10  # seconds: for one answer of that host, and for asking it at all
ONCE_MORE = ("--timeout", "15", "--retries", "1")  # for the download: a host may fall silent
CPU_DISK, CUDA_DISK = 2.0, 8.0  # GB that the environment takes with either build of torch
SOURCES = re.compile(r"(--(index-url|extra-index-url|find-links|no-index|pypi-url)\b|-[if])")


class InstallError(RuntimeError):
    """The packages could not be installed; the message says why and what to do."""


def say(text: str) -> None:
    """Print one line of set-up."""
    print(f"set-up: {text}", flush=True)


def locked_torch(constraints: Path) -> str:
    """Version of torch that a constraints file asks for."""
    found = re.search(r"^torch==([\w.]+)", constraints.read_text("utf-8"), re.M)
    if not found:
        raise InstallError(f"{constraints} names no version of torch: run `make lock`.")
    return found.group(1)


def installed_torch() -> str | None:
    """Version of the torch that is installed here already, without its build."""
    try:
        return version("torch").split("+")[0]
    except PackageNotFoundError:
        return None


def pip(*arguments: str) -> bool:
    """Run this interpreter's pip in the project's folder, with its output; whether it worked."""
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def has_cpu_build(torch: str, index: str, flags: list[str]) -> bool:
    """Whether pip finds torch's CPU build there. Asked once, for `PATIENCE` seconds at most."""
    command = [sys.executable, "-m", "pip", "index", "versions", "torch", *flags]
    command += ["--index-url", index, "--disable-pip-version-check"]
    command += ["--retries", "0", "--timeout", str(SILENCE)]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        ).stdout
    except subprocess.TimeoutExpired:
        return False
    return f"{torch}+cpu" in re.split(r"[\s,()]+", answer)


def install_torch(torch: str, flags: list[str]) -> bool:
    """Install the CPU build where the package index has another; False when it cannot be had."""
    index = os.environ.get("EMBSPACE_TORCH_INDEX", TORCH_INDEX)
    if not index:
        say("EMBSPACE_TORCH_INDEX is empty, so torch comes from the package index.")
        return False
    say(f"asking {index} for torch {torch}, {PATIENCE} seconds at most ...")
    # pip's flags may not fit `pip index`: of them it gets those on the network only.
    if not has_cpu_build(torch, index, network_flags(flags)):
        say(f"no answer with torch {torch}+cpu.")
        return False
    say("torch's CPU build is there: 190 MB to download.")
    command = ["install", *ONCE_MORE, *flags, "--no-deps", "--index-url", index]
    if pip(*command, f"torch=={torch}+cpu"):
        return True
    say("the CPU build could not be downloaded.")
    return False


def network_flags(flags: list[str]) -> list[str]:
    """Of pip's options those about the way to a host: proxy, certificates, trusted hosts."""
    named = r"--(proxy|cert|client-cert|trusted-host)"
    found: list[str] = []
    for flag, following in pairwise([*flags, ""]):
        if re.fullmatch(named, flag):
            found += [flag, following]
        elif re.match(f"{named}=", flag):
            found.append(flag)
    return found


def check_space(gigabytes: float) -> None:
    """Raise InstallError when the disk of the environment is too full."""
    free = shutil.disk_usage(sys.prefix).free / 1e9
    if free < gigabytes:
        raise InstallError(
            f"the packages take {gigabytes:.0f} GB and {free:.1f} GB are free on the disk of "
            f"{sys.prefix}. Make room, or choose a folder on another disk: make lab VENV=FOLDER"
        )


def prepare_torch(constraints: Path, flags: list[str]) -> None:
    """Decide where torch comes from, say so, and install the CPU build where that is needed."""
    torch = locked_torch(constraints)
    if installed_torch() == torch:
        say(f"torch {torch} is here.")
    elif any(SOURCES.match(flag) for flag in flags):
        say("your options for pip name a source of packages, so torch comes from there.")
    elif sys.platform != "linux":
        check_space(CPU_DISK)
    else:
        check_space(CPU_DISK)
        if not install_torch(torch, flags):
            say("torch comes from the package index. For Linux that build brings CUDA along:")
            say("2.7 GB to download, 6 GB more on disk. The course is the same with it.")
            check_space(CUDA_DISK)


def install(extras: str, constraints: Path, flags: list[str]) -> None:
    """Install torch, then everything else. Raises InstallError."""
    say(f"packages go into {sys.prefix}: 2 GB of disk, 0.4 GB to download,")
    say("some 4 minutes with 20 Mbit/s. Stopped and run again, it goes on where it was.")
    prepare_torch(constraints, flags)
    project = f".[{extras}]" if extras else "."
    if not pip("install", *flags, "-c", str(constraints.resolve()), "-e", project):
        raise InstallError(
            "pip could not install the packages; its reason stands above. If that is the network, "
            "run the same command again: what came whole is kept."
        )
    say("packages are ready.")


def main(arguments: list[str] | None = None) -> None:
    """Command line; exits with 1 and a sentence when something is missing."""
    parser = argparse.ArgumentParser(
        description="Install the course's packages. Other options are handed to pip.",
        allow_abbrev=False,
    )
    parser.add_argument("--extras", default="test", help="optional groups (default: test)")
    parser.add_argument("--constraints", type=Path, default=LOCK, metavar="FILE")
    options, flags = parser.parse_known_args(arguments)
    try:
        install(options.extras, options.constraints, flags)
    except InstallError as error:
        sys.exit(f"set-up: {error}")
    except KeyboardInterrupt:
        sys.exit("\nset-up: stopped; run the same command to go on.")


if __name__ == "__main__":
    main()
