"""CUDA kernels against the references, without a GPU: the emulation, which runs their sources thread by thread."""

import pytest
import torch

from quamba.ops import emulated  # noqa: F401  defines torch.ops.quamba_emulated

from .platforms import PLATFORMS, Kernels


@pytest.fixture(params=PLATFORMS)
def kernels(request) -> Kernels:
    """The kernels, in the emulation and on the GPU where there is one."""
    return Kernels(request.param)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
