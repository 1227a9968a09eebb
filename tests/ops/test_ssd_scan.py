"""Mamba2's scan: chunks and single tokens against the recurrence, float and int8 inputs, float and int8 states."""

import pytest
import torch

from quamba import numerics, ops
from quamba.ops import reference

from .conftest import random_int8

# (batch, tokens, heads, head_dim, groups, d_state): a token, part of a chunk, chunks and a remainder; sizes that fill
# vectors and tiles, and sizes that fill none; one group, several, one for each head
SHAPES = [
    (1, 1, 3, 64, 1, 128),
    (2, 1, 4, 5, 2, 7),
    (2, 3, 4, 5, 2, 7),
    (1, 65, 3, 16, 3, 16),
    (2, 151, 4, 32, 2, 64),
    (1, 96, 2, 64, 1, 128),
    (1, 230, 3, 40, 1, 72),
    (2, 100, 4, 20, 2, 24),
    (1, 50, 6, 40, 1, 1),
]


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request) -> tuple[int, ...]:
    return request.param


def scan_inputs(batch: int, tokens: int, heads: int, head_dim: int, groups: int, d_state: int) -> dict:
    return {
        "x": torch.randn(batch, tokens, heads * head_dim),
        "dt": torch.randn(batch, tokens, heads) - 2,
        "A": -torch.rand(heads) * 8,
        "B": torch.randn(batch, tokens, groups, d_state),
        "C": torch.randn(batch, tokens, groups, d_state),
        "D": torch.randn(heads),
        "dt_bias": torch.randn(heads),
        "dt_min": 0.0,
        "dt_max": float("inf"),
    }


def int8_inputs(batch: int, tokens: int, heads: int, head_dim: int, groups: int, d_state: int) -> dict:
    inputs = scan_inputs(batch, tokens, heads, head_dim, groups, d_state)
    return {
        **inputs,
        **{name: random_int8(*inputs[name].shape) for name in ("x", "B", "C")},
        "x_scale": torch.rand(heads * head_dim) * 0.02 + 0.001,
        "B_scale": torch.rand(groups) * 0.01 + 0.001,
        "C_scale": torch.rand(groups) * 0.01 + 0.001,
    }


def state_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    batch, _, heads, head_dim, _, d_state = shape
    return batch, heads, head_dim, d_state


def pieces_of(inputs: dict, cuts: list[int]) -> list[dict]:
    """The inputs, cut along their tokens."""
    parts = {n: v.split(cuts, dim=1) for n, v in inputs.items() if isinstance(v, torch.Tensor) and v.dim() > 2}
    return [inputs | {n: split[i] for n, split in parts.items()} for i in range(len(cuts))]


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_the_reference_is_the_recurrence_written_out():
    """One head of two channels, one state, two tokens, by hand."""
    x, dt, a = torch.tensor([[[2.0, -1.0], [3.0, 4.0]]]), torch.tensor([[[0.5], [1.5]]]), -0.7
    B, C = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1), torch.tensor([4.0, 5.0]).view(1, 2, 1, 1)
    step = torch.log1p(torch.exp(dt)).flatten()
    h1 = step[0] * x[0, 0]
    h2 = torch.exp(step[1] * a) * h1 + step[1] * x[0, 1] * -2
    skip = torch.tensor([0.5])
    actual = reference.ssd_scan(x, dt, torch.tensor([a]), B, C, skip, None, 0.0, float("inf"), None)
    torch.testing.assert_close(actual[0], torch.stack([4 * h1, 5 * h2]) + 0.5 * x[0])


def test_float_matches_the_reference(capability, shape):
    inputs, state = scan_inputs(*shape), torch.randn(state_shape(shape))
    expected_state = state.clone()
    actual = ops.ssd_scan(**inputs, state=state)
    assert_close(actual, reference.ssd_scan(**inputs, state=expected_state))
    assert_close(state, expected_state)


def test_int8_matches_the_reference(capability, shape):
    inputs, state = int8_inputs(*shape), torch.randn(state_shape(shape))
    expected_state = state.clone()
    actual = ops.ssd_scan_int8(**inputs, state=state, state_scale=None)
    assert_close(actual, reference.ssd_scan_int8(**inputs, state=expected_state, state_scale=None))
    assert_close(state, expected_state)


