"""Puts our modules in the slots of a transformers model: float mixers, quantized modules, or an empty skeleton."""

import torch
from torch import Tensor, nn

from . import hadamard
from .errors import QuambaError
from .nn.embedding import QuantEmbedding, QuantHead
from .nn.mamba1 import TAPS, Mamba1Mixer, QuantMamba1Mixer
from .nn.norm import PassThroughNorm
from .ops.schemas import MAX_CONV_WIDTH
from .scheme import QuantizationRecipe
from .transforms import untie_embedding

HEAD_TAP = "head_in"


def check_model_type(model_type: str) -> None:
    """Raises QuambaError unless this version quantizes models of that `model_type`, as config.json names it."""
    if model_type != "mamba":
        raise QuambaError(f"models of type {model_type!r} cannot be quantized by this version: 'mamba' can")


def check_architecture(model: nn.Module) -> None:
    """Raises QuambaError unless this version quantizes the model's type, activation and sizes."""
    config = model.config
    check_model_type(config.model_type)
    if config.conv_kernel > MAX_CONV_WIDTH:
        raise QuambaError(f"conv_kernel {config.conv_kernel} has no kernels: up to {MAX_CONV_WIDTH} has")
    if config.hidden_act != "silu":
        raise QuambaError(f"hidden_act {config.hidden_act!r} has no kernels: only 'silu' has")
    hadamard.hadamard_base(config.intermediate_size)


def is_supported(model: nn.Module) -> bool:
    """Whether `check_architecture` accepts the model."""
    try:
        check_architecture(model)
    except QuambaError:
        return False
    return True


def install_float_mixers(model: nn.Module) -> None:
    """Replaces every transformers mixer by ours, sharing the parameters; a model that has them already is unchanged."""
    check_architecture(model)
    for layer in model.backbone.layers:
        if not isinstance(layer.mixer, Mamba1Mixer):
            layer.mixer = Mamba1Mixer(layer.mixer)


def tap_name(layer_idx: int, tap: str) -> str:
    """The name of a layer's tap in calibration results: `layers.3.x`."""
    return f"layers.{layer_idx}.{tap}"


def tap_modules(model: nn.Module, head: bool) -> dict[str, nn.Module]:
    """Name -> module whose output is the tapped activation, for every layer and, if asked for, the head's input."""
    modules = {
        tap_name(layer_idx, tap): layer.mixer.taps[tap]
        for layer_idx, layer in enumerate(model.backbone.layers)
        for tap in TAPS
    }
    if head:
        modules[HEAD_TAP] = model.backbone.norm_f
    return modules


def _swap_embedding_and_head(model: nn.Module, recipe: QuantizationRecipe, empty: bool) -> None:
    """Quantized embedding and head (empty ones for a skeleton), sharing one table where the recipe says so."""
    backbone, config = model.backbone, model.config
    if not (recipe.quantize_embedding or recipe.quantize_lm_head):
        return
    if config.tie_word_embeddings:
        untie_embedding(model)
    float_head = model.lm_head
    if recipe.quantize_embedding:
        embedding = (
            QuantEmbedding(config.vocab_size, config.hidden_size)
            if empty
            else QuantEmbedding.from_float(backbone.embeddings)
        )
        backbone.embeddings = embedding
    if recipe.quantize_lm_head:
        head = QuantHead(config.hidden_size, config.vocab_size, backbone.embeddings if recipe.tied_head else None)
        if not empty and not recipe.tied_head:
            head.linear = head.linear.from_float(float_head)
        model.lm_head = head


def convert(model: nn.Module, recipe: QuantizationRecipe, scales: dict[str, Tensor]) -> None:
    """Replaces the float modules of a transformed, calibrated model by quantized ones, layer by layer, in place.

    `scales`: float32 scale of every tap (`layers.{i}.{tap}`, and `head_in` with a quantized head).
    """
    for layer_idx, layer in enumerate(model.backbone.layers):
        layer_scales = {tap: scales[tap_name(layer_idx, tap)] for tap in TAPS}
        layer.mixer = QuantMamba1Mixer.from_float(model.config, layer.mixer, layer_scales)
        layer.norm = PassThroughNorm()
    _swap_embedding_and_head(model, recipe, empty=False)
    if recipe.quantize_lm_head:
        model.lm_head.head_in_scale = scales[HEAD_TAP].detach().float().reshape(()).clone()


def build_skeleton(model: nn.Module, recipe: QuantizationRecipe) -> None:
    """Gives a model that is still on the meta device the modules of a quantized one, for a checkpoint to fill."""
    check_architecture(model)
    with torch.device("meta"):
        for layer_idx, layer in enumerate(model.backbone.layers):
            layer.mixer = QuantMamba1Mixer.from_config(model.config, layer_idx)
        _swap_embedding_and_head(model, recipe, empty=True)
    for layer in model.backbone.layers:
        layer.norm = PassThroughNorm()  # holds nothing that a checkpoint could fill
