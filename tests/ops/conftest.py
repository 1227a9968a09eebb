"""Kernel against reference: every instruction set that this machine runs, awkward sizes."""

import pytest
import torch

from quamba import ops

# (batch, tokens, channels): single tokens, odd lengths, channels that fill no vector, one vector, and several
SHAPES = [(1, 1, 16), (2, 1, 40), (1, 3, 37), (3, 129, 16), (2, 151, 100), (1, 40, 5)]


@pytest.fixture(params=torch.ops.quamba.cpu_capabilities())
def capability(request):
    """Runs the test once with each instruction set."""
    with ops.force_cpu_capability(request.param):
        yield request.param


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request) -> tuple[int, int, int]:
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_int8(*shape: int) -> torch.Tensor:
    """Every int8 value, both ends included."""
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def assert_within_one_step(actual: torch.Tensor, expected: torch.Tensor, differing: float = 0.01) -> None:
    """Equal integers, but for a step at values that lie on a rounding boundary."""
    assert actual.dtype == expected.dtype == torch.int8
    difference = (actual.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= differing
