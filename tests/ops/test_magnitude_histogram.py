"""Counts and sums of magnitudes by the float's own bits."""

import math

import pytest
import torch

from quamba import ops
from quamba.ops import reference

EXPONENT_OF_ONE = 127  # float32's bias: |x| in [1, 2) has these exponent bits


def empty(bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(bins, dtype=torch.int64), torch.zeros(bins, dtype=torch.float64)


def test_with_no_mantissa_bits_a_bin_is_an_octave():
    counts, sums = empty(4)
    x = torch.tensor([1.0, -1.5, 2.0, 3.9, 4.0, -8.0])
    ops.magnitude_histogram(x, counts, sums, EXPONENT_OF_ONE, 0)
    assert counts.tolist() == [2, 2, 1, 1]
    assert sums.tolist() == [2.5, pytest.approx(5.9), 4.0, 8.0]


def test_what_lies_outside_goes_into_the_end_bins_and_non_finite_values_nowhere():
    counts, sums = empty(2)
    x = torch.tensor([0.0, 1e-20, 1.0, 2.0, 1e20, math.nan, math.inf, -math.inf])
    ops.magnitude_histogram(x, counts, sums, EXPONENT_OF_ONE, 0)
    assert counts.tolist() == [3, 2]


@pytest.mark.parametrize("size", [1, 1000, 300_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_matches_the_reference(size, dtype):
    x = (torch.randn(size) * 10).to(dtype)
    counts, sums = empty(20 << 6)
    expected_counts, expected_sums = empty(20 << 6)
    ops.magnitude_histogram(x, counts, sums, (EXPONENT_OF_ONE - 12) << 6, 6)
    reference.magnitude_histogram(x, expected_counts, expected_sums, (EXPONENT_OF_ONE - 12) << 6, 6)
    assert torch.equal(counts, expected_counts)
    torch.testing.assert_close(sums, expected_sums)
    assert counts.sum() == size


def test_it_adds_to_what_is_there_and_is_the_same_from_run_to_run():
    x = torch.randn(200_000)
    once, twice = empty(1 << 10), empty(1 << 10)
    ops.magnitude_histogram(x, *once, (EXPONENT_OF_ONE - 8) << 6, 6)
    for _ in range(2):
        ops.magnitude_histogram(x, *twice, (EXPONENT_OF_ONE - 8) << 6, 6)
    assert torch.equal(twice[0], 2 * once[0])
    assert torch.equal(twice[1], 2 * once[1])


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="at least one bin"):
        ops.magnitude_histogram(torch.ones(3), *empty(0), 0, 6)
