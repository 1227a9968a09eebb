"""Mamba2's scan on CUDA, in chunks and token by token: against the reference, and against the recurrence in float64."""

import pytest
import torch

from quamba import numerics
from quamba.ops import reference

from ..ops.conftest import random_int8
from ..ops.test_ssd_scan import (
    INT8_MISFITS,
    MISFITS,
    assert_close,
    int8_inputs,
    pieces_of,
    scan_inputs,
    state_shape,
)

# (batch, tokens, heads, head_dim, groups, d_state): a token, part of a chunk, chunks and a remainder; sizes of models,
# sizes that fill no tile, more than one tile of p and of n; one group, several, one for each head
SHAPES = [
    (2, 1, 3, 64, 1, 128),
    (2, 1, 4, 5, 2, 7),
    (1, 1, 2, 130, 1, 300),
    (2, 3, 4, 5, 2, 7),
    (1, 63, 2, 20, 2, 24),
    (2, 64, 4, 8, 1, 16),
    (1, 65, 3, 16, 3, 16),
    (2, 151, 8, 6, 8, 5),
    (1, 80, 1, 64, 1, 128),
    (1, 2, 2, 70, 1, 140),
    (1, 66, 6, 1, 2, 1),
]


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request) -> tuple[int, ...]:
    return request.param


