"""How time and memory grow with the prompt: prefill in a straight line, decoding not at all, memory little."""

import math

from .rows import MACHINE

PROMPTS = [128, 256, 512, 1024, 2048, 4096, 8192]


def rows_of(rows: list[dict], system: str, scheme: str, shape: str) -> list[dict]:
    """The rows of one system at batch 1, by prompt."""
    wanted = (system, scheme, shape, 1)
    found = [r for r in rows if (r["system"], r.get("scheme"), r.get("shape"), r.get("batch")) == wanted]
    return sorted((row for row in found if row["system"] != MACHINE), key=lambda row: row["prompt"])


def prefill_seconds(row: dict) -> float:
    """Seconds of the median prefill."""
    return row["batch"] * row["prompt"] / row["prefill_tok_s"]


def exponent(lengths: list[float], values: list[float]) -> float:
    """The p of value = c length^p that fits best in logarithms: 1 is a straight line, 0 is constant."""
    x, y = [math.log(length) for length in lengths], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
