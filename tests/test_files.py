"""Files that are whole or absent, and places that cannot be written."""

import errno
import os

import pytest

from quamba.errors import QuambaError
from quamba.files import replace_atomically, require_writable, write_output, write_text_atomically


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


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_told_with_the_file_and_the_older_text_stays(tmp_path, monkeypatch, step):
    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a temporary name")

    file = tmp_path / "file.txt"
    write_output(file, "older")
    monkeypatch.setattr(os, step, fill)
    with pytest.raises(QuambaError) as error:
        write_output(file, "newer")
    assert str(error.value) == f"cannot write {file}: {os.strerror(errno.ENOSPC)}"
    assert file.read_text() == "older"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_below_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuambaError, match=r"^cannot write .*file/new/x\.txt: Not a directory$"):
        write_output(tmp_path / "file" / "new" / "x.txt", "text")


def test_a_block_writes_the_file_itself(tmp_path):
    """Under a name that no reader takes for the file, but that ends as the file's: writers look at the suffix."""
    file = tmp_path / "new" / "figure.png"
    for content in (b"first", b"second"):
        with replace_atomically(file) as temporary:
            assert temporary.parent == file.parent
            assert temporary.name.startswith(".")
            assert temporary.suffix == ".png"
            assert file.exists() == (content == b"second")
            temporary.write_bytes(content)
        assert file.read_bytes() == content
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_older_file_and_nothing_else(tmp_path, error):
    file = tmp_path / "file.bin"
    for older in (None, b"older"):
        if older:
            file.write_bytes(older)
        with pytest.raises(error), replace_atomically(file) as temporary:
            temporary.write_bytes(b"half of the new")
            raise error
        assert [path.read_bytes() for path in tmp_path.iterdir()] == ([older] if older else [])


def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path):
    write_text_atomically(tmp_path / "ours", "")
    (tmp_path / "usual").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_writing_never_touches_the_umask_of_other_threads(tmp_path, monkeypatch):
    (tmp_path / "usual").write_text("")
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("os.umask is the whole process"))
    with replace_atomically(tmp_path / "ours") as temporary:
        temporary.unlink()  # as safetensors' writer does, whose own file is for its user alone
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL, 0o600))
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/folder"])
def test_a_place_that_is_a_file_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuambaError, match=r"cannot write to .*file"):
        require_writable(tmp_path / place)
