"""One environment, described five times: pyproject.toml, lock, conda, Binder and workflow."""

import ast
import os
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from embspace_helpers.workshop.install import LOCK, TORCH_INDEX
from embspace_helpers.workshop.notebooks import KERNEL_ENV

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(text) for text in PROJECT["dependencies"]]
DECLARED = RUNTIME + [Requirement(text) for text in PROJECT["optional-dependencies"]["test"]]
TOOLS = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"]]
ADDED = [Requirement(text) for name, wanted in PROJECT["optional-dependencies"].items()
         for text in wanted if name not in ("test", "dev")]  # what users may add
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
PYTHON = (ROOT / "binder" / "runtime.txt").read_text().strip().removeprefix("python-")

# Declared, though no line of this project imports it, and why.
NOT_IMPORTED = {
    "accelerate": "transformers needs it to read a GGUF file",
    "ipykernel": "the kernel of the notebooks",
    "jupyterlab": "make lab",
    "pytest-xdist": "make test: two files at a time",
}


def lock() -> dict[str, str]:
    """The lock's pins, name to version."""
    lines = (ROOT / "binder" / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def lines_of(path: str) -> list[str]:
    """A requirements file's lines without comments."""
    return [x for x in (ROOT / path).read_text().splitlines() if x and not x.startswith("#")]


def needed(requirements: list[Requirement]) -> set[str]:
    """Every package that the requirements install here, by the installed packages' metadata."""
    found, seen, open_ = set(), set(), list(requirements)
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        found.add(name)
        for extra in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            children = map(Requirement, requires(name) or [])
            open_ += [c for c in children if not c.marker or c.marker.evaluate({"extra": extra})]
    return found


def imported(source: str, where: str) -> set[str]:
    """Top-level names of the modules that a piece of source imports."""
    names = set()
    for node in ast.walk(ast.parse(source, where)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def sources() -> dict[str, str]:
    """All Python of the project, by place: modules, tests and notebooks' code cells."""
    found = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for folder in ("embspace_helpers", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type == "code":
                found[f"{path.name}, cell {number}"] = cell.source
    return found


def third_party() -> dict[str, set[str]]:
    """Packages that the project imports, each with the places that do."""
    distributions, local = packages_distributions(), {"embspace_helpers", "tests"}
    local |= {path.stem for path in (ROOT / "tests").rglob("*.py")}
    found: dict[str, set[str]] = {}
    for where, source in sources().items():
        for module in imported(source, where) - local - set(sys.stdlib_module_names):
            for name in distributions.get(module, [module]):
                found.setdefault(canonicalize_name(name), set()).add(where)
    return found


def test_every_dependency_has_a_range_and_a_pin_inside_it():
    for requirement in DECLARED + TOOLS:
        assert ">=" in str(requirement.specifier), f"{requirement}: no lower bound"
        pin = lock().get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} is not in binder/constraints.txt: run make lock"
        assert pin in requirement.specifier, f"{requirement} does not allow the locked {pin}"


def test_lock_has_exact_versions_and_no_local_build():
    assert all(re.fullmatch(r"[\w.!]+", version) for version in lock().values()), "run make lock"


@pytest.mark.skipif(sys.platform != "linux", reason="the lock was made on Linux")
def test_lock_has_what_is_needed_and_nothing_else():
    try:
        wanted = {n for n in needed(DECLARED) if not re.match("cuda|nvidia|triton", n)}
    except PackageNotFoundError as error:
        pytest.fail(f"{error.name} is not installed: pip install -e '.[test]'")
    with_tools = True
    try:
        wanted |= needed(TOOLS)
    except PackageNotFoundError:  # a learner has not installed them, the workflow has
        with_tools = False
    missing, idle = wanted - set(lock()), set(lock()) - wanted
    assert not missing, f"not in binder/constraints.txt, run make lock: {missing}"
    if with_tools and f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON:
        assert not idle, f"in binder/constraints.txt, needed by nothing, run make lock: {idle}"


def test_python_is_the_same_everywhere():
    assert f"python={PYTHON}" in CONDA
    assert PROJECT["requires-python"] == f">={PYTHON}"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert PYTHON in tested
    assert all(version in SpecifierSet(PROJECT["requires-python"]) for version in tested)


def test_conda_is_the_lock_with_its_own_cpu_torch():
    assert f"pytorch={lock()['torch']}=cpu_*" in CONDA
    assert [x.split("=")[0] for x in CONDA if isinstance(x, str)] == ["python", "pip", "pytorch"]
    assert {"pip": ["-c binder/constraints.txt", "-e .[test]"]} in CONDA  # relative to the file


def test_binder_is_the_lock_with_cpu_torch():
    assert lines_of("binder/requirements.txt") == [
        "--extra-index-url https://download.pytorch.org/whl/cpu",
        "-c constraints.txt",  # relative to the file
        "-e .[test]",  # relative to the repository's root, where repo2docker runs pip
    ]
    built = lines_of("binder/postBuild")
    assert {"python -m embspace_helpers.fetch", "python -m embspace_helpers.atlas"} <= set(built)
    assert os.name == "nt" or os.access(ROOT / "binder" / "postBuild", os.X_OK)


def test_make_installs_the_lock():
    makefile = (ROOT / "Makefile").read_text()
    assert "LOCK := binder/constraints.txt" in makefile
    assert "$(PY) $(INSTALL) $(PIP_FLAGS)\n" in makefile
    assert ROOT / "binder" / "constraints.txt" == LOCK


def test_readme_gives_the_same_in_one_line_each():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    same = '-c binder/constraints.txt -e ".[test]"'
    assert f"\npip install {same} --extra-index-url {TORCH_INDEX}\n" in readme
    assert f"\nuv pip install --torch-backend=cpu {same}\n" in readme


def test_readme_lists_every_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    folder = ROOT / "embspace_helpers" / "workshop" / "commands"
    commands = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    listed = set(re.findall(r"^\| `(\w+)` \|", readme, re.M))
    assert commands == listed, f"in one place only: {commands ^ listed}"


def test_every_target_of_make_is_phony_and_explained():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, re.M))
    assert targets == set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    assert targets - {"help", "atlases"} == set(re.findall(r'@echo "make ([a-z-]+) ', makefile))


