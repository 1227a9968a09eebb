"""What every worker process does: answer one JSON line with one JSON line until its input ends. Runs in both venvs.

    {"op": "load", "path": ..., "scheme": ..., "threads": 2}           -> {"loaded_bytes": ...}
    {"op": "measure", "batch": 1, "prompt": 128, "steps": 16}          -> {"prefill_s", "decode_s", "peak_bytes"}
    {"op": "logits", "tokens": [[...], ...]}                           -> {"logits": [...]}, token by token at the end
    {"op": "resident"}                                                 -> {"resident_bytes": ...}

Every time is taken here, the same way for every system; a model only has to have `reset`, `prefill` and `step`.
Dims: B sequences, L prompt tokens, V vocabulary.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from . import process_memory
from .shapes import VOCAB

SEED = 0


class Model(Protocol):
    """A loaded model with the recurrent states of the sequences that it reads."""

    def reset(self, batch: int, prompt: int, steps: int) -> None:
        """Forgets all sequences; the next ones are `batch` of at most `prompt + steps` tokens."""

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """int64 [B, L] -> float32 logits [B, V] of the last position."""

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """int64 [B] -> float32 logits [B, V]."""


def measure(model: Model, batch: int, prompt: int, steps: int) -> dict:
    """Seconds of one prefill and of `steps` single-token steps after it, and the peak of this process's memory.

    The tokens are random and given: no system samples. Logits are computed and brought back at every step.
    """
    rng = np.random.default_rng(SEED)
    tokens = rng.integers(0, VOCAB, (batch, prompt + steps))
    process_memory.reset_peak()
    model.reset(batch, prompt, steps)
    start = time.perf_counter()
    model.prefill(tokens[:, :prompt])
    middle = time.perf_counter()
    for position in range(prompt, prompt + steps):
        model.step(tokens[:, position])
    end = time.perf_counter()
    return {"prefill_s": middle - start, "decode_s": end - middle, "peak_bytes": process_memory.peak_bytes()}


def logits(model: Model, tokens: list[list[int]], steps: int) -> dict:
    """Logits after a prefill of all but the last `steps` tokens, and after each of those: [steps + 1, B, V]."""
    ids = np.array(tokens, np.int64)
    prompt = ids.shape[1] - steps
    model.reset(len(ids), prompt, steps)
    found = [model.prefill(ids[:, :prompt])]
    found += [model.step(ids[:, position]) for position in range(prompt, ids.shape[1])]
    return {"logits": np.stack(found).tolist()}


def serve(load: Callable[..., Model], versions: dict[str, str]) -> None:
    """Greets with the versions of what runs here and the memory that importing it took, then answers requests."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints goes to the log, not between the answers

    def answer(**fields) -> None:
        answers.write(json.dumps(fields) + "\n")

    answer(versions=versions, resident_bytes=process_memory.resident_bytes())
    model = None
    for line in sys.stdin:
        request = json.loads(line)
        operation = request.pop("op")
        try:
            if operation == "load":
                model = load(**request)
                answer(loaded_bytes=process_memory.resident_bytes())
            elif operation == "resident":
                answer(resident_bytes=process_memory.resident_bytes())
            else:
                answer(**{"measure": measure, "logits": logits}[operation](model, **request))
        except Exception as error:  # the driver says which system failed and goes on with the others
            answer(error=f"{type(error).__name__}: {error}")
