"""Puts our modules in the slots of a transformers model: float mixers, quantized modules, or an empty skeleton."""

import torch
from torch import Tensor, nn

from . import hadamard
from .activations import tap_name
from .errors import QuambaError
from .nn.embedding import QuantEmbedding, QuantHead
from .nn.mamba1 import TAPS, Mamba1Mixer, QuantMamba1Mixer, static_taps
from .nn.norm import FinalNorm, PassThroughNorm
from .ops.schemas import MAX_CONV_WIDTH
from .scheme import STATIC, QuantizationRecipe
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


def static_tap_names(model: nn.Module, recipe: QuantizationRecipe) -> list[str]:
    """The names of all taps of a model whose scales the recipe takes from calibration."""
    act, layers = recipe.scheme.act, range(len(model.backbone.layers))
    names = [tap_name(layer_idx, tap) for layer_idx in layers for tap in static_taps(act)]
    return names + ([HEAD_TAP] if recipe.lm_head_bits is not None and act == STATIC else [])


def _swap_embedding_and_head(model: nn.Module, recipe: QuantizationRecipe, empty: bool) -> None:
    """Quantized embedding and head (empty ones for a skeleton), sharing one table where the recipe says so."""
    if recipe.embedding_bits is None and recipe.lm_head_bits is None:
        return
    backbone, vocab_size, hidden_size = model.backbone, model.config.vocab_size, model.config.hidden_size
    if model.config.tie_word_embeddings:
        untie_embedding(model)
    if recipe.embedding_bits is not None:
        spec = recipe.table(recipe.embedding_bits)
        embedding = QuantEmbedding(vocab_size, hidden_size, spec)
        if not empty:
            embedding.round_to_nearest(backbone.embeddings.weight)
        backbone.embeddings = embedding
    if recipe.lm_head_bits is not None:
        spec = recipe.table(recipe.lm_head_bits)
        table = backbone.embeddings if recipe.tied_head else None
        head = QuantHead(hidden_size, vocab_size, spec, recipe.scheme.act, tied_to=table)
        if not (empty or recipe.tied_head):
            head.linear.round_to_nearest(model.lm_head.weight)
        model.lm_head = head


def _swap_final_norm(model: nn.Module) -> None:
    norm = model.backbone.norm_f
    model.backbone.norm_f = FinalNorm(norm.weight, norm.variance_epsilon)


def convert(model: nn.Module, recipe: QuantizationRecipe, scales: dict[str, Tensor]) -> None:
    """Replaces the float modules of a transformed, calibrated model by quantized ones, layer by layer, in place.

    `scales`: float32 scale of every tap that `static_tap_names` lists (`layers.{i}.{tap}`, `head_in`), maybe more.
    """
    for layer_idx, layer in enumerate(model.backbone.layers):
        layer_scales = {tap: scales[tap_name(layer_idx, tap)] for tap in static_taps(recipe.scheme.act)}
        layer.mixer = QuantMamba1Mixer.from_float(model.config, layer.mixer, recipe.scheme, layer_scales)
        layer.norm = PassThroughNorm()
    _swap_final_norm(model)
    _swap_embedding_and_head(model, recipe, empty=False)
    if HEAD_TAP in static_tap_names(model, recipe):
        model.lm_head.head_in_scale = scales[HEAD_TAP].detach().float().reshape(()).clone()


def build_skeleton(model: nn.Module, recipe: QuantizationRecipe) -> None:
    """Gives a model that is still on the meta device the modules of a quantized one, for a checkpoint to fill."""
    check_architecture(model)
    with torch.device("meta"):
        for layer_idx, layer in enumerate(model.backbone.layers):
            layer.mixer = QuantMamba1Mixer.from_config(model.config, layer_idx, recipe.scheme)
        _swap_embedding_and_head(model, recipe, empty=True)
    for layer in model.backbone.layers:
        layer.norm = PassThroughNorm()  # holds nothing that a checkpoint could fill
    _swap_final_norm(model)
