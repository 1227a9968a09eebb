"""The rule "hessian": greedy flips against a plain loop that computes every objective anew."""

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from quamba.errors import QuambaError
from quamba.weights import rounding
from quamba.weights.grid import Grid
from quamba.weights.rounding import FlipOptions, flip_by_hessian, flip_by_mean, hessian_error, mean_error
from quamba.weights.rounding_state import RoundingState
from tests.weights.rounding_cases import (
    GRIDS,
    Moments,
    assert_only_flips,
    cancelling_case,
    cases,
    flat,
    random_case,
    some_options,
)

EVERYTHING = FlipOptions(outlier_percent=0.0, max_flip_percent=1.0)


def objective(state: RoundingState, integers: Tensor, second: Tensor) -> Tensor:
    """D H D^T of each row, by its definition; float64 [O]."""
    error = state.double().with_integers(integers.double()).error()
    return torch.einsum("oi,ij,oj->o", error, second.double(), error)


def greedy_flips(state: RoundingState, second: Tensor, masked: Tensor, most: int) -> Tensor:
    """The oracle: tries every flip of every row, computes the objective anew, keeps the best while it is lower."""
    integers, direction = state.integers.clone(), (state.positions() - state.integers).sign()
    for row in range(len(integers)):
        tried = state.rows(row, row + 1)
        free = [j for j in range(integers.shape[1]) if direction[row, j] != 0 and not masked[j]]
        free = [j for j in free if state.low <= integers[row, j] + direction[row, j] <= state.high]
        for _ in range(most):
            best, flip = float(objective(tried, integers[row : row + 1], second)), None
            for j in free:
                other = integers[row : row + 1].clone()
                other[0, j] += direction[row, j]
                new = float(objective(tried, other, second))
                if new < best * (1 - 1e-12):
                    best, flip = new, j
            if flip is None:
                break
            integers[row, flip] += direction[row, flip]
            free.remove(flip)
    return integers


@given(cases, some_options)
@settings(max_examples=200, deadline=None)
def test_the_objective_of_no_row_grows(case, options):
    state, moments = case
    after, _ = flip_by_hessian(state, moments, options)
    before, now = (objective(state, integers, moments.second) for integers in (state.integers, after.integers))
    assert (now <= before).all()
    assert (hessian_error(after, moments.second) <= hessian_error(state, moments.second)).all()


@given(cases, some_options)
@settings(max_examples=200, deadline=None)
def test_the_hessian_rule_moves_unmasked_integers_by_one_across_their_value(case, options):
    state, moments = case
    integers = state.integers.clone()
    after, statistics = flip_by_hessian(state, moments, options)
    most = options.most_flips(state.weight.shape[1])
    assert_only_flips(state, after, options.outliers(moments.mean).mask, most)
    assert torch.equal(state.integers, integers)
    assert statistics.flips == int((after.integers != integers).sum()) <= statistics.candidates


@given(cases, some_options)
@settings(max_examples=100, deadline=None)
def test_groups_make_no_difference_to_the_hessian_rule(case, options):
    state, moments = case
    after, _ = flip_by_hessian(state, moments, options)
    assert torch.equal(after.integers, flip_by_hessian(flat(state), moments, options)[0].integers)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("percent", [0.0, 0.2])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_every_step_takes_the_flip_that_lessens_the_objective_most(grid, percent, share):
    state, moments = random_case(3, 4, 23, grid)
    options = FlipOptions(outlier_percent=percent, max_flip_percent=share)
    after, statistics = flip_by_hessian(state, moments, options)
    masked, most = options.outliers(moments.mean).mask, options.most_flips(23)
    assert torch.equal(after.integers, greedy_flips(state, moments.second, masked, most))
    assert statistics.flips > 0


