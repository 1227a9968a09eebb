"""What every quantized module shares: its float buffers are scales or state parameters, and keep their dtype."""

import threading

from torch import nn

# A model is changed when it is first used: weights are laid out for the kernels and moved, mixers replaced. Several
# threads may be the first, and one model may be the other's part: one lock for all of it, held by whoever changes
# something and by whoever reads more than one tensor of what another may be changing. Not one a module, which could
# not be copied or saved with it.
FIRST_USE = threading.RLock()


class QuantModule(nn.Module):
    """A module whose tensors are buffers: they keep their dtype in `.to(bfloat16)` and `.half()`; devices move."""

    # transformers must not re-initialise what it loads into a module that it does not know
    _is_hf_initialized = True

    def _apply(self, fn, recurse: bool = True):
        with FIRST_USE:
            before = dict(self._buffers)
            super()._apply(fn, recurse)
            for name, old in before.items():
                new = self._buffers[name]
                if old is not None and new.dtype != old.dtype:
                    self._buffers[name] = old.to(new.device)
        return self
