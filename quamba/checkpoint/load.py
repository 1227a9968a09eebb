"""One call from a name to a model that runs here, float or quantized."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import ops
from ..convert import install_float_mixers
from ..errors import QuambaError
from .load_float import load_float
from .quantized import METHOD, load_quantized
from .resolve import Checkpoint, resolve_checkpoint


def load_checkpoint(
    checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a checkpoint that was found already; see `load`."""
    device = ops.check_device(device)
    if checkpoint.quantization_method == METHOD:
        model, tokenizer = load_quantized(checkpoint, dtype)
    elif checkpoint.quantization_method is not None:
        raise QuambaError(
            f"{checkpoint.path} was quantized with {checkpoint.quantization_method!r}, which quamba does not run: "
            "give the float checkpoint it was made from"
        )
    else:
        model, tokenizer = load_float(checkpoint, dtype)
        install_float_mixers(model)
    return model.to(device), tokenizer


def load(
    name: str,
    pretrained_dir: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of that name: transformers' own class with our modules in its slots.

    `name`: a folder, an embedded checkpoint (`mamba-tiny`), a short name (`mamba-130m`) or a hub id; float, in either
    format, or quantized by quamba. Raises QuambaError saying what is wrong with the name, the files or the device.
    """
    return load_checkpoint(resolve_checkpoint(name, pretrained_dir), dtype, device)
