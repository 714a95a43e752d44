"""The benchmarks' machinery: not what they measure, which `make bench` does."""

import json
import mmap
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def bench(monkeypatch):
    """The two modules that all share, as the scripts find them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import measuring
    import run

    yield measuring, run
    for name in ("measuring", "run"):
        del sys.modules[name]


def test_every_script_has_a_main_and_reports():
    scripts = sorted(FOLDER.glob("bench_*.py"))
    assert len(scripts) >= 6
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert "def main():" in text and "report(" in text, script.name


def test_figures_go_from_a_script_to_the_table(bench, tmp_path, monkeypatch, capsys):
    measuring, run = bench
    monkeypatch.setenv("BENCH_FIGURES", str(tmp_path / "figures"))
    measuring.report("pairs", "random", 3.0, against=2.0, goal="≤ 1.2", mb=41.4, other="dense 9 ×")
    measuring.report("start", "twin-a", 4.0)
    first, second = map(json.loads, (tmp_path / "figures").read_text().splitlines())
    assert "1.50 × 2.00 s (goal ≤ 1.2), 41 MB; dense 9 ×" in capsys.readouterr().out
    rows = [run.row(first, {**first, "ratio": 1.18}), run.row(second, second)]
    assert rows[0] == ["pairs", "random", "≤ 1.2", "1.50", "1.18", "3", "41", "dense 9 ×"]
    assert rows[1] == ["start", "twin-a", "", "", "", "4", "", ""]
    assert run.table(rows).splitlines()[-2:] == [f"| {' | '.join(row)} |" for row in rows]


def test_times_and_memory(bench):
    measuring, _ = bench
    fast, slow = measuring.best_of(2, lambda: None, lambda: sum(range(300_000)))
    assert 0 <= fast < slow
    if sys.platform == "linux":
        assert measuring.memory(touch_pages) > 50


def touch_pages(size=60_000_000):
    """Use memory straight from the system: what other tests have freed does not serve."""
    with mmap.mmap(-1, size) as pages:
        pages[:: mmap.PAGESIZE] = bytes(len(range(0, size, mmap.PAGESIZE)))


def test_a_failing_script_leaves_the_readme_alone(bench, tmp_path, monkeypatch, capsys):
    _, run = bench
    (tmp_path / "bench_broken.py").write_text("raise SystemExit(3)")
    (tmp_path / "README.md").write_text(f"a\n{run.BEGIN}\nold\n{run.END}\nb\n")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "README", tmp_path / "README.md")
    assert run.main([]) == 1 and "failed: bench_broken.py" in capsys.readouterr().out
    assert "old" in (tmp_path / "README.md").read_text()
    (tmp_path / "bench_broken.py").write_text(
        'import json, os\nopen(os.environ["BENCH_FIGURES"], "a").write(json.dumps(dict('
        'what="x", weights="y", goal="", seconds=1, mb=None, ratio=2, other="")))')
    assert run.main([]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"a\n{run.BEGIN}\n") and text.endswith(f"{run.END}\nb\n")
    assert "| x | y |  | 2.00 | 2.00 | 1 |  |  |" in text and "old" not in text


def test_the_readme_has_a_place_for_the_table(bench):
    _, run = bench
    text = README.read_text(encoding="utf-8")
    assert text.count(run.BEGIN) == text.count(run.END) == 1
    table = text.split(run.BEGIN)[1].split(run.END)[0]
    assert all(line.count("|") == len(run.COLUMNS) + 1
               for line in table.splitlines() if line.startswith("|"))
