"""A comparison of logs as Markdown and as plain data."""

from dataclasses import asdict

from ...evaluation.log import finite
from ..markdown import markdown_table
from .comparison import KINDS, Cell, Change, Column, LogComparison, Row
from .result_log import Calibration

# kind of row -> how a figure, a change and the ends of its interval are written
FORMS = {
    "perplexity": ("{:.4f}", "x{:.4f}", "{:.4f}"),
    "accuracy": ("{:.2f}", "{:+.2f}", "{:+.2f}"),
    "metric": ("{:.4f}", "{:+.4f}", "{:+.4f}"),
    "size": ("{:.2f}", "x{:.3f}", "{:.3f}"),
    "tokens": ("{:.0f}", "", ""),
    "seconds": ("{:.1f}", "", ""),
    "sqnr": ("{:.2f}", "{:+.2f}", "{:+.2f}"),
}


def to_dict(comparison: LogComparison) -> dict:
    """The comparison as plain data for JSON; what is not a finite number is None."""
    rows = [
        {"label": row.label, "kind": row.kind, **asdict(KINDS[row.kind]), "cells": [asdict(cell) for cell in row.cells]}
        for row in comparison.rows
    ]
    return finite(asdict(comparison) | {"base": comparison.columns[0].label, "rows": rows})


def to_markdown(comparison: LogComparison) -> str:
    """A table with two columns for each log behind the base: its figures, and how they differ from the base's.

    A number in round brackets points to a note below the table.
    """
    base, *others = comparison.columns
    notes: list[str] = []
    header = ["" if comparison.same_model else "models differ", base.label]
    for column in others:
        header += [column.label, f"{column.label} vs {base.label}"]
    lines = [header]
    for name, text in (("model", lambda c: c.model), ("scheme", lambda c: c.scheme), ("observers", _observers)):
        lines.append([name, text(base), *(cell for column in others for cell in (text(column), ""))])
    lines += [_line(row, notes) for row in comparison.rows]
    text = markdown_table(lines)
    if any(cell.change and cell.change.low is not None for row in comparison.rows for cell in row.cells):
        text += (
            f"\nIn square brackets: the {100 * comparison.confidence:g} % interval of a bootstrap over the pairs of "
            f"windows or items ({comparison.resamples} resamples, seed {comparison.seed}).\n"
        )
    if not comparison.same_model:
        text += "\nThe models differ: their perplexities compare only where they have one tokenizer.\n"
    if notes:
        text += "\n" + "".join(f"{number}. {note}\n" for number, note in enumerate(notes, start=1))
    return text


def describe_observers(calibration: Calibration | None) -> str | None:
    """`x=percentile, others minmax`: the observer of most taps last. None without a calibration."""
    if calibration is None:
        return None
    names = list(calibration.observer.values())
    usual = max(names, key=names.count, default=None)

    def described(name: str) -> str:
        options = calibration.observer_options.get(name)
        return name + (f"({', '.join(f'{key}={value}' for key, value in options.items())})" if options else "")

    special = [f"{tap}={described(name)}" for tap, name in calibration.observer.items() if name != usual]
    return ", ".join([*special, f"others {described(usual)}"]) if special else described(usual)


def _observers(column: Column) -> str:
    return describe_observers(column.calibration) or "-"


def _line(row: Row, notes: list[str]) -> list[str]:
    unit = KINDS[row.kind].unit
    line = [f"{row.label}, {unit}" if unit else row.label]
    for position, cell in enumerate(row.cells):
        figure = "-" if cell.value is None else FORMS[row.kind][0].format(cell.value)
        if position == 0:
            line.append(f"{figure} {_mark(cell, notes)}".rstrip())
        else:
            line += [figure, f"{_change(row.kind, cell.change)} {_mark(cell, notes)}".strip()]
    return line


def _mark(cell: Cell, notes: list[str]) -> str:
    if cell.note is None:
        return ""
    if cell.note not in notes:
        notes.append(cell.note)
    return f"({notes.index(cell.note) + 1})"


def _change(kind: str, change: Change | None) -> str:
    if change is None:
        return ""
    _, form, end = FORMS[kind]
    interval = "" if change.low is None else f" [{end.format(change.low)}, {end.format(change.high)}]"
    return form.format(change.estimate) + interval
