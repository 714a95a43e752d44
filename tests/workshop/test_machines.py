"""Settings that stand for other machines, on a folder with two trivial tests."""

import os

import pytest

from embspace_helpers.workshop.cost import kernel_env
from embspace_helpers.workshop.machines import SETTINGS, VARIABLES, choose, main, read_counts

TESTS = """import os

def test_fails_under_one_thread():
    assert os.environ.get("EMBSPACE_THREADS") != "1"

def test_has_the_variables_of_no_other_setting():
    assert "ATEN_CPU_CAPABILITY" not in os.environ or os.environ["ATEN_CPU_CAPABILITY"] != "avx512"
"""


def test_names_are_chosen_by_their_parts():
    assert choose([]) == list(SETTINGS)
    assert choose(["avx2"]) == ["aten-avx2", "onednn-avx2"]
    assert choose(["threads-2", "sse41"]) == ["threads-2", "onednn-sse41"]
    with pytest.raises(ValueError, match=r"no setting has 'amx' in its name: there are threads-1"):
        choose(["avx2", "amx"])


def test_one_setting_turns_everything_off():
    off = SETTINGS["all-off"]
    assert set(off) == VARIABLES
    for name in ("threads-1", "aten-default", "onednn-sse41", "mkl-compatible"):
        assert SETTINGS[name].items() <= off.items()


def test_threads_reach_the_kernels(monkeypatch):
    monkeypatch.delenv("EMBSPACE_THREADS", raising=False)
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    assert kernel_env()["OMP_NUM_THREADS"] == "1"  # two workers share them
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT")
    assert kernel_env()["OMP_NUM_THREADS"] == "2"
    for name, value in SETTINGS["threads-1"].items():
        monkeypatch.setenv(name, value)
    assert kernel_env()["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("log", "counts"),
    [
        ("....\n===== 12 passed in 0.10s =====", (12, 0)),
        ("2 failed, 7 passed, 1 skipped, 3 errors in 65.02s (0:01:05)\n", (7, 5)),
        ("1 error in 0.5s\nsome warning", (0, 1)),
        ("Segmentation fault", (0, 0)),
    ],
)
def test_counts_are_read_from_the_last_line(log, counts):
    assert read_counts(log) == counts


def test_suite_runs_under_each_setting(tmp_path, monkeypatch, capsys):
    (tmp_path / "test_trivial.py").write_text(TESTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx512")
    monkeypatch.setenv("PYTEST_ADDOPTS", "")
    assert main(["threads", "aten-avx2", "--", "-p", "no:cacheprovider"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in printed[:4]] == [
        ["setting", "passed", "failed"],
        ["threads-1", "1", "1"],
        ["threads-2", "2", "0"],
        ["aten-avx2", "2", "0"],
    ]
    assert "test_fails_under_one_thread" in (tmp_path / "build/machines/threads-1.log").read_text()
    assert main(["threads-2", "--", "-q"]) == 0
    assert main(["threads-2", "--", "nowhere"]) == 1
    assert f"exit code {pytest.ExitCode.USAGE_ERROR:d}" in capsys.readouterr().out
    assert os.environ["ATEN_CPU_CAPABILITY"] == "avx512"


def test_settings_are_listed_and_a_wrong_name_is_refused(capsys):
    assert main(["--list"]) == 0
    assert "aten-avx2       ATEN_CPU_CAPABILITY='avx2'" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["amx"])
    assert "no setting has 'amx'" in capsys.readouterr().err
