"""How much more memory a process takes that serves a model than one that imported the package only."""

from pathlib import Path

from .floors import checkpoint_sizes
from .rows import MEMORY
from .shapes import Case, Shape
from .systems import System
from .worker import Worker

MARGIN, ALLOWANCE_BYTES = 1.15, 64 * 10**6  # of the packed weights; of states, activations and the tokenizer
PROMPT, STEPS = 512, 64


def limit_bytes(packed_bytes: int) -> int:
    """What the difference may be at most."""
    return int(MARGIN * packed_bytes + ALLOWANCE_BYTES)


def packed_bytes(checkpoint: Path) -> int:
    """Bytes of the tensors in a checkpoint's folder."""
    return sum(checkpoint_sizes(checkpoint).values())


def memory_row(system: System, shape: Shape, models: Path, logs: Path, threads: int) -> dict:
    """Two fresh processes: one imports, one loads, reads a prompt and decodes; resident memory of both.

    `peak_bytes` is the largest difference at any time of the request, loading not included.
    """
    path, log = system.path(models, shape), logs / "memory.log"
    with Worker(system.name, system.command, log, threads) as idle:
        imported = idle.ask("resident")["resident_bytes"]
    with Worker(system.name, system.command, log, threads) as serving:
        serving.ask("load", path=str(path), scheme=system.scheme, threads=threads)
        peak = serving.ask("measure", batch=1, prompt=PROMPT, steps=STEPS)["peak_bytes"]
        resident = serving.ask("resident")["resident_bytes"]
    packed = packed_bytes(path)
    case = Case(shape.name, 1, PROMPT)
    return {
        "system": MEMORY,
        "scheme": system.scheme,
        "shape": case.shape,
        "batch": case.batch,
        "prompt": case.prompt,
        "memory_bytes": resident - imported,
        "peak_bytes": peak - imported,
        "packed_bytes": packed,
        "limit_bytes": limit_bytes(packed),
    }
