"""The figure of a comparison of logs: how perplexities and accuracies change from the base.

Imports matplotlib, so only what draws imports this module. Figures are made without pyplot: no state outlives them.
"""

import math
import textwrap

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ...errors import QuambaError
from ..observers.figures import COLOURS, DPI, MARKERS, STYLE, WIDTH
from .comparison import Change, LogComparison, Row

POINT_HEIGHT = 0.24  # inches, of one log in one row
LINE_HEIGHT = 0.16  # inches, of a line of a name
ROW_GAP = 1.0  # between rows, in points of one log
ROW_LABEL_WIDTH = 22  # characters, then a new line
LEGEND_WIDTH, LEGEND_ENTRY_WIDTH = 150, 60  # characters
BASE_STYLE = {"color": "black", "linewidth": 1, "linestyle": "--"}


def compare_figure(comparison: LogComparison) -> Figure:
    """Left the ratio of perplexities to the base's, right the change of accuracies in points, with their intervals.

    1200 pixels wide when saved as it is. A hollow marker is a change without an interval.
    Raises QuambaError where the base shares no perplexity and no accuracy with any other log.
    """
    panels = [_changed_rows(comparison, "perplexity"), _changed_rows(comparison, "accuracy")]
    if not any(panels):
        raise QuambaError("there is nothing to plot: no log shares a perplexity or an accuracy with the base")
    base, *others = comparison.columns
    points = max(len(rows) * _row_height(rows, len(others)) for rows in panels)
    with matplotlib.rc_context(STYLE):
        handles = _legend_handles(comparison)
        entries = [handle.get_label().split("\n") for handle in handles]
        columns = max(1, min(len(entries), LEGEND_WIDTH // (8 + max(len(line) for entry in entries for line in entry))))
        lines = math.ceil(len(entries) / columns) * max(map(len, entries))
        height = 2.2 + max(points, 6) * POINT_HEIGHT + 1.2 * lines * LINE_HEIGHT
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        models = f"{base.model} {base.scheme}" if comparison.same_model else "the models differ"
        title = f"change from {base.label}: {models}; {100 * comparison.confidence:g} % bootstrap intervals"
        figure.suptitle(textwrap.fill(title, 110), fontsize=12)
        left, right = figure.subplots(1, 2)
        _draw_panel(left, panels[0], len(others), unchanged=1)
        left.set_title("perplexity (lower is better)")
        left.set_xlabel(_axis_label(f"ratio to the perplexity of {base.label}"))
        _draw_panel(right, panels[1], len(others), unchanged=0)
        right.set_title("accuracy (higher is better)")
        right.set_xlabel(_axis_label(f"difference from {base.label} (points)"))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _changed_rows(comparison: LogComparison, kind: str) -> list[Row]:
    return [row for row in comparison.rows if row.kind == kind and any(cell.change for cell in row.cells)]


def _look(index: int) -> dict:
    """Colour and marker of a log; black is the base's. The pairs repeat after 63 logs."""
    colours = COLOURS[1:]
    return {"color": colours[index % len(colours)], "marker": MARKERS[index % len(MARKERS)]}


def _row_height(rows: list[Row], logs: int) -> float:
    """From one row to the next, in points of one log: room for every log and for the longest name."""
    lines = max((len(_row_label(row).split("\n")) for row in rows), default=0)
    return max(logs, lines * LINE_HEIGHT / POINT_HEIGHT) + ROW_GAP


def _draw_panel(axes: Axes, rows: list[Row], logs: int, unchanged: float) -> None:
    """A group of `logs` points for each row, from the top down, and a line where nothing has changed."""
    axes.axvline(unchanged, **BASE_STYLE, zorder=1)
    if not rows:
        axes.text(0.5, 0.5, "not measured in common", ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    height = _row_height(rows, logs)
    for log in range(logs):
        changes = [(row.cells[log + 1].change, -index * height - log) for index, row in enumerate(rows)]
        known = [(change, y) for change, y in changes if change]
        _draw_intervals(axes, [(change, y) for change, y in known if change.low is not None], _look(log))
        hollow = [(change.estimate, y) for change, y in known if change.low is None]
        x, y = ([point[part] for point in hollow] for part in (0, 1))
        axes.plot(x, y, linestyle="none", markerfacecolor="white", **_look(log))
    middles = [-index * height - (logs - 1) / 2 for index in range(len(rows))]
    axes.set_yticks(middles, [_row_label(row) for row in rows])
    axes.set_ylim(middles[-1] - height / 2, middles[0] + height / 2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_intervals(axes: Axes, points: list[tuple[Change, float]], look: dict) -> None:
    if points:
        changes = [change for change, _ in points]
        # the estimate may lie outside a percentile interval by a rounding error
        errors = [
            [max(0, change.estimate - change.low) for change in changes],
            [max(0, change.high - change.estimate) for change in changes],
        ]
        x, y = [change.estimate for change in changes], [y for _, y in points]
        axes.errorbar(x, y, xerr=errors, linestyle="none", capsize=4, **look)


def _row_label(row: Row) -> str:
    return textwrap.fill(row.label, ROW_LABEL_WIDTH)


def _axis_label(text: str) -> str:
    return textwrap.fill(text, 52)


def _legend_handles(comparison: LogComparison) -> list[Line2D]:
    base, *others = comparison.columns
    handles = [Line2D([], [], label=_entry(f"{base.label} (base)"), **BASE_STYLE)]
    for index, column in enumerate(others):
        handles.append(Line2D([], [], label=_entry(column.label), linestyle="none", **_look(index)))
    changes = [cell.change for row in comparison.rows if row.kind in ("perplexity", "accuracy") for cell in row.cells]
    if any(change and change.low is None for change in changes):
        hollow = {"color": "black", "marker": "o", "markerfacecolor": "white", "linestyle": "none"}
        handles.append(Line2D([], [], label="hollow: no interval", **hollow))
    return handles


def _entry(label: str) -> str:
    return textwrap.fill(label, LEGEND_ENTRY_WIDTH)
