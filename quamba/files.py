"""Outputs that are whole or absent: written under a temporary name, flushed to the disk, then renamed."""

import os
import tempfile
from pathlib import Path

from .errors import QuambaError


def write_text_atomically(path: Path, text: str) -> None:
    """Writes `text` to `path`; an interruption leaves the old file, or none, never half of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


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
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
