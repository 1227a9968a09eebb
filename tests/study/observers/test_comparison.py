"""Every figure of a comparison against its definition, computed here once more in plain numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba.calibration.recording import TapActivations, synthetic_activations
from quamba.errors import QuambaError
from quamba.observers.histogram import SignedHistogram
from quamba.observers.per_tensor import Observer, register_observer
from quamba.study.observers.comparison import (
    NORMAL_RATIO,
    TIE,
    ObserverResult,
    compare_tap,
)
from quamba.study.observers.specs import parse_specs

NAMES = ["minmax", "percentile", "outlier_aware", "outlier_aware_adaptive", "mse"]
ADAPTIVE_RATIOS = (0.95, 0.97, 0.99, 0.995)


def heavy_tailed(seed: int = 0, count: int = 4000, tail: float = 1.0) -> np.ndarray:
    """float32 [count]: a normal value times a log-normal one, the more outliers the larger `tail`."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=count) * np.exp(tail * rng.normal(size=count))).astype(np.float32)


def tap_of(values: np.ndarray, *later: np.ndarray, recorded: bool = True) -> TapActivations:
    """A tap with these values as its first batch, and a histogram of them and of later batches."""
    histogram = SignedHistogram()
    for batch in (values, *later):
        histogram.update(torch.from_numpy(batch))
    return TapActivations("x", 3, torch.from_numpy(values).view(-1, 4), histogram if recorded else None)


def compared(tap: TapActivations, names=NAMES, bits: int = 8, **options) -> dict[str, ObserverResult]:
    """Observer -> result, the baseline min-max among them."""
    results = compare_tap(tap, parse_specs(names, "minmax", bits), bits, **options).results
    return {result.observer: result for result in results}


# --- the definitions, in numpy ---


def limits(bits: int) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def integers_of(x: np.ndarray, scale: float, bits: int) -> np.ndarray:
    return np.clip(np.rint(x / np.float32(scale)), *limits(bits))


def error_of(x: np.ndarray, scale: float, bits: int) -> np.ndarray:
    """|x - dequantize(quantize(x))|, float64."""
    rounded = integers_of(x, scale, bits).astype(np.float32) * np.float32(scale)
    return np.abs(x.astype(np.float64) - rounded)


def mse_of(x: np.ndarray, scale: float, bits: int) -> float:
    return float(np.mean(error_of(x, scale, bits) ** 2))


def decibels(x: np.ndarray, mse: float) -> float:
    return 10 * math.log10(np.mean(x.astype(np.float64) ** 2) / mse)


def scales_of(x: np.ndarray, bits: int) -> dict[str, float]:
    """Observer -> scale; the one of least MSE is not a formula."""
    magnitude, qmax = np.abs(x.astype(np.float64)), limits(bits)[1]
    adaptive = [np.quantile(magnitude, ratio) / ratio / qmax for ratio in ADAPTIVE_RATIOS]
    return {
        "minmax": magnitude.max() / qmax,
        "percentile": np.quantile(magnitude, 0.99999) / qmax,
        "outlier_aware": np.quantile(magnitude, 0.99) / (qmax * 120 / 127),
        "outlier_aware_adaptive": min(adaptive, key=lambda scale: mse_of(x, scale, bits)),
    }


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_scale_of_every_observer(seed, bits):
    x = heavy_tailed(seed)
    found = compared(tap_of(x), bits=bits)
    for name, scale in scales_of(x, bits).items():
        assert found[name].scale == pytest.approx(scale, rel=1e-3), name
    grid = found["minmax"].scale * 2.0 ** -np.linspace(0, 8, 300)
    assert found["mse"].mse <= 1.002 * min(mse_of(x, scale, bits) for scale in grid)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_as_defined(name, bits):
    x = heavy_tailed()
    found = compared(tap_of(x), bits=bits)
    result, baseline = found[name], found["minmax"]
    error, (qmin, qmax) = error_of(x, result.scale, bits), limits(bits)
    outlier = np.abs(x) > np.quantile(np.abs(x), 0.99)
    mse = float(np.mean(error**2))
    assert result.mse == pytest.approx(mse, rel=1e-5)
    assert result.sqnr_db == pytest.approx(decibels(x, mse), abs=1e-4)
    ratio = x.astype(np.float64) / result.scale
    assert result.saturated_share == np.mean((ratio > qmax + 0.5) | (ratio < qmin - 0.5))
    assert result.outlier_levels == len(np.unique(integers_of(x, result.scale, bits)[outlier]))
    assert result.normal_error == pytest.approx(error[~outlier].mean(), rel=1e-5)
    assert result.outlier_error == pytest.approx(error[outlier].mean(), rel=1e-5)
    assert result.relative_mse == pytest.approx(mse / mse_of(x, baseline.scale, bits), rel=1e-5)


