"""Grids of 3, 4 and 8 bits: what rounding to nearest gives, and the state that it is kept in."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quamba.errors import QuambaError
from quamba.scheme.formats import DYNAMIC, FLOAT, STATIC, TensorSpec, weight_spec
from quamba.weights.grid import Grid

GROUPED = [Grid(bits, False, group_size) for bits in (3, 4, 8) for group_size in (5, 32, 128, None)]
PER_CHANNEL = [Grid(bits, True, None) for bits in (3, 4, 8)]
EVERY_GRID = GROUPED + PER_CHANNEL


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- which grid a format has ---


@pytest.mark.parametrize(
    ("spec", "grid"),
    [
        (weight_spec(8), Grid(8, True, None)),
        (weight_spec(4), Grid(4, False, 128)),
        (weight_spec(4, 32), Grid(4, False, 32)),
        (TensorSpec(3, symmetric=False, granularity="per_group", group_size=32), Grid(3, False, 32)),
        (TensorSpec(4, symmetric=False, granularity="per_channel"), Grid(4, False, None)),
    ],
)
def test_a_grid_is_made_of_a_weight_format(spec, grid):
    assert Grid.of(spec) == grid


@pytest.mark.parametrize("spec", [FLOAT, STATIC, DYNAMIC])
def test_formats_of_activations_have_no_grid(spec):
    with pytest.raises(QuambaError, match="per channel or per group"):
        Grid.of(spec)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((9, False, 32), "2 to 8 bits, not 9"),
        ((1, False, 32), "2 to 8 bits, not 1"),
        ((4.0, False, 32), "2 to 8 bits, not 4.0"),
        ((4, False, 0), "at least one column, not 0"),
        ((4, True, 32), "drop the group size 32"),
    ],
)
def test_grids_that_there_are_not_are_refused(fields, message):
    with pytest.raises(QuambaError, match=message):
        Grid(*fields)


# --- the ranges of integers ---


@pytest.mark.parametrize(
    ("grid", "low", "high"),
    [
        (Grid(3, False, 32), 0, 7),
        (Grid(4, False, 32), 0, 15),
        (Grid(8, False, 32), 0, 255),
        (Grid(3, True, None), -4, 3),
        (Grid(8, True, None), -128, 127),
    ],
)
def test_integers_are_whole_and_reach_the_end_of_their_range_but_not_beyond(grid, low, high):
    state = grid.nearest(normal(5, 200))
    assert (state.low, state.high) == (low, high)
    assert torch.equal(state.integers, state.integers.floor())
    assert state.integers.max() == high
    assert state.integers.min() == (-high if grid.symmetric else low)


# --- what rounding to nearest gives ---


@pytest.mark.parametrize("grid", EVERY_GRID, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 129), (3, 37), (2, 256)])
def test_every_weight_is_within_half_a_step_of_its_value(grid, shape):
    state = grid.nearest(normal(*shape))
    groups = 1 if grid.group_size is None else -(-shape[1] // grid.group_size)
    assert state.scale.shape == state.zero.shape == (shape[0], groups)
    assert all(part.dtype == torch.float32 for part in (state.weight, state.integers, state.scale, state.zero))
    # a step of a group may be smaller than its range over the levels: float16 cuts it by up to 2^-11 of itself, and
    # the zero point is a whole number, which moves the range by half a step
    slack = 0.5 + (0.5 + 2.0**-11 * state.high) * (not grid.symmetric)
    assert (state.error().abs() <= state.per_column(state.scale) * slack * (1 + 1e-5)).all()
    inside = (state.positions() > state.low) & (state.positions() < state.high)
    assert ((state.positions() - state.integers).abs()[inside] <= 0.5).all()


@pytest.mark.parametrize("grid", EVERY_GRID, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_group_of_one_sign_has_zero_in_its_range(grid, sign):
    weight = sign * (5 + torch.rand(2, 70, generator=torch.Generator().manual_seed(0)))
    state = grid.nearest(weight)
    assert state.zero.unique().tolist() == [0 if grid.symmetric or sign > 0 else state.high]
    torch.testing.assert_close(state.dequantized(), weight, rtol=0.25, atol=0)


@pytest.mark.parametrize("grid", EVERY_GRID, ids=str)
def test_rows_of_zeros_have_positive_finite_scales_and_stay_zero(grid):
    weight = normal(3, 70)
    weight[1] = 0
    state = grid.nearest(weight)
    assert state.scale.isfinite().all()
    assert (state.scale > 0).all()
    assert torch.equal(state.dequantized()[1], weight[1])


@given(st.integers(0, 10_000), st.sampled_from(EVERY_GRID), st.integers(1, 4), st.integers(2, 140))
@settings(max_examples=150, deadline=None)
def test_weights_that_the_grid_holds_come_back_exactly(seed, grid, rows, columns):
    """Any integers whose groups reach both ends of the range, times any float16 scale."""
    generator = torch.Generator().manual_seed(seed)
    state = grid.nearest(torch.zeros(rows, columns))  # for its shapes
    size = state.group_size
    assume(columns % size != 1)  # a group has two columns, to reach both ends
    mantissas = torch.randint(1024, 2048, state.scale.shape, generator=generator)
    exponents = torch.randint(-20, -8, state.scale.shape, generator=generator)
    scale = mantissas.float() * 2.0**exponents
    low = -state.high if grid.symmetric else state.low
    zero = state.zero if grid.symmetric else torch.randint(low, state.high + 1, state.zero.shape, generator=generator)
    integers = torch.randint(low, state.high + 1, (rows, columns), generator=generator).float()
    integers[:, ::size], integers[:, 1::size] = state.high, low
    state = grid.nearest(torch.zeros(rows, columns), scale, zero.float()).with_integers(integers)
    weight = state.dequantized()
    again = grid.nearest(weight)
    assert torch.equal(again.scale, scale)
    assert torch.equal(again.zero, zero.float())
    assert torch.equal(again.integers, integers)
    assert torch.equal(again.dequantized(), weight)


@pytest.mark.parametrize("grid", GROUPED, ids=str)
def test_scales_of_groups_are_numbers_that_float16_holds(grid):
    scale, _ = grid.parameters(normal(4, 100))
    assert torch.equal(scale, scale.half().float())


@pytest.mark.parametrize("grid", EVERY_GRID, ids=str)
def test_half_precision_weights_are_read_as_float32(grid):
    weight = normal(3, 70).bfloat16().requires_grad_()
    state = grid.nearest(weight)
    assert torch.equal(state.integers, grid.nearest(weight.detach().float()).integers)
    assert not state.weight.requires_grad


def test_parameters_that_are_given_are_used():
    weight = torch.tensor([[-1.0, 0.5, 3.0], [0.25, 0.75, -9.0]])
    state = Grid(4, False, 2).nearest(weight, torch.full((2, 2), 0.5), torch.tensor([[4.0, 0.0], [0.0, 15.0]]))
    assert state.integers.tolist() == [[2, 5, 6], [0, 2, 0]]  # ties go to the even integer; -9 is out of range
    assert state.dequantized().tolist() == [[-1.0, 0.5, 3.0], [0.0, 1.0, -7.5]]
    symmetric = Grid(3, True, None).nearest(weight, torch.full((2, 1), 0.5))
    assert symmetric.integers.tolist() == [[-2, 1, 3], [0, 2, -4]]


# --- the state ---


def test_a_short_last_group_has_its_own_scale_and_zero():
    state = Grid(4, False, 3).nearest(torch.tensor([[1.5, 0.0, 0.75, -3.0, 0.0]]))
    assert state.per_column(state.zero).tolist() == [[0, 0, 0, 15, 15]]
    assert state.integers.tolist() == [[15, 0, 8, 0, 15]]
    step = float(state.scale[0, 0])
    assert step == pytest.approx(0.1, rel=1e-3)
    assert state.positions()[0, 2].item() == pytest.approx(0.75 / step)
    assert state.error()[0, 2].item() == pytest.approx(0.75 - 8 * step)


def test_other_integers_make_another_state():
    state = Grid(4, False, 32).nearest(normal(2, 40))
    before = state.integers.clone()
    other = state.with_integers(state.integers + 1)
    assert torch.equal(state.integers, before)
    assert other.weight is state.weight
    torch.testing.assert_close(other.dequantized() - state.dequantized(), state.per_column(state.scale))


@pytest.mark.parametrize("grid", [Grid(4, False, 32), Grid(8, True, None)], ids=str)
def test_rows_of_a_state_are_those_of_the_whole(grid):
    state = grid.nearest(normal(5, 40))
    part = state.rows(1, 3)
    assert torch.equal(part.error(), state.error()[1:3])
    assert torch.equal(part.positions(), state.positions()[1:3])
    assert part.integers.data_ptr() == state.integers[1:].data_ptr()


def test_in_float64_a_state_has_the_same_integers_and_a_finer_error():
    state = Grid(8, True, None).nearest(normal(5, 40))
    wide = state.double()
    assert wide.error().dtype == torch.float64
    assert torch.equal(wide.integers.float(), state.integers)
    torch.testing.assert_close(wide.error().float(), state.error(), rtol=0, atol=1e-6)
    assert not torch.equal(wide.error(), state.error().double())