def test_int8_states_match_the_reference(capability, shape):
    inputs, state = int8_inputs(*shape), random_int8(*state_shape(shape))
    scale = torch.rand(state.shape[1:3]) * 0.05 + 0.001
    expected_state = state.clone()
    actual = ops.ssd_scan_int8(**inputs, state=state, state_scale=scale)
    assert_close(actual, reference.ssd_scan_int8(**inputs, state=expected_state, state_scale=scale))
    difference = (state.int() - expected_state.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("tokens", [1, 60])
@pytest.mark.parametrize("missing", ["D", "dt_bias"])
def test_each_optional_input_may_be_missing(capability, missing, tokens):
    inputs = {**scan_inputs(2, tokens, 4, 20, 2, 6), missing: None}
    state = torch.randn(2, 4, 20, 6)
    expected = reference.ssd_scan(**inputs, state=state.clone())
    assert_close(ops.ssd_scan(**inputs, state=state), expected)


def test_without_a_state_it_starts_at_zero(capability, shape):
    inputs = scan_inputs(*shape)
    assert_close(ops.ssd_scan(**inputs, state=None), ops.ssd_scan(**inputs, state=torch.zeros(state_shape(shape))))


@pytest.mark.parametrize("tokens", [1, 60])
def test_steps_are_kept_within_their_limits(capability, tokens):
    """Softplus gives steps from 1e-3 to 7 here; the limits also apply to a single token."""
    inputs = scan_inputs(1, tokens, 8, 16, 1, 16)
    inputs |= {"dt": torch.linspace(-7, 7, tokens * 8).view(1, tokens, 8), "dt_bias": None}
    limits = {"dt_min": 0.05, "dt_max": 0.5}
    state = torch.randn(1, 8, 16, 16)
    limited, free = state.clone(), state.clone()
    actual = ops.ssd_scan(**inputs | limits, state=limited)
    assert_close(actual, reference.ssd_scan(**inputs | limits, state=state))
    assert_close(limited, state)
    assert (ops.ssd_scan(**inputs, state=free) - actual).abs().max() > 1e-2


def test_very_small_and_very_large_steps_keep_their_relative_accuracy(capability):
    """dt = softplus(-16) = 1e-7: 1 + e^x would lose it; dt = softplus(60) decays the state to nothing."""
    dt = torch.tensor([-16.0, -8.0, 0.0, 20.0, 60.0]).view(1, 5, 1)
    ones = torch.ones(1, 5, 1)
    args = (ones, dt, torch.tensor([-1.0]), ones[..., None], ones[..., None], None, None, 0.0, float("inf"), None)
    torch.testing.assert_close(ops.ssd_scan(*args), reference.ssd_scan(*args), rtol=1e-5, atol=0)


def test_decays_between_tokens_are_exact_however_much_came_before(capability):
    """30 tokens that decay by e^-960 each, then 18 of about e^-0.3: a float of their sum has a unit of 0.002."""
    inputs = scan_inputs(1, 48, 2, 16, 1, 16) | {"A": torch.tensor([-16.0, -15.0]), "dt_bias": None, "D": None}
    inputs["dt"][:, :30], inputs["dt"][:, 30:] = 60.0, -4.0
    inputs |= {name: inputs[name].abs() for name in ("x", "B", "C")}  # sums without cancellation
    torch.testing.assert_close(
        ops.ssd_scan(**inputs, state=None), reference.ssd_scan(**inputs, state=None), rtol=1e-5, atol=0
    )


def test_a_decay_to_nothing_leaves_the_token_itself(capability):
    inputs = scan_inputs(1, 20, 2, 16, 1, 8) | {"A": torch.tensor([-3e38, -1e30]), "dt_bias": None}
    inputs["dt"][:, ::2] = 60.0
    state = torch.randn(1, 2, 16, 8)
    actual = ops.ssd_scan(**inputs, state=state.clone())
    assert_close(actual, reference.ssd_scan(**inputs, state=state))


def test_int8_is_the_float_scan_of_what_the_integers_stand_for(capability, shape):
    inputs, state = int8_inputs(*shape), torch.randn(state_shape(shape))
    floats = {name: inputs[name] for name in scan_inputs(*shape)}
    floats["x"] = numerics.dequantize(inputs["x"], inputs["x_scale"])
    for name in ("B", "C"):
        floats[name] = numerics.dequantize(inputs[name], inputs[f"{name}_scale"][:, None])
    actual = ops.ssd_scan_int8(**inputs, state=state.clone(), state_scale=None)
    expected = ops.ssd_scan(**floats, state=state)
    if capability == "avx512_amx" and shape[1] >= 16:  # there its products are others: see the next test
        assert_close(actual, expected)
    else:
        assert torch.equal(actual, expected)


def test_int8_errors_are_small_beside_the_terms_of_the_sums(capability, shape):
    """Against the recurrence in float64; that of all magnitudes says how large the terms are, whatever cancels. AMX
    splits a float into two bfloat16s, within 2^-16 of it: x on its way into the state, and then the state."""
    inputs, state = int8_inputs(*shape), torch.randn(state_shape(shape))
    exact = {name: inputs[name].double() for name in ("x", "dt", "A", "B", "C", "D", "dt_bias")}
    exact["x"] *= inputs["x_scale"]
    for name in ("B", "C"):
        exact[name] *= inputs[f"{name}_scale"][:, None]
    exact |= {"dt_min": inputs["dt_min"], "dt_max": inputs["dt_max"]}
    magnitudes = exact | {name: exact[name].abs() for name in ("x", "B", "C", "D")}
    exact_state, state_magnitudes = state.double(), state.double().abs()
    expected = reference.ssd_scan(**exact, state=exact_state)
    terms = reference.ssd_scan(**magnitudes, state=state_magnitudes)
    actual = ops.ssd_scan_int8(**inputs, state=state, state_scale=None)
    bound = 2**-15 if capability == "avx512_amx" else 2**-20
    assert ((actual - expected).abs() <= bound * terms).all()
    assert ((state - exact_state).abs() <= bound * state_magnitudes).all()


@pytest.mark.parametrize("tokens", [1, 60])
def test_an_int8_state_that_nothing_moves_stays(capability, tokens):
    """Steps of zero: every integer comes back from its float as itself."""
    inputs = int8_inputs(1, tokens, 2, 16, 1, 16) | {"dt_max": 0.0}
    state = torch.arange(-128, 128, dtype=torch.int8).repeat(2).view(1, 2, 16, 16)
    before, scale = state.clone(), torch.rand(2, 16) + 1e-3
    ops.ssd_scan_int8(**inputs, state=state, state_scale=scale)
    assert torch.equal(state, before)


@pytest.mark.parametrize("tokens", [1, 60])
def test_an_int8_state_saturates_and_takes_nan_for_zero(capability, tokens):
    inputs = int8_inputs(1, tokens, 1, 20, 1, 20)
    inputs |= {"B_scale": torch.tensor([1e3]), "C_scale": torch.tensor([1e3]), "D": None}
    state, scale = random_int8(1, 1, 20, 20), torch.full((1, 20), 0.01)
    expected = state.clone()
    ops.ssd_scan_int8(**inputs, state=state, state_scale=scale)
    reference.ssd_scan_int8(**inputs, state=expected, state_scale=scale)
    assert torch.equal(state, expected)
    assert {-128, 127} <= set(state.flatten().tolist())
    inputs["dt"][:] = float("nan")
    ops.ssd_scan_int8(**inputs, state=state, state_scale=scale)
    assert state.eq(0).all()


@pytest.mark.parametrize("cuts", [[1] * 100, [33, 67], [48, 1, 51], [96, 4]])
def test_pieces_agree_with_the_whole(capability, cuts):
    inputs = scan_inputs(2, 100, 4, 20, 2, 24)
    whole_state = torch.randn(2, 4, 20, 24)
    state = whole_state.clone()
    whole = ops.ssd_scan(**inputs, state=whole_state)
    pieces = [ops.ssd_scan(**piece, state=state) for piece in pieces_of(inputs, cuts)]
    assert_close(torch.cat(pieces, dim=1), whole)
    assert_close(state, whole_state)


@pytest.mark.parametrize("tokens", [1, 60])
@pytest.mark.parametrize("heads", [3, 4])
def test_results_do_not_depend_on_the_number_of_threads(capability, heads, tokens):
    """Also with a thread that has no head, or with heads of two batch rows."""
    inputs = int8_inputs(2, tokens, heads, 64, 1, 128)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            state = torch.ones(2, heads, 64, 128)
            results.append((ops.ssd_scan_int8(**inputs, state=state, state_scale=None), state))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(y, results[0][0]) and torch.equal(state, results[0][1]) for y, state in results)


