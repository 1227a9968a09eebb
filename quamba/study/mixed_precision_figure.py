"""The figure of mixed precision: predicted loss, and perplexity where it was measured, over mean bits a weight.

Imports matplotlib, so only what draws imports this module. Figures are made without pyplot: no state outlives them.
"""

from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .mixed_precision_report import CHOSEN, FRONTIER, UNIFORM, FrontierPoint, FrontierReport
from .observers.figures import COLOURS, DPI, MARKERS, STYLE, WIDTH

HEIGHT = 5.0  # inches
LEGEND_COLUMNS = 8
FRONTIER_STYLE = {"color": COLOURS[2], "marker": "o", "markersize": 3.5, "linewidth": 1.2, "zorder": 2}
CHOSEN_STYLE = {"color": COLOURS[3], "marker": "*", "markersize": 13, "markeredgecolor": "#333333"}
CHOSEN_STYLE |= {"markeredgewidth": 0.6, "linestyle": "none", "zorder": 3}
UNIFORM_STYLE = {
    "linestyle": "none",
    "markersize": 8,
    "markeredgecolor": "#333333",
    "markeredgewidth": 0.6,
    "zorder": 4,
}
UNIFORM_COLOURS = (COLOURS[1], *COLOURS[4:])  # what the rest of the figure leaves
FLOAT_STYLE = {"color": "black", "linewidth": 1, "linestyle": "--", "zorder": 1}


def frontier_figure(report: FrontierReport) -> Figure:
    """Predicted loss over mean bits of all points, and beside it the perplexity of those where it was measured.

    1200 pixels wide when saved as it is. Each uniform scheme has a marker of its own.
    """
    panels = [("predicted loss (nats, sum over layers)", lambda point: point.loss)]
    if report.measured:
        panels.append(("perplexity", lambda point: point.perplexity))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        figure.suptitle("Mixed precision: what the weights take, and what it costs (lower is better)", fontsize=12)
        for axes, (label, value) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw_panel(axes, report.points, value)
            axes.set_xlabel("mean bits a weight")
            axes.set_ylabel(label)
        if report.measured and report.float_perplexity is not None:
            axes.axhline(report.float_perplexity, label="float", **FLOAT_STYLE)
        entries = {}
        for axes in figure.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
        columns = min(LEGEND_COLUMNS, len(entries))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _draw_panel(axes: Axes, points: Sequence[FrontierPoint], value: Callable[[FrontierPoint], float | None]) -> None:
    """The frontier as a line, chosen assignments as stars, uniform ones each in its own colour and marker."""
    known = [point for point in points if value(point) is not None]
    for kind, style in ((FRONTIER, FRONTIER_STYLE), (CHOSEN, CHOSEN_STYLE)):
        shown = [point for point in known if kind in point.kinds]
        if shown:
            axes.plot([point.mean_bits for point in shown], [value(point) for point in shown], label=kind, **style)
    names = sorted({point.schemes[0] for point in points if UNIFORM in point.kinds})
    for point in (point for point in known if UNIFORM in point.kinds):
        index = names.index(point.schemes[0])
        look = {"color": UNIFORM_COLOURS[index % len(UNIFORM_COLOURS)], "marker": MARKERS[1 + index % 6]}
        axes.plot(point.mean_bits, value(point), label=f"uniform {point.label}", **look, **UNIFORM_STYLE)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.ticklabel_format(useOffset=False, style="plain")
