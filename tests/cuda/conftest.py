"""CUDA kernels against the references, without a GPU: the emulation, which runs their sources thread by thread."""

import pytest
import torch

from quamba.ops import emulated  # noqa: F401  defines torch.ops.quamba_emulated


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
