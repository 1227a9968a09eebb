"""A quantized model as plain floats, for tools that know nothing of this package.

Every weight becomes what its integers stand for, input scales and rotations taken back into it; activations are not
rounded.

Dims: H hidden, V vocabulary.
"""

import copy
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ..architectures.anatomy import Anatomy
from ..architectures.plain import named, plain_linear
from ..errors import QuambaError
from ..models.tensor_checks import check_finite
from ..nn.embedding import QuantEmbedding, QuantHead
from ..nn.linear import QuantLinear
from ..nn.mixer import QuantMixer
from ..nn.norm import PassThroughNorm
from ..storage.folders import replace_folder
from ..weights.head import head_chunks
from .load_float import quiet_transformers
from .quantized import recipe_of
from .savable import check_savable, save_tokenizer, say_without_tokenizer
from .verify import buffer_names

logger = logging.getLogger(__name__)


def _head(head: QuantHead) -> dict[str, Tensor]:
    weight = head.table.dequantized()  # [V, H]
    if head.input_multipliers is not None:
        for multiplier, rows in zip(head.input_multipliers, head_chunks(len(weight), head.chunks), strict=True):
            weight[rows.start : rows.stop] *= multiplier
    return {"weight": weight}


def plain_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a quantized model as its float class names them; float32 what was quantized, the rest as it is."""
    parts = {
        QuantEmbedding: lambda embedding: {"weight": embedding.dequantized()},
        QuantLinear: plain_linear,
        PassThroughNorm: lambda _norm: {"weight": torch.ones(model.config.hidden_size)},
        QuantHead: _head,
    }
    if architecture := Anatomy.of(model).architecture:
        parts[architecture.quant_mixer] = architecture.plain_tensors
    saved = model.state_dict().keys() - buffer_names(model)  # without the buffers that the float class computes itself
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name in saved}
    for kind, tensors_of in parts.items():
        for name, module in _modules_of(model, kind):
            tensors |= named(name, tensors_of(module))
    return tensors


def _modules_of(model: nn.Module, kind: type) -> list[tuple[str, nn.Module]]:
    """The modules of a kind by name; what lies inside of a head or a mixer goes with that."""
    whole = (module for module in model.modules() if isinstance(module, QuantHead | QuantMixer))
    inside = {id(part) for module in whole for part in module.modules() if part is not module}
    return [(name, m) for name, m in model.named_modules() if isinstance(m, kind) and id(m) not in inside]


def empty_float_model(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return what the float class of a quantized model is in that dtype, on the meta device: it knows how it is
    saved."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain


def check_new_folder(directory: Path) -> None:
    """Raises QuambaError where `directory` is a file, or a folder that is not empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise QuambaError(f"{directory} exists already and would be replaced: name a new folder")


def save_dequantized(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, directory: str | Path, dtype: torch.dtype
) -> Path:
    """Writes a quantized model as a plain float checkpoint of `dtype` into a new folder, whole or not at all.

    The files are those of transformers' `save_pretrained`: the names it gives the tensors, the generation config.
    Raises QuambaError for a float model, for weights that `dtype` makes infinite (named), for a folder that is not
    empty, and where it cannot be written.
    """
    if recipe_of(model) is None:
        raise QuambaError("only quantized models have weights to dequantize: use save_pretrained for a float one")
    check_new_folder(Path(directory))
    check_savable(model, tokenizer)
    plain = empty_float_model(model, dtype)
    dtypes = {name: tensor.dtype for name, tensor in plain.state_dict().items()}
    tensors = {name: tensor.to(dtypes[name]) for name, tensor in plain_tensors(model).items()}
    check_finite(tensors, f"the model is not saved as {dtype}", "its values are too large for that dtype, or broken")
    try:
        with replace_folder(Path(directory), check_new_folder) as folder, quiet_transformers():
            plain.save_pretrained(folder, state_dict=tensors)
            save_tokenizer(tokenizer, folder)
    except (OSError, SafetensorError) as error:
        raise QuambaError(f"cannot write to {directory}: {error}") from error
    say_without_tokenizer(tokenizer, directory)
    logger.info("dequantized weights saved to %s", directory)
    return Path(directory).resolve()
