"""The maps of who wins where, in the figure of a comparison."""

# ruff: noqa: F811 (tests take imported fixtures by their names)

import math

import numpy as np
import pytest

from quamba.calibration.recording import TapActivations
from quamba.study.observers.figures import LARGEST_RATIO, observer_figure
from tests.study.observers.test_figures import (  # noqa: F401 (fixtures)
    SIX,
    TAPS,
    comparison,
    figure,
    heavy_tailed,
    invented,
    panel,
    results,
    shown,
)

# --- who wins where ---


def test_cells_are_the_relative_errors(figure, comparison):
    for tap in ("x", "z"):
        axes = panel(figure, f"MSE {tap}")
        expected = [[r.relative_mse for r in t.results[1:]] for t in comparison.taps if t.tap == tap]
        shown = np.clip(expected, 1 / LARGEST_RATIO, LARGEST_RATIO)
        np.testing.assert_array_equal(axes.images[0].get_array(), shown)
        layers = [str(t.layer) for t in comparison.taps if t.tap == tap]
        assert [text.get_text() for text in axes.get_yticklabels()] == layers
        written = [float(text.get_text().lstrip(">")) for text in axes.texts]
        assert written == pytest.approx(np.ravel(expected).clip(max=999), rel=0.06)


def test_columns_are_named_below_the_lowest_maps():
    figure = observer_figure(invented({tap: 2 for tap in TAPS[:5]}), TapActivations("x", 0, heavy_tailed(0, 30)))
    names = {
        axes.get_label(): [text.get_text().replace("\n", "") for text in axes.get_xticklabels() if text.get_text()]
        for axes in figure.axes
        if axes.get_label().startswith("MSE ")
    }
    above, lowest = TAPS[:2], TAPS[2:5]
    assert names == {f"MSE {tap}": [] for tap in above} | {f"MSE {tap}": SIX[1:] for tap in lowest}


def test_colours_are_centred_on_the_baseline():
    comparison = invented({"x": 3}, SIX[:3], lambda layer, index: 2.0 ** (layer + 1) if index == 1 else 0.9)
    image = panel(observer_figure(comparison, TapActivations("x", 0, heavy_tailed(0, 30))), "MSE x").images[0]
    assert image.norm(1.0) == pytest.approx(0.5) and image.norm(8.0) == pytest.approx(1.0)
    assert image.norm(2.0) - 0.5 == pytest.approx(0.5 - image.norm(0.5))  # as far apart in octaves


def test_errors_without_a_ratio_have_colour_and_text():
    ratios = [math.inf, 0.0, 1e-9, 1e9, 0.5]
    comparison = invented({"x": 1}, ratio=lambda layer, index: ratios[index - 1])
    axes = panel(observer_figure(comparison, TapActivations("x", 0, heavy_tailed(0, 30))), "MSE x")
    cells = axes.images[0].get_array()[0]
    assert list(cells) == [LARGEST_RATIO, 1 / LARGEST_RATIO, 1 / LARGEST_RATIO, LARGEST_RATIO, 0.5]
    assert not np.ma.getmaskarray(axes.images[0].norm(cells)).any()
    assert [text.get_text() for text in axes.texts] == ["∞", "0", "<.001", ">999", "0.50"]


def test_a_tap_without_layers_is_a_row_of_its_name():
    comparison = invented({"x": 4, "head_in": None})
    figure = observer_figure(comparison, TapActivations("head_in", None, heavy_tailed(0, 30)))
    head = panel(figure, "MSE head_in")
    assert head.images[0].get_array().shape == (1, 5)
    assert [text.get_text() for text in head.get_yticklabels()] == ["head_in"]
    figure.draw_without_rendering()
    maps = (head, panel(figure, "MSE x"))
    heights = [np.ptp(axes.transData.transform([(0, 0), (0, 1)])[:, 1]) for axes in maps]
    assert heights[0] == pytest.approx(heights[1], rel=0.01)  # a cell is a cell
