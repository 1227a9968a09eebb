"""The per-tensor observers, as a specification: each against plain torch on the concatenated data."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba import numerics
from quamba.errors import QuambaError
from quamba.observers.per_tensor import (
    Observer,
    PerChannelMinmaxObserver,
    PerTensorMinmaxObserver,
    PerTensorMSEObserver,
    PerTensorOutlierAwareAdaptiveObserver,
    PerTensorOutlierAwareObserver,
    PerTensorPercentileObserver,
    create_observer,
)
from tests.activation_streams import batches, watch

NAMES = ["minmax", "percentile", "outlier_aware", "outlier_aware_adaptive", "mse"]
SYMMETRIC_ONLY = ["outlier_aware", "outlier_aware_adaptive"]
QMAX = {8: 127, 4: 7}


@pytest.fixture(autouse=True)
def same_values_every_time():
    torch.manual_seed(0)


def scale_of(observer: Observer, stream: list[torch.Tensor]) -> float:
    scale, base = watch(observer, stream).get_quantization_parameters()
    assert scale.dtype == base.dtype == torch.float32
    assert scale.shape == base.shape
    if observer.sym:
        assert torch.count_nonzero(base) == 0
    return float(scale)


def mean_squared_error(observer: Observer, x: torch.Tensor) -> float:
    scale, base = observer.get_quantization_parameters()
    zero = None if observer.sym else base
    rounded = numerics.dequantize(numerics.quantize(x, scale, zero, observer.n_bits), scale, zero)
    return float((rounded.double() - x.double()).square().mean())


# --- minmax ---


@pytest.mark.parametrize("n_bits", [4, 8])
def test_minmax_is_the_largest_magnitude_of_all_the_data(n_bits):
    stream = batches()
    amax = torch.cat(stream).abs().max()
    assert scale_of(PerTensorMinmaxObserver(n_bits), stream) == float(amax / QMAX[n_bits])


@pytest.mark.parametrize("n_bits", [4, 8])
def test_asymmetric_minmax_covers_the_range_and_zero(n_bits):
    for shift in (0.0, 40.0, -40.0):
        stream = [x.clamp(-20, 20) + shift for x in batches()]
        everything = torch.cat(stream)
        observer = watch(PerTensorMinmaxObserver(n_bits, sym=False), stream)
        scale, base = observer.get_quantization_parameters()
        low, high = everything.min().clamp(max=0), everything.max().clamp(min=0)
        assert float(scale) == pytest.approx(float(high - low) / (2**n_bits - 1), rel=1e-6)
        assert float(base) == pytest.approx(float(-low / scale), abs=0.5 + 1e-4)
        assert float(base) == int(base)


def test_clip_ratio_is_a_factor_on_the_range():
    stream = batches()
    for name in NAMES:
        whole, clipped = (scale_of(create_observer(name, clip_ratio=ratio), stream) for ratio in (1.0, 0.8))
        assert clipped == pytest.approx(0.8 * whole, rel=1e-6)


@pytest.mark.parametrize("channel_dim", [-1, 1, 0])
@pytest.mark.parametrize("sym", [True, False])
def test_per_channel_minmax(channel_dim, sym):
    stream = [torch.randn(5, 7, 6) * torch.rand(6) for _ in range(3)]
    channel_wise = torch.stack(stream).movedim(channel_dim % 3 + 1, 0).flatten(1)  # [channels, values]
    scale, base = watch(PerChannelMinmaxObserver(8, 1.0, sym, channel_dim), stream).get_quantization_parameters()
    if sym:
        expected = channel_wise.abs().amax(1) / 127, torch.zeros(len(channel_wise))
    else:
        expected = numerics.asymmetric_parameters(channel_wise.amin(1), channel_wise.amax(1), 8)
    torch.testing.assert_close((scale, base), expected)


def test_per_channel_minmax_merges_and_checks_its_channels():
    left, right, one_pass = (PerChannelMinmaxObserver() for _ in range(3))
    x, y = torch.randn(2, 9, 6)
    left.update(x)
    right.update(y)
    left.merge(right)
    watch(one_pass, [x, y])
    assert torch.equal(left.get_quantization_parameters()[0], one_pass.get_quantization_parameters()[0])
    with pytest.raises(QuambaError, match="got 5 channels after 6"):
        left.update(torch.randn(4, 5))
    with pytest.raises(QuambaError, match=r"x of shape \(4,\) has no dimension 2"):
        PerChannelMinmaxObserver(channel_dim=2).update(torch.randn(4))


# --- percentile: exponential moving average ---


def test_the_first_percentile_initialises_the_average_and_the_next_move_it_by_sigma():
    observer = PerTensorPercentileObserver(percentile_sigma=0.25, percentile_alpha=1.0)
    for peak, average in [(8.0, 8.0), (16.0, 10.0), (2.0, 8.0)]:
        observer.update(torch.tensor([peak, -1.0, 0.0]))
        assert float(observer.get_quantization_parameters()[0]) == pytest.approx(average / 127, rel=1e-6)


@pytest.mark.parametrize("n_bits", [4, 8])
@pytest.mark.parametrize("alpha", [0.9, 0.99, 0.99999])
def test_percentile_is_the_moving_average_of_torch_quantile(n_bits, alpha):
    stream = batches()
    average = torch.quantile(stream[0].abs().flatten().double(), alpha)
    for x in stream[1:]:
        average += 0.01 * (torch.quantile(x.abs().flatten().double(), alpha) - average)
    scale = scale_of(PerTensorPercentileObserver(n_bits, percentile_alpha=alpha), stream)
    assert scale == pytest.approx(float(average) / QMAX[n_bits], rel=1e-6)


def test_asymmetric_percentile_averages_both_ends():
    stream, alpha = batches(), 0.99
    low, high = (torch.quantile(stream[0].flatten().double(), p) for p in (1 - alpha, alpha))
    for x in stream[1:]:
        low += 0.1 * (torch.quantile(x.flatten().double(), 1 - alpha) - low)
        high += 0.1 * (torch.quantile(x.flatten().double(), alpha) - high)
    observer = PerTensorPercentileObserver(8, 1.0, False, percentile_sigma=0.1, percentile_alpha=alpha)
    expected = numerics.asymmetric_parameters(low, high, 8)
    torch.testing.assert_close(watch(observer, stream).get_quantization_parameters(), expected)


def test_the_defaults_of_the_quamba_family():
    settings_ = PerTensorPercentileObserver().settings()
    assert (settings_["percentile_sigma"], settings_["percentile_alpha"]) == (0.01, 0.99999)
    assert (settings_["use_outlier_aware"], settings_["normal_ratio"]) == (False, 0.99)


# --- outlier-aware ---


def test_outlier_aware_worked_example():
    """99 % of the values lie in [-5, 5]: 5 maps to 120, seven levels (121..127) remain above, the rest saturates."""
    normal = torch.linspace(-5, 5, 9901)
    outliers = torch.linspace(5.3, 60, 99) * torch.tensor([1, -1, 1]).repeat(33)
    observer = PerTensorPercentileObserver(use_outlier_aware=True)
    observer.update(torch.cat([normal, outliers]))
    scale, base = observer.get_quantization_parameters()
    assert float(scale) == pytest.approx(5 / 120, rel=1e-3)
    assert float(base) == 0

    exact = torch.tensor(5 / 120)
    values = torch.tensor([2.0, 4.5, 5.0, -5.0])
    assert numerics.quantize(values, exact).tolist() == [48, 108, 120, -120]
    just_above = 5 + torch.arange(1, 8) * exact
    assert numerics.quantize(just_above, exact).tolist() == [121, 122, 123, 124, 125, 126, 127]
    beyond = torch.tensor([5.4, 6.0, 60.0, -5.4, -60.0])  # 127 * scale = 5.29
    assert numerics.quantize(beyond, exact).tolist() == [127, 127, 127, -128, -128]


@pytest.mark.parametrize("n_bits", [4, 8])
def test_outlier_aware_is_the_99th_percentile_of_everything(n_bits):
    stream = batches()
    q99 = float(torch.quantile(torch.cat(stream).abs().flatten().double(), 0.99))
    level = {8: 120, 4: 7 * 120 / 127}[n_bits]
    for observer in (
        PerTensorPercentileObserver(n_bits, use_outlier_aware=True),
        PerTensorOutlierAwareObserver(n_bits),
        create_observer("outlier_aware", n_bits=n_bits),
    ):
        assert scale_of(observer, stream) == pytest.approx(q99 / level, rel=1e-3)


def test_the_normal_ratio_and_level_can_be_chosen():
    stream = batches()
    q95 = float(torch.quantile(torch.cat(stream).abs().flatten().double(), 0.95))
    assert scale_of(PerTensorOutlierAwareObserver(normal_ratio=0.95, normal_level=100), stream) == pytest.approx(
        q95 / 100, rel=1e-3
    )


def test_adaptive_takes_the_normal_ratio_of_least_error():
    for stream in (batches(), [torch.rand(5000)], [torch.randn(5000)], [torch.randn(5000) ** 5]):
        everything = torch.cat([x.flatten() for x in stream])
        candidates = {}
        for ratio in (0.95, 0.97, 0.99, 0.995):
            scale = torch.quantile(everything.abs().double(), ratio).float() / (127 * ratio)
            rounded = numerics.dequantize(numerics.quantize(everything, scale), scale)
            candidates[float(scale)] = float((rounded - everything).square().mean())
        best = min(candidates, key=candidates.get)
        assert scale_of(PerTensorOutlierAwareAdaptiveObserver(), stream) == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("name", SYMMETRIC_ONLY)
def test_outlier_aware_is_symmetric_only(name):
    with pytest.raises(QuambaError, match=f"'{name}'.*sym=False is not supported"):
        create_observer(name, sym=False)


def test_a_percentile_of_zero_falls_back_to_the_extremes(caplog):
    x = torch.zeros(1000)
    x[:3] = torch.tensor([6.0, -2.0, 1.0])  # 99.7 % zeros: their 99th percentile says nothing about the range
    for observer in (
        PerTensorPercentileObserver(percentile_alpha=0.9),
        PerTensorOutlierAwareObserver(),
        PerTensorOutlierAwareAdaptiveObserver(),
    ):
        caplog.clear()
        assert scale_of(observer, [x]) == pytest.approx(6 / 127)
        assert "nearly all values are 0" in caplog.text


@pytest.mark.parametrize("value", [0.0, -0.1, 1.5, float("nan")])
def test_ratios_out_of_range(value):
    for name, argument in [
        ("percentile", "percentile_alpha"),
        ("percentile", "percentile_sigma"),
        ("outlier_aware", "normal_ratio"),
        ("mse", "percentile_alpha"),
    ]:
        with pytest.raises(QuambaError, match=rf"{argument} must be in \(0, 1\]"):
            create_observer(name, **{argument: value})
    with pytest.raises(QuambaError, match="normal_ratios"):
        PerTensorOutlierAwareAdaptiveObserver(normal_ratios=[0.9, value])
    with pytest.raises(QuambaError, match="normal_ratios is empty"):
        PerTensorOutlierAwareAdaptiveObserver(normal_ratios=[])
    with pytest.raises(QuambaError, match=r"normal_level must be in \(0, 127\]"):
        PerTensorOutlierAwareObserver(normal_level=128)


# --- mse ---


@st.composite
def streams(draw) -> list[torch.Tensor]:
    """Batches of one of many distributions: skewed, heavy-tailed, sparse, discrete, in half precision."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    size, count = draw(st.sampled_from([3, 50, 1000, 20_000])), draw(st.integers(1, 3))
    shape = {
        "normal": torch.randn,
        "heavy tails": lambda n: torch.randn(n) * torch.exp(2 * torch.randn(n)),
        "outliers": lambda n: torch.randn(n) * torch.where(torch.rand(n) < 1e-3, 50.0, 1.0),
        "positive": torch.rand,
        "negative": lambda n: -torch.rand(n),
        "silu": lambda n: torch.nn.functional.silu(3 * torch.randn(n)),
        "sparse": lambda n: torch.randn(n) * (torch.rand(n) < 0.02),
        "discrete": lambda n: torch.randint(-9, 10, (n,)) * 0.37,
        "far from zero": lambda n: 3 + 0.01 * torch.randn(n),
        "bfloat16": lambda n: torch.randn(n).bfloat16(),
    }[draw(st.sampled_from(["normal", "heavy tails", "outliers", "positive", "negative", "silu", "sparse", "discrete",
                            "far from zero", "bfloat16"]))]  # fmt: skip
    size_of_values = draw(st.sampled_from([1.0, 1e-4, 1e4]))
    return [shape(size) * size_of_values for _ in range(count)]


@given(streams(), st.sampled_from([4, 8]), st.booleans())
@settings(max_examples=120, deadline=None)
def test_mse_is_within_a_thousandth_of_the_best_of_the_others(stream, n_bits, sym):
    everything = torch.cat(stream)
    errors = {
        name: mean_squared_error(watch(create_observer(name, n_bits=n_bits, sym=sym), stream), everything)
        for name in NAMES
        if sym or name not in SYMMETRIC_ONLY
    }
    rounding_of_float32 = 1e-13 * float(everything.double().square().mean())
    assert errors.pop("mse") <= 1.001 * min(errors.values()) + rounding_of_float32


@pytest.mark.parametrize(("n_bits", "step"), [(4, 0.3352), (8, 0.0308)])
def test_mse_finds_the_optimal_step_of_a_normal_distribution(n_bits, step):
    """The steps in units of sigma that J. Max (1960) gives for 16 levels, and Jayant and Noll for 256."""
    assert scale_of(PerTensorMSEObserver(n_bits), [torch.randn(500_000)]) == pytest.approx(step, rel=0.03)
