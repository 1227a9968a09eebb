"""The models of a shape on the disk: random float weights, ours and llama.cpp's made from them. Made once, kept."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .shapes import Shape
from .systems import BENCH_PYTHON, System
from .worker import ROOT, WorkerError


def prepare(
    shape: Shape, systems: list[System], models: Path, log: Path, announce: Callable[[str], None]
) -> dict[System, str]:
    """Makes what is missing; returns the systems that have no model, and why. Each is made in a process of its own.

    Raises WorkerError where even the float model cannot be made.
    """
    folder = models / shape.name
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "float"
    if not (source / "tokenizer.json").exists():  # written last
        announce(f"{shape.name}: random weights")
        _run(_make_model(shape, "float", source), log)
    failed = {}
    for group in _groups([system for system in systems if not system.path(models, shape).exists()]):
        announce(f"{shape.name}: {', '.join(system.name for system in group)}")
        first = group[0].scheme
        if group[0].system == "llama.cpp":
            schemes = [system.scheme for system in group]
            command = [str(BENCH_PYTHON), "-m", "benchmarks.speed.make_gguf", str(source), str(folder), *schemes]
        else:
            command = _make_model(shape, first, folder / first, "--float", str(source))
        try:
            _run(command, log)
        except WorkerError as error:
            failed |= {system: str(error) for system in group if not system.path(models, shape).exists()}
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
