"""Counts and sums of magnitudes: the CUDA kernel against the reference."""

import math

import pytest
import torch

from quamba.ops import reference

from ..ops.test_magnitude_histogram import EXPONENT_OF_ONE, empty


@pytest.mark.parametrize("size", [0, 1, 33, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("mantissa_bits", [0, 4], ids=["octaves", "sixteenths"])
@pytest.mark.parametrize("octaves", [20, 600], ids=["few bins", "more bins than shared memory holds"])
def test_it_matches_the_reference(kernels, size, dtype, mantissa_bits, octaves):
    x = (torch.randn(size) * 10).to(dtype)
    expected, actual = empty(octaves << mantissa_bits), empty(octaves << mantissa_bits)
    first_bin = (EXPONENT_OF_ONE - 12) << mantissa_bits
    for _ in range(2):  # it adds to what is there
        kernels.magnitude_histogram(x, *actual, first_bin, mantissa_bits)
        reference.magnitude_histogram(x, *expected, first_bin, mantissa_bits)
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1])  # summed in another order
    assert actual[0].sum() == 2 * size


@pytest.mark.parametrize("repeats", [1, 500], ids=["in the table itself", "in tables of blocks"])
def test_what_lies_outside_goes_into_the_end_bins_and_non_finite_values_nowhere(kernels, repeats):
    counts, sums = empty(2)
    x = torch.tensor([0.0, 1e-20, 1.0, 2.0, 1e20, math.nan, math.inf, -math.inf]).repeat(repeats)
    kernels.magnitude_histogram(x, counts, sums, EXPONENT_OF_ONE, 0)
    assert counts.tolist() == [3 * repeats, 2 * repeats]
    torch.testing.assert_close(
        sums, torch.tensor([1.0, 2.0 + float(torch.tensor(1e20))], dtype=torch.float64) * repeats
    )


def test_values_may_be_strided(kernels):
    x, actual, expected = torch.randn(30, 20), empty(40), empty(40)
    kernels.magnitude_histogram(x.T[::2], *actual, EXPONENT_OF_ONE - 20, 0)
    reference.magnitude_histogram(x.T[::2], *expected, EXPONENT_OF_ONE - 20, 0)
    assert torch.equal(actual[0], expected[0])


def test_misfitting_arguments_are_refused_by_name(kernels):
    x, (counts, sums) = torch.ones(3), empty(4)
    with pytest.raises(ValueError, match="at least one bin"):
        kernels.magnitude_histogram(x, *empty(0), 0, 6)
    with pytest.raises(ValueError, match="counts must be Long"):
        kernels.magnitude_histogram(x, counts.int(), sums, 0, 6)
    with pytest.raises(ValueError, match="sums must be Double"):
        kernels.magnitude_histogram(x, counts, sums.float(), 0, 6)
    with pytest.raises(ValueError, match="sums must have shape"):
        kernels.magnitude_histogram(x, counts, sums[:3], 0, 6)
    with pytest.raises(ValueError, match="must be contiguous"):
        kernels.magnitude_histogram(x, torch.zeros(8, dtype=torch.int64)[::2], sums, 0, 6)
    with pytest.raises(ValueError, match=r"mantissa_bits must be 0\.\.23, got 24"):
        kernels.magnitude_histogram(x, counts, sums, 0, 24)
