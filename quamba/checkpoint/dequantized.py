"""A quantized model as plain floats, for tools that know nothing of this package.

Every weight becomes what its integers stand for, input scales and rotations taken back into it; activations are not
rounded.

Dims: I in features, O out features, D d_inner, S heads, K conv width, H hidden, V vocabulary; X channels of the
convolution.
"""

import copy
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import QuambaError
from ..models.tensor_checks import check_finite
from ..nn.conv1d import QuantConv1d
from ..nn.embedding import QuantEmbedding, QuantHead
from ..nn.linear import QuantLinear
from ..nn.mamba1 import QuantMamba1Mixer
from ..nn.mamba2 import QuantMamba2Mixer
from ..nn.mixer import QuantMixer
from ..nn.norm import PassThroughNorm
from ..storage.folders import replace_folder
from ..transforms.hadamard import unrotate_inputs
from ..weights.head import head_chunks
from .load_float import quiet_transformers
from .quantized import recipe_of
from .savable import check_savable, save_tokenizer, say_without_tokenizer
from .verify import buffer_names

logger = logging.getLogger(__name__)


def _linear(linear: QuantLinear) -> dict[str, Tensor]:
    weight = linear.multiplied(linear.dequantized())  # [O, I]: inputs come without the input scales
    return {"weight": weight} | ({} if linear.bias is None else {"bias": linear.bias})


def _conv1d(conv: QuantConv1d) -> dict[str, Tensor]:
    weight = conv.dequantized().unsqueeze(1)  # [X, K] -> [X, 1, K]
    return {"weight": weight} | ({} if conv.bias is None else {"bias": conv.bias})


def _named(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{part}": tensor for part, tensor in tensors.items()}


def _mamba1(mixer: QuantMamba1Mixer) -> dict[str, Tensor]:
    tensors = {"A_log": torch.log(-mixer.A), "D": mixer.D, **_named("conv1d", _conv1d(mixer.conv1d))}
    for name in ("in_proj", "x_proj", "dt_proj"):
        tensors |= _named(name, _linear(getattr(mixer, name)))
    return tensors | _named("out_proj", _out_proj(mixer))


def _mamba2(mixer: QuantMamba2Mixer) -> dict[str, Tensor]:
    in_proj, dt_proj = _linear(mixer.in_proj), _linear(mixer.dt_proj)
    dt_proj["weight"] = mixer.in_proj.multiplied(dt_proj["weight"])  # [S, H]: it reads in_proj's input
    joined = {part: torch.cat([in_proj[part], dt_proj[part]]) for part in in_proj}  # [D + X + S, ...]
    return {
        "A_log": torch.log(-mixer.A),
        "D": mixer.D,
        "dt_bias": mixer.dt_bias,
        "norm.weight": torch.ones(mixer.d_inner),
        **_named("in_proj", joined),
        **_named("conv1d", _conv1d(mixer.conv1d)),
        **_named("out_proj", _out_proj(mixer)),
    }


def _out_proj(mixer: QuantMixer) -> dict[str, Tensor]:
    tensors = _linear(mixer.out_proj)
    return tensors | {"weight": unrotate_inputs(tensors["weight"])}


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
        QuantLinear: _linear,
        PassThroughNorm: lambda _norm: {"weight": torch.ones(model.config.hidden_size)},
        QuantHead: _head,
        QuantMamba1Mixer: _mamba1,
        QuantMamba2Mixer: _mamba2,
    }
    saved = model.state_dict().keys() - buffer_names(model)  # without the buffers that the float class computes itself
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name in saved}
    for kind, tensors_of in parts.items():
        for name, module in _modules_of(model, kind):
            tensors |= _named(name, tensors_of(module))
    return tensors


def _modules_of(model: nn.Module, kind: type) -> list[tuple[str, nn.Module]]:
    """The modules of a kind by name; what lies inside of a head or a mixer goes with that."""
    whole = (module for module in model.modules() if isinstance(module, QuantHead | QuantMixer))
    inside = {id(part) for module in whole for part in module.modules() if part is not module}
    return [(name, m) for name, m in model.named_modules() if isinstance(m, kind) and id(m) not in inside]


def empty_float_model(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """What the float class of a quantized model is in that dtype, on the meta device: it knows how it is saved."""
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