def test_a_small_example_by_hand():
    """Scale 10 / 127 for both signs; 10 and -10 are kept, 3.0 = 38.1 steps gives 38."""
    x = np.array([0, 0.5, -0.5, 3, 10, -10, 1, -1], dtype=np.float32)
    tap = compare_tap(tap_of(x), parse_specs(["outlier_aware:normal_ratio=0.5"], "minmax", 8), 8, normal_ratio=0.7)
    minmax, clipped = tap.results
    assert (tap.values, tap.outliers) == (8, 3)  # 0.7-quantile of |x|: 2.8; beyond it 3, 10, -10
    step = 10 / 127
    assert minmax.scale == pytest.approx(step)
    assert minmax.saturated_share == 0
    assert minmax.outlier_levels == 3
    assert minmax.outlier_error == pytest.approx(abs(3 - 38 * step) / 3, rel=1e-4)
    step = 1 / 120  # the median of |x| is 1
    assert clipped.scale == pytest.approx(step, rel=1e-3)
    assert clipped.saturated_share == 3 / 8
    assert clipped.outlier_levels == 2  # 127 and -128
    lost = [3 - 127 * step, 10 - 127 * step, 10 - 128 * step]
    assert clipped.outlier_error == pytest.approx(sum(lost) / 3, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_values_of_any_dtype_are_read_as_float32(dtype):
    values = torch.from_numpy(heavy_tailed()).to(dtype)
    narrow, wide = (compared(TapActivations("x", 0, v)) for v in (values, values.float()))
    for name, result in wide.items():
        assert narrow[name].scale == pytest.approx(result.scale, rel=1e-6), name
        assert narrow[name].mse == pytest.approx(result.mse, rel=1e-5), name


# --- outliers ---


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.999])
def test_outliers_are_what_lies_beyond_the_normal_ratio(ratio):
    x = heavy_tailed()
    tap = compare_tap(tap_of(x), parse_specs(["mse"], "minmax", 8), 8, normal_ratio=ratio)
    assert tap.outliers == int((np.abs(x) > np.quantile(np.abs(x), ratio)).sum())
    assert tap.values == x.size


def test_outliers_that_are_known_are_taken_as_they_are():
    activations = synthetic_activations(0)
    tap = compare_tap(activations, parse_specs(["outlier_aware"], "minmax", 8), 8, normal_ratio=0.5)
    assert (tap.values, tap.outliers) == (10_100, 100)
    outliers = activations.values[activations.outliers].numpy()
    for result in tap.results:
        assert result.outlier_error == pytest.approx(error_of(outliers, result.scale, 8).mean(), rel=1e-5)


def test_the_normal_ratio_has_a_default():
    x = heavy_tailed()
    assert compared(tap_of(x)) == compared(tap_of(x), normal_ratio=NORMAL_RATIO)
    assert compared(tap_of(x)) != compared(tap_of(x), normal_ratio=0.9)


# --- what calibration saw beside the first batch ---


@pytest.mark.parametrize("bits", [8, 4])
def test_the_calibration_sqnr_is_that_of_all_batches(bits):
    first, later = heavy_tailed(0), 3 * heavy_tailed(1)
    for name, result in compared(tap_of(first, later), bits=bits).items():
        everything = np.concatenate([first, later])
        mse = mse_of(everything, result.scale, bits)
        assert result.calibration_sqnr_db == pytest.approx(decibels(everything, mse), abs=0.01), name
        assert abs(result.calibration_sqnr_db - result.sqnr_db) > 0.1, name


def test_without_a_histogram_there_is_no_calibration_sqnr():
    found = compared(tap_of(heavy_tailed(), recorded=False))
    assert all(result.calibration_sqnr_db is None for result in found.values())
    assert all(result.sqnr_db is not None for result in found.values())


# --- whatever the values are ---

VALUES = st.lists(
    st.floats(-1000, 1000, width=32, allow_subnormal=False).map(lambda v: 0.0 if abs(v) < 1e-3 else v),
    min_size=1,
    max_size=40,
)


