"""The results: a JSON list of rows, saved whole after every case, found again by their key."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from quamba.storage.files import write_output

from .shapes import Case

KEY = ("system", "scheme", "shape", "batch", "prompt")
MACHINE, FLOOR, MEMORY = "machine", "floor", "memory"  # rows that are no contestant's


def key_of(row: dict) -> tuple:
    """What a row is a measurement of."""
    return tuple(row.get(name) for name in KEY)


def case_row(system: str, scheme: str, case: Case, samples: list[dict], steps: int, base_bytes: int) -> dict:
    """The row of one system at one case: medians and quartiles of tokens per second over the rounds.

    `samples`: `prefill_s`, `decode_s` and `peak_bytes` of each round. `memory_bytes` is the largest peak of resident
    memory less what the imports alone take, `base_bytes`.
    """
    prefill = [case.batch * case.prompt / sample["prefill_s"] for sample in samples]
    decode = [case.batch * steps / sample["decode_s"] for sample in samples]
    return {
        "system": system,
        "scheme": scheme,
        "shape": case.shape,
        "batch": case.batch,
        "prompt": case.prompt,
        "prefill_tok_s": rounded(statistics.median(prefill)),
        "decode_tok_s": rounded(statistics.median(decode)),
        "memory_bytes": max(sample["peak_bytes"] for sample in samples) - base_bytes,
        "prefill_quartiles": quartiles(prefill),
        "decode_quartiles": quartiles(decode),
        "rounds": len(samples),
    }


def rounded(value: float) -> float:
    """Five significant digits: more than any of these figures has."""
    return float(f"{value:.5g}")


def quartiles(values: list[float]) -> list[float]:
    """First and third quartile; both the value itself where there is one only."""
    if len(values) == 1:
        return [rounded(values[0])] * 2
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [rounded(first), rounded(third)]


def merge(rows: list[dict], new: Iterable[dict]) -> list[dict]:
    """`rows` with `new` ones in place of those that measured the same, the rest at the end."""
    by_key = {key_of(row): row for row in rows}
    by_key.update((key_of(row), row) for row in new)
    return list(by_key.values())


def save(path: Path, rows: list[dict]) -> None:
    """One row a line, the file whole or not at all."""
    write_output(path, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def read(path: Path) -> list[dict]:
    """The rows of a file. Raises OSError or ValueError for one that is not there or is none of ours."""
    rows = json.loads(path.read_text("utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "system" in row for row in rows):
        raise ValueError(f"{path} is no list of rows with a `system`")
    return rows
