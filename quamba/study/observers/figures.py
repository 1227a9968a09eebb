"""The figure of a comparison: the values and where observers clip them, what they become, and who wins where.

Imports matplotlib, so only what draws imports this module. Figures are made without pyplot: no state outlives them.
"""

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, StrMethodFormatter
from torch import Tensor

from ... import numerics
from ...calibration.recording import TapActivations
from .comparison import Comparison, ObserverResult, TapComparison

WIDTH, DPI = 12.0, 100  # inches, pixels an inch
STYLE = {"font.size": 9, "axes.titlesize": 10, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8.5}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}  # a "$" is part of a name
# The colours of Okabe and Ito, told apart with every common colour blindness; the palest last. The numbers of colours,
# lines and markers share no factor, so that a combination comes again only after hundreds of observers.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
LINES = ("-", (0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (3, (4, 4)), (0, (9, 3)), (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
BINS = 200
POINTS = 2000  # at most, of each observer's line: half of them values, half a regular grid
HEADROOM = 0.62  # share of the histogram's height that bars take: the ends of the clip lines stand above them
CLIP_VIEW = 3.0  # clip points beyond this multiple of the largest magnitude are not in view
DIVERGING = "PuOr_r"  # purple: less error than the baseline, orange: more
LARGEST_RATIO = 16.0  # of the colour scale, either way: beyond it (and for 0 and infinity) the colour stays
ANNOTATED_CELLS = 200  # of one heat map
LINE_HEIGHT, CHARACTER_WIDTH = 0.15, 0.075  # inches, of text of 8 points


@dataclass(frozen=True)
class _Look:
    """Say how one observer is drawn in every panel."""

    colour: str
    line: str | tuple
    marker: str
    width: float

    def options(self) -> dict:
        """Keyword arguments of `Axes.plot`."""
        edge = {"markersize": 5.5, "markeredgecolor": "#333333", "markeredgewidth": 0.6}
        return {"color": self.colour, "linestyle": self.line, "linewidth": self.width, "marker": self.marker, **edge}


def observer_figure(comparison: Comparison, shown: TapActivations) -> Figure:
    """Histogram and reconstruction of the values of the `shown` tap, and the relative MSE of all that was compared.

    1200 pixels wide when saved as it is. `shown`: one of the taps that were compared, whose scales are taken from
    `comparison`; any shape and float dtype. Raises ValueError where the comparison has no such tap.
    """
    tap = next((tap for tap in comparison.taps if tap.name == shown.name), None)
    if tap is None or tap.values != shown.values.numel():
        raise ValueError(f"{shown.name}, {shown.values.numel()} values, is none of the taps that were compared")
    values = shown.values.detach().float().flatten().cpu()
    with matplotlib.rc_context(STYLE):
        looks = _looks(len(tap.results))
        legend, columns = _legend(tap.results, comparison.n_bits)
        rows = [legend[start : start + columns] for start in range(0, len(legend), columns)]
        legend_lines = sum(1 + max(text.count("\n") for text in row) for row in rows)
        grid = _Grid(comparison)
        heights = [3.5 + 1.3 * LINE_HEIGHT * legend_lines, 4.0, grid.height]
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.4), dpi=DPI, layout="constrained")
        source = f"{'activations of ' if comparison.real else ''}{comparison.source}"
        figure.suptitle(textwrap.fill(f"Observers at {comparison.n_bits} bits: {source}", 110), fontsize=12)
        top, middle, bottom = figure.subfigures(3, 1, height_ratios=heights)
        _draw_histogram(top.subplots(), values, tap, comparison, looks)
        # matplotlib fills a legend column by column; ours reads row by row
        order = [i for start in range(columns) for i in range(start, len(legend), columns)]
        handles = top.axes[0].lines[::2]
        top.legend([handles[i] for i in order], [legend[i] for i in order], loc="outside lower center", ncols=columns)
        _draw_reconstruction(middle, values, shown.outliers, tap, comparison, looks)
        _draw_heat_maps(bottom, comparison, grid)
    return figure


def _looks(count: int) -> list[_Look]:
    """Lines drawn earlier are wider: where several coincide, all of them show."""
    widths = np.linspace(3.2, 1.2, count)
    return [
        _Look(COLOURS[i % len(COLOURS)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)], float(widths[i]))
        for i in range(count)
    ]


