"""Selective scan: against the recurrence, in pieces as in one, float and int8."""

import pytest
import torch

from quamba import numerics, ops
from quamba.ops import reference

from .conftest import random_int8


def scan_inputs(batch: int, tokens: int, channels: int, d_state: int) -> dict:
    return {
        "x": torch.randn(batch, tokens, channels),
        "dt": torch.randn(batch, tokens, channels) - 2,
        "A": -torch.rand(channels, d_state) * 8,
        "B": torch.randn(batch, tokens, d_state),
        "C": torch.randn(batch, tokens, d_state),
        "D": torch.randn(channels),
        "z": torch.randn(batch, tokens, channels),
        "dt_bias": torch.randn(channels),
    }


def test_the_reference_is_the_recurrence_written_out():
    """One channel, one state, two tokens, by hand."""
    x, dt, a = torch.tensor([[[2.0], [3.0]]]), torch.tensor([[[0.5], [1.5]]]), -0.7
    B, C = torch.tensor([[[1.0], [-2.0]]]), torch.tensor([[[4.0], [5.0]]])
    step = torch.log1p(torch.exp(dt)).flatten()
    h1 = step[0] * 2 * 1
    h2 = torch.exp(step[1] * a) * h1 + step[1] * 3 * -2
    actual = reference.selective_scan(x, dt, torch.tensor([[a]]), B, C, None, None, None, None)
    torch.testing.assert_close(actual.flatten(), torch.stack([4 * h1, 5 * h2]))


@pytest.mark.parametrize("d_state", [1, 7, 16])
def test_float_matches_the_reference(capability, shape, d_state):
    inputs = scan_inputs(*shape, d_state)
    state = torch.randn(shape[0], shape[2], d_state)
    expected_state = state.clone()
    actual = ops.selective_scan(**inputs, state=state)
    expected = reference.selective_scan(**inputs, state=expected_state)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("missing", ["D", "z", "dt_bias"])
def test_each_optional_input_may_be_missing(capability, missing):
    inputs = {**scan_inputs(2, 9, 20, 4), missing: None}
    actual = ops.selective_scan(**inputs, state=None)
    torch.testing.assert_close(actual, reference.selective_scan(**inputs, state=None), rtol=1e-4, atol=1e-4)


def test_very_small_and_very_large_steps_keep_their_relative_accuracy(capability):
    """dt = softplus(-16) = 1e-7: 1 + e^x would lose it; dt = softplus(60) decays the state to nothing."""
    dt = torch.tensor([-16.0, -8.0, 0.0, 20.0, 60.0]).view(1, 5, 1)
    ones = torch.ones(1, 5, 1)
    args = (ones, dt, -ones[0, :1], ones, ones, None, None, None, None)
    torch.testing.assert_close(ops.selective_scan(*args), reference.selective_scan(*args), rtol=1e-5, atol=0)


def test_int8_matches_the_reference(capability, shape):
    batch, _, channels = shape
    inputs = scan_inputs(*shape, 16)
    inputs |= {name: random_int8(*inputs[name].shape) for name in ("x", "B", "C", "z")}
    scales = {f"{name}_scale": torch.tensor(0.01 * (i + 1)) for i, name in enumerate(("x", "B", "C", "z"))}
    state = torch.randn(batch, channels, 16)
    expected_state = state.clone()
    actual = ops.selective_scan_int8(**inputs, state=state, **scales)
    expected = reference.selective_scan_int8(**inputs, state=expected_state, **scales)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-5)


def test_int8_is_the_float_scan_of_what_the_integers_stand_for(capability):
    inputs, scale = scan_inputs(1, 12, 24, 5), torch.tensor(0.02)
    integers = inputs | {name: numerics.quantize(inputs[name], scale) for name in ("x", "B", "C", "z")}
    floats = inputs | {name: numerics.dequantize(integers[name], scale) for name in ("x", "B", "C", "z")}
    actual = ops.selective_scan_int8(**integers, state=None, x_scale=scale, B_scale=scale, C_scale=scale, z_scale=scale)
    torch.testing.assert_close(actual, ops.selective_scan(**floats, state=None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cuts", [[1] * 70, [33, 37], [64, 1, 5]])
def test_pieces_give_the_bits_of_the_whole(capability, cuts):
    inputs = scan_inputs(2, 70, 20, 16)
    whole_state = torch.zeros(2, 20, 16)
    whole = ops.selective_scan(**inputs, state=whole_state)
    state, pieces, start = torch.zeros_like(whole_state), [], 0
    for cut in cuts:
        part = {n: v[:, start : start + cut] if v.dim() == 3 else v for n, v in inputs.items()}
        pieces.append(ops.selective_scan(**part, state=state))
        start += cut
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    assert torch.equal(state, whole_state)


def test_results_do_not_depend_on_the_number_of_threads(capability):
    inputs = scan_inputs(1, 40, 100, 16)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.selective_scan(**inputs, state=None))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_misfitting_arguments_are_refused_by_name():
    inputs = scan_inputs(1, 3, 4, 2)
    with pytest.raises(ValueError, match="dt must have shape"):
        ops.selective_scan(**{**inputs, "dt": inputs["dt"][:, :2]}, state=None)
    with pytest.raises(ValueError, match="state must have shape"):
        ops.selective_scan(**inputs, state=torch.zeros(1, 4, 3))
