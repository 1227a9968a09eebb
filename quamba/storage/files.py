"""Output files that are whole or absent: written under a temporary name, flushed to the disk, then renamed.

Only regular files are replaced. A link stays and what it points to is replaced; a device, a pipe, a socket, a stream of
the process and a write-protected file are refused. A file that is replaced keeps its mode, and its owner where that may
be set.
"""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import QuambaError
from .scratch import NEW, scratch_folder

MAX_LINKS = 40  # as the kernel's
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


@contextlib.contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to; when the block ends well it becomes `path`, flushed to the disk.

    An error in the block, or an interruption, leaves the old file, or none, never half of the new one. Raises
    QuambaError where `path` is no regular file that may be replaced, OSError where it cannot be written.
    """
    target = output_target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target.parent) as scratch:
        (scratch / NEW).mkdir()
        temporary = scratch / NEW / target.name
        temporary.touch()
        usual = temporary.stat()  # of what the umask leaves; writers may make a file of their own here
        yield temporary
        fsync(temporary)
        copy_permissions(target if target.exists() else None, temporary, usual)
        os.replace(temporary, target)
        fsync(target.parent)


def output_target(path: Path, option: str = "") -> Path:
    """The file that an output named `path` goes to, there or not yet: links are followed.

    `option`: of the command line that gave it, for the errors. Raises QuambaError where the target is anything but a
    regular file, is write-protected, or where links do not end.
    """
    named, target = f"{option} {path}".strip(), Path(path)
    for _ in range(MAX_LINKS):
        target = Path(os.path.realpath(target.parent), target.name)
        if target.is_relative_to("/proc"):  # /dev/stdout: what the shell wrote to a file there would be lost
            raise QuambaError(f"{named} is a stream of a process: name a file")
        _require_regular(target, named)
        if not target.is_symlink():
            return target
        target = target.parent / os.readlink(target)
    raise QuambaError(f"{named} is a link to itself: name a file")


def _require_regular(path: Path, named: str) -> None:
    """Raises QuambaError where `path`, links followed, exists and is no regular file, or one that is protected."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise QuambaError(f"cannot write to {named}: {error.strerror or error}") from error
    if not stat.S_ISREG(mode):
        raise QuambaError(f"{named} is {KINDS.get(stat.S_IFMT(mode), 'no regular file')}: name a file")
    if not os.access(path, os.W_OK):
        raise QuambaError(f"{named} is write-protected: name another file, or allow writing to it")


def copy_permissions(old: Path | None, new: Path, usual: os.stat_result) -> None:
    """Gives `new` the mode and owner of `old`, the owner where that may be set; without `old` the mode of `usual`."""
    wanted = usual if old is None else old.stat()
    made = new.stat()
    if (made.st_uid, made.st_gid) != (wanted.st_uid, wanted.st_gid):
        with contextlib.suppress(OSError):
            os.chown(new, wanted.st_uid, wanted.st_gid)
    os.chmod(new, stat.S_IMODE(wanted.st_mode))


def write_text_atomically(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all. Raises as `replace_atomically` does."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_output(path: Path, text: str) -> None:
    """`write_text_atomically` for a file that the user named. Raises QuambaError where it cannot be written."""
    try:
        write_text_atomically(path, text)
    except OSError as error:  # its own text would name the temporary file
        raise QuambaError(f"cannot write {path}: {error.strerror or error}") from error


def require_writable_file(path: Path, option: str = "") -> None:
    """Raises QuambaError where `replace_atomically` could not write `path`; creates the folder it is to lie in.

    `option`: of the command line that gave the path, for the errors.
    """
    require_writable(output_target(path, option).parent)


def require_writable(directory: Path) -> None:
    """Creates `directory` where it is missing. Raises QuambaError where nothing can be written there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise QuambaError(f"cannot write to {directory}: {error}") from error


def fsync_tree(directory: Path) -> None:
    """Flushes every file below a directory, and the directories, to the disk."""
    for path in [*directory.rglob("*"), directory]:
        fsync(path)


def fsync(path: Path) -> None:
    """Flushes a file or a directory to the disk; a file system that cannot flush directories is let be."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