def _clip_points(result: ObserverResult, n_bits: int) -> list[float]:
    """The values of the smallest and of the largest integer."""
    return [limit * result.scale for limit in numerics.integer_range(n_bits)]


def _place(tap: TapComparison) -> str:
    return f"tap {tap.tap}" + ("" if tap.layer is None else f", layer {tap.layer}")


def _wrap(label: str, width: int, lines: int | None = None) -> str:
    """An observer's label over several lines, broken after `:` and `,` where that is possible."""
    wrapped = [""]
    for piece in re.findall(r"[^:,]*[:,]?", label):
        for part in [piece[start : start + width] for start in range(0, len(piece), width)]:
            if len(wrapped[-1]) + len(part) > width and wrapped[-1]:
                wrapped.append("")
            wrapped[-1] += part
    if lines is not None and len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1][: width - 1] + "…"]
    return "\n".join(wrapped)


def _legend(results: Sequence[ObserverResult], n_bits: int) -> tuple[list[str], int]:
    """Every observer's entry, and in how many columns they fit."""
    entries = []
    for result in results:
        low, high = (f"{point:.3g}".replace("-", "\N{MINUS SIGN}") for point in _clip_points(result, n_bits))
        entries.append(f"{_wrap(result.observer, 60)}  [{low}, {high}]")
    longest = max(len(line) for entry in entries for line in entry.split("\n"))
    return entries, max(1, min(4, int((WIDTH - 0.5) / (longest * CHARACTER_WIDTH + 0.6))))


# --- the values ---


def _limits(low: float, high: float) -> tuple[float, float]:
    """Axis limits with a margin, also around a single value."""
    margin = 0.04 * (high - low) or 0.5 * max(abs(low), numerics.AMAX_EPS)
    return low - margin, high + margin


def _draw_histogram(
    axes: Axes, values: Tensor, tap: TapComparison, comparison: Comparison, looks: Sequence[_Look]
) -> None:
    """Counts of the values, and two lines an observer where it clips: each ends in its marker, at its own height."""
    axes.set_label("histogram")
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(*(_limits(low, high) if low == high else (low, high)), BINS + 1)
    counts, _ = np.histogram(values.numpy(), bins=edges)
    axes.stairs(counts, edges, fill=True, color="#BBBBBB", linewidth=0.6)  # with an edge, no bin is too narrow
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(0.5, 0.5 * (2 * max(2, counts.max())) ** (1 / HEADROOM))
    drop = min(0.055, 0.3 / len(looks))
    points = [_clip_points(result, comparison.n_bits) for result in tap.results]
    for index, (pair, look) in enumerate(zip(points, looks, strict=True)):
        for point in pair:
            # x in the data's units, y as a share of the panel's height
            axes.plot(
                [point, point],
                [0, 0.96 - drop * index],
                transform=axes.get_xaxis_transform(),
                label=tap.results[index].observer,
                markevery=[1],
                **look.options(),
            )
    farthest = CLIP_VIEW * max(abs(low), abs(high), numerics.AMAX_EPS)
    inside = [point for pair in points for point in pair if abs(point) <= farthest]
    axes.set_xlim(_limits(min(low, *inside), max(high, *inside)))
    axes.set_title(f"(a) {_place(tap)}: {tap.values:,} values, and where each observer clips", loc="left")
    axes.set_xlabel(f"activation value (unit of {_place(tap)})")
    axes.set_ylabel("count")
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())


# --- what the values become ---


def _outlier_mask(values: Tensor, known: Tensor | None, count: int) -> Tensor:
    """bool like `values`: the known outliers, else the `count` largest magnitudes, those that the comparison took."""
    if known is not None:
        return known.flatten().cpu()
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    magnitudes = values.abs()
    return magnitudes >= float(np.partition(magnitudes.numpy(), -count)[-count])


def _sample(values: Tensor, most: int) -> Tensor:
    """At most that many of the values, ascending, spread evenly over their range, with both extremes."""
    ordered = torch.from_numpy(np.sort(values.numpy()))
    if ordered.numel() <= most:
        return ordered
    targets = torch.linspace(float(ordered[0]), float(ordered[-1]), most)
    chosen = torch.searchsorted(ordered, targets).clamp(max=ordered.numel() - 1)
    chosen[-1] = ordered.numel() - 1
    return ordered[chosen.unique()]


