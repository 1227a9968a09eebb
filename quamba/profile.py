"""How large a model is: in its files, and in memory."""

from pathlib import Path

from torch import nn


def memory_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters and buffers, a tensor that several modules share counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of the tensors that a checkpoint of the model holds, shared ones once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    return sum(tensors.values())


def checkpoint_bytes(directory: Path) -> int:
    """Bytes of the weight files in a checkpoint's folder."""
    files = [*directory.glob("*.safetensors")] or [*directory.glob("*.bin")]  # some folders hold both
    return sum(file.stat().st_size for file in files)