@pytest.mark.parametrize("tokens", [1, 60])
def test_batch_rows_are_alone(capability, tokens):
    inputs, state = scan_inputs(3, tokens, 4, 20, 2, 24), torch.randn(3, 4, 20, 24)
    alone = [
        ops.ssd_scan(
            **inputs | {n: inputs[n][b : b + 1] for n in ("x", "dt", "B", "C")}, state=state[b : b + 1].clone()
        )
        for b in range(3)
    ]
    assert torch.equal(ops.ssd_scan(**inputs, state=state), torch.cat(alone))


@pytest.mark.parametrize("tokens", [1, 60])
def test_slices_of_a_wider_tensor_need_no_copy_to_be_right(capability, tokens):
    """x, B and C as they lie in the convolution's output, dt as it lies in a projection's."""
    inputs = int8_inputs(2, tokens, 4, 10, 2, 12)
    contiguous = {n: inputs[n] for n in ("x", "B", "C")}
    wide = torch.cat([t.flatten(2) for t in contiguous.values()], dim=-1)  # [B, L, D + 2 G N]
    x, B, C = wide.split([40, 24, 24], dim=-1)
    sliced = {"x": x, "B": B.unflatten(-1, (2, 12)), "C": C.unflatten(-1, (2, 12))}
    sliced["dt"] = torch.cat([torch.randn(2, tokens, 3), inputs["dt"]], dim=-1)[..., 3:]
    actual = ops.ssd_scan_int8(**inputs | sliced, state=None, state_scale=None)
    assert torch.equal(actual, ops.ssd_scan_int8(**inputs, state=None, state_scale=None))


