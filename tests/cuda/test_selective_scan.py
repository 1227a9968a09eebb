"""Selective scan: CUDA kernels against the recurrence; chunks of tokens, single tokens, pieces, float and int8."""

import pytest
import torch

from quamba import numerics
from quamba.ops import reference

from ..ops.conftest import random_int8
from ..ops.test_selective_scan import scan_inputs

# (batch, tokens, channels): single tokens; two tokens a lane up to 64 tokens, then eight in chunks of 256; a block has
# eight channels
SHAPES = [(1, 1, 8), (3, 1, 37), (2, 3, 9), (1, 33, 8), (1, 64, 3), (1, 65, 5), (2, 151, 10), (1, 256, 1), (1, 515, 2)]


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request) -> tuple[int, int, int]:
    return request.param


def test_float_matches_the_reference(kernels, shape):
    inputs, state = scan_inputs(*shape, 16), torch.randn(shape[0], shape[2], 16)
    expected_state = state.clone()
    actual = kernels.selective_scan(**inputs, state=state)
    expected = reference.selective_scan(**inputs, state=expected_state)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-5)


def test_int8_matches_the_reference(kernels, shape):
    inputs = scan_inputs(*shape, 16)
    inputs |= {name: random_int8(*inputs[name].shape) for name in ("x", "B", "C", "z")}
    scales = {f"{name}_scale": torch.tensor(0.01 * (i + 1)) for i, name in enumerate(("x", "B", "C", "z"))}
    state = torch.randn(shape[0], shape[2], 16)
    expected_state = state.clone()
    actual = kernels.selective_scan_int8(**inputs, state=state, **scales)
    expected = reference.selective_scan_int8(**inputs, state=expected_state, **scales)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("d_state", [1, 3, 7, 8, 17, 20, 64])
@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_any_number_of_states(kernels, d_state, tokens):
    inputs, state = scan_inputs(2, tokens, 5, d_state), torch.randn(2, 5, d_state)
    expected_state = state.clone()
    actual = kernels.selective_scan(**inputs, state=state)
    expected = reference.selective_scan(**inputs, state=expected_state)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("missing", ["D", "z", "dt_bias", "state"])
@pytest.mark.parametrize("tokens", [1, 9, 70])
def test_each_optional_input_may_be_missing(kernels, missing, tokens):
    inputs = scan_inputs(2, tokens, 11, 4) | {"state": torch.randn(2, 11, 4)} | {missing: None}
    copies = {name: None if value is None else value.clone() for name, value in inputs.items()}
    expected = reference.selective_scan(**copies)
    torch.testing.assert_close(kernels.selective_scan(**inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("repeats", [1, 20])
def test_very_small_and_very_large_steps_keep_their_relative_accuracy(kernels, repeats):
    """dt = softplus(-16) = 1e-7: 1 + e^x would lose it; dt = softplus(60) decays the state to nothing."""
    dt = torch.tensor([-16.0, -8.0, 0.0, 20.0, 60.0]).repeat(repeats).view(1, -1, 1)
    ones = torch.ones_like(dt)
    args = (ones, dt, -ones[0, :1], ones, ones, None, None, None, None)
    torch.testing.assert_close(kernels.selective_scan(*args), reference.selective_scan(*args), rtol=1e-5, atol=0)


@pytest.mark.parametrize("cuts", [[1, 299], [33, 150, 117], [256, 44], [1] * 3 + [297]])
def test_pieces_give_the_whole(kernels, cuts):
    """To rounding: where a sequence is cut decides in which order its decays are multiplied."""
    inputs, whole_state = scan_inputs(2, 300, 3, 16), torch.randn(2, 3, 16)
    state, pieces, start = whole_state.clone(), [], 0
    whole = kernels.selective_scan(**inputs, state=whole_state)
    for cut in cuts:
        part = {n: v[:, start : start + cut] if v.dim() == 3 else v for n, v in inputs.items()}
        pieces.append(kernels.selective_scan(**part, state=state))
        start += cut
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(state, whole_state, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 9, 70])
def test_int8_is_the_float_scan_of_what_the_integers_stand_for(kernels, tokens):
    inputs, scale = scan_inputs(1, tokens, 12, 5), torch.tensor(0.02)
    integers = inputs | {name: numerics.quantize(inputs[name], scale) for name in ("x", "B", "C", "z")}
    floats = inputs | {name: numerics.dequantize(integers[name], scale) for name in ("x", "B", "C", "z")}
    scales = {f"{name}_scale": scale for name in ("x", "B", "C", "z")}
    actual = kernels.selective_scan_int8(**integers, state=None, **scales)
    assert torch.equal(actual, kernels.selective_scan(**floats, state=None))


@pytest.mark.parametrize("tokens", [1, 9, 70])
def test_slices_of_wider_tensors_are_read_where_they_lie(kernels, tokens):
    """x and z as in_proj writes them, B and C as x_proj does; B's values are not neighbours and are copied."""
    inputs, xz, BC = scan_inputs(2, tokens, 10, 4), torch.randn(2, tokens, 20), torch.randn(2, tokens, 19)
    inputs["x"], inputs["z"] = xz.chunk(2, dim=-1)
    inputs["B"], inputs["C"] = BC[..., 3:11:2], BC[..., 11:15]
    expected = kernels.selective_scan(**{n: v.contiguous() for n, v in inputs.items()}, state=None)
    assert torch.equal(kernels.selective_scan(**inputs, state=None), expected)


def test_channels_and_rows_do_not_depend_on_their_neighbours(kernels):
    inputs = scan_inputs(2, 40, 11, 16)
    whole = kernels.selective_scan(**inputs, state=None)
    per_channel = ("x", "dt", "z", "A", "D", "dt_bias")
    for b, d in ((0, 0), (0, 8), (1, 10)):
        part = {n: v[b : b + 1] if v.dim() == 3 else v for n, v in inputs.items()}
        for name in per_channel:
            part[name] = part[name][d : d + 1] if name in ("A", "D", "dt_bias") else part[name][..., d : d + 1]
        assert torch.equal(kernels.selective_scan(**part, state=None), whole[b : b + 1, :, d : d + 1])


def test_no_tokens_leave_the_state_alone(kernels):
    state = torch.randn(2, 4, 3)
    before = state.clone()
    assert kernels.selective_scan(**scan_inputs(2, 0, 4, 3), state=state).shape == (2, 0, 4)
    assert torch.equal(state, before)


def test_misfitting_arguments_are_refused_by_name(kernels):
    inputs = scan_inputs(1, 3, 4, 2)

    def refused(message: str, **changed):
        with pytest.raises(ValueError, match=message):
            kernels.selective_scan(**({"state": None} | inputs | changed))

    refused(r"x must be \[B, L, D\]", x=inputs["x"][0])
    refused("x must be Float, got Double", x=inputs["x"].double())
    refused(r"A must be \[D, N\]", A=inputs["A"][0])
    refused(r"A must be \[D, N\] with N up to 512", A=torch.ones(4, 513))
    refused("dt must have shape", dt=inputs["dt"][:, :2])
    refused("B must have shape", B=inputs["B"][..., :1])
    refused("z must be Float, got Char", z=inputs["z"].char())
    refused("dt_bias must have shape", dt_bias=torch.ones(3))
    refused("state must have shape", state=torch.zeros(1, 4, 3))
    refused("state must be contiguous", state=torch.zeros(1, 4, 4)[..., ::2])
