"""Check that this machine is ready: `python -m embspace_helpers.doctor`, or `make doctor`.

One line a check: [ok], or [fail] with what to do. Exit status 1 if any check failed. Nothing is
changed, nothing is downloaded. Libraries are imported inside the checks, so that a missing one
becomes a line and not a traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from embspace_helpers.workshop import checks, model_checks
from embspace_helpers.workshop.checks import Problem

# Set before any library is imported: no network, no bars, no remarks of theirs between our lines.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


class Line(NamedTuple):
    """What one check found; `do` is what to do if it is not well."""

    check: str
    ok: bool
    said: str
    do: str = ""

    def __str__(self) -> str:
        text = f"{'[ok]  ' if self.ok else '[fail]'} {self.check}: {self.said}"
        return text if self.ok else f"{text.rstrip('.')}. What to do: {self.do}"


def all_checks() -> dict[str, Callable[[], str]]:
    """Every check by name, in order: the later ones need the earlier ones."""
    fetched, read = model_checks.fetched_model, model_checks.reading
    return {
        "python": checks.python,
        "packages": checks.packages,
        "jupyter": checks.jupyter,
        "kernel": checks.kernel,
        "bundled models": model_checks.bundled_models,
        **{name: partial(fetched, name) for name in ("minilm", "smollm2")},
        "memory": checks.memory,
        "disk": checks.disk,
        **{f"reading {name}": partial(read, name) for name in model_checks.READINGS},
        "offline": model_checks.offline,
    }


def examine(name: str, check: Callable[[], str]) -> Line:
    """Run one check. Whatever goes wrong becomes a line."""
    try:
        return Line(name, True, check())
    except Problem as problem:
        return Line(name, False, problem.what, problem.do)
    except ModuleNotFoundError as error:
        return Line(name, False, f"the package {error.name} is missing", checks.SET_UP_AGAIN)
    except Exception as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        said = f"the check itself broke off ({type(error).__name__}: {reason})"
        return Line(name, False, said, checks.SET_UP_AGAIN)


def main(arguments: list[str] | None = None) -> int:
    """Print the lines as they come; 0 if all is well, 1 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.doctor", description="Check that this machine is ready."
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--write-checksums", action="store_true", help="for developers: of the bundled models"
    )
    options = parser.parse_args(arguments)
    if options.write_checksums:
        print(f"wrote {model_checks.write_checksums()}")
        return 0
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console may lack a letter of a path
    try:
        lines = _examine_all(options.json)
    except KeyboardInterrupt:
        print("\ndoctor: stopped.")
        return 130
    failed = sum(not line.ok for line in lines)
    if not options.json:
        print(f"{failed} of {len(lines)} checks failed." if failed else "This machine is ready.")
    return int(failed > 0)


def _examine_all(as_json: bool) -> list[Line]:
    """Run every check and print its line at once."""
    os.environ.update(QUIET)
    lines = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, check in all_checks().items():
            lines.append(examine(name, check))
            print(json.dumps(lines[-1]._asdict()) if as_json else lines[-1], flush=True)
    return lines
