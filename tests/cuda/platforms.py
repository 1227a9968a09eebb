"""Where tests of CUDA kernels run them: on the CPU in the emulation, and on the GPU too where there is one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from quamba import ops
from quamba.ops.schemas import SCHEMAS

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class Kernels:
    """`Kernels(device).NAME(...)` runs an op's CUDA kernel there, on tensors that come from the CPU and go back."""

    def __init__(self, device: str):
        self.device = device

    def __getattr__(self, name: str):
        if self.device == "cpu":
            return getattr(torch.ops.quamba_emulated, name)

        def run(*args, **kwargs):
            moved = [_on_gpu(value) for value in (*args, *kwargs.values())]
            result = getattr(torch.ops.quamba, name)(
                *moved[: len(args)], **dict(zip(kwargs, moved[len(args) :], strict=True))
            )
            for value, copy in zip((*args, *kwargs.values()), moved, strict=True):
                if isinstance(value, Tensor) and 0 not in value.stride():  # ops update no expanded tensor
                    value.copy_(copy)
            return result.cpu() if isinstance(result, Tensor) else result

        return run


def _on_gpu(value):
    """A tensor with the strides and the place in its storage that it has here."""
    if not isinstance(value, Tensor):
        return value
    storage = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage()).cuda()
    return storage.as_strided(value.shape, value.stride(), value.storage_offset())


class NoCpuKernels(TorchDispatchMode):
    """An op that reaches a CPU kernel of ours within it is an error."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.namespace != "quamba", func
        return func(*args, **kwargs or {})


@contextmanager
def cuda_kernels(device: str) -> Iterator[None]:
    """Ops of models on that device are the CUDA kernels within the block."""
    if device == "cuda":  # there they are anyway
        yield
        return
    with pytest.MonkeyPatch.context() as patch, NoCpuKernels():
        for name in SCHEMAS:
            patch.setattr(ops, name, getattr(torch.ops.quamba_emulated, name))
        yield
