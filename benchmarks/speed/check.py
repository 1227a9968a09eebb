"""Whether every system computes the same model: logits of each against transformers in float32, on random tokens.

Dims: S steps, B sequences, V vocabulary.
"""

import numpy as np

from .rounds import Workers
from .rows import FLOOR
from .serve import SEED
from .shapes import VOCAB, Shape
from .systems import SYSTEMS, System
from .worker import WorkerError

REFERENCE = System("transformers", "float32", 32)
FULL_PRECISION = (System("llama.cpp", "F32", 32), System("quamba", "float", 32))
TOLERANCE = 1e-3  # of the largest logit
BATCH, TOKENS, STEPS = 2, 40, 8


def systems_to_check(chosen: list[System]) -> list[System]:
    """The reference, what of the chosen ones' makers has to agree with it, and the rest of the chosen ones."""
    makers = {system.system for system in chosen}
    exact = [REFERENCE, *(system for system in FULL_PRECISION if system.system in makers)]
    names = {system.name for system in exact}
    return [*exact, *(s for s in SYSTEMS if s in chosen and s.system != FLOOR and s.name not in names)]


def relative_error(logits: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference over the largest logit; infinite where a logit is no number."""
    error = float(np.abs(logits - reference).max() / np.abs(reference).max())
    return error if np.isfinite(error) else float("inf")


def agreement(logits: np.ndarray, reference: np.ndarray) -> float:
    """The share of positions with the same most likely token."""
    return float((logits.argmax(-1) == reference.argmax(-1)).mean())


def compare(workers: Workers, shape: Shape, expected: list[System]) -> tuple[list[str], bool]:
    """(a line for each system, whether all of the expected ones run and those in full precision agree).

    Raises WorkerError where the reference does not run.
    """
    rng = np.random.default_rng(SEED)
    tokens = rng.integers(0, VOCAB, (BATCH, TOKENS)).tolist()
    request = {"tokens": tokens, "steps": STEPS}
    found = {
        system: np.array(worker.ask("logits", **request)["logits"])  # [S + 1, B, V]
        for system, worker in workers.running.items()
    }
    if REFERENCE not in found:
        raise WorkerError(f"{shape.name}: {REFERENCE.name} does not run, which the others are compared with")
    reference = found[REFERENCE]
    lines, agrees = [], True
    for system, logits in found.items():
        error = relative_error(logits, reference)
        judged = system in FULL_PRECISION
        agrees &= not judged or error <= TOLERANCE
        verdict = (
            "" if not judged else ", as it should be" if error <= TOLERANCE else f", more than {TOLERANCE}: differs"
        )
        same = agreement(logits, reference)
        lines.append(f"{shape.name}  {system.name:24} {error:.1e} of the largest logit, greedy {same:.0%}{verdict}")
    return lines, agrees and set(expected) <= set(found)
