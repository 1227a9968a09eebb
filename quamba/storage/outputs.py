"""The outputs that a run was asked for, looked at before its work: where they go, whether they collide, and fit."""

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ..errors import QuambaError
from .files import output_target
from .scratch import PREFIX

# FILE: written as a whole. FOLDER: written as a whole too, and an older one replaced. SHARED: files are put into it.
FILE, FOLDER, SHARED = "file", "folder", "shared folder"


@dataclass(frozen=True)
class Output:
    """Something that a run writes. `option`: what the user named it with, for messages."""

    option: str
    path: Path
    kind: str = FILE

    @property
    def resolved(self) -> Path:
        """The path that is written to: links are followed."""
        return Path(os.path.realpath(self.path))


def check_outputs(outputs: Sequence[Output], inputs: Mapping[str, Path] | None = None) -> None:
    """Raises QuambaError, naming the option, for an output that could not be written or would take another along.

    A path that is of the wrong kind, too long, in no folder, or without permission; two outputs in one place, one in a
    folder that another replaces, and one that would replace what the run reads (`inputs`: what it is -> its path).
    Missing folders are made.
    """
    for output in outputs:
        _check_kind(output)
    for pair in combinations(outputs, 2):
        _check_apart(*pair)
    for what, path in (inputs or {}).items():
        for output in outputs:
            _check_not_read(output, what, Path(os.path.realpath(path)))
    for output in outputs:
        _check_writable(output)


def check_space(sizes: Mapping[Output, int]) -> None:
    """Raises QuambaError where the outputs, so many bytes each, need more than is free on the disk that they go to."""
    by_disk: dict[int, list[Output]] = {}
    for output in sizes:
        by_disk.setdefault(os.stat(_existing_parent(output.resolved)).st_dev, []).append(output)
    for outputs in by_disk.values():
        usage = shutil.disk_usage(_existing_parent(outputs[0].resolved))
        needed, free = sum(sizes[output] for output in outputs), usage.free
        if usage.total and needed > free:  # a file system that knows no sizes says 0 of both
            named = " and ".join(f"{output.option} {output.path}" for output in outputs)
            raise QuambaError(
                f"{named}: {needed / 1e6:.1f} MB are to be written, and {free / 1e6:.1f} MB are free on that disk: "
                "make room, or name a place on another one"
            )


def _check_kind(output: Output) -> None:
    text = os.fspath(output.path)
    if not text.strip() or "\0" in text:
        raise QuambaError(f"{output.option} {text!r} names no file or folder")
    if output.kind == FILE:
        output_target(output.path, output.option)
        return
    try:
        occupied = output.path.exists() and not output.path.is_dir()
    except OSError as error:
        raise _unwritable(output, error) from error
    if occupied:
        raise QuambaError(f"{output.option} {output.path} is a file: give the name of a folder")


def _check_apart(first: Output, second: Output) -> None:
    same = first.resolved == second.resolved
    if same and (FILE in (first.kind, second.kind) or FOLDER in (first.kind, second.kind)):
        raise QuambaError(f"{first.option} and {second.option} both name {first.path}: give each its own")
    for outer, inner in ((first, second), (second, first)):
        if outer.kind != SHARED and outer.resolved in inner.resolved.parents:
            what = "is written as a whole" if outer.kind == FOLDER else "is a file"
            raise QuambaError(
                f"{inner.option} {inner.path} lies in {outer.path}, which {what} ({outer.option}): name another place"
            )


def _check_not_read(output: Output, what: str, path: Path) -> None:
    if output.kind == SHARED:
        return
    if output.resolved == path or (output.kind == FOLDER and output.resolved in path.parents):
        raise QuambaError(f"{output.option} {output.path} would replace {what}, which is read: name another place")


def _check_writable(output: Output) -> None:
    """Makes a file with a name as long as the output's in the folder that it goes to, and removes it."""
    folder = output.path if output.kind == SHARED else output.resolved.parent
    length = 0 if output.kind == SHARED else len(os.fsencode(output.resolved.name))
    trial = folder / f"{PREFIX}{secrets.token_hex(8)}".ljust(length, "-")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        trial.unlink()
    except OSError as error:
        raise _unwritable(output, error) from error


def _unwritable(output: Output, error: OSError) -> QuambaError:
    return QuambaError(f"cannot write {output.option} {output.path}: {error.strerror or error}")


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
