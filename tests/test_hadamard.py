"""The Hadamard matrices themselves: which sizes exist, and that their rows are orthogonal."""

import pytest
import torch

from quamba.errors import QuambaError
from quamba.hadamard import hadamard_base, hadamard_matrix

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


@pytest.mark.parametrize("n", [0, 3, 6, 18, 30, 68, 76, 1000, 2561])
def test_other_sizes_are_refused_by_name(n):
    with pytest.raises(QuambaError, match=rf"size {n}: supported sizes are m \* 2\*\*k with m in {{1, 12, 20, 28, 36"):
        hadamard_base(n)
