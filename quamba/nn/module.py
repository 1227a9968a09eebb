"""What every quantized module shares: its float buffers are scales or state parameters, and keep their dtype."""

from torch import nn


class QuantModule(nn.Module):
    """A module whose tensors are buffers: they keep their dtype in `.to(bfloat16)` and `.half()`; devices move."""

    # transformers must not re-initialise what it loads into a module that it does not know
    _is_hf_initialized = True

    def _apply(self, fn, recurse: bool = True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self
