"""What every quantized module shares: its float buffers are scales or state parameters, and stay float32."""

import torch
from torch import nn


class QuantModule(nn.Module):
    """A module whose tensors are buffers; float32 ones survive `.to(bfloat16)` and `.half()`, devices still move."""

    # transformers must not re-initialise what it loads into a module that it does not know
    _is_hf_initialized = True

    def _apply(self, fn, recurse: bool = True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and old.dtype == torch.float32 and new.dtype != torch.float32:
                self._buffers[name] = old.to(new.device)
        return self
