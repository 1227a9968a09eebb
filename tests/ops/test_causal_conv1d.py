"""Causal convolution + SiLU: against torch's own conv1d, in pieces as in one, float and int8."""

import pytest
import torch
import torch.nn.functional as F

from quamba import numerics, ops
from quamba.ops import reference

from .conftest import assert_within_one_step, random_int8

WIDTHS = [2, 3, 4]


def test_the_reference_is_a_causal_depthwise_convolution():
    x, weight, bias = torch.randn(2, 9, 6), torch.randn(6, 4), torch.randn(6)
    expected = F.silu(F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=3, groups=6)[..., :9]).transpose(1, 2)
    torch.testing.assert_close(reference.causal_conv1d(x, weight, bias, None), expected)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("with_state", [False, True])
def test_float_matches_the_reference(capability, shape, width, with_state):
    batch, _, channels = shape
    x, weight, bias = torch.randn(shape), torch.randn(channels, width), torch.randn(channels)
    state = torch.randn(batch, channels, width) if with_state else None
    expected_state = None if state is None else state.clone()
    actual = ops.causal_conv1d(x, weight, bias, state)
    torch.testing.assert_close(actual, reference.causal_conv1d(x, weight, bias, expected_state), rtol=1e-5, atol=1e-5)
    if with_state:
        assert torch.equal(state, expected_state)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_int8_matches_the_reference(capability, shape, width, with_bias):
    batch, _, channels = shape
    x, weight = random_int8(*shape), random_int8(channels, width)
    scale, bias, out_scale = (
        torch.rand(channels) * 1e-4,
        torch.randn(channels) if with_bias else None,
        torch.tensor(0.02),
    )
    state = random_int8(batch, channels, width)
    expected_state = state.clone()
    actual = ops.causal_conv1d_int8(x, weight, scale, bias, out_scale, state)
    assert_within_one_step(actual, reference.causal_conv1d_int8(x, weight, scale, bias, out_scale, expected_state))
    assert torch.equal(state, expected_state)


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("with_state", [False, True])
def test_int8_with_an_output_scale_per_channel_matches_the_reference(capability, shape, width, with_state):
    batch, _, channels = shape
    x, weight = random_int8(*shape), random_int8(channels, width)
    scale, bias, out_scale = torch.rand(channels) * 1e-4, torch.randn(channels), torch.rand(channels) * 0.05 + 0.001
    state = random_int8(batch, channels, width) if with_state else None
    expected_state = None if state is None else state.clone()
    actual = ops.causal_conv1d_int8(x, weight, scale, bias, out_scale, state)
    assert_within_one_step(actual, reference.causal_conv1d_int8(x, weight, scale, bias, out_scale, expected_state))
    if with_state:
        assert torch.equal(state, expected_state)


@pytest.mark.parametrize("width", WIDTHS)
def test_equal_output_scales_give_the_bits_of_one(capability, shape, width):
    channels = shape[2]
    x, weight, scale = random_int8(*shape), random_int8(channels, width), torch.rand(channels) * 1e-4
    one = ops.causal_conv1d_int8(x, weight, scale, None, torch.tensor(0.02), None)
    assert torch.equal(ops.causal_conv1d_int8(x, weight, scale, None, torch.full((channels,), 0.02), None), one)
    assert torch.equal(ops.causal_conv1d_int8(x, weight, scale, None, torch.tensor([0.02]), None), one)


def test_int8_is_the_float_convolution_of_what_the_integers_stand_for(capability):
    x, weight, x_scale, weight_scale = (
        random_int8(1, 20, 8),
        random_int8(8, 4),
        torch.tensor(0.03),
        torch.rand(8) * 0.01,
    )
    actual = ops.causal_conv1d_int8(x, weight, x_scale * weight_scale, None, torch.tensor(0.05), None)
    float_x, float_weight = numerics.dequantize(x, x_scale), numerics.dequantize(weight, weight_scale[:, None])
    expected = numerics.quantize(ops.causal_conv1d(float_x, float_weight, None, None), torch.tensor(0.05))
    assert_within_one_step(actual, expected, differing=0.02)


@pytest.mark.parametrize("cuts", [[1] * 11, [4, 7], [2, 1, 8], [9, 2]])
def test_pieces_give_the_bits_of_the_whole(capability, cuts):
    x, weight, scale, out_scale = random_int8(2, 11, 20), random_int8(20, 4), torch.rand(20) * 1e-3, torch.tensor(0.02)
    whole_state = torch.zeros(2, 20, 4, dtype=torch.int8)
    whole = ops.causal_conv1d_int8(x, weight, scale, None, out_scale, whole_state)
    state = torch.zeros_like(whole_state)
    pieces = [ops.causal_conv1d_int8(p, weight, scale, None, out_scale, state) for p in x.split(cuts, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    assert torch.equal(state, whole_state)


def test_a_slice_of_a_wider_tensor_needs_no_copy_to_be_right(capability):
    wide, weight = torch.randn(2, 7, 30), torch.randn(10, 4)
    x = wide[..., 5:15]
    torch.testing.assert_close(
        ops.causal_conv1d(x, weight, None, None), ops.causal_conv1d(x.contiguous(), weight, None, None), rtol=0, atol=0
    )


def test_misfitting_arguments_are_refused_by_name():
    x, weight = torch.randn(1, 3, 4), torch.randn(4, 4)
    with pytest.raises(ValueError, match="weight must have shape"):
        ops.causal_conv1d(x, weight[:3], None, None)
    with pytest.raises(ValueError, match="conv_state must have shape"):
        ops.causal_conv1d(x, weight, None, torch.zeros(1, 4, 3))
    with pytest.raises(ValueError, match="width 17 is over"):
        ops.causal_conv1d(x, torch.randn(4, 17), None, None)
    integers = random_int8(1, 3, 4), random_int8(4, 4), torch.rand(4), None
    with pytest.raises(ValueError, match="out_scale must hold one value or one for each of 4 channels"):
        ops.causal_conv1d_int8(*integers, torch.rand(2), None)
    with pytest.raises(ValueError, match="out_scale must be"):
        ops.causal_conv1d_int8(*integers, torch.ones(4, dtype=torch.float64), None)
