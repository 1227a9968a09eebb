"""The scale search of AWQ against its definition, spelled out in float64 with two whole outputs."""

import pytest
import torch
from torch import Tensor

from quamba.errors import QuambaError
from quamba.weights import awq
from quamba.weights.awq import channel_scales, fold_into_norm, scale_statistics, search_scales
from quamba.weights.grid import Grid
from quamba.weights.statistics import InputStatistics

GRIDS = {
    "3 bits, groups of 32": Grid(3, False, 32),
    "4 bits, groups of 32": Grid(4, False, 32),
    "8 bits, groups of 64": Grid(8, False, 64),
    "8 bits per channel": Grid(8, True, None),
}
GRID = GRIDS["4 bits, groups of 32"]
COLUMNS = 71  # two groups of 32 and a short one of 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def few_large(rows: int = 200, columns: int = COLUMNS) -> Tensor:
    """An input with three large channels, as language models have them."""
    x = random(rows, columns, seed=1)
    x[:, [3, 17, 40]] *= 30
    return x


def statistics_of(x: Tensor, second_moment: bool = False, **options) -> InputStatistics:
    statistics = InputStatistics(x.shape[-1], second_moment=second_moment, **options)
    statistics.update(x)
    return statistics


def error_of(weight: Tensor, x: Tensor, grid: Grid, scales: Tensor, bias: Tensor | float = 0.0) -> float:
    """The definition: squared difference of two whole outputs in float64, summed over outputs, mean over rows."""
    weight = weight.float()
    rounded = grid.nearest(weight * scales).dequantized() / scales
    before, after = (x.double() @ w.double().T + bias for w in (weight, rounded))
    return float((before - after).square().sum(dim=1).mean())


def curve(weight: Tensor, x: Tensor, grid: Grid, n_grid: int, bias: Tensor | float = 0.0, offset: float = 0.0) -> list:
    salience = x.double().square().mean(dim=0).float()
    input_scales = [(salience + offset).pow(i / n_grid).clamp(min=1e-5) for i in range(n_grid + 1)]
    return [error_of(weight, x, grid, scales, bias) for scales in input_scales]


def least(errors: list[float]) -> int:
    return errors.index(min(errors))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_every_error_is_that_of_the_definition(grid):
    x, weight = few_large(), random(19, COLUMNS)
    result = search_scales([weight], statistics_of(x), grid, n_grid=10)
    assert result.errors == pytest.approx(curve(weight, x, grid, 10), rel=1e-3)
    assert result.alpha == least(result.errors) / 10
    assert torch.equal(result.scales, statistics_of(x).salience.pow(result.alpha).clamp(min=1e-5))
    assert torch.equal(result.scaled(weight), weight * result.scales)


@pytest.mark.parametrize("rows", [1, 40, 300])
def test_few_rows_and_many_give_the_error_of_the_definition(rows):
    x, weight = few_large(rows), random(5, COLUMNS)
    result = search_scales([weight], statistics_of(x), GRID, n_grid=4)
    assert result.errors == pytest.approx(curve(weight, x, GRID, 4), rel=1e-3)


def test_the_grid_of_alphas_has_twenty_steps_from_0_to_1():
    assert len(search_scales([random(3, COLUMNS)], statistics_of(few_large()), GRID).errors) == 21


def test_a_few_large_channels_are_protected():
    x, weight = few_large(), random(24, COLUMNS)
    result = search_scales([weight], statistics_of(x), GRID)
    assert result.alpha > 0
    assert min(result.errors) < 0.7 * result.errors[0]
    assert result.scales[17] > 3 * result.scales[18]


def test_flat_salience_leaves_the_weight_alone_as_the_smaller_of_equal_alphas_wins():
    x = random(100, COLUMNS).sign()  # every channel has a mean square of 1
    result = search_scales([random(6, COLUMNS)], statistics_of(x), GRID)
    assert len(set(result.errors)) == 1
    assert result.alpha == 0
    assert torch.equal(result.scales, torch.ones(COLUMNS))


def test_at_alpha_0_the_input_scales_are_exactly_ones_even_for_a_channel_that_is_never_on():
    assert torch.equal(channel_scales(torch.tensor([0.0, 1e-30, 3.7, 1e30]), 0.0), torch.ones(4))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-9])
