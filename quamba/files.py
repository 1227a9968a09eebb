"""Outputs that are whole or absent: written under a temporary name, flushed to the disk, then renamed."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import QuambaError


@contextlib.contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to; when the block ends well it becomes `path`, flushed to the disk.

    An error in the block, or an interruption, leaves the old file, or none, never half of the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.parent / f".{path.stem}.{secrets.token_hex(4)}{path.suffix}"
    handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = os.fstat(handle).st_mode & 0o777  # less the umask, which is every thread's: asking for it would set it
    os.close(handle)
    try:
        yield name
        _fsync(name)
        os.chmod(name, mode)  # a writer may have put a file of its own there
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_output(path: Path, text: str) -> None:
    """`write_text_atomically` for a file that the user named. Raises QuambaError where it cannot be written."""
    try:
        write_text_atomically(path, text)
    except OSError as error:  # its own text would name the temporary file
        raise QuambaError(f"cannot write {path}: {error.strerror or error}") from error


def require_writable(directory: Path) -> None:
    """Creates `directory` where it is missing. Raises QuambaError where nothing can be written there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise QuambaError(f"cannot write to {directory}: {error}") from error


def fsync_tree(directory: Path) -> None:
    """Flushes every file below a directory, and the directory itself, to the disk."""
    for path in [*(p for p in directory.rglob("*") if p.is_file()), directory]:
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
