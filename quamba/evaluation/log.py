"""The JSON log of a run: what was measured, on what, with what."""

import json
import math
import os
import platform
import re
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .. import ops
from ..errors import QuambaError
from ..storage.files import output_target, write_text_atomically
from ..storage.scratch import locked

# torch's ops that a model may run beside ours, by the names that a reader knows them under
FLOAT_OPS = {"mm": "linear", "addmm": "linear", "linear": "linear", "embedding": "embedding"}
OLDER_STEM = re.compile(r"\.\d{8}T\d{6}(-\d+)?$")  # what `write_log` puts behind the name of a log that it moves
SCHEMES_STEM = ".hybrid"  # what the file that a search of schemes leaves beside the logs has behind the model's name
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
    }


class _OpRecorder(TorchDispatchMode):
    """Collects the names of our ops, and of torch's products, that run within it."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "quamba":
            self.names.add(name)
        elif name in FLOAT_OPS:
            self.names.add(FLOAT_OPS[name])
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def kernels_run(model: nn.Module) -> dict[str, str]:
    """Return what ran each kind of op of the model, found by running one token: op -> instruction set, oneDNN or
    torch."""
    with _OpRecorder() as recorder:
        model(torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)
    backends = ops.backends(model.device.type)
    return {name: backends.get(name, "torch") for name in sorted(recorder.names)}


def _version(package: str) -> str | None:
    if package == "quamba":
        from .. import __version__

        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def items_path(log_path: Path) -> Path:
    """Return where the values per item of a log are: beside it, LOG.items.json for LOG.json."""
    return log_path.with_name(f"{log_path.stem}.items.json")


def is_current_log(path: Path) -> bool:
    """Return whether a name is that of a log, not of its values per item, nor of an older log that a newer one moved
    away."""
    other = path.name.startswith(".") or path.stem.endswith((".items", SCHEMES_STEM)) or OLDER_STEM.search(path.stem)
    return path.suffix == ".json" and not other


def write_log(log: dict, log_dir: str | Path, stem: str, items: dict | None = None) -> Path:
    """Writes `log` to LOG_DIR/STEM.json and `items`, its values per item, beside it (`items_path`).

    `items`: as `EvaluationResult.item_values` gives them, and under "float" those of the float model where the run
    measured it too. An older log of that name, and its items, keep their content under a time-stamped name.
    Raises QuambaError where the folder cannot be written.
    """
    path = Path(log_dir) / f"{stem}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in (path, items_path(path)):
            output_target(file)  # anything but a file would be moved like an older log
        with locked(path.parent):  # two runs that end together must not give their older logs one name
            _move_older(path)
            if items is not None:  # first: a log that is there has its items
                compact = json.dumps(finite(items), separators=(",", ":"), allow_nan=False)
                write_text_atomically(items_path(path), compact + "\n")
            write_text_atomically(path, json.dumps(finite(log), indent=1, default=str, allow_nan=False) + "\n")
    except OSError as error:
        raise QuambaError(f"cannot write the log {path}: {error}") from error
    return path


def finite(value):
    """Return the data with null for what JSON has no number for: a broken model's infinite perplexity."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _move_older(path: Path) -> None:
    """Names a log, and its items, after the time the log was written; items without a log after their own."""
    items = items_path(path)
    with suppress(FileNotFoundError):  # there is none, or another run has just moved it
        older = _older_name(path, written=path if path.exists() else items)
        with suppress(FileNotFoundError):
            os.replace(items, items_path(older))  # first: a run that ends here leaves a log without items, not others'
        os.replace(path, older)


def _older_name(path: Path, written: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%S", time.localtime(written.stat().st_mtime))

    def taken(name: Path) -> bool:
        return name.exists() or (items_path(path).exists() and items_path(name).exists())

    candidates = [path.with_name(f"{path.stem}.{stamp}.json")]
    while taken(candidates[-1]):
        candidates.append(path.with_name(f"{path.stem}.{stamp}-{len(candidates)}.json"))
    return candidates[-1]
