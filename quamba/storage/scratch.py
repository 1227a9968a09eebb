"""Hidden folders in which outputs are written before they get their names, and what killed processes left of them.

A scratch folder lies beside what it is for, so that a rename is enough. The process that writes in it holds a lock on
it, which ends with the process: one that nobody holds was left by a killed process, and the next output into the same
parent removes it. Where a folder was to be replaced in two renames and the process died between them, what lies in the
scratch folder goes back first (see folders.py).
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".quamba-"
NEW, ASIDE = "new", "aside"  # in a scratch folder: what is being written, and what it takes the place of
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LOCK_WAIT, LOCK_POLL = 10.0, 0.005  # seconds
FOREIGN_AGE = 24 * 3600  # seconds without a change, after which another machine's folder is one that was left


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Gives a new hidden folder in `parent`, which is removed when the block is left; first removes abandoned ones.

    `parent` must exist. Raises OSError where nothing can be written there.
    """
    remove_abandoned(parent)
    path, descriptor = _create(parent)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def remove_abandoned(parent: Path) -> None:
    """Removes the scratch folders in `parent` that killed processes of this user left; whatever fails stays."""
    for path in scratch_folders(parent):
        with contextlib.suppress(OSError), open_folder(path) as descriptor:
            if os.fstat(descriptor).st_uid != os.geteuid() or (_is_foreign(path) and _age(path) < FOREIGN_AGE):
                continue
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError where its process lives, or cannot lock
            put_back(path, parent)
            shutil.rmtree(path, ignore_errors=True)


def scratch_folders(parent: Path) -> list[Path]:
    """The scratch folders in `parent`, of living processes too; none where it cannot be read."""
    try:
        with os.scandir(parent) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []


@contextlib.contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """Gives a descriptor of the folder `path`, which is no link. Raises OSError where there is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Holds a lock on a folder; `shared`: with others that only read.

    Waits for it, but not for ever: a run that records into the folder may hold one for hours. Without a lock runs the
    block too where the file system has none for folders (NFS), or the folder cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = stack.enter_context(open_folder(folder))
            _lock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def _lock(descriptor: int, kind: int) -> None:
    deadline = time.monotonic() + LOCK_WAIT
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        time.sleep(LOCK_POLL)


def _create(parent: Path) -> tuple[Path, int]:
    """(a new scratch folder, a descriptor that holds its lock where the file system has locks for folders)."""
    while True:
        path = Path(tempfile.mkdtemp(dir=parent, prefix=f"{PREFIX}{_boot()}-"))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another process took it for an abandoned one before it was locked
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):  # as above
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return path, descriptor
        os.close(descriptor)


def put_back(scratch: Path, parent: Path) -> None:
    """Gives what a replacement in two renames set aside its name again, where nothing took that name since."""
    aside = scratch / ASIDE
    for path in aside.iterdir() if aside.is_dir() else ():
        if not os.path.lexists(parent / path.name):
            os.rename(path, parent / path.name)


def _boot() -> str:
    """Names the running kernel, whose locks can be seen from here: containers of one machine share it."""
    try:
        return BOOT_ID.read_text("ascii")[:8]
    except OSError:
        return "unknown"


def _is_foreign(path: Path) -> bool:
    """Return whether another kernel made a scratch folder: another machine's, which may write still, or an earlier
    boot's."""
    return not path.name.startswith(f"{PREFIX}{_boot()}-")


def _age(path: Path) -> float:
    """Seconds since anything in a folder changed."""
    entries = [path, *path.rglob("*")]
    return time.time() - max(entry.lstat().st_mtime for entry in entries)
