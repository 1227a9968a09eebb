"""Causal convolution + SiLU: CUDA kernels against the reference; prefill, continuation, single tokens, any width."""

import pytest
import torch

from quamba.ops import reference

from ..ops.conftest import assert_within_one_step, random_int8

WIDTHS = [1, 2, 3, 4, 5, 8, 16]
# (batch, tokens, channels): a thread has 8 tokens, 16 of wide convolutions, of one channel or of four
SHAPES = [(1, 1, 16), (2, 1, 37), (1, 3, 37), (3, 16, 20), (2, 17, 132), (1, 33, 5), (1, 151, 8)]


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request) -> tuple[int, int, int]:
    return request.param


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("with_state", [False, True])
def test_float_matches_the_reference(kernels, shape, width, with_state):
    batch, _, channels = shape
    x, weight, bias = torch.randn(shape), torch.randn(channels, width), torch.randn(channels)
    state = torch.randn(batch, channels, width) if with_state else None
    expected_state = None if state is None else state.clone()
    actual = kernels.causal_conv1d(x, weight, bias, state)
    torch.testing.assert_close(actual, reference.causal_conv1d(x, weight, bias, expected_state), rtol=1e-5, atol=1e-5)
    if with_state:
        assert torch.equal(state, expected_state)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_int8_matches_the_reference(kernels, shape, width, with_state, per_channel):
    batch, _, channels = shape
    x, weight, scale = random_int8(*shape), random_int8(channels, width), torch.rand(channels) * 1e-4
    bias = torch.randn(channels) if with_state else None
    out_scale = torch.rand(channels) * 0.05 + 0.001 if per_channel else torch.tensor(0.02)
    state = random_int8(batch, channels, width) if with_state else None
    expected_state = None if state is None else state.clone()
    actual = kernels.causal_conv1d_int8(x, weight, scale, bias, out_scale, state)
    assert_within_one_step(actual, reference.causal_conv1d_int8(x, weight, scale, bias, out_scale, expected_state))
    if with_state:
        assert torch.equal(state, expected_state)


@pytest.mark.parametrize("width", [3, 4, 16])
@pytest.mark.parametrize("cuts", [[1] * 35, [33, 2], [2, 1, 32], [8, 16, 11]])
@pytest.mark.parametrize("channels", [6, 12])
def test_pieces_give_the_bits_of_the_whole(kernels, width, cuts, channels):
    x, weight, scale = random_int8(2, 35, channels), random_int8(channels, width), torch.rand(channels) * 1e-3
    out_scale, whole_state = torch.tensor(0.02), random_int8(2, channels, width)
    state = whole_state.clone()
    whole = kernels.causal_conv1d_int8(x, weight, scale, None, out_scale, whole_state)
    pieces = [kernels.causal_conv1d_int8(p, weight, scale, None, out_scale, state) for p in x.split(cuts, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    assert torch.equal(state, whole_state)


@pytest.mark.parametrize("first", [5, 8], ids=["unaligned", "aligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_slice_of_a_wider_tensor_is_read_where_it_lies(kernels, first, dtype):
    wide, state = (torch.randn(2, 11, 40) * 30).to(dtype), (torch.randn(2, 12, 4) * 30).to(dtype)
    weight, scale = (torch.randn(12, 4) * 30).to(dtype), torch.tensor(0.05)
    states = [state.clone(), state.clone()]

    def run(x, state):
        if dtype == torch.float32:
            return kernels.causal_conv1d(x, weight, None, state)
        return kernels.causal_conv1d_int8(x, weight, torch.full((12,), 1e-3), None, scale, state)

    x = wide[..., first : first + 12]
    assert torch.equal(run(x, states[0]), run(x.contiguous(), states[1]))
    assert torch.equal(states[0], states[1])


@pytest.mark.parametrize("weight_offset, state_offset", [(1, 0), (0, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_taps_may_lie_anywhere_and_values_of_a_token_apart(kernels, weight_offset, state_offset, dtype):
    """A channel's taps then begin at no multiple of their size."""
    weight, state = ((torch.randn(52) * 30).to(dtype) for _ in range(2))
    weight, state = weight[weight_offset:][:48].view(12, 4), state[state_offset:][:48].view(1, 12, 4)
    x, scale, expected_state = (torch.randn(1, 9, 24) * 30).to(dtype)[..., ::2], torch.rand(12) * 1e-3, state.clone()
    if dtype == torch.float32:
        actual = kernels.causal_conv1d(x, weight, None, state)
        torch.testing.assert_close(actual, reference.causal_conv1d(x, weight, None, expected_state))
    else:
        actual = kernels.causal_conv1d_int8(x, weight, scale, None, torch.tensor(0.02), state)
        expected = reference.causal_conv1d_int8(x, weight, scale, None, torch.tensor(0.02), expected_state)
        assert_within_one_step(actual, expected)
    assert torch.equal(state, expected_state)


def test_what_lies_outside_the_window_does_not_count(kernels):
    """A token that is not finite reaches `width` outputs and no more."""
    x, weight = torch.randn(1, 12, 4), torch.randn(4, 3)
    x[0, 4] = torch.inf
    finite = kernels.causal_conv1d(x, weight, None, torch.zeros(1, 4, 3)).isfinite().all(dim=-1)[0]
    assert finite.tolist() == [not 4 <= t < 7 for t in range(12)]


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 3, 0)], ids=str)
def test_nothing_gives_nothing(kernels, shape):
    state = torch.randn(shape[0], shape[2], 4)
    before = state.clone()
    assert kernels.causal_conv1d(torch.zeros(shape), torch.zeros(shape[2], 4), None, state).shape == shape
    assert torch.equal(state, before)


def test_misfitting_arguments_are_refused_by_name(kernels):
    x, weight = torch.randn(1, 3, 4), torch.randn(4, 4)
    with pytest.raises(ValueError, match=r"x must be \[B, L, D\], got \[3, 4\]"):
        kernels.causal_conv1d(x[0], weight, None, None)
    with pytest.raises(ValueError, match="x must be Float, got Char"):
        kernels.causal_conv1d(x.char(), weight, None, None)
    with pytest.raises(ValueError, match="weight must have shape"):
        kernels.causal_conv1d(x, weight[:3], None, None)
    with pytest.raises(ValueError, match="conv_state must have shape"):
        kernels.causal_conv1d(x, weight, None, torch.zeros(1, 4, 3))
    with pytest.raises(ValueError, match="conv_state must be contiguous"):
        kernels.causal_conv1d(x, weight, None, torch.zeros(1, 4, 8)[..., ::2])
    with pytest.raises(ValueError, match="width 17 is over 16"):
        kernels.causal_conv1d(x, torch.randn(4, 17), None, None)
    integers = random_int8(1, 3, 4), random_int8(4, 4), torch.rand(4), None
    with pytest.raises(ValueError, match="out_scale must hold one value or one for each of 4 channels"):
        kernels.causal_conv1d_int8(*integers, torch.rand(2), None)
    with pytest.raises(ValueError, match="out_scale must be Float"):
        kernels.causal_conv1d_int8(*integers, torch.ones(4, dtype=torch.float64), None)
