"""The numerics, and that the kernels spell them the same (csrc/common/quantize.h)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba import numerics, ops

FINITE = st.floats(-(2.0**99), 2.0**99, width=32)
SPECIAL = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 128.0, -128.5, -129.0, 1e-45, -1e-45, 1e38, -1e38]


def test_integer_ranges():
    assert numerics.integer_range(8) == (-128, 127)
    assert numerics.integer_range(4) == (-8, 7)
    assert numerics.integer_range(4, symmetric=False) == (0, 15)


def test_halves_round_to_even_and_the_ends_saturate():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 127.4, 200.0, -128.4, -200.0])
    assert numerics.quantize(x, 1.0).tolist() == [0, 2, 2, 0, -2, 127, 127, -128, -128]


def test_nan_is_zero_and_infinities_saturate():
    x = torch.tensor([math.nan, math.inf, -math.inf])
    assert numerics.quantize(x, 0.1).tolist() == [0, 127, -128]
    assert numerics.quantize(x, 0.1, zero=5.0, bits=4).tolist() == [5, 15, 0]


def test_an_all_zero_tensor_has_a_positive_scale():
    scale = numerics.symmetric_scale(torch.zeros(()))
    assert scale > 0
    assert numerics.quantize(torch.zeros(3), scale).tolist() == [0, 0, 0]


def test_outlier_aware_level_is_120_of_127():
    assert numerics.outlier_aware_level(8) == pytest.approx(120)
    assert numerics.outlier_aware_level(4) == pytest.approx(7 * 120 / 127)


def test_an_asymmetric_range_always_includes_zero():
    scale, zero = numerics.asymmetric_parameters(torch.tensor(2.0), torch.tensor(6.0), bits=4)
    assert (scale.item(), zero.item()) == (pytest.approx(6 / 15), 0)
    scale, zero = numerics.asymmetric_parameters(torch.tensor(-6.0), torch.tensor(-2.0), bits=4)
    assert (scale.item(), zero.item()) == (pytest.approx(6 / 15), 15)


def test_per_channel_scale_is_amax_over_127():
    weight = torch.tensor([[1.0, -254.0], [0.5, 0.25]])
    assert numerics.per_channel_scale(weight).tolist() == [2.0, pytest.approx(0.5 / 127)]


@given(st.lists(FINITE, min_size=1, max_size=40), st.integers(2, 8))
def test_quantization_error_is_at_most_half_a_step_within_the_range(values, bits):
    x = torch.tensor(values)
    scale = numerics.symmetric_scale(x.abs().max(), bits)
    error = (numerics.dequantize(numerics.quantize(x, scale, bits=bits), scale) - x).abs()
    assert (error <= scale * 0.5001).all()


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=40), st.floats(2.0**-20, 2.0**20, width=32))
def test_representable_values_survive_a_round_trip(integers, scale):
    q = torch.tensor(integers, dtype=torch.int8)
    assert torch.equal(numerics.quantize(numerics.dequantize(q, scale), scale), q)


@pytest.mark.parametrize("capability", torch.ops.quamba.cpu_capabilities())
@settings(max_examples=200)
@given(
    st.lists(st.floats(width=32) | st.sampled_from(SPECIAL), min_size=1, max_size=40),
    st.floats(2.0**-26, 2.0**26, width=32),
)
def test_the_kernels_quantize_as_numerics_does(capability, values, scale):
    x, scale = torch.tensor(values), torch.tensor(scale)
    with ops.force_cpu_capability(capability):
        assert torch.equal(ops.quantize(x, scale), numerics.quantize(x, scale))


@pytest.mark.parametrize("capability", torch.ops.quamba.cpu_capabilities())
def test_the_kernels_round_ties_saturate_and_take_nan_as_numerics_does(capability):
    x = torch.tensor([*SPECIAL, *[i + 0.5 for i in range(-130, 130)], math.nan, math.inf, -math.inf])
    with ops.force_cpu_capability(capability):
        for scale in (1.0, 0.5, 2.0):
            scale = torch.tensor(scale)
            assert torch.equal(ops.quantize(x * scale, scale), numerics.quantize(x * scale, scale))
