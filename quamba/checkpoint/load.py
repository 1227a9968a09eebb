"""One call from a name to a model that runs here, float or quantized."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import ops
from ..architectures.convert import install_float_mixers, is_supported
from ..errors import QuambaError
from .load_float import load_float
from .quantized import METHOD, load_quantized
from .resolve import Checkpoint, check_generation_config, read_config, resolve_checkpoint
from .unchanged import read_unchanged

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def saved_dtype(checkpoint: Checkpoint) -> torch.dtype | None:
    """The dtype that a float checkpoint's config.json states, float32 where it states none; None of a quantized one."""
    if checkpoint.quantization_method is not None:
        return None
    stated = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")  # null states none
    return DTYPES.get(str(stated).removeprefix("torch."), torch.float32)


def load_checkpoint(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a checkpoint that was found already; see `load`.

    Of a folder that is replaced meanwhile, everything is of one generation: it is read again where it was not.
    """
    device = ops.check_device(device)
    model, tokenizer = read_unchanged(checkpoint.path, lambda: _read(checkpoint, dtype))
    return model.to(device), tokenizer


def _read(checkpoint: Checkpoint, dtype: torch.dtype | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    checkpoint = replace(checkpoint, config=read_config(checkpoint.path))  # as it is now
    check_generation_config(checkpoint.path)
    if checkpoint.quantization_method == METHOD:
        return load_quantized(checkpoint, dtype)
    if checkpoint.quantization_method is not None:
        raise QuambaError(
            f"{checkpoint.path} was quantized with {checkpoint.quantization_method!r}, which quamba does not run: "
            "give the float checkpoint it was made from"
        )
    model, tokenizer = load_float(checkpoint, dtype or torch.float32)
    if is_supported(model):  # any other model is run as transformers runs it
        install_float_mixers(model)
    return model, tokenizer


def load(
    name: str,
    pretrained_dir: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of that name: transformers' own class, with our modules in its slots if it is a Mamba.

    `name`: a folder, an embedded checkpoint (`mamba-tiny`), a short name (`mamba-130m`) or a hub id; float, in either
    format, or quantized by quamba. `dtype`: of what is float; None: float32, or what a quantized model was saved in.
    Raises QuambaError saying what is wrong with the name, the files or the device.
    """
    return load_checkpoint(resolve_checkpoint(name, pretrained_dir), dtype, device)