def test_a_gain_that_float64_sums_cannot_tell_is_none():
    state, moments = cancelling_case(large=1e5)  # larger ones would make the first channel dead
    after, statistics = flip_by_hessian(state, moments, FlipOptions(outlier_percent=0.7, max_flip_percent=1.0))
    assert statistics.candidates == 64
    assert torch.equal(after.integers, state.integers)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_objective_is_that_of_its_definition_in_whatever_parts_it_is_computed(grid, dtype, monkeypatch):
    state, moments = random_case(0, 6, 41, grid)
    second = moments.second.to(dtype)
    monkeypatch.setattr(rounding, "PRODUCT_ROWS", 7)
    monkeypatch.setattr(rounding, "CHUNK_BYTES", 41 * rounding.BYTES_PER_WEIGHT * 4)  # four rows
    torch.testing.assert_close(hessian_error(state, second), objective(state, state.integers, second))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_mean_rules_error_is_the_rank_one_case(grid):
    """On H = mu mu^T the objective is the sum over the rows of e^2."""
    state, moments = random_case(0, 6, 41, grid)
    mean = moments.mean.double()
    squares = mean_error(state, mean).square()
    torch.testing.assert_close(hessian_error(state, mean.outer(mean)), squares, rtol=1e-9, atol=1e-12)


def test_on_a_rank_one_h_the_hessian_rule_lessens_the_mean_error():
    state, moments = random_case(0, 6, 41, Grid(4, False, 8))
    mean = moments.mean.double()
    after, _ = flip_by_hessian(state, Moments(moments.mean, mean.outer(mean)), EVERYTHING)
    before, now = (mean_error(s, mean).abs() for s in (state, after))
    assert (now < 0.1 * before).all()


def test_it_lessens_the_layers_error_where_the_mean_rule_need_not():
    """Inputs of mean near 0 whose channels correlate: the mean says nothing of the error."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator) @ torch.randn(3, 120, generator=generator)
    x = x + 0.1 * torch.randn(400, 120, generator=generator)
    x = x - x.mean(dim=0) + 1e-3 * torch.randn(120, generator=generator)
    moments = Moments(x.mean(dim=0), x.T @ x / len(x))
    state = Grid(4, False, 32).nearest(torch.randn(16, 120, generator=generator))
    options = FlipOptions(outlier_percent=0.0, max_flip_percent=0.05)
    by_mean, by_hessian = (rule(state, moments, options)[0] for rule in (flip_by_mean, flip_by_hessian))
    error = {name: ((s.error() @ x.T) ** 2).sum().item() for name, s in [("no", state), ("mean", by_mean)]}
    error["hessian"] = ((by_hessian.error() @ x.T) ** 2).sum().item()
    assert error["hessian"] < 0.5 * error["no"]
    assert error["mean"] > 0.9 * error["no"]


def test_a_diagonal_h_flips_nothing_as_nearest_is_already_best():
    state, moments = random_case(0, 6, 41, Grid(4, False, 8))
    after, statistics = flip_by_hessian(state, Moments(moments.mean, moments.second.diagonal().diag()), EVERYTHING)
    assert statistics.flips == 0
    assert after.integers.equal(state.integers)


def test_a_float32_h_whose_halves_differ_is_read_as_its_symmetric_part(monkeypatch):
    monkeypatch.setattr(rounding, "PRODUCT_ROWS", 7)
    state, moments = random_case(2, 5, 41, Grid(4, False, 8))
    second = moments.second.float()
    tilt = torch.randint(-3, 4, (41, 41), generator=torch.Generator().manual_seed(0)) / 64
    tilted = second + tilt - tilt.T
    tilted_back = (tilted + tilted.T) / 2
    options = FlipOptions(max_flip_percent=0.3)
    after = flip_by_hessian(state, Moments(moments.mean, tilted), options)[0]
    assert torch.equal(after.integers, flip_by_hessian(state, Moments(moments.mean, tilted_back), options)[0].integers)
    assert (hessian_error(after, tilted_back) <= hessian_error(state, tilted_back)).all()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (None, "needs E\\[x x\\^T\\]"),
        (torch.eye(7), "needs an H \\[8, 8\\], not \\(7, 7\\)"),
        (torch.full((8, 8), float("nan")), "NaN or infinity"),
    ],
    ids=["none", "another size", "not finite"],
)
def test_a_missing_or_wrong_h_is_refused(second, message):
    state, _ = random_case(0, 2, 8, Grid(4, False, 8))
    with pytest.raises(QuambaError, match=message):
        flip_by_hessian(state, Moments(torch.ones(8), second))