def test_every_import_is_declared():
    declared = {canonicalize_name(requirement.name) for requirement in DECLARED}
    missing = {n: w for n, w in third_party().items() if n not in declared}
    assert not missing, f"imported, but not declared in pyproject.toml: {missing}"


def test_binder_gives_memory_back_as_the_tests_do():
    start = (ROOT / "binder" / "start").read_text()
    assert f"export MALLOC_MMAP_THRESHOLD_={KERNEL_ENV['MALLOC_MMAP_THRESHOLD_']}\n" in start


def test_the_tests_have_all_that_users_may_add():
    assert {str(requirement) for requirement in ADDED} <= {str(r) for r in DECLARED}


def test_the_package_and_the_notebooks_do_not_need_the_test_extra():
    runtime = {canonicalize_name(requirement.name) for requirement in RUNTIME + ADDED}
    for name, places in third_party().items():
        places = {p for p in places if not p.startswith("tests") and "nbval_plugin" not in p}
        assert not places or name in runtime, f"{name} is in the extra only, imported by {places}"


def test_every_dependency_is_imported_or_explained():
    declared = {canonicalize_name(requirement.name) for requirement in DECLARED}
    used, explained = set(third_party()), set(NOT_IMPORTED)
    idle, stale, unknown = declared - used - explained, explained & used, explained - declared
    assert not idle, f"declared, but neither imported nor in NOT_IMPORTED: {idle}"
    assert not stale, f"imported, so take it out of NOT_IMPORTED: {stale}"
    assert not unknown, f"in NOT_IMPORTED, but not declared: {unknown}"
