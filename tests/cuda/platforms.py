"""Where tests of CUDA kernels run them: in the emulation, and on the GPU too where there is one."""

import torch
from torch import Tensor

PLATFORMS = ["emulated", *(["cuda"] if torch.cuda.is_available() else [])]


class Kernels:
    """`Kernels(platform).NAME(...)` runs an op's CUDA kernel on CPU tensors, whatever the platform."""

    def __init__(self, platform: str):
        self.platform = platform

    def __getattr__(self, name: str):
        if self.platform == "emulated":
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
