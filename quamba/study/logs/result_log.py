"""Result logs of main.py as they are read back: found by name, checked, with the values per item beside them."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import QuambaError
from ...evaluation.log import is_current_log, items_path

HINT = "give a log that main.py wrote, such as logs/mamba-tiny_w8a8.json"


@dataclass(frozen=True)
class Measurements:
    """Hold what one model was measured to have; a figure that was not finite is None, an item's value NaN."""

    ppl: dict[str, float | None]  # dataset -> perplexity
    lm_eval: dict[str, dict]  # task -> lm-eval's metrics
    size: dict[str, int | None]  # "disk_bytes", "memory_bytes"
    # dataset -> (mean nll of each window in nats, float64 [n]; its predicted tokens, int64 [n])
    windows: dict[str, tuple[np.ndarray, np.ndarray]]
    task_items: dict[str, dict[str, np.ndarray]]  # task -> metric -> value of each item, float64 [n]


@dataclass(frozen=True)
class Calibration:
    """Say how the activation scales of a run came about."""

    observer: dict[str, str]  # tap -> observer
    observer_options: dict[str, dict]  # observer -> its arguments
    tokens: int
    seconds: float
    sqnr_db: dict[str, float | None]  # tap of a layer -> signal-to-quantization-noise ratio, None where nothing is lost


@dataclass(frozen=True)
class ResultLog:
    """One log: the model that the run ended with, and the float model where that run measured it too."""

    path: Path
    model: str
    scheme: str
    text_sha256: dict[str, str]  # dataset -> hash of its text; empty in logs older than the hashes
    assets_sha256: dict[str, str]  # embedded file -> hash
    calibration: Calibration | None
    measured: Measurements
    float_measured: Measurements | None


def find_log(name: str | Path) -> Path:
    """The log that a user means by a file, a file without its `.json`, or a folder that holds one current log.

    Raises QuambaError where there is none, where a folder holds several, and for a file of values per item.
    """
    path = Path(name)
    if path.is_dir():
        logs = sorted(entry for entry in path.glob("*.json") if is_current_log(entry))
        if len(logs) != 1:
            found = f"several logs ({', '.join(log.name for log in logs)}): name one" if logs else f"no log: {HINT}"
            raise QuambaError(f"the folder {path} holds {found}")
        return logs[0]
    candidates = [path, path.with_name(f"{path.name}.json")] if path.name else [path]
    for candidate in candidates:
        if candidate.is_file():
            if candidate.name.endswith(".items.json"):
                log = candidate.name.removesuffix(".items.json") + ".json"
                raise QuambaError(f"{candidate} holds the values per item of a log, not the log: give {log}")
            return candidate
    raise QuambaError(f"the log {str(name)!r} does not exist: {HINT}")


def read_log(path: Path) -> ResultLog:
    """A log and its values per item. Raises QuambaError where either cannot be read or is something else."""
    fields, items = _read_json(path), _read_items(path)
    try:
        return _parse(path, fields, items)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise QuambaError(f"{path} is not a result log ({reason}): {HINT}") from error


def read_logs(names: Sequence[str | Path]) -> list[ResultLog]:
    """The logs of several names. Raises QuambaError as `find_log` and `read_log` do, and for the same log twice."""
    paths = [find_log(name) for name in names]
    real = [path.resolve() for path in paths]
    for path in paths:
        if real.count(path.resolve()) > 1:
            raise QuambaError(f"the log {path} is given twice: name each log once")
    return [read_log(path) for path in paths]


def distinct_labels(paths: Sequence[Path]) -> list[str]:
    """A label for each of the paths, all different: the part nearest to the file name in which no two are equal.

    `logs/a/m.json` and `logs/b/m.json` are `a` and `b`. Where no single part tells all of them apart, what is left
    without the parts that all begin and end with.
    """
    parts = [[*path.absolute().parts[1:-1], path.stem] for path in paths]
    if len(parts) == 1:
        return [parts[0][-1]]
    for position in range(1, min(map(len, parts)) + 1):
        labels = [part[-position] for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    while len({part[0] for part in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [part[1:] for part in parts]
    while len({part[-1] for part in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [part[:-1] for part in parts]
    return ["/".join(part) for part in parts]


def _read_json(path: Path) -> dict:
    try:
        # figures that are no numbers: Python's NaN and Infinity, which JSON lacks
        fields = json.loads(path.read_text("utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        raise QuambaError(f"cannot read {path}: {error}") from error
    except ValueError as error:  # no text, no JSON
        raise QuambaError(f"{path} is no JSON ({error}): {HINT}") from error
    if not isinstance(fields, dict):
        raise QuambaError(f"{path} is not a result log (it holds no object): {HINT}")
    return fields


def _read_items(path: Path) -> dict | None:
    """{"own": (windows, task items), "float": the same} of a log, None where it has none: an older or a copied log."""
    path = items_path(path)
    if not path.exists():
        return None
    fields = _read_json(path)
    try:
        sides = {"own": fields, "float": fields.get("float", {"ppl": {}, "lm_eval": {}})}
        return {name: (_windows(side["ppl"]), _task_items(side["lm_eval"])) for name, side in sides.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise QuambaError(
            f"{path} does not hold the values per item of a log ({error!r}): restore it, or move it away to compare "
            "without intervals"
        ) from error


def _windows(datasets: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    windows = {}
    for dataset, entry in datasets.items():
        nll, tokens = _values(entry["nll"]), np.array(entry["tokens"], dtype=np.int64)
        if nll.shape != tokens.shape or (tokens < 1).any():
            raise ValueError(f"{dataset}: {nll.size} windows with {tokens.size} token counts")
        windows[dataset] = nll, tokens
    return windows


def _task_items(tasks: dict) -> dict[str, dict[str, np.ndarray]]:
    return {task: {metric: _values(values) for metric, values in metrics.items()} for task, metrics in tasks.items()}


def _values(values: list) -> np.ndarray:
    array = np.array(values, dtype=np.float64)  # None becomes NaN
    if array.ndim != 1:
        raise ValueError(f"{array.ndim} dimensions")
    return array


def _parse(path: Path, fields: dict, items: dict | None) -> ResultLog:
    float_fields = fields.get("float")
    return ResultLog(
        path=path,
        model=str(fields["model"]),
        scheme=str(fields["scheme"]),
        text_sha256=dict(fields.get("ppl_text_sha256", {})),
        assets_sha256=dict(fields.get("assets_sha256", {})),
        calibration=_calibration(fields["calibration"]) if "calibration" in fields else None,
        measured=_measurements(fields, items and items["own"]),
        float_measured=_measurements(float_fields, items and items["float"]) if float_fields else None,
    )


def _calibration(fields: dict) -> Calibration:
    return Calibration(
        observer=dict(fields["observer"]),
        observer_options={name: dict(options) for name, options in fields.get("observer_options", {}).items()},
        tokens=_number(fields["tokens"]),
        seconds=_number(fields["seconds"]),
        sqnr_db={tap: _number(entry["sqnr_db"]) for tap, entry in fields["taps"].items()},
    )


def _measurements(fields: dict, items: tuple[dict, dict] | None) -> Measurements:
    windows, task_items = items or ({}, {})
    return Measurements(
        ppl={dataset: _number(value) for dataset, value in fields["ppl"].items()},
        lm_eval={task: dict(metrics) for task, metrics in fields["lm_eval"].items()},
        size={key: _number(fields["size"][key]) for key in ("disk_bytes", "memory_bytes")},
        windows=windows,
        task_items=task_items,
    )


def _number(value) -> float | None:
    if value is None or (type(value) in (int, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{value!r} is no number")
