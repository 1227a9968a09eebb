"""The models of a shape on the disk: random float weights, ours and llama.cpp's made from them.

Made once, and kept while the code that makes them is what it was: beside each lies a file that ends in `.made-by` and
holds the hash of that code. A model without one was written in part, or by code that has changed, and is made anew.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from quamba.storage.files import write_text_atomically

from ..made_by import LIBRARIES, PACKAGE, sources_sha256
from .shapes import Shape
from .systems import BENCH_PYTHON, SYSTEMS, System
from .worker import ROOT, WorkerError

HERE = "benchmarks/speed"
FLOAT, FLOAT_GGUF, PARTIAL_GGUF = "float", "F32.gguf", "partial.gguf"
FLOAT_SOURCES = (f"{HERE}/make_model.py", f"{HERE}/shapes.py", *LIBRARIES)
GGUF_SOURCES = (f"{HERE}/make_gguf.py", f"{HERE}/gguf_names.py", "requirements-bench.txt")
# what may lie in a shape's folder; nothing else there is touched
NAMES = {system.file for system in SYSTEMS} | {FLOAT, FLOAT_GGUF, PARTIAL_GGUF}


def made_by(path: Path) -> str:
    """The hash of the code that makes the model of that name today."""
    if path.name == FLOAT:
        return sources_sha256(*FLOAT_SOURCES)
    return sources_sha256(*FLOAT_SOURCES, *(GGUF_SOURCES if path.suffix == ".gguf" else PACKAGE))


def is_current(path: Path) -> bool:
    """Whether a model is there, whole, and made by today's code."""
    record = _record(path)
    return path.exists() and record.exists() and record.read_text() == made_by(path)


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.made-by")


def _forget_stale(folder: Path) -> None:
    """Removes what other code has made, and what was written in part, and with a float model what was made from it."""
    float_is_current = is_current(folder / FLOAT)
    for path in (folder / name for name in NAMES):
        if float_is_current and is_current(path):
            continue
        _record(path).unlink(missing_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def prepare(
    shape: Shape, systems: list[System], models: Path, log: Path, announce: Callable[[str], None]
) -> dict[System, str]:
    """Makes what is missing; returns the systems that have no model, and why. Each is made in a process of its own.

    Raises WorkerError where even the float model cannot be made.
    """
    folder = models / shape.name
    folder.mkdir(parents=True, exist_ok=True)
    _forget_stale(folder)
    source = folder / FLOAT
    if not source.exists():
        announce(f"{shape.name}: random weights")
        _run(_make_model(shape, FLOAT, source), log)
        write_text_atomically(_record(source), made_by(source))
    failed = {}
    for group in _groups([system for system in systems if not system.path(models, shape).exists()]):
        announce(f"{shape.name}: {', '.join(system.name for system in group)}")
        first = group[0].scheme
        if group[0].system == "llama.cpp":
            schemes = [system.scheme for system in group]
            command = [str(BENCH_PYTHON), "-m", "benchmarks.speed.make_gguf", str(source), str(folder), *schemes]
        else:
            command = _make_model(shape, first, folder / first, "--float", str(source))
        reason = "it was not written"
        try:
            _run(command, log)
        except WorkerError as error:
            reason = str(error)
        for system in group:
            path = system.path(models, shape)  # whole or absent
            if path.exists():
                write_text_atomically(_record(path), made_by(path))
            else:
                failed[system] = reason
    return failed


def _groups(systems: list[System]) -> list[list[System]]:
    """What one process makes: each of ours alone (the floor reads the same), all of llama.cpp's from one float file."""
    groups: dict[str, list[System]] = {}
    for system in systems:
        groups.setdefault("llama.cpp" if system.system == "llama.cpp" else system.file, []).append(system)
    return list(groups.values())


def _make_model(shape: Shape, scheme: str, target: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.speed.make_model", shape.name, scheme, str(target), *options]


def _run(command: list[str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        code = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, check=False).returncode
    if code:
        last = (log.read_text(errors="replace").splitlines() or ["it printed nothing"])[-1]
        raise WorkerError(f"{command[2]} ended with code {code}: {last}")
