"""Files that are whole or absent, and places that cannot be written."""

import errno
import os
import socket
import subprocess
from pathlib import Path

import pytest

from quamba.errors import QuambaError
from quamba.storage import scratch
from quamba.storage.files import (
    replace_atomically,
    require_writable,
    require_writable_file,
    write_output,
    write_text_atomically,
)
from tests import light_process


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
    """Under its own name, which writers look at, in a hidden folder beside it."""
    file = tmp_path / "new" / "figure.png"
    for content in (b"first", b"second"):
        with replace_atomically(file) as temporary:
            assert temporary.name == file.name
            assert temporary.is_relative_to(file.parent)
            assert temporary.relative_to(file.parent).parts[0].startswith(".")
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


# --- what is not a file of ours to replace ---


@pytest.fixture
def odd_places(tmp_path):
    """Places that are no regular files: name -> path."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "null").symlink_to("/dev/null")
    places = {name: tmp_path / name for name in ("pipe", "socket", "folder", "loop", "null")}
    return places | {"/dev/null": Path("/dev/null"), "/dev/stdout": Path("/dev/stdout"), "/dev/fd/1": Path("/dev/fd/1")}


@pytest.mark.parametrize("name", ["pipe", "socket", "folder", "loop", "null", "/dev/null", "/dev/stdout", "/dev/fd/1"])
@pytest.mark.parametrize("write", [lambda path: write_output(path, "text"), require_writable_file])
def test_what_is_no_regular_file_is_refused_and_stays(odd_places, name, write):
    path = odd_places[name]
    before = path.lstat()
    with pytest.raises(QuambaError, match=f"{path}.*: name a file|Too many levels of symbolic links"):
        write(path)
    assert os.path.samestat(path.lstat(), before)


def test_the_standard_output_is_refused_though_the_shell_leads_it_to_a_file(tmp_path):
    """The rest of what the shell writes there would be lost with the file that is replaced."""
    code = "from pathlib import Path; from quamba.storage.files import write_output as w; w(Path('/dev/stdout'), 'x')"
    with (tmp_path / "out").open("w") as out:
        run = light_process.run(code, stdout=out, stderr=subprocess.PIPE)
    assert run.returncode == 1
    assert "QuambaError: /dev/stdout is a stream of a process: name a file" in run.errors


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("older")
    (tmp_path / "near").symlink_to("elsewhere/file")
    (tmp_path / "link").symlink_to(tmp_path / "near")
    (tmp_path / "new").symlink_to("elsewhere/not there yet")
    for link in ("link", "new"):
        write_output(tmp_path / link, "newer")
        assert (tmp_path / link).is_symlink()
        assert (tmp_path / link).read_text() == "newer"
    assert (tmp_path / "elsewhere" / "file").read_text() == "newer"
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["file", "not there yet"]


def test_a_file_keeps_its_permissions_and_its_owner(tmp_path):
    file = tmp_path / "file"
    file.write_text("older")
    file.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(file, 1234, 4321)
    before = file.stat()
    write_output(file, "newer")
    after = file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_write_protected_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("older")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anything
    with pytest.raises(QuambaError, match=r"file is write-protected"):
        write_output(tmp_path / "file", "newer")
    assert (tmp_path / "file").read_text() == "older"


def test_a_name_that_is_too_long_is_told(tmp_path):
    with pytest.raises(QuambaError, match="File name too long"):
        require_writable_file(tmp_path / ("x" * 300))
    write_output(tmp_path / ("x" * 255), "as long as a name may be")


# --- what killed processes leave ---

KILLED = """
import os, signal, sys
from pathlib import Path
from quamba.storage.files import replace_atomically
with replace_atomically(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_goes_with_the_next_output(tmp_path):
    light_process.run(KILLED, tmp_path / "file", "killed", stdout=subprocess.PIPE)
    assert len(list(tmp_path.iterdir())) == 1
    write_output(tmp_path / "another", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["another"]


def test_what_a_living_process_writes_stays(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with light_process.start(KILLED, tmp_path / "file", "waits", **pipes) as process:
        process.stdout.readline()
        write_output(tmp_path / "file", "meanwhile")
        process.communicate()
    assert process.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "half"


def test_another_machines_folder_is_left_until_it_is_old(tmp_path):
    """Its locks may not show here."""
    theirs = tmp_path / f"{scratch.PREFIX}anothers-x"
    theirs.mkdir()
    write_output(tmp_path / "file", "text")
    assert theirs.is_dir()
    os.utime(theirs, (0, 0))
    write_output(tmp_path / "file", "text")
    assert not theirs.exists()


def test_without_locks_outputs_are_written_and_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # as NFS for folders

    monkeypatch.setattr(scratch.fcntl, "flock", refuse)
    with replace_atomically(tmp_path / "one") as temporary:
        temporary.write_text("1")
        write_output(tmp_path / "two", "2")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "1", "two": "2"}
