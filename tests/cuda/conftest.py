"""CUDA kernels against the references: in the emulation, which runs their sources thread by thread, and on a GPU."""

import pytest
import torch

try:
    from quamba.ops import emulated  # noqa: F401  defines torch.ops.quamba_emulated
except ImportError as error:
    raise pytest.UsageError(f"tests/cuda: {error}") from error

from .platforms import DEVICES, Kernels


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    """Where CUDA kernels run: cpu, emulated, and cuda where there is a GPU; see --device in tests/conftest.py."""
    return request.param


@pytest.fixture
def kernels(device) -> Kernels:
    """The kernels on that device."""
    return Kernels(device)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
