"""Files that are whole or absent, and places that cannot be written."""

import os

import pytest

from quamba.errors import QuambaError
from quamba.files import require_writable, write_text_atomically


def test_text_is_written_and_replaced(tmp_path):
    file = tmp_path / "new" / "file.txt"
    for text in ("first", "second, größer"):
        write_text_atomically(file, text)
        assert file.read_text("utf-8") == text
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interruption_leaves_the_older_text_and_nothing_else(tmp_path, monkeypatch, step):
    def interrupt(*_):
        raise KeyboardInterrupt

    file = tmp_path / "file.txt"
    write_text_atomically(file, "older")
    monkeypatch.setattr(os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomically(file, "newer")
    assert file.read_text() == "older"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path):
    write_text_atomically(tmp_path / "ours", "")
    (tmp_path / "usual").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/folder"])
def test_a_place_that_is_a_file_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuambaError, match=r"cannot write to .*file"):
        require_writable(tmp_path / place)
