"""Files that are there whole or not at all."""

import pytest

from embspace_helpers.reading.files import whole_file


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
