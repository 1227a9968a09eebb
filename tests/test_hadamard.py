"""The Hadamard matrices themselves: which sizes exist, and that their rows are orthogonal."""

import re

import pytest
import torch

from quamba.errors import QuambaError
from quamba.hadamard import check_kernel_size, hadamard_base, hadamard_matrix

POWERS_OF_TWO = [1, 2, 64, 2048, 4096]
PALEY_SIZES = [12, 20, 28, 36, 44, 52, 60, 40, 72, 768, 1536, 2560, 3584, 3840]


@pytest.mark.parametrize("n", POWERS_OF_TWO + PALEY_SIZES)
def test_the_matrix_has_orthogonal_rows_of_plus_and_minus_one(n):
    h = hadamard_matrix(n)
    assert h.dtype == torch.float32
    assert h.shape == (n, n)
    assert torch.equal(h.abs(), torch.ones(n, n))
    assert torch.equal(h @ h.T, n * torch.eye(n))  # sums of +-1 are exact in float32


@pytest.mark.parametrize(
    ("n", "k", "order"),
    [
        *[(1, 0, 1), (4096, 12, 1), (8192, 13, 1), (12, 0, 12), (768, 6, 12), (1536, 7, 12)],
        *[(2560, 7, 20), (5120, 8, 20), (3584, 7, 28), (7168, 8, 28)],
        *[(2304, 6, 36), (1408, 5, 44), (3328, 6, 52), (3840, 6, 60)],
    ],
)
def test_sizes_split_into_a_power_of_two_and_the_smallest_base(n, k, order):
    found_k, base = hadamard_base(n)
    assert (found_k, len(base)) == (k, order)
    assert torch.equal(base @ base.T, order * torch.eye(order))


@pytest.mark.parametrize(
    ("n", "k", "order"), [(3, 0, 3), (6, 1, 3), (30, 1, 15), (68, 2, 17), (1000, 3, 125), (1344, 6, 21), (387, 0, 387)]
)
def test_every_other_size_has_orthogonal_rows_of_small_entries(n, k, order):
    found_k, base = hadamard_base(n)
    h = hadamard_matrix(n).double()
    assert (found_k, len(base)) == (k, order)
    torch.testing.assert_close(h @ h.T, n * torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-6 * n)
    assert h.abs().max() <= 2**0.5 + 1e-6


@pytest.mark.parametrize("n", [1, 4, 60, 3, 62, 66, 68, 17 * 128, 63 * 64, 2 * 32])
def test_kernels_take_odd_parts_up_to_63(n):
    check_kernel_size(n)


@pytest.mark.parametrize(("n", "form"), [(130, "65 * 2**1"), (65, "65 * 2**0"), (85 * 32, "85 * 2**5")])
def test_larger_ones_have_no_kernels(n, form):
    with pytest.raises(QuambaError, match=f"size {n}: kernels .* m up to 64, and this is {re.escape(form)}"):
        check_kernel_size(n)


@pytest.mark.parametrize("n", [-4, 0])
def test_no_matrix_has_such_a_size(n):
    with pytest.raises(QuambaError, match=f"no rotation has size {n}"):
        hadamard_base(n)
