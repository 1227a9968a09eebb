"""What the figure of a comparison of logs draws: points, their intervals, names and units."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text

from quamba.errors import QuambaError
from quamba.study.logs.comparison import Cell, Change, Column, LogComparison, Row
from quamba.study.logs.figures import compare_figure


def comparison(rows, labels=("a", "b", "c"), model: str = "m") -> LogComparison:
    models = ["m"] * (len(labels) - 1) + [model]
    columns = [Column(label, f"{label}.json", name, "w8a8", None) for label, name in zip(labels, models, strict=True)]
    return LogComparison(tuple(columns), tuple(rows), confidence=0.9, resamples=100, seed=0)


def row(label: str, kind: str, *changes: Change | None) -> Row:
    return Row(label, kind, (Cell(1.0), *(Cell(1.0, change) for change in changes)))


ROWS = [
    row("perplexity, c4", "perplexity", Change(1.02, 1.01, 1.05), Change(0.98, 0.97, 0.99)),
    row("cloze, perplexity", "perplexity", Change(1.5, 1.25, 2.0), Change(1.1)),
    row("cloze, acc", "accuracy", Change(-2.0, -3.0, 0.5), None),
    row("size on disk", "size", Change(0.5), Change(0.5)),
]


def panels(figure) -> tuple[Axes, Axes]:
    left, right = figure.axes
    return left, right


def error_bars(axes: Axes) -> list[tuple[float, float, float]]:
    """(estimate, low, high) of every error bar of a panel."""
    bars = []
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        data, _, (lines,) = container.lines
        for x, ((low, _), (high, _)) in zip(data.get_xdata(), lines.get_segments(), strict=True):
            bars.append((x, low, high))
    return bars


def hollow_points(axes: Axes) -> list[float]:
    """Positions of the markers without a filling."""
    hollow = [line for line in axes.lines if same_color(line.get_markerfacecolor(), "white")]
    return [x for line in hollow for x in line.get_xdata()]


def test_every_interval_is_an_error_bar_at_its_estimate():
    left, right = panels(compare_figure(comparison(ROWS)))
    np.testing.assert_allclose(error_bars(left), [(1.02, 1.01, 1.05), (1.5, 1.25, 2.0), (0.98, 0.97, 0.99)])
    np.testing.assert_allclose(error_bars(right), [(-2.0, -3.0, 0.5)])


def test_a_change_without_an_interval_is_a_hollow_marker():
    figure = compare_figure(comparison(ROWS))
    assert [hollow_points(axes) for axes in panels(figure)] == [[1.1], []]
    assert "hollow: no interval" in legend(figure)
    assert "hollow: no interval" not in legend(compare_figure(comparison(ROWS[:1])))


def test_a_line_stands_where_nothing_has_changed():
    for axes, unchanged in zip(panels(compare_figure(comparison(ROWS))), (1, 0), strict=True):
        assert list(axes.lines[0].get_xdata()) == [unchanged, unchanged]


def test_the_axes_say_what_they_show_in_what_unit():
    left, right = panels(compare_figure(comparison(ROWS)))
    assert left.get_xlabel() == "ratio to the perplexity of a"
    assert right.get_xlabel() == "difference from a (points)"
    assert [label.get_text() for label in left.get_yticklabels()] == ["perplexity, c4", "cloze, perplexity"]
    assert [label.get_text() for label in right.get_yticklabels()] == ["cloze, acc"]


def test_rows_stand_in_their_order_each_beside_its_name():
    left, _ = panels(compare_figure(comparison(ROWS)))
    first, second = left.get_yticks()
    assert first > second
    for container in left.containers:
        for y, tick in zip(container.lines[0].get_ydata(), left.get_yticks(), strict=False):
            assert abs(y - tick) < abs(first - second) / 2


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_names_the_base_and_every_log():
    figure = compare_figure(comparison(ROWS[:1]))
    assert legend(figure) == ["a (base)", "b", "c"]
    assert figure.get_suptitle() == "change from a: m w8a8; 90 % bootstrap intervals"
    assert "the models differ" in compare_figure(comparison(ROWS, model="n")).get_suptitle()


def test_logs_are_told_apart_by_colour_and_by_marker():
    labels = [f"log{n}" for n in range(9)]
    changes = [Change(1.0 + n / 10, 0.9, 2.0) for n in range(8)]
    left, _ = panels(compare_figure(comparison([row("perplexity, c4", "perplexity", *changes)], labels)))
    drawn = [container.lines[0] for container in left.containers]
    assert len({line.get_marker() for line in drawn}) == 8
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == 8


def test_a_panel_without_anything_says_so():
    _, right = panels(compare_figure(comparison(ROWS[:1])))
    assert [text.get_text() for text in right.texts] == ["not measured in common"]


def test_nothing_at_all_is_an_error():
    with pytest.raises(QuambaError, match="nothing to plot"):
        compare_figure(comparison([row("perplexity, c4", "perplexity", None, None), ROWS[-1]]))


@pytest.mark.parametrize("logs", [2, 12])
def test_long_names_neither_overlap_nor_leave_the_figure(logs):
    long = "a_long_folder/" * 9
    rows = [row(f"perplexity, {long}{n}", "perplexity", *[Change(1.0, 0.9, 1.1)] * (logs - 1)) for n in range(9)]
    rows += [
        row(f"a_long_name_of_a_task{n}, acc (flexible-extract)", "accuracy", *[Change(1.0)] * (logs - 1))
        for n in range(4)
    ]
    figure = compare_figure(comparison(rows, [f"{long}{n}$" for n in range(logs)]))
    figure.draw_without_rendering()
    assert figure.bbox.width == 1200
    texts: list[Text] = [*figure.legends[0].get_texts(), figure._suptitle]
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]  # those in view
        texts += [*axes.get_yticklabels(), *ticks, axes.xaxis.label, axes.title]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    for index, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_a_long_legend_takes_no_room_from_the_points():
    labels = [f"{'a_long_folder/' * 9}{n}" for n in range(12)]
    figure = compare_figure(comparison([row("perplexity, c4", "perplexity", *[Change(1.0, 0.9, 1.1)] * 11)], labels))
    figure.draw_without_rendering()
    left, _ = panels(figure)
    assert left.get_window_extent().height > 11 * 20  # pixels