def test_a_channel_that_is_never_on_has_the_scale_of_a_typical_one(size):
    x, live = few_large(), [j for j in range(COLUMNS) if j != 5]
    x[:, 5] *= size
    statistics = statistics_of(x)
    scales = channel_scales(statistics.salience, 0.5)
    assert torch.equal(scales[live], statistics.salience[live].pow(0.5))
    assert float(scales[5]) == pytest.approx(float(scales[live].log().mean().exp()))
    assert torch.isfinite(scale_statistics(statistics, scales).sample).all()


def test_where_no_channel_is_ever_on_there_is_nothing_to_scale():
    assert torch.equal(channel_scales(torch.zeros(4), 0.7), torch.ones(4))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_chosen_error_is_never_above_that_of_plain_rounding(grid, seed):
    x, weight = random(50, 45, seed=seed) * random(45, seed=seed + 50).exp(), random(7, 45, seed=seed + 100)
    result = search_scales([weight], statistics_of(x), grid, n_grid=8)
    plain = error_of(weight, x, grid, torch.ones(45))
    assert error_of(weight, x, grid, result.scales) <= plain * (1 + 1e-6)
    assert result.errors[0] == pytest.approx(plain, rel=1e-3)


def test_linears_that_share_an_input_share_the_input_scales_of_the_summed_error():
    x = few_large()
    first, second = random(9, COLUMNS), random(40, COLUMNS, seed=2)
    second[:, [3, 17, 40]] *= 0.02  # this one hardly reads the large channels
    statistics = statistics_of(x)
    alone = [search_scales([weight], statistics, GRID) for weight in (first, second)]
    shared = search_scales([first, second], statistics, GRID)
    assert alone[0].alpha != alone[1].alpha
    assert shared.errors == pytest.approx([a + b for a, b in zip(alone[0].errors, alone[1].errors, strict=True)])
    assert shared.alpha == least(shared.errors) / 20
    stacked = search_scales([torch.cat([first, second])], statistics, GRID)
    assert (shared.alpha, shared.errors) == (stacked.alpha, pytest.approx(stacked.errors))


def test_a_bias_cancels():
    """Two whole outputs with a bias and without give one curve, and the search, which has no bias, has its minimum."""
    x, weight, bias = few_large(), random(13, COLUMNS), 50 * random(13, seed=3).double()
    without, with_bias = curve(weight, x, GRID, 20), curve(weight, x, GRID, 20, bias=bias)
    assert with_bias == pytest.approx(without, rel=1e-9)
    assert least(with_bias) == least(without) == search_scales([weight], statistics_of(x), GRID).alpha * 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_search_is_one_of_float32_whatever_the_dtype(dtype):
    x, weight = few_large().to(dtype), random(13, COLUMNS).to(dtype)
    own = search_scales([weight], statistics_of(x), GRID)
    copies = search_scales([weight.float()], statistics_of(x.float()), GRID)
    assert (own.alpha, own.errors) == (copies.alpha, copies.errors)
    assert torch.equal(own.scales, copies.scales)
    assert own.scales.dtype == own.scaled(weight).dtype == torch.float32


class TestNothingIsAddedBeforeThePower:
    """What salience + 1e-6 does where inputs are small: channels below 1e-3 become alike, and the search loses them."""

    def small(self) -> Tensor:
        """The large channels of this input are at 1.5e-3, the others near 5e-5: mean squares of 2e-6 and 2e-9."""
        return few_large() * 5e-5

    def test_the_offset_hides_the_ratio_of_two_channels(self):
        salience = torch.tensor([1e-8, 4e-8])
        ratio, hidden = (s[1] / s[0] for s in (channel_scales(salience, 0.5), (salience + 1e-6).pow(0.5)))
        assert float(ratio) == pytest.approx(2)
        assert float(hidden) == pytest.approx(1.0148, abs=1e-3)

    def test_the_search_with_the_offset_finds_worse_scales(self):
        x, weight = self.small(), random(24, COLUMNS)
        own = search_scales([weight], statistics_of(x), GRID)
        offset = curve(weight, x, GRID, 20, offset=1e-6)
        assert own.errors == pytest.approx(curve(weight, x, GRID, 20), rel=1e-3)
        assert own.alpha != least(offset) / 20
        assert min(own.errors) < min(offset)


