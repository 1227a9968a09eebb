"""The numerics, and that the kernels spell them the same (csrc/common/quantize.h)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba import numerics, ops
from quamba.errors import QuambaError

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


@pytest.mark.parametrize("capability", torch.ops.quamba.cpu_capabilities())
def test_the_kernels_give_a_row_of_zeros_the_same_scale(capability):
    """The smallest amplitude that a scale stands for: AMAX_EPS here, kAmaxEps there."""
    rows = torch.tensor([[0.0], [numerics.AMAX_EPS / 2], [numerics.AMAX_EPS * 2]])
    with ops.force_cpu_capability(capability):
        _, scale = ops.quantize_per_token(rows)
    assert torch.equal(scale, numerics.symmetric_scale(rows[:, 0]))
    assert scale[0] == scale[1] < scale[2]


@st.composite
def _representable_groups(draw):
    """Integers [O, I] that use both ends of every group's range, and the scale and zero point of each group."""
    group_size, rows, columns = draw(st.sampled_from([2, 5, 32])), draw(st.integers(1, 3)), draw(st.integers(1, 40))
    groups = -(-columns // group_size)
    each = st.lists(st.integers(0, 15), min_size=rows * columns, max_size=rows * columns)
    q = torch.tensor(draw(each), dtype=torch.uint8).view(rows, columns)
    exponents = draw(st.lists(st.integers(-10, 10), min_size=rows * groups, max_size=rows * groups))
    scale = (torch.tensor(exponents).float().exp2() * draw(st.sampled_from([1.0, 1.25, 1.9]))).half().view(rows, groups)
    zeros = st.lists(st.integers(0, 15), min_size=rows * groups, max_size=rows * groups)
    zero = torch.tensor(draw(zeros), dtype=torch.uint8).view(rows, groups)
    return q, scale, zero, group_size


@given(_representable_groups())
def test_representable_group_wise_weights_survive_a_round_trip(case):
    q, scale, zero, group_size = case
    weight = numerics.dequantize_groups(q, scale, zero, group_size)
    assert torch.equal(numerics.quantize_groups(weight, scale, zero, group_size), q)


def test_parameters_of_representable_groups_are_found():
    """A weight that reaches both ends of each of its groups' ranges comes back with their scales and zeros."""
    q = torch.arange(48).remainder(16).to(torch.uint8).view(1, 48)
    scale, zero = torch.tensor([[0.5, 0.017]]).half(), torch.tensor([[3, 12]], dtype=torch.uint8)
    weight = numerics.dequantize_groups(q, scale, zero, 32)
    found = numerics.group_parameters(weight, 32)
    assert [t.dtype for t in found] == [torch.float16, torch.uint8]
    assert torch.equal(found[0], scale)
    assert torch.equal(found[1], zero)


def test_a_groups_range_includes_zero():
    weight = torch.tensor([[4.0, 7.5, 5.0, -3.0, -7.5, -4.0]])  # a positive group, a negative one
    scale, zero = numerics.group_parameters(weight, 3)
    assert scale.tolist() == [[0.5, 0.5]]
    assert zero.tolist() == [[0, 15]]


def test_the_last_group_may_be_short():
    weight = torch.cat([torch.full((2, 32), 15.0), torch.full((2, 1), 1.5)], dim=1)
    scale, zero = numerics.group_parameters(weight, 32)
    assert scale.tolist() == [[1.0, pytest.approx(0.1, rel=1e-3)]] * 2
    assert zero.tolist() == [[0, 0]] * 2
    assert numerics.quantize_groups(weight, scale, zero, 32).eq(15).all()


def test_a_zero_point_belongs_to_the_rounded_scale():
    """float16 makes 30.25 / 15 larger, and 7.5 steps below zero fewer: 7, where the unrounded scale gives 8."""
    weight = torch.tensor([[-15.125, 15.125]])
    _, unrounded = numerics.asymmetric_parameters(weight.min(), weight.max(), bits=4)
    scale, zero = numerics.group_parameters(weight, 32)
    assert unrounded == 8
    assert zero == 7 == torch.round(15.125 / scale.float())


@pytest.mark.parametrize("magnitude", [0.0, 1e-12, 9e5])
def test_scales_stay_within_float16(magnitude):
    scale, zero = numerics.group_parameters(torch.full((1, 8), magnitude), 8)
    assert scale.isfinite().all()
    assert (scale > 0).all()
    assert zero.eq(0).all()


@pytest.mark.parametrize(
    ("magnitude", "message"), [(1e9, "needs the scale 6.67e\\+07"), (float("inf"), "NaN or infinity")]
)
def test_a_scale_that_float16_cannot_hold_is_refused(magnitude, message):
    with pytest.raises(QuambaError, match=message):
        numerics.group_parameters(torch.full((1, 8), magnitude), 8)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=70), st.sampled_from([4, 32]))
def test_group_wise_error_is_bounded_by_a_step(values, group_size):
    """Half a step of rounding, and at the ends of a range up to another half: its zero point is an integer too.

    Scales below float16's normal numbers are multiples of 2^-24: 15 steps may fall short by 15/2 of that.
    """
    weight = torch.tensor([values])
    scale, zero = numerics.group_parameters(weight, group_size)
    q = numerics.quantize_groups(weight, scale, zero, group_size)
    error = (numerics.dequantize_groups(q, scale, zero, group_size) - weight).abs()
    step = scale.float().repeat_interleave(group_size, -1)[:, : weight.shape[1]]
    assert (error <= 1.01 * step + 7.5 * numerics.FLOAT16_TINY).all()


@given(st.lists(st.lists(st.integers(0, 15), min_size=7, max_size=7), min_size=1, max_size=4), st.integers(0, 7))
def test_packed_integers_are_unpacked(rows, columns):
    q = torch.tensor(rows, dtype=torch.uint8)[:, :columns]
    packed = numerics.pack_uint4(q)
    assert packed.shape == (len(rows), -(-columns // 2))
    assert torch.equal(numerics.unpack_uint4(packed, columns), q)


def test_the_first_of_two_packed_integers_lies_in_the_low_half():
    assert numerics.pack_uint4(torch.tensor([1, 2, 15], dtype=torch.uint8)).tolist() == [0x21, 0x0F]


@pytest.mark.parametrize("capability", torch.ops.quamba.cpu_capabilities())
@pytest.mark.parametrize("magnitude", [2.0**-120, 2.0**-99, 2.0**-30, 1.0, 2.0**30, 2.0**99, 2.0**119])
@settings(max_examples=20)
@given(st.floats(1, 2, width=32, exclude_max=True))
def test_next_to_every_tie_the_kernels_round_as_a_division_does(capability, magnitude, mantissa):
    scale = torch.tensor(mantissa * magnitude)
    ties = (torch.arange(-130, 130) + 0.5) * scale  # [260]
    below, above = (torch.nextafter(ties, torch.full_like(ties, end)) for end in (-math.inf, math.inf))
    x = torch.cat([ties, below, above])  # [780]
    with ops.force_cpu_capability(capability):
        assert torch.equal(ops.quantize(x, scale), numerics.quantize(x, scale))
