"""Folders that are replaced in one step, or in two that a later process mends."""

import errno
import os
import signal

import pytest

from quamba.errors import QuambaError
from quamba.storage import folders
from quamba.storage.folders import exchange, recover, replace_folder
from tests import light_process


def accept(_):
    """Any folder may be replaced."""


def write(path, content: str) -> None:
    with replace_folder(path, accept) as folder:
        for name in "ab":
            (folder / name).write_text(content)


def read(path) -> dict[str, str]:
    return {file.name: file.read_text() for file in path.iterdir()}


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch, tmp_path):
    """Both ways to replace; the first where this file system has it."""
    if request.param == "two renames":
        monkeypatch.setattr(folders, "exchange", lambda *_: False)
    else:
        for name in "xy":
            (tmp_path / name).mkdir()
        supported = exchange(tmp_path / "x", tmp_path / "y")
        for name in "xy":
            (tmp_path / name).rmdir()
        if not supported:
            pytest.skip("this file system cannot exchange folders")
    return request.param


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "a folder"])
def test_a_folder_is_written_and_replaced(tmp_path, way, before):
    path = tmp_path / "deep" / "model"
    if before != "nothing":
        path.mkdir(parents=True)
    if before == "a folder":
        (path / "old").write_text("")
    write(path, "new")
    assert read(path) == {"a": "new", "b": "new"}
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_keeps_its_permissions(tmp_path, way):
    path = tmp_path / "model"
    write(path, "old")
    (tmp_path / "usual").mkdir()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    path.chmod(0o750)
    write(path, "new")
    assert path.stat().st_mode & 0o777 == 0o750


def test_what_is_put_into_the_folder_meanwhile_is_not_lost(tmp_path, way):
    """The check is made again when the new folder is written."""

    def check(folder):
        if (folder / "thesis").exists():
            raise QuambaError("holds a thesis")

    path = tmp_path / "model"
    write(path, "old")
    with pytest.raises(QuambaError, match="holds a thesis"), replace_folder(path, check) as folder:
        (folder / "a").write_text("new")
        (path / "thesis").write_text("years")
    assert read(path) == {"a": "old", "b": "old", "thesis": "years"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), KeyboardInterrupt()])
def test_a_second_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch, error):
    path = tmp_path / "model"
    write(path, "old")
    rename = os.rename

    def fail(source, target):
        if target == path and folders.ASIDE not in source.parts and not path.exists():
            raise error
        rename(source, target)

    monkeypatch.setattr(folders, "exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(type(error)):
        write(path, "new")
    assert read(path) == {"a": "old", "b": "old"}
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
from quamba.storage import folders
step, path = sys.argv[1], Path(sys.argv[2])
original = {"fsync_tree": folders.fsync_tree, "exchange": folders.exchange, "rename": os.rename}[step]
def kill(*_):
    if sys.argv[3] == "after":
        original(*_)
    os.kill(os.getpid(), signal.SIGKILL)
if step == "rename":  # the first of two
    folders.exchange = lambda *_: False
    rename = os.rename
    os.rename = lambda source, target: kill(source, target) if source == path else rename(source, target)
else:
    setattr(folders, step, kill)
with folders.replace_folder(path, lambda _: None) as folder:
    for name in "ab":
        (folder / name).write_text("new")
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", ["fsync_tree", "exchange", "rename"])
def test_a_process_that_is_killed_leaves_one_whole_folder_and_what_is_removed(tmp_path, step, moment):
    path = tmp_path / "model"
    write(path, "old")
    run = light_process.run(KILLED, step, path, moment)
    assert run.returncode == -signal.SIGKILL
    assert path.exists() == ((step, moment) != ("rename", "after"))
    recover(path)
    whole = read(path)
    assert whole in ({"a": "old", "b": "old"}, {"a": "new", "b": "new"})
    write(tmp_path / "another", "new")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "another", path]
    assert read(path) == whole


def test_the_next_output_beside_it_puts_an_old_folder_back_too(tmp_path):
    path = tmp_path / "model"
    write(path, "old")
    light_process.run(KILLED, "rename", path, "after")
    write(tmp_path / "another", "new")
    assert read(path) == {"a": "old", "b": "old"}


def test_recovery_does_nothing_where_there_is_nothing_to_recover(tmp_path):
    recover(tmp_path / "none" / "model")
    recover(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
from quamba.storage import folders
if sys.argv[3] == "two renames":
    folders.exchange = lambda *_: False
for _ in range(50):
    with folders.replace_folder(Path(sys.argv[1]), lambda _: None) as folder:
        for name in "ab":
            (folder / name).write_text(sys.argv[2])
"""


def test_processes_that_replace_one_folder_take_turns(tmp_path, way):
    path = tmp_path / "model"
    write(path, "first")
    writers = [light_process.start(WRITER, path, content, way) for content in ("one", "two")]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        with folders.locked(tmp_path, shared=True):
            content = read(path)
        seen.add(tuple(sorted(content.items())))
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {(("a", content), ("b", content)) for content in ("first", "one", "two")}
    assert list(tmp_path.iterdir()) == [path]