@given(VALUES, st.sampled_from([2, 4, 8]))
@settings(max_examples=60, deadline=None)
def test_any_values_give_figures_that_make_sense(values, bits):
    results = compared(TapActivations("x", 0, torch.tensor(values)), bits=bits)
    assert results["minmax"].relative_mse == 1
    assert results["minmax"].saturated_share == 0
    for result in results.values():
        assert 0 < result.scale < math.inf
        assert 0 <= result.saturated_share <= 1
        assert 0 <= result.outlier_levels <= 2**bits
        assert min(result.mse, result.normal_error, result.outlier_error, result.relative_mse) >= 0
        assert not any(math.isnan(v) for v in vars(result).values() if isinstance(v, float))
        assert (result.sqnr_db is None) == (result.mse == 0 or not any(values))


@given(st.integers(0, 2**20), st.floats(0, 2), st.integers(20, 3000), st.sampled_from([4, 8]))
@settings(max_examples=25, deadline=None)
def test_the_mse_observer_is_beaten_by_none(seed, tail, count, bits):
    tap = TapActivations("x", 0, torch.from_numpy(heavy_tailed(seed, count, tail)))
    results = compared(tap, bits=bits)
    assert results["mse"].mse <= (1 + TIE) * min(result.mse for result in results.values())


@pytest.mark.parametrize("value", [0.0, 3.3, -3.3, 1e-20, 1e20])
def test_a_constant_is_kept_by_whoever_covers_it(value):
    found = compared(TapActivations("x", 0, torch.full((200,), value)))
    for name in ("minmax", "percentile", "mse"):
        assert found[name].saturated_share == 0
        assert found[name].normal_error == pytest.approx(0, abs=1e-2 * abs(value) + 1e-19)
    assert all(result.outlier_levels == 0 and result.outlier_error == 0 for result in found.values())


def test_zeros_lose_nothing_whatever_the_scale():
    tap = compare_tap(tap_of(np.zeros(40, dtype=np.float32)), parse_specs(NAMES, "minmax", 8), 8)
    assert tap.outliers == 0
    assert tap.winners() == NAMES
    for result in tap.results:
        assert (result.mse, result.relative_mse, result.saturated_share) == (0, 1, 0)
        assert result.sqnr_db is None and result.calibration_sqnr_db is None


def test_an_observer_that_loses_something_where_the_baseline_loses_nothing_is_infinitely_worse():
    x = torch.tensor([127.0, 64.0, 1.0, -3.0])  # integers: min-max has scale 1
    found = compared(TapActivations("x", 0, x), ["mse:clip_ratio=0.5"])
    assert found["minmax"].mse == 0
    assert found["mse:clip_ratio=0.5"].relative_mse == math.inf


# --- observers that fail ---


def register(name: str, parameters, update=lambda self, x: None) -> None:
    """An observer of that name with these `_parameters` and `_update`."""
    methods = {"_update": update, "_merge": update, "_parameters": parameters}
    register_observer(name)(type(name, (Observer,), methods))


@pytest.mark.parametrize(
    ("scale", "told"),
    [([1.0, 2.0], "[1.0, 2.0]"), (0.0, "0.0"), (-1.0, "-1.0"), (math.nan, "nan"), (math.inf, "inf"), ([], "[]")],
    ids=str,
)
def test_an_observer_without_one_positive_scale_is_told_with_its_tap(scale, told):
    register("odd", lambda self: (torch.tensor(scale), torch.tensor(0.0)))
    with pytest.raises(QuambaError) as error:
        compared(tap_of(heavy_tailed()), ["odd"])
    assert str(error.value) == f"tap layers.3.x: observer 'odd' gave {told}: a tap takes one"


def test_one_scale_in_a_list_is_one_scale():
    register("listed", lambda self: (torch.tensor([0.5]), torch.tensor([0.0])))
    assert compared(tap_of(heavy_tailed()), ["listed"])["listed"].scale == 0.5


def test_an_observer_that_fails_is_told_with_its_tap():
    def refuse(self, x):
        raise QuambaError("this observer wants more values")

    def divide(self):
        return 1 / 0

    register("refusing", lambda self: None, refuse)
    register("dividing", divide)
    with pytest.raises(QuambaError, match=r"^tap layers\.3\.x: this observer wants more values$"):
        compared(tap_of(heavy_tailed()), ["refusing"])
    with pytest.raises(QuambaError, match=r"^tap layers\.3\.x: observer 'dividing' failed: ZeroDivisionError: "):
        compared(tap_of(heavy_tailed()), ["dividing"])


def test_a_value_that_is_no_number_is_told_with_its_tap():
    with pytest.raises(QuambaError, match=r"^tap synthetic: .* NaN or infinity"):
        compared(TapActivations("synthetic", None, torch.tensor([1.0, math.nan])))
