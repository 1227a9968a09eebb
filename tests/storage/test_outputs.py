"""Outputs are looked at before the work: names, places, collisions, and room on the disk."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from quamba.errors import QuambaError
from quamba.storage.outputs import FILE, FOLDER, SHARED, Output, check_outputs, check_space

USAGE = namedtuple("usage", "total used free")


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def output(option: str, path: str, kind: str = FILE) -> Output:
    return Output(option, Path(path), kind)


@pytest.mark.parametrize(
    "outputs",
    [
        [("--a", "a.json", FILE), ("--b", "b.json", FILE), ("--c", "c", FOLDER), ("--d", ".", SHARED)],
        [("--a", "new/folder/a.json", FILE), ("--b", "new/model", FOLDER)],
        [("--a", "logs", SHARED), ("--b", "logs", SHARED), ("--c", "logs/model", FOLDER)],
        [("--a", "x" * 250 + ".json", FILE)],
    ],
)
def test_outputs_apart_pass_and_leave_no_file(outputs):
    check_outputs([output(*each) for each in outputs], {"the model": Path("elsewhere")})
    assert not [path for path in Path().rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([("--a", "x.json", FILE), ("--b", "./x.json", FILE)], r"--a and --b both name x\.json: give each its own"),
        ([("--a", "link/x", FILE), ("--b", "real/x", FILE)], "--a and --b both name link/x"),
        ([("--a", "model", FOLDER), ("--b", "model", SHARED)], "--a and --b both name model"),
        ([("--a", "model", FOLDER), ("--b", "model/x.json", FILE)], r"--b model/x\.json lies in model, .* \(--a\)"),
        ([("--b", "model/acts", SHARED), ("--a", "model", FOLDER)], r"--b model/acts lies in model, .* \(--a\)"),
        (
            [("--a", "file/x", FILE), ("--b", "other", FILE)],
            "cannot write (to )?--a file/x: (Not a directory|File exists)",
        ),
        ([("--a", "real", FILE)], "--a real is a folder: name a file"),
        ([("--a", "file", FOLDER)], "--a file is a file: give the name of a folder"),
        ([("--a", "pipe", FILE)], "--a pipe is a pipe: name a file"),
        ([("--a", "/dev/null", FILE)], "--a /dev/null is a device: name a file"),
        ([("--a", "x" * 256, FILE)], "cannot write (to )?--a x+: File name too long"),
        ([("--a", "x" * 300, FOLDER)], "cannot write (to )?--a x+: File name too long"),
        ([("--a", " ", FILE)], "--a ' ' names no file"),
        ([("--a", "x\0y", FILE)], r"--a 'x\\x00y' names no file"),
        ([("--a", "/proc/x/y", FILE)], "--a /proc/x/y is a stream of a process"),
    ],
)
def test_what_could_not_be_written_is_refused_by_its_option(outputs, message):
    Path("real").mkdir()
    Path("link").symlink_to("real")
    Path("file").write_text("")
    os.mkfifo("pipe")
    with pytest.raises(QuambaError, match=message):
        check_outputs([output(*each) for each in outputs])
    assert Path("file").read_text() == ""


@pytest.mark.parametrize(("path", "kind"), [("text.txt", FILE), ("data", FOLDER), ("link.txt", FILE)])
def test_what_is_read_is_not_replaced(path, kind):
    Path("data").mkdir()
    Path("text.txt").write_text("mine")
    Path("link.txt").symlink_to("text.txt")
    with pytest.raises(QuambaError, match=f"--a {path} would replace the text, which is read"):
        check_outputs([output("--a", path, kind)], {"the text": Path("data/x.txt" if kind == FOLDER else "text.txt")})
    check_outputs([output("--a", "data", SHARED)], {"the text": Path("data/x.txt")})


def test_more_than_is_free_on_a_disk_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: USAGE(10**9, 0, 5_000_000))
    a, b = output("--a", "new/a", FOLDER), output("--b", "b", FOLDER)
    check_space({a: 2_000_000, b: 3_000_000})
    with pytest.raises(QuambaError, match=r"--a new/a and --b b: 5\.5 MB are to be written, and 5\.0 MB are free"):
        check_space({a: 2_500_000, b: 3_000_000})
