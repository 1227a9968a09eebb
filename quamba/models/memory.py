"""How large a model is: in its files, in memory, and at the peak of what its process needs."""

import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

KIBIBYTE = 1024
# Linux, proc(5): writing 5 to the one resets the peak of resident memory that the other reports as VmHWM
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"


def memory_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters and buffers, a tensor that several modules share counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of the tensors that a checkpoint of the model holds, shared ones once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    return sum(tensors.values())


def float_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of a float model's tensors in another dtype, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def checkpoint_bytes(directory: Path) -> int:
    """Bytes of the weight files in a checkpoint's folder."""
    files = [*directory.glob("*.safetensors")] or [*directory.glob("*.bin")]  # some folders hold both
    return sum(file.stat().st_size for file in files)


def reset_peak_memory() -> bool:
    """Starts the process's peak of resident memory anew where the system can do that (Linux); whether it could."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int:
    """The process's peak of resident memory, since `reset_peak_memory` where that could, else since it started."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIBIBYTE
    import resource  # Unix only

    unit = 1 if sys.platform == "darwin" else KIBIBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
