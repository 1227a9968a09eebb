"""The streaming histogram: counts, quantiles and quantization errors of a stream, against the data itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba import numerics
from quamba.observers.histogram import MagnitudeHistogram, SignedHistogram

PS = [0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stream(seed: int = 0, n: int = 20_000) -> list[torch.Tensor]:
    """Batches of ever other magnitude, so that the covered octaves grow both ways."""
    sizes = (1.0, 1e-6, 300.0, 1e-12, 1e4)
    return [torch.randn(n, generator=generator(seed + i)) * size for i, size in enumerate(sizes)]


# --- quantiles ---


def test_quantiles_of_a_stream_within_a_thousandth():
    batches = stream()
    histogram, signed = MagnitudeHistogram(), SignedHistogram()
    for batch in batches:
        histogram.update(batch)
        signed.update(batch)
    everything = torch.cat(batches).double()
    for p in PS:
        magnitude = float(torch.quantile(everything.abs(), p))
        assert histogram.distribution().quantile(p) == pytest.approx(magnitude, rel=1e-3)
        assert signed.magnitudes().quantile(p) == pytest.approx(magnitude, rel=1e-3)
        assert signed.distribution().quantile(p) == pytest.approx(float(torch.quantile(everything, p)), rel=1e-3)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_any_quantile_of_any_floats(values, p):
    x = torch.tensor(values)
    histogram = MagnitudeHistogram()
    for part in x.split(7):
        histogram.update(part)
    magnitudes = torch.where(x.abs() < 2.0**-126, 0, x.abs()).double()  # denormals count as zero
    assert histogram.distribution().quantile(p) == pytest.approx(float(torch.quantile(magnitudes, p)), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quantiles_of_half_precision_values_are_exact(dtype):
    x = torch.randn(50_000, generator=generator()).to(dtype)
    histogram = MagnitudeHistogram()
    histogram.update(x)
    for p in PS:
        expected = float(torch.quantile(x.double().abs(), p))
        assert histogram.distribution().quantile(p) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 3.3, -3.3, 1e-30, 3e38])
def test_constants_are_exact(value):
    histogram = SignedHistogram()
    histogram.update(torch.full((1000,), value))
    expected = pytest.approx(float(torch.tensor(value)), rel=1e-12)
    assert [histogram.distribution().quantile(p) for p in (0.0, 0.37, 1.0)] == [expected] * 3


def test_zeros_are_counted():
    histogram = MagnitudeHistogram()
    histogram.update(torch.tensor([0.0, -0.0, 0.0, 2.0, -4.0]))
    distribution = histogram.distribution()
    assert distribution.zeros == 3
    assert [distribution.order_statistic(rank) for rank in range(5)] == [0, 0, 0, 2, 4]


# --- bounded memory ---


def test_the_covered_octaves_grow_on_demand_and_no_further():
    histogram = MagnitudeHistogram()
    assert histogram.octaves == 0
    histogram.update(torch.tensor([1.0, 1.5]))
    assert histogram.octaves == 1
    histogram.update(torch.tensor([0.3, 9.0, 0.0]))  # 2^-2 .. 2^3
    assert histogram.octaves == 6
    histogram.update(torch.tensor([0.26, 1.0]))
    assert histogram.octaves == 6
    histogram.update(torch.tensor([1e-45, 1e-38, 3e38]))  # all that float32 has
    assert histogram.octaves <= 254
    assert histogram.counts.numel() * 16 < 9e6
    assert int(histogram.counts.sum()) == 10


# --- merge ---


@given(st.integers(0, 10_000), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_merge_equals_one_pass(seed, split):
    batches = stream(seed, 500)
    for kind in (MagnitudeHistogram, SignedHistogram):
        one_pass, left, right = kind(), kind(), kind()
        for i, batch in enumerate(batches):
            one_pass.update(batch)
            (left if i < split else right).update(batch)
        left.merge(right)
        sides = ["positive", "negative"] if kind is SignedHistogram else [None]
        for side in sides:
            mine, expected = (getattr(h, side) if side else h for h in (left, one_pass))
            assert torch.equal(mine.counts, expected.counts)
            assert (mine.octave, mine.peak) == (expected.octave, expected.peak)
            torch.testing.assert_close(mine.sums, expected.sums, rtol=1e-12, atol=0)


# --- tails and errors ---


def test_above_counts_and_sums_the_tail():
    x = torch.randn(100_000, generator=generator())
    histogram = MagnitudeHistogram()
    histogram.update(x)
    thresholds = torch.tensor([1e-9, 0.1, 1.0, 2.5, 4.0, 9.0], dtype=torch.float64)
    counts, sums = histogram.distribution().above(thresholds)
    tails = [x.abs()[x.abs() > t].double() for t in thresholds]
    torch.testing.assert_close(counts, torch.tensor([t.numel() for t in tails]).double(), rtol=1e-4, atol=0.5)
    torch.testing.assert_close(sums, torch.stack([t.sum() for t in tails]), rtol=1e-4, atol=2.0)


def true_error(x, scale, zero, bits) -> torch.Tensor:
    rounded = numerics.dequantize(numerics.quantize(x, scale, zero, bits), scale, zero)
    return (rounded.double() - x.double()).square().mean()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_error_of_symmetric_formats(bits, dtype):
    x = (torch.randn(50_000, generator=generator()) + 0.3).to(dtype)
    histogram = SignedHistogram()
    histogram.update(x)
    qmin, qmax = numerics.integer_range(bits)
    scales = torch.tensor([9.0, 4.0, 2.5, 1.0, 0.1]) / qmax  # from wide to clipping nearly all
    errors = histogram.distribution().mean_squared_error(scales, qmax, -qmin)
    torch.testing.assert_close(errors, torch.stack([true_error(x, s, None, bits) for s in scales]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("bits", [4, 8])
def test_error_of_asymmetric_formats(bits):
    x = torch.randn(50_000, generator=generator()) + 1.0
    histogram = SignedHistogram()
    histogram.update(x)
    low, high = torch.tensor([-4.0, -1.0, 0.0]), torch.tensor([5.0, 3.0, 2.0])
    scale, zero = numerics.asymmetric_parameters(low, high, bits)
    errors = histogram.distribution().mean_squared_error(scale, numerics.integer_range(bits, False)[1] - zero, zero)
    expected = torch.stack([true_error(x, s, z, bits) for s, z in zip(scale, zero, strict=True)])
    torch.testing.assert_close(errors, expected, rtol=1e-3, atol=0)


@given(
    st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=1, max_size=30, unique=True),
    st.floats(0.01, 2.0),
)
@settings(max_examples=150, deadline=None)
def test_error_of_any_scale(values, scale):
    x, scale = torch.tensor(values), torch.tensor(scale)
    histogram = SignedHistogram()
    histogram.update(x)
    error = histogram.distribution().mean_squared_error(scale[None], 127, 128)
    expected = true_error(x, scale, None, 8)
    # Several values may share a bin that a cell boundary cuts: each is off by at most 2 * scale * the bin's width.
    bound = 2 * float(scale) * float(x.abs().max()) * 2.0**-11
    assert float(error) == pytest.approx(float(expected), rel=1e-3, abs=bound)
