"""Small result logs as main.py writes them, for several test files."""

import math
from pathlib import Path

import numpy as np

from quamba.evaluation.log import write_log

NLL, TOKENS = [2.0, 3.0, 2.5, 2.0], [10, 10, 10, 5]
CORRECT = [1.0, 0.0, 1.0, 1.0]
CALIBRATION = {
    "observer": {"in": "minmax", "x": "percentile", "out": "minmax"},
    "observer_options": {},
    "tokens": 128,
    "seconds": 0.25,
    "taps": {"layers.0.in": {"sqnr_db": 40.0}, "layers.0.x": {"sqnr_db": 30.0}, "layers.0.out": {"sqnr_db": None}},
}


def figures(nll=NLL, correct=CORRECT, tokens=TOKENS, memory_bytes: int = 8_000_000) -> tuple[dict, dict]:
    """What one model measured, as it stands in a log, and its values per item."""
    logged = {
        "ppl": {"stdlib": math.exp(np.average(nll, weights=tokens))},
        "lm_eval": {"cloze": {"alias": "cloze", "acc,none": float(np.mean(correct)), "acc_stderr,none": 0.1}},
        "size": {"disk_bytes": 9_000_000, "memory_bytes": memory_bytes},
    }
    items = {"ppl": {"stdlib": {"nll": nll, "tokens": tokens}}, "lm_eval": {"cloze": {"acc,none": correct}}}
    return logged, items


def write_result_log(folder: Path, base: tuple | None = None, stem: str = "m_w8a8", items=True, **changes) -> Path:
    """Writes the log of a model with `figures` of some arguments; of a float model too where `base` has its figures.

    `changes`: arguments of `figures`, and entries of the log that replace the usual ones.
    """
    arguments = {key: changes.pop(key) for key in ("nll", "correct", "tokens", "memory_bytes") if key in changes}
    logged, values = figures(**arguments)
    log = {"model": "m", "scheme": "w8a8", "ppl_text_sha256": {"stdlib": "1234"}, "calibration": CALIBRATION, **logged}
    if base:
        log["float"], values["float"] = base
    return write_log(log | changes, folder, stem, values if items else None)
