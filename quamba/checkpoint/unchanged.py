"""Reading a folder that another process may replace: all from one generation of it, or an error that says so."""

import os
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from ..errors import QuambaError
from ..storage.folders import recover
from ..storage.scratch import locked

Result = TypeVar("Result")
ATTEMPTS = 4
# what a checkpoint consists of; other files in its folder, such as a growing log, may change while it is read
SUFFIXES = {".json", ".safetensors", ".bin", ".model", ".spm", ".tiktoken", ".jinja"}
NAMES = {"vocab.txt", "merges.txt"}
FREE_ATTEMPTS = 1  # so many keep no writer waiting; later ones hold a lock that keeps the folder as it is


def read_unchanged(folder: Path, read: Callable[[], Result]) -> Result:
    """Calls `read` until `folder` was one and the same from its begin to its end, whatever it returned or raised.

    Raises what `read` raises where the folder stayed as it was, QuambaError where it never does.
    """
    parent = Path(os.path.realpath(folder)).parent
    for attempt in range(ATTEMPTS):
        recover(folder)
        with nullcontext() if attempt < FREE_ATTEMPTS else locked(parent, shared=True):
            before = generation(folder)
            try:
                result = read()
            except Exception:
                if generation(folder) == before:
                    raise
                continue
            if generation(folder) == before:
                return result
            del result  # a model: the next attempt reads another
    raise QuambaError(f"{folder} was changed while it was read, {ATTEMPTS} times: load it when nothing writes there")


def generation(folder: Path, names: Collection[str] | None = None) -> dict[str, tuple[int, ...]] | None:
    """Return what changes whenever a folder is replaced, or a checkpoint's file in it is written, added or removed.

    `names`: of these files alone. None where there is no folder.
    """
    try:
        status = os.stat(folder)
        found = {".": (status.st_dev, status.st_ino)}
        with os.scandir(folder) as entries:
            for entry in entries:
                of_checkpoint = Path(entry.name).suffix in SUFFIXES or entry.name in NAMES
                if not of_checkpoint if names is None else entry.name not in names:
                    continue
                try:
                    status = entry.stat()
                    found[entry.name] = (status.st_ino, status.st_size, status.st_mtime_ns)
                except FileNotFoundError:  # a link to nothing, or removed just now
                    found[entry.name] = ()
    except OSError:
        return None
    return found
