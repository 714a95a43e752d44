"""Set-up, with pip replaced or with hosts of our own: no test here needs a network."""

import ast
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import embspace_helpers.workshop.install as installing
from embspace_helpers.workshop.install import InstallError, has_cpu_build, locked_torch, main

TORCH = locked_torch(installing.LOCK)


@pytest.fixture
def bare_pip(monkeypatch):
    """Nothing of this machine's pip settings; proxies neither."""
    for key in [k for k in os.environ if k.startswith("PIP_") or k.lower().endswith("_proxy")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@contextmanager
def host(answer):
    """A host on this machine that runs `answer(connection)` for whoever connects; its address."""
    stop = threading.Event()

    def serve():
        while not stop.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        stop.set()


def never(connection):
    """Accept, read, and say nothing."""
    with connection:
        time.sleep(30)


def drop_by_drop(connection):
    """An answer that goes on for ever, so that no single wait is long."""
    with connection, suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"<!-- -->")
            time.sleep(0.3)


# ---- asking the host


@pytest.mark.parametrize("answer", [never, drop_by_drop])
def test_a_host_that_never_answers_is_given_up_in_time(bare_pip, monkeypatch, answer):
    monkeypatch.setattr(installing, "SILENCE", 1)
    monkeypatch.setattr(installing, "PATIENCE", 2.5)
    start = time.perf_counter()
    with host(answer) as address:
        assert not has_cpu_build(TORCH, address, [])
    assert time.perf_counter() - start < 4


def test_a_host_out_of_reach_is_no(bare_pip):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not has_cpu_build(TORCH, f"http://127.0.0.1:{port}", [])


@pytest.mark.parametrize(("there", "found"), [("9.9.0+cpu", True), ("9.9.0", False)])
def test_a_host_that_has_the_cpu_build_is_yes(bare_pip, tmp_path, there, found):
    (tmp_path / "torch").mkdir()
    page = f'<a href="torch-{there}-py3-none-any.whl">torch-{there}-py3-none-any.whl</a>'
    (tmp_path / "torch" / "index.html").write_text(f"<!DOCTYPE html><html>{page}</html>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        index = f"http://127.0.0.1:{server.server_port}"
        assert has_cpu_build("9.9.0", index, []) is found
        assert not has_cpu_build("9.9", index, [])
        server.shutdown()


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_proxy_is_asked(bare_pip, monkeypatch, how):
    asked = []

    def proxy(connection):
        with connection:
            asked.append(connection.recv(1000).split(b"\r\n")[0])

    with host(proxy) as address:
        flags = ["--trusted-host", "cpu.invalid"]
        if how == "option":
            flags += [f"--proxy={address}"]
        else:
            monkeypatch.setenv("http_proxy", address)
        flags = installing.network_flags([*flags, "--no-compile"])
        assert not has_cpu_build(TORCH, "http://cpu.invalid/whl/cpu", flags)
    assert b"GET http://cpu.invalid/whl/cpu/torch/ HTTP/1.1" in asked


# ---- deciding


@pytest.fixture
def calls(monkeypatch):
    """The calls of pip, which all succeed. On Linux, without torch, with the host in reach."""
    found = []
    monkeypatch.setattr(installing, "pip", lambda *arguments: found.append(arguments) or True)
    monkeypatch.setattr(installing, "has_cpu_build", lambda *_: True)
    monkeypatch.setattr(installing, "installed_torch", lambda: None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("EMBSPACE_TORCH_INDEX", raising=False)
    return found


ALL = ("install", "-c", str(installing.LOCK), "-e", ".[test]")


def forbid(*_):
    pytest.fail("asked a host that need not be asked")


def test_on_linux_the_cpu_build_comes_first(calls, capsys):
    main([])
    torch = ("--no-deps", "--index-url", installing.TORCH_INDEX, f"torch=={TORCH}+cpu")
    assert calls == [("install", *installing.ONCE_MORE, *torch), ALL]
    said = capsys.readouterr().out
    assert "2 GB of disk" in said and "minutes" in said and "CPU build is there" in said


def test_without_that_host_the_package_index_serves(calls, monkeypatch, capsys):
    monkeypatch.setattr(installing, "has_cpu_build", lambda *_: False)
    main([])
    assert calls == [ALL]
    assert "2.7 GB to download, 6 GB more on disk" in capsys.readouterr().out


def test_a_download_that_breaks_off_leaves_the_package_index(calls, monkeypatch, capsys):
    def pip(*arguments):
        calls.append(arguments)
        return "--no-deps" not in arguments

    monkeypatch.setattr(installing, "pip", pip)
    main([])
    assert len(calls) == 2 and calls[1] == ALL
    assert "could not be downloaded" in capsys.readouterr().out


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_no_host_is_asked(calls, monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(installing, "has_cpu_build", forbid)
    main([])
    assert calls == [ALL]


def test_torch_that_is_here_is_kept(calls, monkeypatch):
    monkeypatch.setattr(installing, "installed_torch", lambda: TORCH)
    monkeypatch.setattr(installing, "has_cpu_build", forbid)
    main(["--extras", "test,dev"])
    assert calls == [(*ALL[:-1], ".[test,dev]")]


@pytest.mark.parametrize("flag", ["--extra-index-url=x", "--find-links", "-f", "-i", "--no-index"])
def test_a_source_that_the_user_names_is_the_source(calls, monkeypatch, flag):
    monkeypatch.setattr(installing, "has_cpu_build", forbid)
    main([flag, "y"])
    assert calls == [("install", flag, "y", *ALL[1:])]


def test_a_mirror_is_asked_instead_and_none_when_empty(calls, monkeypatch):
    monkeypatch.setenv("EMBSPACE_TORCH_INDEX", "https://mirror.invalid")
    main(["--proxy", "p"])
    torch = ("--proxy", "p", "--no-deps", "--index-url", "https://mirror.invalid")
    assert calls[0] == ("install", *installing.ONCE_MORE, *torch, f"torch=={TORCH}+cpu")
    monkeypatch.setenv("EMBSPACE_TORCH_INDEX", "")
    monkeypatch.setattr(installing, "has_cpu_build", forbid)
    main([])
    assert calls[-1] == ALL and len(calls) == 3


@pytest.mark.parametrize(("free", "there"), [(1e9, True), (5e9, False)])
def test_too_full_a_disk_is_said_before_anything_is_installed(calls, monkeypatch, free, there):
    usage = namedtuple("usage", "total used free")(9e9, 0, free)
    monkeypatch.setattr(installing.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(installing, "has_cpu_build", lambda *_: there)
    with pytest.raises(SystemExit, match=f"{free / 1e9:.1f} GB are free .* Make room"):
        main([])
    assert not calls


def test_pip_that_fails_ends_with_a_sentence(calls, monkeypatch):
    monkeypatch.setattr(installing, "pip", lambda *_: False)
    with pytest.raises(SystemExit, match="run the same command again"):
        main([])


def test_a_lock_without_torch_is_a_sentence(tmp_path):
    (tmp_path / "lock").write_text("numpy==2.0.0\n")
    with pytest.raises(InstallError, match="make lock"):
        locked_torch(tmp_path / "lock")


# ---- before anything is installed


def test_it_needs_the_standard_library_only():
    tree = ast.parse(Path(installing.__file__).read_text("utf-8"))
    names = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_it_runs_by_its_path_without_any_package():
    command = [sys.executable, "-I", "-S", installing.__file__, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "handed to pip" in done.stdout
