"""What is written is whole, or it is not there; nothing else is left."""

from __future__ import annotations

import pathlib

import pytest

from tfqil.export.new_path import written_whole


def write_folder(path: pathlib.Path) -> None:
    path.mkdir()
    (path / "inside").write_text("all")


@pytest.mark.parametrize("write", [lambda path: path.write_text("all"), write_folder], ids=["file", "folder"])
def test_what_was_written_takes_the_name_and_nothing_else_is_left(write, tmp_path):
    with written_whole(tmp_path / "new") as partial:
        write(partial)
        assert not (tmp_path / "new").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]
    content = tmp_path / "new" if (tmp_path / "new").is_file() else tmp_path / "new" / "inside"
    assert content.read_text() == "all"


@pytest.mark.parametrize("write", [lambda path: path.write_text("half"), write_folder], ids=["file", "folder"])
def test_nothing_is_left_of_what_fails_halfway(write, tmp_path):
    with pytest.raises(RuntimeError, match="halfway"), written_whole(tmp_path / "new") as partial:
        write(partial)
        raise RuntimeError("halfway")
    assert not list(tmp_path.iterdir())


def test_two_that_write_at_a_time_do_not_meet(tmp_path):
    with written_whole(tmp_path / "new") as first, written_whole(tmp_path / "new") as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second and first.read_text() == "first"
    assert (tmp_path / "new").read_text() == "first"  # The inner block ends first, and the outer one replaces it.
