"""The command that builds atlases, on tiny twins where the bundled ones are looked for."""

import sys

import numpy as np
import pytest
from tiny_atlases import ROWS, lists_of, save_twin, tiny_twins

from embspace_helpers.experiments import atlas_build
from embspace_helpers.experiments.atlas import load_atlas
from embspace_helpers.experiments.atlas_build import atlas_path
from embspace_helpers.workshop import atlases


@pytest.fixture
def twins(tmp_path, monkeypatch):
    """Folder of tiny twins, whose heads have few directions."""
    monkeypatch.setattr(atlas_build, "DIRECTIONS", 2)
    return tiny_twins(tmp_path, monkeypatch)


def test_the_command_builds_what_is_missing(twins, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(atlases, "MODELS", ["twin-a", "twin-b"])
    atlases.main(["twin-b"])
    rows = f"{4 * sum(ROWS['gpt2'].values()):,} rows"
    assert capsys.readouterr().out.startswith(f"twin-b: {rows}, 0.")
    folder = tmp_path / "cache" / "atlas" / "twin-b-orthogonal"
    written = [file.stat().st_mtime_ns for file in sorted(folder.iterdir())]
    atlases.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["twin-a", "twin-b"]
    assert [file.stat().st_mtime_ns for file in sorted(folder.iterdir())] == written
    assert lines[1].endswith(str(folder)) and len(written) == 2
    atlases.main(["twin-b", "--reading", "centred"])
    assert len([*folder.parent.iterdir()]) == 3


def test_the_command_without_the_model(twins):
    with pytest.raises(SystemExit, match="minilm is not in the cache folder .*fetch minilm"):
        atlases.main(["minilm"])


def test_two_workers_share_the_layers_out(tmp_path, monkeypatch, capsys):
    save_twin(tmp_path, "mine", seed=3, layers=3)
    name = str(tmp_path / "mine")
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path / "shared"))
    atlas_build.known_build(name).layer(1)
    written = {file: file.stat().st_mtime_ns for file in atlas_path(name).iterdir()}
    with monkeypatch.context() as patch:  # the workers are other processes: they know nothing of it
        patch.setattr(atlas_build.Build, "layer", None)
        atlases.main([name, "--workers", "2"])
    assert capsys.readouterr().out.startswith(f"{name}: 816 rows")
    assert all(file.stat().st_mtime_ns == then for file, then in written.items())
    shared = load_atlas(name)
    monkeypatch.setenv("EMBSPACE_CACHE", str(tmp_path / "alone"))
    for one, other in zip(lists_of(shared), lists_of(load_atlas(name))):
        np.testing.assert_array_equal(one, other)


def test_workers_without_dask(twins, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(SystemExit, match="dask is not installed: pip install -e"):
        atlases.main(["twin-a", "--workers", "2"])