class TestRows:
    def test_fewer_output_rows_are_spread_over_the_sample(self):
        x, weight = few_large(90), random(6, COLUMNS)
        result = search_scales([weight], statistics_of(x), GRID, n_grid=4, output_rows=30)
        scales = [channel_scales(statistics_of(x).salience, i / 4) for i in range(5)]  # the salience is that of all
        assert result.errors == pytest.approx([error_of(weight, x[::3], GRID, s) for s in scales], rel=1e-3)

    def test_more_output_rows_than_there_are_means_all(self):
        x, weight = few_large(20), random(6, COLUMNS)
        many = search_scales([weight], statistics_of(x), GRID, n_grid=4, output_rows=21)
        assert many.errors == search_scales([weight], statistics_of(x), GRID, n_grid=4).errors

    def test_a_weight_is_read_in_chunks_of_rows(self, monkeypatch):
        x, weight = few_large(), random(50, COLUMNS)
        whole = search_scales([weight], statistics_of(x), GRID, n_grid=4)
        monkeypatch.setattr(awq, "TEMPORARY_BYTES", 4 * 7 * (8 * COLUMNS + 2 * COLUMNS))
        assert [len(part) for part in awq.row_chunks(weight, 10 * COLUMNS)] == [7] * 7 + [1]
        chunked = search_scales([weight], statistics_of(x), GRID, n_grid=4)
        assert (chunked.alpha, chunked.errors) == (whole.alpha, pytest.approx(whole.errors))


class TestFolding:
    def test_the_statistics_of_the_scaled_input_are_those_of_x_over_s(self):
        x, scales = few_large(), random(COLUMNS, seed=5).exp()
        own = scale_statistics(statistics_of(x, second_moment=True), scales)
        streamed = statistics_of(x / scales, second_moment=True)
        assert own.count == streamed.count
        assert torch.equal(own.sample, streamed.sample)
        for name in ("mean", "salience", "second"):
            torch.testing.assert_close(getattr(own, name), getattr(streamed, name), rtol=1e-4, atol=1e-5, msg=name)

    def test_statistics_without_a_second_moment_stay_without(self):
        assert scale_statistics(statistics_of(few_large()), torch.ones(COLUMNS)).second is None

    def test_scaling_leaves_the_statistics_it_is_given(self):
        statistics = statistics_of(few_large(), second_moment=True)
        once = scale_statistics(statistics, torch.full((COLUMNS,), 2.0))
        before = once.second.clone()
        twice = scale_statistics(once, torch.full((COLUMNS,), 2.0))
        assert torch.equal(once.second, before)
        assert torch.equal(twice.second, statistics.second / 16)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_norm_takes_the_scales_and_the_product_stays(self, dtype):
        x, norm, weight = few_large(), random(COLUMNS, seed=6).exp().to(dtype), random(8, COLUMNS)
        result = search_scales([weight], statistics_of(x * norm.float()), GRID)
        folded = fold_into_norm(norm, result.scales)
        assert folded.dtype == torch.float32
        torch.testing.assert_close(
            (x * folded) @ result.scaled(weight).T, (x * norm.float()) @ weight.T, rtol=1e-4, atol=1e-3
        )


class TestErrors:
    def test_scales_that_are_not_finite_are_refused(self):
        with pytest.raises(QuambaError, match=r"the scales of alpha 0\.5 are not finite"):
            search_scales([random(3, 4)], statistics_of(torch.full((2, 4), 1e25)), GRID, n_grid=2)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_weight_that_is_not_finite_is_refused(self, bad):
        weight = random(3, COLUMNS)
        weight[1, 2] = bad
        with pytest.raises(QuambaError, match="a weight holds NaN or infinity"):
            search_scales([weight], statistics_of(few_large()), GRID, n_grid=2)

    @pytest.mark.parametrize("options", [{"n_grid": 0}, {"output_rows": 0}])
    def test_a_search_over_nothing_is_refused(self, options):
        with pytest.raises(QuambaError, match="at least 1"):
            search_scales([random(3, COLUMNS)], statistics_of(few_large()), GRID, **options)
