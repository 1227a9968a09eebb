"""What the figure of mixed precision draws, from the data of its lines, not from pixels."""

import pytest
from PIL import Image

from quamba.mixed_precision.budget import Budget
from quamba.mixed_precision.search import choose_schemes, frontier
from quamba.scheme.formats import SCHEMES
from quamba.study.mixed_precision_figure import frontier_figure
from quamba.study.mixed_precision_report import frontier_report
from quamba.study.saving import save_figure
from tests.study.mixed_precision_tables import LOSSES, SIZES, WEIGHTS

pytestmark = pytest.mark.filterwarnings("error::UserWarning")  # matplotlib warns where a layout does not fit

PERPLEXITIES = {("w8a8",) * 3: 12.5, ("w8a8", "w4a8", "w8a8"): 13.0, ("w4a8",) * 3: 20.0}


def data(axes, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_without_perplexities_the_predicted_loss_alone_is_drawn():
    (axes,) = frontier_figure(frontier_report(LOSSES, SIZES, WEIGHTS)).axes
    points = frontier(LOSSES, SIZES)
    assert data(axes, "frontier") == [(point.mean_bits(WEIGHTS), point.loss) for point in points]
    assert axes.get_xlabel() == "mean bits a weight" and axes.get_ylabel().startswith("predicted loss (nats")


def test_perplexities_have_a_panel_with_the_points_that_were_measured_and_the_float_model():
    figure = frontier_figure(frontier_report(LOSSES, SIZES, WEIGHTS, (), PERPLEXITIES, float_perplexity=12.0))
    _, axes = figure.axes
    assert axes.get_ylabel() == "perplexity"
    assert [y for _, y in data(axes, "frontier")] == [12.5, 13.0, 20.0]
    assert {y for _, y in data(axes, "float")} == {12.0}


def test_uniform_schemes_are_marked_each_in_its_own_way_and_alike_in_both_panels():
    losses = {name: [0.1 * index] * 3 for index, name in enumerate(SCHEMES)}
    sizes = {name: [100 - index] * 3 for index, name in enumerate(SCHEMES)}
    figure = frontier_figure(frontier_report(losses, sizes, 300, (), {(name,) * 3: 9.0 for name in SCHEMES}))
    looks = []
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.lines if line.get_label().startswith("uniform")}
        assert set(lines) == {f"uniform {name}" for name in SCHEMES}
        looks.append({label: (line.get_marker(), line.get_color()) for label, line in lines.items()})
    assert looks[0] == looks[1]
    assert len({marker for marker, _ in looks[0].values()}) == len(SCHEMES)


def test_a_chosen_assignment_is_a_star():
    chosen = choose_schemes(LOSSES, SIZES, Budget.parse("6"), WEIGHTS)
    figure = frontier_figure(frontier_report(LOSSES, SIZES, WEIGHTS, [chosen], PERPLEXITIES))
    left, right = figure.axes
    assert data(left, "chosen") == [(chosen.mean_bits(WEIGHTS), chosen.loss)]
    assert "chosen" not in [line.get_label() for line in right.lines]  # it has no perplexity
    assert sorted(legend(figure)) == ["chosen", "frontier", "uniform w4a8", "uniform w8a8"]


def test_the_image_is_1200_pixels_wide(tmp_path):
    report = frontier_report(LOSSES, SIZES, WEIGHTS, (), PERPLEXITIES, float_perplexity=12.0)
    save_figure(frontier_figure(report), tmp_path / "frontier.png")
    with Image.open(tmp_path / "frontier.png") as image:
        assert image.width == 1200
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50  # something is drawn
