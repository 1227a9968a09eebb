"""The clip search of AWQ against trying every ratio on every group in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quamba.errors import QuambaError
from quamba.weights import awq
from quamba.weights.clip import clip_weight
from quamba.weights.grid import Grid
from quamba.weights.statistics import InputStatistics

GRIDS = {
    "3 bits, groups of 32": Grid(3, False, 32),
    "4 bits, groups of 32": Grid(4, False, 32),
    "8 bits, groups of 64": Grid(8, False, 64),
    "8 bits per channel": Grid(8, True, None),
}
COLUMNS = 71  # two groups of 32 and a short one of 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heavy(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Weights with heavy tails, which clipping is for."""
    return random(rows, columns, seed=seed) ** 3


def statistics_of(x: Tensor) -> InputStatistics:
    statistics = InputStatistics(x.shape[-1], second_moment=False)
    statistics.update(x)
    return statistics


def group_slices(columns: int, grid: Grid) -> list[slice]:
    size = grid.group_size or columns
    return [slice(start, min(start + size, columns)) for start in range(0, columns, size)]


def group_errors(weight: Tensor, rounded_from: Tensor, x: Tensor, grid: Grid) -> Tensor:
    """The definition in float64, [O, G]: each group's part of the output, before and after."""
    difference = (weight - grid.nearest(rounded_from).dequantized()).double()
    parts = [x.double()[:, own] @ difference[:, own].T for own in group_slices(weight.shape[1], grid)]  # [n, O] each
    return torch.stack([part.square().sum(dim=0) for part in parts], dim=1)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_each_group_gets_the_best_of_the_ratios(grid):
    x, weight = random(90, COLUMNS, seed=1), heavy(11, COLUMNS)
    clipped = clip_weight(weight, statistics_of(x), grid, n_grid=10, max_shrink=0.5)
    found = group_errors(weight, clipped, x, grid)
    best = torch.full_like(found, torch.inf)
    for step in range(6):
        tried = weight.clone()
        for own in group_slices(COLUMNS, grid):
            limit = weight[:, own].abs().amax(1, True) * (1 - step / 10)
            tried[:, own] = weight[:, own].clamp(-limit, limit)
        best = torch.minimum(best, group_errors(weight, tried, x, grid))
    torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-9)
    assert bool((clipped != weight).any()) == (grid.bits < 8)  # 8 bits have steps to spare


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 6),
    columns=st.integers(1, 75),
    tokens=st.integers(1, 40),
    grid=st.sampled_from(list(GRIDS.values())),
    n_grid=st.integers(1, 12),
    max_shrink=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
)
@settings(max_examples=60, deadline=None)
def test_no_group_gets_a_larger_error(seed, rows, columns, tokens, grid, n_grid, max_shrink):
    x, weight = random(tokens, columns, seed=seed), heavy(rows, columns, seed=seed + 1)
    clipped = clip_weight(weight, statistics_of(x), grid, n_grid=n_grid, max_shrink=max_shrink)
    before, after = (group_errors(weight, w, x, grid) for w in (weight, clipped))
    assert (after <= before * (1 + 1e-5) + 1e-9).all()  # errors are compared in float32
    assert float(after.sum()) <= float(before.sum()) * (1 + 1e-5) + 1e-9


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_shrink_gives_the_weight_as_it_is(grid, dtype):
    weight = heavy(5, COLUMNS).to(dtype)
    clipped = clip_weight(weight, statistics_of(random(20, COLUMNS)), grid, max_shrink=0.0)
    assert clipped.dtype == torch.float32
    assert torch.equal(clipped, weight.float())


class TestALargeWeight:
    grid = GRIDS["4 bits, groups of 32"]

    def case(self, input_size: float) -> tuple[Tensor, Tensor]:
        """An input whose channel 7 has that size, and a weight with one large value there."""
        x, weight = random(60, COLUMNS, seed=1), random(4, COLUMNS).clamp(-1, 1)
        weight[2, 7] = 10.0
        x[:, 7] *= input_size
        return x, weight

    def test_of_a_faint_channel_is_cut_off(self):
        x, weight = self.case(input_size=1e-4)
        clipped = clip_weight(weight, statistics_of(x), self.grid)
        assert 5 <= clipped[2, 7] <= 7
        before, after = (group_errors(weight, w, x, self.grid) for w in (weight, clipped))
        assert after[2, 0] < 0.7 * before[2, 0]

    def test_of_a_loud_channel_stays(self):
        x, weight = self.case(input_size=30.0)
        assert clip_weight(weight, statistics_of(x), self.grid)[2, 7] >= 9

    def test_of_a_channel_that_is_never_excited_stays(self):
        """The text is blind to what cutting it off costs."""
        x, weight = self.case(input_size=0.0)
        assert torch.equal(clip_weight(weight, statistics_of(x), self.grid)[:, 7], weight[:, 7])

    def test_touches_no_other_group(self):
        x, weight = self.case(input_size=1e-4)
        clipped = clip_weight(weight, statistics_of(x), self.grid)
        weight[2, 7] = 0.0
        without = clip_weight(weight, statistics_of(x), self.grid)
        assert torch.equal(clipped[2, 32:], without[2, 32:])
        assert torch.equal(clipped[[0, 1, 3]], without[[0, 1, 3]])


def test_a_group_of_positive_weights_keeps_its_zero():
    x, weight = random(60, 32, seed=1), heavy(4, 32).abs() + 0.5
    grid = GRIDS["3 bits, groups of 32"]
    clipped = clip_weight(weight, statistics_of(x), grid)
    assert (clipped >= 0.25).all()
    assert (group_errors(weight, clipped, x, grid) <= group_errors(weight, weight, x, grid) * (1 + 1e-5)).all()


def test_of_equal_errors_the_larger_range_wins():
    """The inputs of the second group are all zero, so every range of it has the error 0."""
    x, weight = random(60, COLUMNS, seed=1), heavy(5, COLUMNS)
    x[:, 32:64] = 0
    clipped = clip_weight(weight, statistics_of(x), GRIDS["3 bits, groups of 32"])
    assert torch.equal(clipped[:, 32:64], weight[:, 32:64])
    assert not torch.equal(clipped[:, :32], weight[:, :32])


def test_a_row_of_zeros_stays_zero():
    weight = heavy(3, COLUMNS)
    weight[1] = 0
    assert not clip_weight(weight, statistics_of(random(20, COLUMNS)), GRIDS["4 bits, groups of 32"])[1].any()


def test_the_weight_is_read_in_chunks_of_rows(monkeypatch):
    x, weight = random(90, COLUMNS, seed=1), heavy(23, COLUMNS)
    grid = GRIDS["3 bits, groups of 32"]
    whole = clip_weight(weight, statistics_of(x), grid)
    monkeypatch.setattr(awq, "TEMPORARY_BYTES", 4 * 5 * 16 * COLUMNS)
    torch.testing.assert_close(clip_weight(weight, statistics_of(x), grid), whole)


@pytest.mark.parametrize("options", [{"n_grid": 0}, {"max_shrink": 1.0}, {"max_shrink": -0.1}])
def test_a_search_over_nothing_is_refused(options):
    with pytest.raises(QuambaError, match="no clip search"):
        clip_weight(heavy(3, 32), statistics_of(random(9, 32)), GRIDS["4 bits, groups of 32"], **options)
