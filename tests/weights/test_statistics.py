"""Statistics of a layer's input: what a stream gives is what one pass over all its rows gives, however it is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba.errors import QuambaError
from quamba.weights.statistics import BLOCK_ROWS, InputStatistics, compact_rows

CHANNELS = 5


def stream(rows: int, channels: int = CHANNELS, seed: int = 0) -> torch.Tensor:
    """Rows [rows, channels] whose channels differ in size and mean."""
    x = torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed))
    return x * torch.logspace(-3, 2, channels) + torch.linspace(-1, 1, channels)


def seen(*batches: torch.Tensor, second_moment: bool = True, **options) -> InputStatistics:
    statistics = InputStatistics(batches[0].shape[-1], second_moment=second_moment, **options)
    for batch in batches:
        statistics.update(batch)
    return statistics


def test_the_moments_are_those_of_their_definition():
    x = stream(3 * BLOCK_ROWS + 17)
    statistics = seen(x)
    exact = x.double()
    assert statistics.count == len(x)
    assert torch.equal(statistics.mean, exact.mean(dim=0).float())
    assert torch.equal(statistics.salience, exact.square().mean(dim=0).float())
    second = exact.T @ exact / len(x)
    largest = second.diagonal().sqrt().outer(second.diagonal().sqrt())  # what |E[x_i x_j]| can be at most
    assert float(((statistics.second - second).abs() / largest).max()) < 2e-6
    assert all(t.dtype == torch.float32 for t in (statistics.mean, statistics.salience, statistics.second))


@given(
    cuts=st.lists(st.integers(0, 400), min_size=1, max_size=6),
    rows=st.integers(1, 2 * BLOCK_ROWS + 60),
    sample_rows=st.sampled_from([1, 7, 64, 2048]),
)
@settings(max_examples=40, deadline=None)
def test_a_stream_equals_one_pass_to_the_bit_whatever_the_cut(cuts, rows, sample_rows):
    x = stream(rows)
    pieces = x.tensor_split(sorted(cut for cut in cuts if cut <= rows))  # some are empty
    cut, whole = seen(*pieces, sample_rows=sample_rows), seen(x, sample_rows=sample_rows)
    assert cut.count == whole.count == rows
    for name in ("mean", "salience", "second", "sample"):
        assert torch.equal(getattr(cut, name), getattr(whole, name)), name


def test_reading_does_not_disturb_the_stream():
    first, second = stream(100), stream(300, seed=1)
    read = seen(first, sample_rows=40)
    before = read.sample.clone(), read.mean, read.second
    kept = read.sample
    read.update(second)
    assert torch.equal(kept, before[0])  # what was handed out stays as it was
    unread = seen(first, second, sample_rows=40)
    for name in ("mean", "salience", "second", "sample"):
        assert torch.equal(getattr(read, name), getattr(unread, name)), name


def test_a_long_stream_loses_nothing_to_rounding():
    """0.1 added up in float32 drifts; the mean of any number of equal rows is that row."""
    row = torch.full((4000, 3), 0.1)
    statistics = seen(*[row] * 50, second_moment=False)
    assert torch.equal(statistics.mean, row[0])
    in_float32 = np.add.accumulate(np.full(200_000, 0.1, dtype=np.float32))[-1] / 200_000
    assert abs(in_float32 - 0.1) > 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_float_dtype_is_read_as_float32(dtype):
    x = stream(70).to(dtype)
    given_, copied = seen(x), seen(x.float())
    for name in ("mean", "salience", "second", "sample"):
        assert torch.equal(getattr(given_, name), getattr(copied, name)), name


def test_every_dimension_but_the_last_counts_rows():
    x = stream(24)
    assert torch.equal(seen(x.view(2, 3, 4, CHANNELS)).second, seen(x).second)
    one_row = seen(x[0])
    assert one_row.count == 1
    assert torch.equal(one_row.mean, x[0])
    assert torch.equal(one_row.sample, x[:1])


def test_the_second_moment_is_kept_only_where_asked():
    assert seen(stream(9), second_moment=False).second is None


class TestSample:
    def test_it_is_all_rows_until_it_is_full(self):
        x = stream(64)
        assert torch.equal(seen(x[:50], x[50:], sample_rows=64).sample, x)

    def test_it_holds_different_rows_of_the_stream_in_the_streams_order(self):
        x = torch.arange(1000.0)[:, None]
        sample = seen(*x.split(33), sample_rows=100).sample
        assert sample.shape == (100, 1)
        assert (sample.diff(dim=0) > 0).all()
        assert set(sample.flatten().tolist()) <= set(range(1000))

    def test_the_seed_decides_it(self):
        x = stream(500)
        assert torch.equal(seen(x, sample_rows=20, seed=3).sample, seen(x, sample_rows=20, seed=3).sample)
        assert not torch.equal(seen(x, sample_rows=20, seed=3).sample, seen(x, sample_rows=20, seed=4).sample)

    def test_the_global_seed_has_no_part_in_it(self):
        x = stream(500)
        torch.manual_seed(1)
        first = seen(x, sample_rows=20).sample
        state = torch.get_rng_state()
        torch.manual_seed(2)
        assert torch.equal(first, seen(x, sample_rows=20).sample)
        torch.manual_seed(1)
        assert torch.equal(state, torch.get_rng_state())

    def test_every_row_is_as_likely_as_any_other(self):
        """5 of 20 rows over 800 seeds: each row is drawn 200 times, within five standard deviations (12.2)."""
        x = torch.arange(20.0)[:, None]
        drawn = torch.zeros(20)
        for seed in range(800):
            rows = seen(x[:7], x[7:], sample_rows=5, seed=seed, second_moment=False).sample
            drawn[rows.flatten().long()] += 1
        assert (drawn - 200).abs().max() < 61


class TestErrors:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_nan_and_infinity_are_refused_and_nothing_is_taken(self, bad):
        x = stream(30)
        statistics = seen(x[:10])
        broken = x[10:].clone()
        broken[4, 2] = bad
        with pytest.raises(QuambaError, match=r"^the input of a layer holds NaN or infinity$"):
            statistics.update(broken)
        statistics.update(x[10:])
        for name in ("count", "mean", "salience", "second", "sample"):
            assert torch.equal(torch.as_tensor(getattr(statistics, name)), torch.as_tensor(getattr(seen(x), name)))

    def test_a_float64_beyond_float32_is_infinity(self):
        with pytest.raises(QuambaError, match="NaN or infinity"):
            seen(torch.full((2, 3), 1e300, dtype=torch.float64))

    @pytest.mark.parametrize("name", ["mean", "salience", "second", "sample"])
    def test_there_is_nothing_to_read_before_the_first_row(self, name):
        statistics = InputStatistics(CHANNELS, second_moment=True)
        statistics.update(torch.empty(0, 4, CHANNELS))
        with pytest.raises(QuambaError, match="has not been seen"):
            getattr(statistics, name)

    @pytest.mark.parametrize("x", [torch.zeros(3, 4), torch.zeros(3, CHANNELS, dtype=torch.int64), torch.tensor(1.0)])
    def test_other_channels_and_integers_are_refused(self, x):
        with pytest.raises(QuambaError, match=f"float with {CHANNELS} channels"):
            InputStatistics(CHANNELS, second_moment=False).update(x)

    @pytest.mark.parametrize("sizes", [(0, 5), (5, 0)])
    def test_sizes_below_one_are_refused(self, sizes):
        with pytest.raises(QuambaError, match="at least 1"):
            InputStatistics(sizes[0], second_moment=False, sample_rows=sizes[1])


@pytest.mark.parametrize("shape", [(40, 7), (3, 40, 7), (7, 7), (1, 7)])
def test_compact_rows_stand_for_their_rows_in_the_norm_of_any_product(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrix = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    compact = compact_rows(x)
    assert compact.shape == (*shape[:-2], min(shape[-2:]), 7)
    torch.testing.assert_close((compact @ matrix).norm(dim=-2), (x @ matrix).norm(dim=-2), rtol=1e-5, atol=1e-6)
