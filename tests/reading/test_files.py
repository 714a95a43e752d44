"""Files that are there whole or not at all; memory of files that are mapped."""

import re
import sys
from pathlib import Path

import pytest
import torch

from embspace_helpers.reading.files import release, whole_file


def test_the_file_and_its_folders_are_there_at_the_end_and_not_before(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"
    with whole_file(path) as part:
        part.write_text("a,b")
        assert part.parent == path.parent and not path.exists()
    assert path.read_text() == "a,b"
    assert list(path.parent.iterdir()) == [path]


def test_everybody_may_read_the_file(tmp_path):
    with whole_file(tmp_path / "file") as part:
        part.touch(mode=0o600)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with whole_file(str(path)) as part:
        part.write_text("new")
    assert path.read_text() == "new"


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), whole_file(path) as part:
        part.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_never_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "file"):
        pass
    assert not list(tmp_path.iterdir())


def mapped(tmp_path, n=2**20):
    """Numbers 0 to n - 1 in a file, mapped."""
    torch.arange(n, dtype=torch.float32).numpy().tofile(tmp_path / "weights")
    storage = torch.UntypedStorage.from_file(str(tmp_path / "weights"), False, 4 * n)
    return torch.tensor([], dtype=torch.float32).set_(storage)


def kilobytes_of_files():
    """How much memory this process has of mapped files."""
    return int(re.search(r"RssFile:\s*(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux only")
def test_memory_of_a_mapped_file_is_given_back_and_its_numbers_stay(tmp_path):
    weights = mapped(tmp_path)
    total = weights.double().sum()
    before = kilobytes_of_files()
    release(weights)
    assert kilobytes_of_files() < before - 3000
    assert weights.double().sum() == total


def test_what_was_changed_since_stays(tmp_path):
    weights = mapped(tmp_path)
    weights.data[5] = -1.0
    release(weights)
    assert weights[5] == -1.0


@pytest.mark.parametrize("size", [0, 1, 2**20])
def test_what_is_no_file_stays(size):
    weights = torch.ones(size)
    release(weights)
    release(weights[::2])
    assert (weights == 1).all()