def _originals(values: Tensor) -> Tensor:
    """Values, and a grid over their range: a line through the values alone would slope where outliers lie far apart."""
    grid = torch.linspace(float(values.min()), float(values.max()), POINTS // 2)
    return torch.cat([grid, _sample(values, POINTS // 2)]).sort().values


def _draw_reconstruction(
    figure: SubFigure,
    values: Tensor,
    known_outliers: Tensor | None,
    tap: TapComparison,
    comparison: Comparison,
    looks: Sequence[_Look],
) -> None:
    """Original against reconstructed value: all of the range, then the outliers of each sign by themselves."""
    outliers = _outlier_mask(values, known_outliers, tap.outliers)
    sides = {"negative outliers": values[outliers & (values < 0)], "positive outliers": values[outliers & (values > 0)]}
    sides = {name: side for name, side in sides.items() if side.numel()}
    panels = figure.subplots(1, 1 + len(sides), squeeze=False)[0]
    panels[0].set_label("reconstruction")
    panels[0].set_title("(b) original against reconstructed value", loc="left")
    _draw_lines(panels[0], _originals(values), tap, comparison, looks)
    for axes, (name, side) in zip(panels[1:], sides.items(), strict=True):
        limits = _limits(float(side.min()), float(side.max()))
        panels[0].axvspan(*limits, color="#EEEEEE", zorder=0)
        axes.set_label(name)
        axes.set_facecolor("#F4F4F4")  # as in the first panel
        axes.set_title(f"{name}, enlarged: {side.numel():,} values", loc="left")
        _draw_lines(axes, _originals(side), tap, comparison, looks)
        where = _sample(side, POINTS // 2)
        height = axes.get_xaxis_transform()  # x in the data's units, y as a share of the panel's height
        axes.plot(where, torch.full_like(where, 0.01), "|", color="#555555", transform=height, label="outliers")
        axes.set_xlim(limits)


def _draw_lines(axes: Axes, values: Tensor, tap: TapComparison, comparison: Comparison, looks: Sequence[_Look]) -> None:
    """The identity, and each observer's reconstruction of the values (ascending, float32 [n])."""
    axes.plot(values, values, color="#777777", linewidth=0.7, label="identity", zorder=10)
    apart = max(1, values.numel() // 8)
    for index, (result, look) in enumerate(zip(tap.results, looks, strict=True)):
        integers = numerics.quantize(values, result.scale, bits=comparison.n_bits)
        reconstructed = numerics.dequantize(integers, result.scale)
        shift = index * apart // len(looks)  # so that markers stand beside each other where lines coincide
        axes.plot(values, reconstructed, label=result.observer, markevery=(shift, apart), **look.options())
    axes.set_xlabel(f"original value (unit of {_place(tap)})")
    axes.set_ylabel(f"reconstructed value (unit of {_place(tap)})")


# --- who wins where ---


class _Grid:
    """Say where the heat maps of a comparison stand, and their sizes in inches."""

    def __init__(self, comparison: Comparison):
        self.by_tap = {name: [t for t in comparison.taps if t.tap == name] for name in comparison.tap_names()}
        count = len(self.by_tap)
        self.layers = max(len(taps) for taps in self.by_tap.values())
        self.cell_height = min(0.3, max(4.2 / self.layers, 0.05))
        # As many beside each other as leave room for the observers' names.
        for self.columns in range(4 if count in (4, 7, 8) else min(count, 3), 0, -1):
            width = (WIDTH - 0.3 - 0.6 * self.columns) / self.columns
            self.cell_width = width / (len(comparison.observers) - 1)
            upright = self.cell_width < 1.2
            self.rotation = 90 if upright else 0
            line = 30 if upright else int(self.cell_width / CHARACTER_WIDTH)
            lines = max(1, int(self.cell_width / LINE_HEIGHT)) if upright else 6
            self.labels = [_wrap(name, line, lines) for name in comparison.observers[1:]]
            if not any(label.endswith("…") for label in self.labels):
                break
        self.rows = -(-count // self.columns)
        # The first row is the one that is not full: the observers' names stand below the last.
        self.blanks = self.rows * self.columns - count
        texts = [label.split("\n") for label in self.labels]
        across, down = max(len(t) for text in texts for t in text), max(len(text) for text in texts)
        label_height = CHARACTER_WIDTH * across if upright else LINE_HEIGHT * down
        self.height = self.rows * (self.layers * self.cell_height + 0.45) + label_height + 1.2

    def position(self, index: int) -> tuple[int, int]:
        """Row and column of a tap's heat map."""
        in_first = self.columns - self.blanks
        return (0, index) if index < in_first else divmod(index + self.blanks, self.columns)


def _draw_heat_maps(figure: SubFigure, comparison: Comparison, grid: _Grid) -> None:
    """One heat map a tap, all with one colour scale."""
    ratios = [r.relative_mse for tap in comparison.taps for r in tap.results if 0 < r.relative_mse < math.inf]
    octaves = [abs(math.log2(ratio)) for ratio in ratios]
    largest = 2.0 ** min(max([1.0, *octaves]), math.log2(LARGEST_RATIO))
    norm = LogNorm(1 / largest, largest)
    gridspec = figure.add_gridspec(grid.rows, grid.columns)
    images = []
    for index, (name, taps) in enumerate(grid.by_tap.items()):
        row, column = grid.position(index)
        axes = figure.add_subplot(gridspec[row, column])
        images.append(_draw_heat_map(axes, name, taps, norm, grid))
        axes.set_xticks(range(len(grid.labels)), grid.labels if row == grid.rows - 1 else [], rotation=grid.rotation)
        if column == 0 and taps[0].layer is not None:
            axes.set_ylabel("layer")
    baseline = comparison.observers[0]
    figure.suptitle(f"(c) mean squared error of each observer, relative to {baseline}", x=0.01, ha="left", fontsize=10)
    bar = figure.colorbar(
        images[0],
        ax=figure.axes,
        location="bottom",
        shrink=0.6,
        aspect=60,
        pad=0.02,
        extend="both",
        label=f"MSE / MSE of {baseline}",
    )
    ticks = [2.0**power for power in range(-4, 5) if 1 / largest <= 2.0**power <= largest]
    bar.ax.xaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:g}"))
    bar.ax.xaxis.set_minor_locator(NullLocator())


def _draw_heat_map(axes: Axes, name: str, taps: Sequence[TapComparison], norm: LogNorm, grid: _Grid) -> AxesImage:
    """Layers downwards, observers but the baseline across."""
    ratios = np.array([[result.relative_mse for result in tap.results[1:]] for tap in taps])
    shown = ratios.clip(norm.vmin, norm.vmax)  # a logarithm has no colour for 0 and infinity
    image = axes.imshow(shown, cmap=DIVERGING, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_label(f"MSE {name}")
    # Fewer layers than others have: cells of the same height, at the lower end, where the observers' names are.
    axes.set_ylim(len(taps) - 0.5, len(taps) - 0.5 - grid.layers)
    every = math.ceil(1.1 * LINE_HEIGHT / grid.cell_height)
    ticks = range(0, len(taps), every)
    axes.set_yticks(ticks, [name if taps[i].layer is None else str(taps[i].layer) for i in ticks])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if taps[0].layer is not None:
        axes.set_title(f"tap {name}", loc="left", fontsize=9, y=len(taps) / grid.layers)
    readable = grid.cell_height >= LINE_HEIGHT and grid.cell_width >= 4.5 * CHARACTER_WIDTH
    if readable and ratios.size <= ANNOTATED_CELLS:
        for (row, column), ratio in np.ndenumerate(ratios):
            red, green, blue, _ = image.cmap(norm(shown[row, column]))
            colour = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
            text = axes.text(column, row, _ratio_text(ratio), ha="center", va="center", fontsize=8, color=colour)
            text.set_in_layout(False)  # hundreds of them: laying out would measure each
    return image


def _ratio_text(ratio: float) -> str:
    if ratio in (0, math.inf):
        return "∞" if ratio else "0"
    if ratio > 999:
        return ">999"
    if ratio < 0.001:
        return "<.001"
    return f"{ratio:.3f}".lstrip("0") if ratio < 0.095 else f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"
