"""Server and kernel measured together, on small notebooks and with stand-ins for cgroups."""

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from embspace_helpers.workshop import binder_memory
from embspace_helpers.workshop.binder_memory import Sampler, family, limit_memory, main, read_pss

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it measures through /proc")


def save(path: Path, *cells: str) -> Path:
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), path)
    return path


def test_notebooks_run_on_a_server_and_are_measured(tmp_path, capsys):
    """One server runs all four; a page of 90 MB is seen, an error and a dead kernel are told."""
    as_on_binder = ("import os\nassert len(os.sched_getaffinity(0)) == 1\n"
                    "assert os.environ['MALLOC_MMAP_THRESHOLD_'] == '1048576'")
    save(tmp_path / "1_small.ipynb", "print(1)", as_on_binder)
    save(tmp_path / "2_large.ipynb", "x = bytearray(b'1') * 90_000_000", "open('1_small.ipynb')")
    save(tmp_path / "3_error.ipynb", "1 / 0")
    save(tmp_path / "4_dies.ipynb", "import os; os._exit(1)")
    assert main([str(tmp_path)]) == 1
    head, names, *rows = capsys.readouterr().out.splitlines()
    assert "server and kernel on one core" in head
    assert names.split() == ["notebook", "peak", "MB", "seconds"]
    assert [row.split(None, 3)[0] for row in rows] == [
        "1_small.ipynb", "2_large.ipynb", "3_error.ipynb", "4_dies.ipynb"
    ]
    verdicts = [row.split(None, 3)[3] for row in rows]
    assert verdicts[:2] == ["OK", "OK"]
    assert verdicts[2] == "FAILED in cell 0: ZeroDivisionError: division by zero"
    assert verdicts[3] == "FAILED in cell 0: the kernel died: out of memory?"
    small, large = (float(row.split()[1]) for row in rows[:2])
    assert small > 80 and 80 < large - small < 130


def test_peak_over_the_limit_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(binder_memory, "ALLOWED", 50)
    assert main([str(save(tmp_path / "a.ipynb", "print(1)"))]) == 1
    assert "OVER 50 MB" in capsys.readouterr().out


def test_server_that_does_not_start_is_told(tmp_path):
    started = pytest.raises(RuntimeError, match="JupyterLab did not start")
    with started, binder_memory.serve(tmp_path, ["false"]):
        pass


def test_sampler_keeps_the_peak_of_a_process_and_its_children():
    hold = "import time; x = bytearray(b'1') * 60_000_000; time.sleep(1)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    with Sampler(os.getpid()) as sampler:
        before = read_pss(os.getpid())
        subprocess.run([sys.executable, "-c", outer])
    assert sampler.peak - before > 60


def test_a_process_that_has_ended_takes_nothing():
    process = subprocess.Popen([sys.executable, "-c", ""])
    assert process.pid in family(os.getpid())
    process.wait()
    assert read_pss(process.pid) == 0
    assert process.pid not in family(os.getpid())


@pytest.mark.parametrize(("file", "value"), [("memory.max", "2000000000"),
                                             ("memory.limit_in_bytes", "2000000000")])
def test_server_enters_a_limited_child_of_the_cgroup(tmp_path, monkeypatch, file, value):
    """A folder stands for the cgroup: the kernel would make the files that are made here."""
    real = Path.mkdir

    def mkdir(path: Path) -> None:
        real(path)
        (path / "cgroup.procs").touch()
        (path / file).touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(binder_memory, "_remove", lambda group: None)
    with limit_memory(tmp_path) as (prefix, text):
        (group,) = tmp_path.iterdir()
        done = subprocess.run([*prefix, "sh", "-c", "echo $$"], capture_output=True, text=True)
        assert (group / "cgroup.procs").read_text() == done.stdout
        assert (group / file).read_text() == value and "a hard limit of 2000 MB" in text


def test_cgroup_that_cannot_be_made_is_told(tmp_path):
    with pytest.raises(OSError, match="nowhere"), limit_memory(tmp_path / "nowhere"):
        pass
    assert main(["--cgroup", str(tmp_path / "nowhere"), str(save(tmp_path / "a.ipynb"))]) == 1


@pytest.mark.parametrize(("code", "limit"), [(0, "a hard limit of 2000 MB (systemd)"),
                                             (1, "no hard limit")])
def test_scope_of_systemd_is_used_where_it_works(tmp_path, monkeypatch, code, limit):
    tool = tmp_path / "systemd-run"
    tool.write_text(f"#!/bin/sh\nexit {code}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with limit_memory(None) as (prefix, text):
        assert text.startswith(limit)
        assert ("MemoryMax=2000000000" in prefix) == (code == 0)


def test_removed_when_its_last_process_has_left(tmp_path, capsys, monkeypatch):
    group = tmp_path / "group"
    group.mkdir()
    binder_memory._remove(group)
    assert not group.exists()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    binder_memory._remove(group)
    assert "could not remove the cgroup" in capsys.readouterr().err