def test_no_tokens_leave_the_state_alone(capability):
    inputs, state = scan_inputs(1, 0, 2, 5, 1, 3), torch.randn(1, 2, 5, 3)
    before = state.clone()
    assert ops.ssd_scan(**inputs, state=state).shape == (1, 0, 10)
    assert torch.equal(state, before)


MISFITS = [
    ({"x": torch.randn(1, 3, 9)}, "9 channels of x do not split into the 4 heads"),
    ({"B": torch.randn(1, 3, 3, 2)}, "4 heads do not split into the 3 groups"),
    ({"B": torch.randn(1, 2, 2, 2)}, "B must have shape"),
    ({"C": torch.randn(1, 3, 2, 5)}, "C must have shape"),
    ({"C": random_int8(1, 3, 2, 2)}, "C must be"),
    ({"dt": torch.randn(1, 3, 5)}, "dt must have shape"),
    ({"A": -torch.rand(4, 1)}, r"A must be \[S\]"),
    ({"D": torch.rand(3)}, "D must have shape"),
    ({"dt_bias": torch.rand(8)}, "dt_bias must have shape"),
    ({"dt_min": 0.2, "dt_max": 0.1}, "dt_min 0.2 is over dt_max 0.1"),
    ({"state": torch.zeros(1, 4, 2, 3)}, "state must have shape"),
    ({"state": torch.zeros(1, 4, 2, 2, dtype=torch.int8)}, "state without a state_scale must be"),
    ({"state": torch.zeros(1, 4, 2, 4)[..., ::2]}, "state must be contiguous"),
]


@pytest.mark.parametrize(
    ("change", "message"), MISFITS, ids=lambda value: "-".join(value) if type(value) is dict else ""
)
def test_misfitting_arguments_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        ops.ssd_scan(**{**scan_inputs(1, 3, 4, 2, 2, 2), "state": None, **change})


INT8_MISFITS = [
    ({"x": torch.randn(1, 3, 8)}, "x must be"),
    ({"x_scale": torch.rand(1)}, "x_scale must have shape"),
    ({"B_scale": torch.rand(1)}, "B_scale must have shape"),
    ({"C_scale": torch.rand(4)}, "C_scale must have shape"),
    ({"state_scale": torch.rand(4, 2)}, "state_scale is given without a state"),
    ({"state_scale": torch.rand(4, 2), "state": torch.zeros(1, 4, 2, 2)}, "state with a state_scale must be"),
    ({"state_scale": torch.rand(4), "state": random_int8(1, 4, 2, 2)}, "state_scale must have shape"),
]


@pytest.mark.parametrize(("change", "message"), INT8_MISFITS, ids=lambda v: "-".join(v) if type(v) is dict else "")
def test_misfitting_int8_arguments_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        ops.ssd_scan_int8(**{**int8_inputs(1, 3, 4, 2, 2, 2), "state": None, "state_scale": None, **change})
