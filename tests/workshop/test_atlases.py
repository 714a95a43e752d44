"""The command that builds atlases, on tiny twins where the bundled ones are looked for."""

import pytest
from tiny_atlases import ROWS, tiny_twins

from embspace_helpers.experiments import atlas
from embspace_helpers.experiments.atlas import build_atlas
from embspace_helpers.workshop import atlases


@pytest.fixture
def twins(tmp_path, monkeypatch):
    """Folder of tiny twins, whose heads have few directions."""
    monkeypatch.setattr(atlas, "build_atlas", lambda *given, **options: (
        build_atlas(*given, directions=2, progress=False, **options)))
    return tiny_twins(tmp_path, monkeypatch)


def test_the_command_builds_what_is_missing(twins, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(atlases, "MODELS", ["twin-a", "twin-b"])
    atlases.main(["twin-b"])
    rows = f"{4 * sum(ROWS['gpt2'].values()):,} rows"
    assert capsys.readouterr().out.startswith(f"twin-b: {rows}, 0.")
    file = tmp_path / "cache" / "atlas" / "twin-b-orthogonal.parquet"
    written = file.stat().st_mtime_ns
    atlases.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["twin-a", "twin-b"]
    assert file.stat().st_mtime_ns == written and lines[1].endswith(str(file))
    assert len([*file.parent.iterdir()]) == 2


def test_the_command_without_the_model(twins):
    with pytest.raises(SystemExit, match="minilm is not in the cache folder .*fetch minilm"):
        atlases.main(["minilm"])