def exact(inputs: dict, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The recurrence in float64, of floats or of what integers stand for: outputs, and the state behind them."""
    inputs = dict(inputs)
    if "x_scale" in inputs:
        inputs["x"] = numerics.dequantize(inputs["x"], inputs.pop("x_scale"))
        for name in ("B", "C"):
            inputs[name] = numerics.dequantize(inputs[name], inputs.pop(f"{name}_scale")[:, None])
    double = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    moved = torch.zeros(exact_state_shape(inputs)) if state is None else state
    moved = moved.double()
    return reference.ssd_scan(**double, state=moved), moved


def exact_state_shape(inputs: dict) -> tuple[int, ...]:
    batch, _, channels = inputs["x"].shape
    heads = len(inputs["A"])
    return batch, heads, channels // heads, inputs["B"].shape[-1]


def assert_exact(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """The error of every value, relative to the largest one: 2e-7 in the emulation, more where a GPU rounds within a
    product; one term of tf32 alone would be off by 5e-4."""
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_float_matches_the_recurrence(kernels, shape):
    inputs, state = scan_inputs(*shape), torch.randn(state_shape(shape))
    expected, expected_state = exact(inputs, state)
    assert_exact(kernels.ssd_scan(**inputs, state=state), expected)
    assert_exact(state, expected_state)


def test_int8_matches_the_recurrence(kernels, shape):
    inputs, state = int8_inputs(*shape), torch.randn(state_shape(shape))
    expected, expected_state = exact(inputs, state)
    assert_exact(kernels.ssd_scan_int8(**inputs, state=state, state_scale=None), expected)
    assert_exact(state, expected_state)


def test_int8_states_match_the_reference(kernels, shape):
    inputs, state = int8_inputs(*shape), random_int8(*state_shape(shape))
    scale = torch.rand(state.shape[1:3]) * 0.05 + 0.001
    expected_state = state.clone()
    actual = kernels.ssd_scan_int8(**inputs, state=state, state_scale=scale)
    assert_close(actual, reference.ssd_scan_int8(**inputs, state=expected_state, state_scale=scale))
    difference = (state.int() - expected_state.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).sum() <= max(1, 0.01 * difference.numel())


@pytest.mark.parametrize("tokens", [1, 64, 70])
def test_without_a_state_it_starts_at_zero(kernels, tokens):
    for op, inputs in ((kernels.ssd_scan, scan_inputs), (kernels.ssd_scan_int8, int8_inputs)):
        given = inputs(2, tokens, 4, 5, 2, 7)
        scale = {"state_scale": None} if "x_scale" in given else {}
        zeros = torch.zeros(2, 4, 5, 7)
        assert torch.equal(op(**given, state=None, **scale), op(**given, state=zeros, **scale))
        assert zeros.any()


@pytest.mark.parametrize("tokens", [1, 70])
@pytest.mark.parametrize("missing", ["D", "dt_bias"])
def test_each_optional_input_may_be_missing(kernels, missing, tokens):
    inputs, state = {**scan_inputs(2, tokens, 4, 5, 2, 6), missing: None}, torch.randn(2, 4, 5, 6)
    expected = reference.ssd_scan(**inputs, state=state.clone())
    assert_close(kernels.ssd_scan(**inputs, state=state), expected)


@pytest.mark.parametrize("heads", [1, 3])
def test_long_prompts_have_longer_chunks(kernels, heads):
    """1050 tokens: of int8 chunks of 128, whose second half sees the first through the scores."""
    for op, make in ((kernels.ssd_scan, scan_inputs), (kernels.ssd_scan_int8, int8_inputs)):
        inputs, state = make(1, 1050, heads, 4, 1, 4), torch.randn(1, heads, 4, 4)
        expected, expected_state = exact(inputs, state)
        assert_exact(op(**inputs, state=state, **({"state_scale": None} if "x_scale" in inputs else {})), expected)
        assert_exact(state, expected_state)


@pytest.mark.parametrize("groups", [1, 2])
def test_heads_that_share_a_block_are_those_of_a_group(kernels, groups):
    """Many blocks: 600 batch rows of 10 heads, of which a block has several, and a last one has what is left."""
    inputs, state = int8_inputs(600, 2, 10, 1, groups, 1), torch.randn(600, 10, 1, 1)
    expected, expected_state = exact(inputs, state)
    assert_exact(kernels.ssd_scan_int8(**inputs, state=state, state_scale=None), expected)
    assert_exact(state, expected_state)


@pytest.mark.parametrize("tokens", [1, 70])
def test_steps_are_kept_within_their_limits(kernels, tokens):
    """Softplus gives steps from 1e-3 to 7 here; the limits also apply to a single token."""
    inputs = scan_inputs(1, tokens, 4, 3, 1, 5)
    inputs |= {"dt": torch.linspace(-7, 7, tokens * 4).view(1, tokens, 4), "dt_bias": None}
    inputs |= {"dt_min": 0.05, "dt_max": 0.5}
    state = torch.randn(1, 4, 3, 5)
    expected, expected_state = exact(inputs, state)
    assert_exact(kernels.ssd_scan(**inputs, state=state), expected)
    assert_exact(state, expected_state)


def test_very_small_and_very_large_steps_keep_their_relative_accuracy(kernels):
    """dt = softplus(-16) = 1e-7: 1 + e^x would lose it; dt = softplus(60) decays the state to nothing."""
    dt = torch.tensor([-16.0, -8.0, 0.0, 20.0, 60.0]).view(1, 5, 1)
    ones = torch.ones(1, 5, 1)
    args = (ones, dt, torch.tensor([-1.0]), ones[..., None], ones[..., None], None, None, 0.0, float("inf"), None)
    torch.testing.assert_close(kernels.ssd_scan(*args), reference.ssd_scan(*args), rtol=1e-5, atol=0)


def test_decays_between_tokens_are_exact_however_much_came_before(kernels):
    """30 tokens that decay by e^-960 each, then 18 of about e^-0.3: a float of their sum has a unit of 0.002."""
    inputs = scan_inputs(1, 48, 2, 4, 1, 4) | {"A": torch.tensor([-16.0, -15.0]), "dt_bias": None, "D": None}
    inputs["dt"][:, :30], inputs["dt"][:, 30:] = 60.0, -4.0
    inputs |= {name: inputs[name].abs() for name in ("x", "B", "C")}  # sums without cancellation
    expected, _ = exact(inputs, None)
    torch.testing.assert_close(kernels.ssd_scan(**inputs, state=None).double(), expected, rtol=1e-5, atol=0)


def test_a_decay_to_nothing_leaves_the_token_itself(kernels):
    inputs = scan_inputs(1, 70, 2, 4, 1, 8) | {"A": torch.tensor([-3e38, -1e30]), "dt_bias": None}
    inputs["dt"][:, ::2] = 60.0
    state = torch.randn(1, 2, 4, 8)
    actual = kernels.ssd_scan(**inputs, state=state.clone())
    assert_close(actual, reference.ssd_scan(**inputs, state=state))


@pytest.mark.parametrize("tokens", [1, 70])
def test_an_int8_state_that_nothing_moves_stays(kernels, tokens):
    """Steps of zero: every integer comes back from its float as itself."""
    inputs = int8_inputs(1, tokens, 2, 16, 1, 16) | {"dt_max": 0.0}
    state = torch.arange(-128, 128, dtype=torch.int8).repeat(2).view(1, 2, 16, 16)
    before, scale = state.clone(), torch.rand(2, 16) + 1e-3
    kernels.ssd_scan_int8(**inputs, state=state, state_scale=scale)
    assert torch.equal(state, before)


@pytest.mark.parametrize("tokens", [1, 5])
def test_an_int8_state_saturates_and_takes_nan_for_zero(kernels, tokens):
    inputs = int8_inputs(1, tokens, 1, 20, 1, 20)
    inputs |= {"B_scale": torch.tensor([1e3]), "C_scale": torch.tensor([1e3]), "D": None}
    state, scale = random_int8(1, 1, 20, 20), torch.full((1, 20), 0.01)
    expected = state.clone()
    kernels.ssd_scan_int8(**inputs, state=state, state_scale=scale)
    reference.ssd_scan_int8(**inputs, state=expected, state_scale=scale)
    assert torch.equal(state, expected)
    assert {-128, 127} <= set(state.flatten().tolist())
    inputs["dt"][:] = float("nan")
    kernels.ssd_scan_int8(**inputs, state=state, state_scale=scale)
    assert state.eq(0).all()


@pytest.mark.parametrize("cuts", [[1] * 10, [33, 67], [64, 1, 35], [96, 4]])
def test_pieces_agree_with_the_whole(kernels, cuts):
    inputs, whole_state = scan_inputs(2, sum(cuts), 4, 5, 2, 6), torch.randn(2, 4, 5, 6)
    state = whole_state.clone()
    whole = kernels.ssd_scan(**inputs, state=whole_state)
    pieces = [kernels.ssd_scan(**piece, state=state) for piece in pieces_of(inputs, cuts)]
    assert_exact(torch.cat(pieces, dim=1), whole.double())
    assert_exact(state, whole_state.double())


@pytest.mark.parametrize("tokens", [1, 70])
def test_batch_rows_are_alone(kernels, tokens):
    inputs, state = scan_inputs(3, tokens, 2, 3, 2, 5), torch.randn(3, 2, 3, 5)
    alone = [
        kernels.ssd_scan(
            **inputs | {n: inputs[n][b : b + 1] for n in ("x", "dt", "B", "C")}, state=state[b : b + 1].clone()
        )
        for b in range(3)
    ]
    assert torch.equal(kernels.ssd_scan(**inputs, state=state), torch.cat(alone))


@pytest.mark.parametrize("tokens", [1, 70])
@pytest.mark.parametrize("head_dim, d_state", [(5, 6), (16, 16)], ids=["by value", "by vector"])
def test_slices_of_a_wider_tensor_need_no_copy_to_be_right(kernels, tokens, head_dim, d_state):
    """x, B and C as they lie in the convolution's output, dt as it lies in a projection's; copies of 16 bytes too."""
    inputs = int8_inputs(2, tokens, 4, head_dim, 2, d_state)
    contiguous = {n: inputs[n] for n in ("x", "B", "C")}
    wide = torch.cat([t.flatten(2) for t in contiguous.values()], dim=-1)  # [B, L, D + 2 G N]
    x, B, C = wide.split([4 * head_dim, 2 * d_state, 2 * d_state], dim=-1)
    sliced = {"x": x, "B": B.unflatten(-1, (2, d_state)), "C": C.unflatten(-1, (2, d_state))}
    sliced["dt"] = torch.cat([torch.randn(2, tokens, 3), inputs["dt"]], dim=-1)[..., 3:]
    actual = kernels.ssd_scan_int8(**inputs | sliced, state=None, state_scale=None)
    assert torch.equal(actual, kernels.ssd_scan_int8(**inputs, state=None, state_scale=None))
    apart = {n: t.mT.contiguous().mT for n, t in contiguous.items()}  # values of a row are not side by side
    assert torch.equal(actual, kernels.ssd_scan_int8(**inputs | apart, state=None, state_scale=None))


@pytest.mark.parametrize("offset", [1, 4])
@pytest.mark.parametrize("tokens", [1, 3])
def test_states_may_lie_anywhere(kernels, offset, tokens):
    """A state is contiguous, but need not start at a vector's address."""
    inputs = int8_inputs(1, tokens, 2, 4, 1, 8)
    for dtype, scale in ((torch.float32, None), (torch.int8, torch.rand(2, 4) * 0.1)):
        expected_state = random_int8(1, 2, 4, 8).to(dtype)
        state = torch.cat([torch.zeros(offset, dtype=dtype), expected_state.flatten()])[offset:].view(1, 2, 4, 8)
        expected = kernels.ssd_scan_int8(**inputs, state=expected_state, state_scale=scale)
        assert torch.equal(kernels.ssd_scan_int8(**inputs, state=state, state_scale=scale), expected)
        assert torch.equal(state, expected_state)


def test_no_tokens_leave_the_state_alone(kernels):
    inputs, state = scan_inputs(1, 0, 2, 5, 1, 3), torch.randn(1, 2, 5, 3)
    before = state.clone()
    assert kernels.ssd_scan(**inputs, state=state).shape == (1, 0, 10)
    assert torch.equal(state, before)


def name_of(value) -> str:
    return "-".join(value) if type(value) is dict else ""


@pytest.mark.parametrize(("change", "message"), MISFITS, ids=name_of)
def test_misfitting_arguments_are_refused_by_name(kernels, change, message):
    if "A" in change:
        message = r"A must be \[S\]"
    with pytest.raises(ValueError, match=message):
        kernels.ssd_scan(**{**scan_inputs(1, 3, 4, 2, 2, 2), "state": None, **change})


@pytest.mark.parametrize(("change", "message"), INT8_MISFITS, ids=name_of)
def test_misfitting_int8_arguments_are_refused_by_name(kernels, change, message):
    with pytest.raises(ValueError, match=message):
        kernels.ssd_scan_int8(**{**int8_inputs(1, 3, 4, 2, 2, 2), "state": None, "state_scale": None, **change})
