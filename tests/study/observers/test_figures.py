"""The figure of a comparison: what its panels draw, from the data of the lines, bins and cells, not from pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from quamba import numerics
from quamba.calibration.recording import TapActivations, synthetic_activations
from quamba.study.observers.comparison import Comparison, ObserverResult, TapComparison, compare_observers
from quamba.study.observers.figures import COLOURS, POINTS, observer_figure
from quamba.study.observers.specs import parse_specs

pytestmark = pytest.mark.filterwarnings("error::UserWarning")  # matplotlib warns where a layout does not fit

LONG = "outlier_aware:normal_ratio=0.9999,normal_level=124"
SIX = ["minmax", "outlier_aware", "percentile", "outlier_aware_adaptive", "mse", LONG]
EIGHT = [*SIX, "outlier_aware:normal_ratio=0.999,normal_level=119", "mse:clip_ratio=0.9"]
TAPS = ("in", "conv_in", "z", "x", "dt_rank", "B", "C", "out")


def heavy_tailed(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) / torch.rand(shape, generator=generator).clamp(min=0.01)


def compared(activations: list[TapActivations], observers=SIX, n_bits=8, **options) -> Comparison:
    parsed = parse_specs(observers[1:], observers[0], n_bits)
    names = {"source": "mamba-tiny", "real": True, "n_bits": n_bits, "progress": False}
    return compare_observers(activations, parsed, **names | options)


def invented(taps: dict[str, int | None], observers=SIX, ratio=lambda layer, index: 1.0) -> Comparison:
    """A comparison of so many layers of each tap (None: the tap has none), with relative MSEs by layer and observer."""

    def tap(name, layer):
        ratios = [1.0, *(ratio(layer or 0, index) for index in range(1, len(observers)))]
        results = [
            ObserverResult(label, 0.1, 0.0, None, 0.0, 1, 0.0, 0.0, relative, None)
            for label, relative in zip(observers, ratios, strict=True)
        ]
        return TapComparison(name, layer, 30, 2, results)

    layers = {name: [None] if count is None else range(count) for name, count in taps.items()}
    return Comparison(
        "mamba-130m", True, 8, list(observers), [tap(name, layer) for name in taps for layer in layers[name]]
    )


def panel(figure: Figure, label: str):
    (found,) = [axes for axes in figure.axes if axes.get_label() == label]
    return found


def lines_of(axes, label: str) -> list:
    return [line for line in axes.lines if line.get_label() == label]


def rendered(figure: Figure, path: Path) -> Image.Image:
    figure.savefig(path, dpi="figure")
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.fixture(scope="module")
def shown() -> TapActivations:
    """Mostly positive, as tap x is, with outliers of both signs."""
    return TapActivations("x", 3, heavy_tailed(0, 2, 300, 10) + 2)


@pytest.fixture(scope="module")
def comparison(shown) -> Comparison:
    others = [TapActivations(tap, layer, heavy_tailed(layer, 1, 40, 5)) for tap in ("x", "z") for layer in (1, 2)]
    return compared([*others, shown])


@pytest.fixture(scope="module")
def figure(comparison, shown) -> Figure:
    return observer_figure(comparison, shown)


@pytest.fixture(scope="module")
def results(comparison) -> list[ObserverResult]:
    return comparison.taps[-1].results


# --- the values ---


def test_the_image_is_1200_pixels_wide(figure, tmp_path):
    image = rendered(figure, tmp_path / "figure.png")
    assert image.width == 1200
    assert len(image.getcolors(1 << 20)) > 50  # something is drawn


def test_the_bins_count_every_value(figure, shown):
    (bars,) = panel(figure, "histogram").patches
    counts, edges, _ = bars.get_data()
    expected, _ = np.histogram(shown.values.flatten().numpy(), bins=edges)
    assert counts.sum() == shown.values.numel() == 6000
    assert np.array_equal(counts, expected)
    assert panel(figure, "histogram").get_yscale() == "log"


@pytest.mark.parametrize("n_bits", [8, 4])
def test_clip_lines_stand_at_the_ends_of_the_integers(shown, n_bits):
    comparison = compared([shown], SIX[:-1], n_bits=n_bits)
    axes = panel(observer_figure(comparison, shown), "histogram")
    qmin, qmax = numerics.integer_range(n_bits)
    low, high = axes.get_xlim()
    for result in comparison.taps[0].results:
        places = [list(line.get_xdata()) for line in lines_of(axes, result.observer)]
        assert places == [[qmin * result.scale] * 2, [qmax * result.scale] * 2]
        assert low < places[0][0] and places[1][0] < high


def test_clip_lines_of_one_place_end_at_heights_of_their_own_above_the_bars(shown):
    comparison = compared([shown], ["minmax", "percentile:percentile_alpha=0.9999999", "minmax:clip_ratio=1.0"])
    figure = observer_figure(comparison, shown)
    axes = panel(figure, "histogram")
    ends = [lines_of(axes, label)[1].get_ydata()[1] for label in comparison.observers]
    assert len(set(ends)) == 3
    figure.draw_without_rendering()
    counts, _, _ = axes.patches[0].get_data()
    peak = axes.transAxes.inverted().transform(axes.transData.transform((0, counts.max())))[1]
    assert peak < min(ends) < max(ends) < 1


def test_a_useless_scale_does_not_squeeze_the_values(comparison, shown):
    tap = comparison.taps[-1]
    wild = replace(tap, results=[tap.results[0], replace(tap.results[1], scale=1e6)])
    axes = panel(observer_figure(replace(comparison, observers=SIX[:2], taps=[wild]), shown), "histogram")
    assert axes.get_xlim()[1] < 2 * float(shown.values.abs().max())


# --- what the values become ---


def test_lines_are_the_quantized_values(figure, results):
    for name in ("reconstruction", "negative outliers", "positive outliers"):
        for result in results:
            (line,) = lines_of(panel(figure, name), result.observer)
            x = torch.as_tensor(line.get_xdata()).float()
            expected = numerics.dequantize(numerics.quantize(x, result.scale), result.scale)
            assert np.array_equal(line.get_ydata(), expected.numpy())
            assert x.numel() <= POINTS
        (identity,) = lines_of(panel(figure, name), "identity")
        assert np.array_equal(identity.get_xdata(), identity.get_ydata())


def test_lines_go_through_the_extremes_and_leave_no_gap(figure, shown):
    (line,) = lines_of(panel(figure, "reconstruction"), "minmax")
    low, high = (float(v) for v in torch.aminmax(shown.values))
    x = np.asarray(line.get_xdata())
    assert (x[0], x[-1]) == (low, high)
    # The largest outliers are far apart: clamping must still show as a plateau, not as a slope.
    assert np.diff(x).min() >= 0 and np.diff(x).max() < (high - low) / 500
    assert np.isin(x, shown.values.numpy()).sum() > 200  # spread over the range, not by rank


def test_enlarged_panels_hold_all_outliers_and_no_more(figure, comparison, shown):
    threshold = float(torch.quantile(shown.values.abs().flatten(), 0.99))
    drawn = 0
    for name, sign in (("negative outliers", -1), ("positive outliers", 1)):
        axes = panel(figure, name)
        outliers = shown.values[shown.values * sign > threshold]
        drawn += outliers.numel()
        low, high = axes.get_xlim()
        assert low < float(outliers.min()) and float(outliers.max()) < high
        inside = shown.values[(shown.values > low) & (shown.values < high)]
        assert (inside * sign).min() > 0
        bottom, top = axes.get_ylim()
        for label in comparison.observers:  # plateaus are in view
            (line,) = lines_of(axes, label)
            assert bottom < min(line.get_ydata()) and max(line.get_ydata()) < top
        (rug,) = lines_of(axes, "outliers")
        assert sorted(rug.get_xdata()) == sorted(outliers.tolist())
        assert f"{outliers.numel()} values" in axes.get_title(loc="left")
    assert drawn == comparison.taps[-1].outliers == 60


def test_another_threshold_of_the_comparison_is_followed(shown):
    axes = panel(observer_figure(compared([shown], SIX[:2], normal_ratio=0.9), shown), "positive outliers")
    threshold = float(torch.quantile(shown.values.abs().flatten(), 0.9))
    above = shown.values[shown.values > threshold]
    assert axes.get_xlim()[0] < float(above.min()) and f"{above.numel()} values" in axes.get_title(loc="left")


def test_known_outliers_are_the_ones_that_are_enlarged():
    known = synthetic_activations(0)
    figure = observer_figure(compared([known], source="synthetic values", real=False), known)
    for name, sign in (("negative outliers", -1), ("positive outliers", 1)):
        low, high = sorted(abs(limit) for limit in panel(figure, name).get_xlim())
        assert 4 < low < 5.5 and 9.5 < high < 11
        count = int((known.values[known.outliers] * sign > 0).sum())
        assert f"{count} values" in panel(figure, name).get_title(loc="left")


def test_known_outliers_need_not_be_the_largest_values():
    values = heavy_tailed(0, 500)
    shown = TapActivations("x", 0, values, outliers=(values > 1) & (values < 2))
    low, high = panel(observer_figure(compared([shown]), shown), "positive outliers").get_xlim()
    assert 0.9 < low < float(values[shown.outliers].min()) and float(values[shown.outliers].max()) < high < 2.1


def test_a_side_without_outliers_has_no_panel():
    positive = TapActivations("x", 0, heavy_tailed(0, 500).abs())
    names = [axes.get_label() for axes in observer_figure(compared([positive]), positive).axes]
    assert "positive outliers" in names and "negative outliers" not in names


# --- the whole ---


@pytest.mark.parametrize(
    ("taps", "observers"),
    [
        ({tap: 24 for tap in TAPS} | {"head_in": None}, SIX),
        ({tap: 6 for tap in TAPS}, EIGHT),
        ({"head_in": None}, EIGHT),
        ({tap: 64 for tap in TAPS[:3]}, SIX[:2]),
    ],
    ids=["nine taps", "eight observers", "one cell an observer", "64 layers"],
)
def test_nothing_overlaps(taps, observers, tmp_path):
    comparison = invented(taps, observers, lambda layer, index: 1.1 ** (layer - 12 * index % 7))
    first = comparison.taps[0]
    figure = observer_figure(comparison, TapActivations(first.tap, first.layer, heavy_tailed(0, 3, 10)))
    assert rendered(figure, tmp_path / "figure.png").width == 1200
    maps = [axes for axes in figure.axes if axes.get_label().startswith("MSE ")]
    assert len(maps) == len(taps)
    for axes in figure.axes:
        assert axes.bbox.width > 60 and axes.bbox.height > 5
        tight = axes.get_tightbbox()
        assert min(tight.x0, tight.y0) >= -1 and tight.x1 <= figure.bbox.x1 + 1 and tight.y1 <= figure.bbox.y1 + 1
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    (legend,) = [legend for part in figure.subfigs for legend in part.legends]
    boxes.append(legend.get_window_extent())
    for labels in (axes.get_xticklabels() for axes in maps):
        boxes_of_labels = [label.get_window_extent() for label in labels if label.get_text()]
        assert_apart(boxes_of_labels)
    assert_apart(boxes)
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 8


def assert_apart(boxes: list) -> None:
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            width = min(one.x1, other.x1) - max(one.x0, other.x0)
            height = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert width <= 1 or height <= 1, (one, other)


def test_axes_and_colours_say_what_they_measure(figure):
    assert panel(figure, "histogram").get_xlabel() == "activation value (unit of tap x, layer 3)"
    assert panel(figure, "histogram").get_ylabel() == "count"
    for name in ("reconstruction", "negative outliers", "positive outliers"):
        assert panel(figure, name).get_xlabel() == "original value (unit of tap x, layer 3)"
        assert panel(figure, name).get_ylabel() == "reconstructed value (unit of tap x, layer 3)"
    assert panel(figure, "MSE x").get_ylabel() == "layer"
    assert panel(figure, "<colorbar>").get_xlabel() == "MSE / MSE of minmax"
    title = panel(figure, "histogram").get_title(loc="left")
    assert "tap x, layer 3" in title and "6,000 values" in title
    assert "mamba-tiny" in figure.get_suptitle() and "8 bits" in figure.get_suptitle()


def test_every_observer_has_its_own_colour_line_and_marker_in_all_panels(shown):
    figure = observer_figure(compared([shown], EIGHT), shown)
    looks = {}
    for name in ("histogram", "reconstruction", "negative outliers", "positive outliers"):
        for label in EIGHT:
            for line in lines_of(panel(figure, name), label):
                dashes = str(line._unscaled_dash_pattern)  # get_linestyle() says "--" for all of them
                looks.setdefault(label, set()).add((to_hex(line.get_color()).upper(), dashes, line.get_marker()))
    assert list(looks) == EIGHT and all(len(look) == 1 for look in looks.values())
    colours, dashes, markers = zip(*(look.pop() for look in looks.values()), strict=True)
    assert len(set(colours)) == 8 and set(colours) <= set(COLOURS)
    assert len(set(zip(colours, dashes, strict=True))) == 8 and len(set(dashes)) >= 6 and len(set(markers)) == 8


def test_the_legend_names_every_observer_with_its_look_and_clip_points(figure, comparison, results):
    (legend,) = [legend for part in figure.subfigs for legend in part.legends]
    entries = {text.get_text(): handle for text, handle in zip(legend.texts, legend.legend_handles, strict=True)}
    assert len(entries) == len(comparison.observers)
    for result in results:
        (line, _) = lines_of(panel(figure, "histogram"), result.observer)
        points = [f"{limit * result.scale:.3g}" for limit in numerics.integer_range(8)]
        clips = ", ".join(points).replace("-", "\N{MINUS SIGN}")
        entry = f"{result.observer}  [{clips}]"
        assert entries[entry].get_color() == line.get_color() and entries[entry].get_marker() == line.get_marker()


@pytest.mark.parametrize(
    "values",
    [
        torch.full((3, 5), 0.25),
        torch.zeros(3, 5, dtype=torch.bfloat16),
        torch.tensor([-2.0]),
        torch.tensor([3e38, -3e38]),
    ],
    ids=["constant", "zeros", "one value", "huge"],
)
def test_degenerate_values_are_drawn(values, tmp_path):
    shown = TapActivations("x", 0, values)
    figure = observer_figure(compared([shown]), shown)
    assert rendered(figure, tmp_path / "figure.png").width == 1200
    assert panel(figure, "histogram").patches[0].get_data().values.sum() == values.numel()


def test_dollar_signs_are_text(shown, tmp_path):
    figure = observer_figure(compared([shown], source="a_$\\frac{1$_b"), shown)
    rendered(figure, tmp_path / "figure.png")
    assert "a_$\\frac{1$_b" in figure.get_suptitle()


def test_only_what_was_compared_can_be_shown(comparison, shown):
    for other in (replace(shown, layer=7), replace(shown, values=shown.values[:1])):
        with pytest.raises(ValueError, match="none of the taps that were compared"):
            observer_figure(comparison, other)
