"""Output folders that are whole or absent: written in a scratch folder, then exchanged with what has their name.

The exchange is one step for the kernel (renameat2), so that every process sees the old folder or the new one at any
time. Where the kernel or the file system has no such step, the old folder steps aside in one rename and the new one
takes its name in a second; a process that dies between the two leaves the old one where `recover` finds it.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import QuambaError
from .files import copy_permissions, fsync, fsync_tree
from .scratch import ASIDE, NEW, locked, put_back, scratch_folder, scratch_folders

AT_FDCWD, RENAME_EXCHANGE = -100, 2
# what renameat2 answers where it cannot exchange: no such call, no such flag, not on this file system, not allowed
UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
GRACE = 1.0  # seconds for another machine, whose lock may not show, to end what takes it microseconds
OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}


@contextlib.contextmanager
def replace_folder(path: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Gives an empty folder to write to; when the block ends well it becomes `path`, flushed to the disk.

    `check` raises QuambaError where the folder that has the name must stay: it is called before the block, and again
    when nothing can come between. Processes that save to one name take turns; each leaves a whole folder. Links are
    followed. An error in the block, or an interruption, leaves the old folder, or none. Raises OSError where nothing
    can be written.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    check(target)
    with scratch_folder(target.parent) as scratch:
        new = scratch / NEW / target.name
        new.mkdir(parents=True)
        usual = new.stat()
        yield new
        fsync_tree(new)
        with locked(target.parent):
            check(target)
            copy_permissions(target if target.exists() else None, new, usual)
            _install(new, target, scratch / ASIDE / target.name)
            fsync(target.parent)


def recover(path: Path) -> None:
    """Puts back the folder `path` where a process that was replacing it died half-way; one that lives is waited for.

    Does nothing where `path` exists, where nothing was set aside, or where that cannot be moved.
    """
    path = Path(os.path.realpath(path))
    for scratch in () if path.exists() else scratch_folders(path.parent):
        if not (scratch / ASIDE / path.name).exists():
            continue
        with locked(scratch, shared=True):  # as long as its process lives, where that shows
            pass
        deadline = time.monotonic() + GRACE
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(GRACE / 20)
        with contextlib.suppress(OSError):
            put_back(scratch, path.parent)


def _install(new: Path, target: Path, aside: Path) -> None:
    """Gives `new` the name `target`; a folder that has it comes to lie at `new`, or at `aside`."""
    while True:
        try:
            os.rename(new, target)  # where there is none, or an empty one
            return
        except OSError as error:
            if error.errno not in OCCUPIED:
                raise
        try:
            if exchange(new, target) or _rename_twice(new, target, aside):
                return
        except FileNotFoundError:  # another process has just moved it away
            if not new.exists():
                raise


def exchange(one: Path, other: Path) -> bool:
    """Exchanges what two paths name, in one step; False where the kernel or the file system cannot. Raises OSError."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # a C library older than the call
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _rename_twice(new: Path, target: Path, aside: Path) -> bool:
    """Sets `target` aside and gives `new` its name; False where another process took the name in between."""
    aside.parent.mkdir(exist_ok=True)
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except BaseException as error:
        if not os.path.lexists(target):
            os.rename(aside, target)
        elif isinstance(error, OSError) and error.errno in OCCUPIED:
            shutil.rmtree(aside, ignore_errors=True)
            return False
        raise
    return True


def require_files_of(folder: Path, known: Callable[[str], bool]) -> None:
    """Raises QuambaError where a folder that is to be replaced holds files that `known` does not grant by their names.

    `known` gets names relative to `folder`.
    """
    paths = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    others = [name for path in paths if not known(name := path.relative_to(folder).as_posix())]
    if others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise QuambaError(f"{folder} would be replaced and holds files that are not of its model: move {shown} away")
