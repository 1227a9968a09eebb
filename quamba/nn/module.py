"""What every quantized module shares: tensors that keep their dtype, and their shape in files.

Dims: O out features, C columns.
"""

import threading

from torch import Tensor, nn

# A model is changed when it is first used: weights are laid out for the kernels and moved, mixers replaced. Several
# threads may be the first, and one model may be the other's part: one lock for all of it, held by whoever changes
# something and by whoever reads more than one tensor of what another may be changing. Not one a module, which could
# not be copied or saved with it.
FIRST_USE = threading.RLock()


class QuantModule(nn.Module):
    """A module whose tensors are buffers: they keep their dtype in `.to(bfloat16)` and `.half()`; devices move.

    In files and state dicts a `weight` of integers [O, C] is [O, C, 1]. A loader that does not know this format finds a
    tensor of that name which fits no float weight, and stops, where it would take the integers for the weight's values.
    """

    # transformers must not re-initialise what it loads into a module that it does not know
    _is_hf_initialized = True
    flat_in_file = False  # whether it is being read from a file that has [O, C]: of a format before 5

    def _apply(self, fn, recurse: bool = True):
        with FIRST_USE:
            before = dict(self._buffers)
            super()._apply(fn, recurse)
            for name, old in before.items():
                new = self._buffers[name]
                if old is not None and new.dtype != old.dtype:
                    self._buffers[name] = old.to(new.device)
        return self

    def expect_file(self, flat: bool) -> None:
        """Gives an empty module the shapes of a file; `flat`: of one that has [O, C]."""
        self.flat_in_file = flat
        if not flat and "weight" in self._buffers:
            self.weight = as_in_file(self.weight)

    def leave_file(self) -> None:
        """Gives a module that a file was read into its own shapes."""
        self.flat_in_file = False
        if "weight" in self._buffers:
            self.weight = as_in_memory(self.weight)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._shape_for_file(destination, prefix)

    def _shape_for_file(self, destination: dict, prefix: str) -> None:
        if prefix + "weight" in destination and not self.flat_in_file:
            destination[prefix + "weight"] = as_in_file(destination[prefix + "weight"])

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if prefix + "weight" in state_dict:
            state_dict[prefix + "weight"] = as_in_memory(state_dict[prefix + "weight"])
        super()._load_from_state_dict(state_dict, prefix, *args)


def as_in_file(weight: Tensor) -> Tensor:
    """Integers [O, C] -> [O, C, 1]; every other tensor as it is."""
    return weight.unsqueeze(-1) if weight.dim() == 2 and not weight.is_floating_point() else weight


def as_in_memory(weight: Tensor) -> Tensor:
    """Integers [O, C, 1] -> [O, C]; every other tensor as it is."""
    in_file = weight.dim() == 3 and weight.shape[-1] == 1 and not weight.is_floating_point()
    return weight.squeeze(-1) if in_file else weight
