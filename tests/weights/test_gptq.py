"""GPTQ against a slow textbook version, and what it promises: the grid, the objective, the order of columns."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quamba.errors import QuambaError
from quamba.weights.gptq import GptqOptions, gptq
from quamba.weights.grid import Grid

INT8 = Grid(bits=8, symmetric=True, group_size=None)
INT4 = Grid(bits=4, symmetric=True, group_size=None)
UINT4 = Grid(bits=4, symmetric=False, group_size=5)
UINT3 = Grid(bits=3, symmetric=False, group_size=4)
GRIDS = pytest.mark.parametrize("grid", [INT8, INT4, UINT4, UINT3], ids=["int8", "int4", "uint4 by 5", "uint3 by 4"])
LEFT_TO_RIGHT = GptqOptions(act_order=False)
UPDATED_GROUPS = GptqOptions(act_order=False, static_groups=False)


def random_weight(seed: int, outputs: int = 6, inputs: int = 13) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def correlated_second(seed: int, inputs: int = 13, tokens: int = 200) -> Tensor:
    """E[x x^T] of inputs that are mixtures of a few sources plus a little noise; float64 [I, I]."""
    g = torch.Generator().manual_seed(1000 + seed)
    sources = torch.randn(tokens, 4, generator=g, dtype=torch.float64)
    x = sources @ torch.randn(4, inputs, generator=g, dtype=torch.float64)
    x += 0.2 * torch.randn(tokens, inputs, generator=g, dtype=torch.float64)
    return x.T @ x / tokens


def objective(state, second: Tensor) -> float:
    """tr((W - Wq) H (W - Wq)^T), what the outputs lose."""
    error = state.error().double()
    return float(((error @ second.double()) * error).sum())


def textbook(weight: Tensor, second: Tensor, grid: Grid, options: GptqOptions) -> Tensor:
    """OBQ's updates with the columns in GPTQ's order: the remaining Hessian is inverted anew for every column."""
    damped = second.double() + options.damping * second.double().diagonal().mean() * torch.eye(len(second))
    remaining = second.diagonal().argsort(descending=True).tolist() if options.act_order else list(range(len(second)))
    low, high = (-(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1) if grid.symmetric else (0, 2**grid.bits - 1)
    size = grid.group_size or len(second)
    scale, zero = (values.clone() for values in grid.parameters(weight))
    w, integers = weight.double(), torch.zeros_like(weight)
    while remaining:
        j = remaining[0]
        if not options.static_groups and j % size == 0:
            scale[:, [j // size]], zero[:, [j // size]] = grid.parameters(w[:, j : j + size].float())
        s, z = scale[:, j // size].double(), zero[:, j // size].double()
        integers[:, j] = (torch.round(w[:, j] / s) + z).clamp(low, high)
        error = w[:, j] - (integers[:, j] - z) * s
        inverse = torch.linalg.inv(damped[remaining][:, remaining])
        w[:, remaining] -= torch.outer(error / inverse[0, 0], inverse[0])
        remaining = remaining[1:]
    return integers


@GRIDS
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [GptqOptions(), LEFT_TO_RIGHT, UPDATED_GROUPS], ids=["act", "plain", "updated"])
def test_the_integers_are_those_of_the_textbook_that_inverts_every_remaining_hessian(grid, seed, options):
    weight, second = random_weight(seed), correlated_second(seed)
    state = gptq(weight, second, grid, options=options)
    assert torch.equal(state.integers, textbook(weight, second, grid, options))
    assert not torch.equal(state.integers, grid.nearest(weight).integers), (
        "a case where every rule agrees shows nothing"
    )


def test_the_order_and_the_groups_options_change_the_integers():
    weight, second = random_weight(0), correlated_second(0)
    results = [gptq(weight, second, UINT4, options=o) for o in (GptqOptions(), LEFT_TO_RIGHT, UPDATED_GROUPS)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(results[i].integers, results[j].integers)
    assert torch.equal(results[0].scale, results[1].scale)
    assert not torch.equal(results[0].scale, results[2].scale)


@given(
    outputs=st.integers(1, 5),
    inputs=st.integers(1, 19),
    bits=st.sampled_from([3, 4, 8]),
    group_size=st.sampled_from([None, 1, 4, 32]),
    equal=st.booleans(),
    act_order=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_inputs_that_do_not_correlate_give_round_to_nearest(outputs, inputs, bits, group_size, equal, act_order, seed):
    grid = Grid(bits=bits, symmetric=group_size is None, group_size=group_size)
    weight = random_weight(seed, outputs, inputs)
    variance = torch.ones(inputs) if equal else random_weight(seed + 1, 1, inputs)[0].square() + 1e-3
    state = gptq(weight, torch.diag(variance), grid, options=GptqOptions(act_order=act_order))
    nearest = grid.nearest(weight)
    for name in ("weight", "integers", "scale", "zero"):
        assert torch.equal(getattr(state, name), getattr(nearest, name)), name


@given(
    outputs=st.integers(1, 5),
    inputs=st.integers(1, 19),
    tokens=st.integers(1, 30),
    bits=st.sampled_from([3, 4, 8]),
    group_size=st.sampled_from([None, 1, 4, 32]),
    act_order=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_the_state_is_the_weight_as_given_with_whole_numbers_in_range(
    outputs, inputs, tokens, bits, group_size, act_order, seed
):
    grid = Grid(bits=bits, symmetric=group_size is None, group_size=group_size)
    weight, second = random_weight(seed, outputs, inputs), correlated_second(seed, inputs, tokens)
    state = gptq(weight, second, grid, options=GptqOptions(act_order=act_order))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if grid.symmetric else (0, 2**bits - 1)
    assert torch.equal(state.weight, weight) and state.weight.dtype == torch.float32
    assert state.integers.shape == weight.shape and state.integers.dtype == torch.float32
    assert torch.equal(state.integers, state.integers.floor())
    assert low <= state.integers.min() and state.integers.max() <= high
    assert (state.low, state.high, state.group_size) == (low, high, group_size or inputs)
    for mine, expected in zip((state.scale, state.zero), grid.parameters(weight), strict=True):
        assert torch.equal(mine, expected)


def test_each_fixed_correlated_case_loses_less_than_round_to_nearest():
    for seed in range(5):
        weight, second = random_weight(seed, 16, 40), correlated_second(seed, 40)
        for grid in (INT8, INT4, Grid(4, False, 16), Grid(3, False, 16)):
            assert objective(gptq(weight, second, grid), second) < objective(grid.nearest(weight), second)


@pytest.mark.parametrize("options", [GptqOptions(), LEFT_TO_RIGHT, UPDATED_GROUPS], ids=["act", "plain", "updated"])
def test_over_many_cases_less_than_half_of_the_loss_of_round_to_nearest_is_left(options):
    grid = Grid(4, False, 16)
    cases = [(random_weight(seed, 8, 40), correlated_second(seed, 40)) for seed in range(20)]
    mine = sum(objective(gptq(weight, second, grid, options=options), second) for weight, second in cases)
    nearest = sum(objective(grid.nearest(weight), second) for weight, second in cases)
    assert mine < 0.5 * nearest


def test_two_equal_inputs_share_one_error():
    """x1 = x2: 0.3 + 0.3 rounds to 0 + 1, not to 0 + 0 (scale 1), and the sum that the output sees is off by 0.4."""
    weight = torch.tensor([[0.3, 0.3, 7.0]])
    second = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert INT4.nearest(weight).integers.tolist() == [[0, 0, 7]]
    assert gptq(weight, second, INT4, options=GptqOptions(1e-6)).integers.tolist() == [[0, 1, 7]]


@pytest.mark.parametrize("options", [{}, {"act_order": False}, {"act_order": False, "static_groups": False}])
@pytest.mark.parametrize("grid", [INT8, Grid(4, False, 32), Grid(3, False, 5)], ids=["int8", "uint4", "uint3"])
def test_the_block_size_changes_nothing(grid, options):
    weight, second = random_weight(3, 9, 151), correlated_second(3, 151)
    states = [gptq(weight, second, grid, options=GptqOptions(block_size=size, **options)) for size in (1, 7, 128, 999)]
    for other in states[1:]:
        assert torch.equal(states[0].integers, other.integers)
        assert torch.equal(states[0].scale, other.scale) and torch.equal(states[0].zero, other.zero)


@pytest.mark.parametrize("factor", [2.0, 2.0**-40, 2.0**40])
def test_a_factor_on_the_second_moment_changes_nothing(factor):
    weight, second = random_weight(4), correlated_second(4)
    second[:, 3] = second[3, :] = 0  # a dead column has no variance that could scale
    assert torch.equal(gptq(weight, factor * second, UINT4).integers, gptq(weight, second, UINT4).integers)


@GRIDS
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-9])
@pytest.mark.parametrize("options", [GptqOptions(), GptqOptions(damping=0.0)], ids=["damped", "undamped"])
def test_a_dead_column_is_rounded_to_nearest_and_the_others_do_as_if_it_were_not_there(grid, size, options):
    """Dead: its input is zero throughout, or no more than noise beside the others."""
    weight, second = random_weight(5, outputs=40), correlated_second(5)
    dead, live = [2, 7, 12], [j for j in range(13) if j not in (2, 7, 12)]
    second[:, dead] *= size
    second[dead, :] *= size
    state = gptq(weight, second, grid, options=options)
    assert torch.equal(state.integers[:, dead], grid.nearest(weight).integers[:, dead])
    assert torch.equal(state.weight, weight)
    if grid.group_size is None:
        weight[:, dead] *= 1e-3  # so that no scale comes from a dead column
        strong = GptqOptions(damping=1.0)  # so that it shows whose mean diagonal the damping is a share of
        alone = gptq(weight[:, live], second[live][:, live], grid, options=strong)
        assert torch.equal(gptq(weight, second, grid, options=strong).integers[:, live], alone.integers)


@pytest.mark.parametrize("options", [GptqOptions(), GptqOptions(damping=0.0), UPDATED_GROUPS])
def test_inputs_that_were_all_zero_give_the_nearest_integers(options):
    weight = random_weight(6)
    state, nearest = gptq(weight, torch.zeros(13, 13), UINT4, options=options), UINT4.nearest(weight)
    for name in ("integers", "scale", "zero"):
        assert torch.equal(getattr(state, name), getattr(nearest, name))


@pytest.mark.parametrize("tokens", [1, 5])
def test_fewer_tokens_than_inputs_work_through_the_damping(tokens, caplog):
    x = random_weight(7, tokens, 30)
    weight, second = random_weight(8, 4, 30), x.T @ x / tokens
    state = gptq(weight, second, INT4)
    assert objective(state, second) < objective(INT4.nearest(weight), second)
    assert not caplog.records


@pytest.mark.parametrize(
    ("outputs", "inputs", "group_size"), [(1, 1, None), (1, 13, 4), (3, 129, 128), (5, 7, 32), (2, 33, 1)]
)
def test_awkward_shapes_follow_the_textbook(outputs, inputs, group_size):
    grid = Grid(bits=4, symmetric=group_size is None, group_size=group_size)
    weight, second = random_weight(9, outputs, inputs), correlated_second(9, inputs)
    state = gptq(weight, second, grid)
    assert torch.equal(state.integers, textbook(weight, second, grid, GptqOptions()))
    assert state.scale.shape == (outputs, -(-inputs // (group_size or inputs)))


def weight_on(grid: Grid, outputs: int = 6, inputs: int = 12) -> Tensor:
    """Random integers times scales that are powers of two; both ends of the range occur in every group."""
    g = torch.Generator().manual_seed(10)
    low, high = (1 - 2 ** (grid.bits - 1), 2 ** (grid.bits - 1) - 1) if grid.symmetric else (0, 2**grid.bits - 1)
    size = grid.group_size or inputs
    groups = -(-inputs // size)
    integers = torch.randint(low, high + 1, (outputs, inputs), generator=g).float()
    integers[:, 0::size], integers[:, 1::size] = low, high
    scale = 2.0 ** torch.randint(-6, 3, (outputs, groups), generator=g)
    zero = (
        torch.zeros(outputs, groups) if grid.symmetric else torch.randint(0, high + 1, (outputs, groups), generator=g)
    )
    scale, zero = (values.repeat_interleave(size, dim=1)[:, :inputs] for values in (scale, zero))
    return (integers - zero) * scale


@GRIDS
@pytest.mark.parametrize("options", [GptqOptions(), UPDATED_GROUPS], ids=["act", "updated"])
def test_a_weight_that_lies_on_the_grid_stays(grid, options):
    weight = weight_on(grid)
    state = gptq(weight, correlated_second(10, 12), grid, options=options)
    assert torch.equal(state.dequantized(), weight)


def test_the_same_arguments_give_the_same_integers_and_stay_as_they_are():
    weight, second = random_weight(11, 33, 130), correlated_second(11, 130)
    weight_before, second_before = weight.clone(), second.clone()
    first = gptq(weight, second, Grid(4, False, 32))
    assert torch.equal(first.integers, gptq(weight, second, Grid(4, False, 32)).integers)
    assert torch.equal(weight, weight_before) and torch.equal(second, second_before)


def test_half_precision_weights_parameters_and_strided_weights_are_taken():
    weight, second = random_weight(12).bfloat16(), correlated_second(12).float()
    expected = gptq(weight.float(), second.double(), UINT4).integers
    assert torch.equal(gptq(torch.nn.Parameter(weight), second, UINT4).integers, expected)
    assert torch.equal(gptq(weight.T.contiguous().T, second, UINT4).integers, expected)


def indefinite(lowest: float) -> Tensor:
    """Diagonal 1 (mean 1), the smallest eigenvalue as given (below 0)."""
    ones = torch.eye(13, dtype=torch.float64)
    ones[0, 1] = ones[1, 0] = 1 - lowest
    return ones


@pytest.mark.parametrize(
    ("damping", "lowest", "tried"),
    [(0.01, -0.05, [0.1]), (0.01, -0.5, [0.1, 1.0]), (0.01, -9.0, [0.1, 1.0, 10.0]), (0.0, -5e-4, [1e-4, 1e-3])],
)
def test_a_failed_factorization_is_tried_again_with_ten_times_the_damping(damping, lowest, tried, caplog):
    weight = random_weight(14)
    with caplog.at_level(logging.WARNING, logger="quamba"):
        state = gptq(weight, indefinite(lowest), INT4, options=GptqOptions(damping))
    assert [record.args[1] for record in caplog.records] == pytest.approx(tried)
    calm = gptq(weight, indefinite(lowest), INT4, options=GptqOptions(caplog.records[-1].args[1]))
    assert torch.equal(state.integers, calm.integers)


@pytest.mark.parametrize("second", [indefinite(-11.0), -torch.eye(13)], ids=["indefinite", "negative"])
def test_a_second_moment_that_stays_indefinite_is_refused(second):
    with pytest.raises(QuambaError, match=r"second moment is not positive definite.*damping 10:"):
        gptq(random_weight(15), second, INT4)


def test_scattered_groups_cannot_follow_the_updates():
    scattered = GptqOptions(act_order=True, static_groups=False)
    with pytest.raises(QuambaError, match=r"group of 5.*use static_groups"):
        gptq(random_weight(16), correlated_second(16), UINT4, options=scattered)
    per_channel = gptq(random_weight(16), correlated_second(16), INT4, options=scattered)
    assert torch.equal(per_channel.integers, gptq(random_weight(16), correlated_second(16), INT4).integers)


@pytest.mark.parametrize(
    ("weight", "second", "message"),
    [
        (torch.ones(13), torch.eye(13), r"shape \(13,\)"),
        (torch.ones(0, 13), torch.eye(13), r"shape \(0, 13\)"),
        (torch.ones(2, 13), torch.eye(12), r"13 inputs .* not \(12, 12\)"),
        (torch.ones(2, 13), torch.ones(13), r"13 inputs .* not \(13,\)"),
        (torch.ones(2, 13, dtype=torch.int8), torch.eye(13), "weight as floats, not as torch.int8"),
        (torch.full((2, 13), float("nan")), torch.eye(13), "weight holds NaN"),
        (torch.ones(2, 13), torch.full((13, 13), float("inf")), "second moment holds NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(weight, second, message):
    with pytest.raises(QuambaError, match=message):
        gptq(weight, second, INT4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("damping", -0.01),
        ("damping", float("nan")),
        ("damping", float("inf")),
        ("damping", "0.01"),
        ("damping", True),
        ("act_order", 1),
        ("static_groups", None),
        ("block_size", 0),
        ("block_size", 1.5),
        ("block_size", True),
    ],
)
def test_options_that_there_are_not_are_refused_by_name(name, value):
    with pytest.raises(QuambaError, match=f"{name} is .*{value!r}"):
        GptqOptions(**{name: value})


def test_the_options_are_those_of_the_paper_and_stay_as_they_are():
    assert GptqOptions() == GptqOptions(damping=0.01, act_order=True, static_groups=True, block_size=128)
    with pytest.raises(AttributeError):
        GptqOptions().damping = 1.0
