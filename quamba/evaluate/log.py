"""The JSON log of a run: what was measured, on what, with what."""

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .. import ops
from ..errors import QuambaError
from ..files import write_text_atomically

PACKAGES = ("quamba", "torch", "transformers", "lm_eval", "safetensors", "numpy")


def environment(seed: int, device: str) -> dict:
    """Versions, seed, threads and the instruction set that the kernels of the device type run."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "device": device,
        "instruction_set": ops.cpu_capability() if device == "cpu" else device,
        "backends": ops.backends(device),
    }


def _version(package: str) -> str | None:
    if package == "quamba":
        from .. import __version__

        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_log(log: dict, log_dir: str | Path, stem: str) -> Path:
    """Writes `log` to LOG_DIR/STEM.json; an older log of that name keeps its content under a time-stamped name.

    Raises QuambaError where the folder cannot be written.
    """
    path = Path(log_dir) / f"{stem}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            os.replace(path, _older_name(path))
        write_text_atomically(path, json.dumps(log, indent=1, default=str) + "\n")
    except OSError as error:
        raise QuambaError(f"cannot write the log {path}: {error}") from error
    return path


def _older_name(path: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%S", time.localtime(path.stat().st_mtime))
    candidates = [path.with_name(f"{path.stem}.{stamp}.json")]
    while candidates[-1].exists():
        candidates.append(path.with_name(f"{path.stem}.{stamp}-{len(candidates)}.json"))
    return candidates[-1]
