"""Puts our modules in the slots of a transformers model: float mixers, quantized modules, or an empty skeleton."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from . import hadamard
from .activations import tap_name
from .errors import QuambaError
from .layer_stack import decoder_layers
from .nn.embedding import QuantEmbedding, QuantHead
from .nn.linear import WeightOnlyLinear
from .nn.mamba1 import TAPS, Mamba1Mixer, QuantMamba1Mixer, static_taps
from .nn.norm import FinalNorm, PassThroughNorm
from .ops.schemas import MAX_CONV_WIDTH
from .scheme import FLOAT, STATIC, QuantizationRecipe, Scheme
from .transforms import untie_embedding
from .weight_sites import NORM_READERS
from .weights.awq import fold_into_norm
from .weights.rounded import RoundedWeight

HEAD_TAP = "head_in"
MIXER = "mixer."

Layer = Mapping[str, RoundedWeight]  # linear layer, by its name within the decoder layer


def is_mamba(model_type: str) -> bool:
    """Whether models of that `model_type`, as config.json names it, have the blocks whose activations are quantized."""
    return model_type == "mamba"


def check_model_type(model_type: str, scheme: Scheme | None = None) -> None:
    """Raises QuambaError unless this version quantizes models of that `model_type` to the scheme.

    The weights of any causal LM, and the activations of Mamba's blocks; no scheme: the latter.
    """
    if is_mamba(model_type) or (scheme is not None and scheme.act == FLOAT):
        return
    raise QuambaError(
        f"the activations of models of type {model_type!r} cannot be quantized by this version, only those of 'mamba': "
        "quantize the weights alone (--a_bits 16)"
    )


def check_architecture(model: nn.Module) -> None:
    """Raises QuambaError unless this version quantizes the model's type, activation and sizes."""
    config = model.config
    check_model_type(config.model_type)
    if config.conv_kernel > MAX_CONV_WIDTH:
        raise QuambaError(f"conv_kernel {config.conv_kernel} has no kernels: up to {MAX_CONV_WIDTH} has")
    if config.hidden_act != "silu":
        raise QuambaError(f"hidden_act {config.hidden_act!r} has no kernels: only 'silu' has")
    hadamard.hadamard_base(config.intermediate_size)


def check_quantizable(model: nn.Module, recipe: QuantizationRecipe) -> None:
    """Raises QuambaError unless this version quantizes the model as the recipe says."""
    check_model_type(model.config.model_type, recipe.scheme)
    if is_mamba(model.config.model_type):
        check_architecture(model)
    else:
        _check_linear_layers(model)
        if recipe.rotate_residual:
            raise QuambaError(f"rotate_residual is for Mamba models, not for {model.config.model_type!r}: drop it")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if recipe.lm_head_bits is not None and getattr(head, "bias", None) is not None:
        raise QuambaError("the head has a bias, which a quantized one has no place for: drop quantize_lm_head")
    if recipe.embedding_bits is not None and type(embedding) is not nn.Embedding:
        raise QuambaError(f"a {type(embedding).__name__} cannot be quantized: drop quantize_embedding")


def _check_linear_layers(model: nn.Module) -> None:
    """Raises QuambaError for matrices that are not those of an nn.Linear: they would stay float unnoticed."""
    for index, layer in enumerate(decoder_layers(model)):
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                continue
            if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
                raise QuambaError(
                    f"layers.{index}.{name}, a {type(module).__name__}, has weights that are not a linear layer's: "
                    f"{type(model).__name__} cannot be quantized (experts and convolutions are not supported)"
                )


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


def _swap_embedding_and_head(
    model: nn.Module, recipe: QuantizationRecipe, empty: bool, rounded_head: RoundedWeight | None = None
) -> None:
    """Quantized embedding and head (empty ones for a skeleton), sharing one table where the recipe says so."""
    if recipe.embedding_bits is None and recipe.lm_head_bits is None:
        return
    vocab_size, hidden_size = model.config.vocab_size, model.config.hidden_size
    if model.config.tie_word_embeddings:
        untie_embedding(model)
    if recipe.embedding_bits is not None:
        spec = recipe.table(recipe.embedding_bits)
        dtype = torch.float32 if is_mamba(model.config.model_type) else model.dtype
        embedding = QuantEmbedding(vocab_size, hidden_size, spec, dtype)
        if not empty:
            embedding.round_to_nearest(model.get_input_embeddings().weight)
        model.set_input_embeddings(embedding)
    if recipe.lm_head_bits is not None:
        spec = recipe.table(recipe.lm_head_bits)
        table = model.get_input_embeddings() if recipe.tied_head else None
        head = QuantHead(hidden_size, vocab_size, spec, recipe.scheme.act, table, recipe.lm_head_chunks)
        if rounded_head is not None:
            head.table.take(rounded_head)
            if recipe.lm_head_chunks:
                head.input_multipliers = rounded_head.input_scales.reciprocal()
        elif not (empty or recipe.tied_head):
            head.linear.round_to_nearest(model.lm_head.weight)
        model.lm_head = head


def _swap_final_norm(model: nn.Module) -> None:
    norm = model.backbone.norm_f
    model.backbone.norm_f = FinalNorm(norm.weight, norm.variance_epsilon)


def _mixer_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names within a decoder layer -> names within its mixer."""
    return tuple(name.removeprefix(MIXER) for name in names)


def convert(
    model: nn.Module,
    recipe: QuantizationRecipe,
    scales: dict[str, Tensor],
    layers: Sequence[Layer] | None = None,
    head: RoundedWeight | None = None,
) -> None:
    """Replaces the float modules of a transformed, calibrated model by quantized ones, layer by layer, in place.

    `scales`: float32 scale of every tap that `static_tap_names` lists (`layers.{i}.{tap}`, `head_in`), maybe more.
    `layers`: the integers of each decoder layer's linear layers, `head`: of the head; None: rounded to nearest here.
    """
    layers = layers or [{}] * len(decoder_layers(model))
    if not is_mamba(model.config.model_type):
        _swap_linears(model, recipe, layers)
        _swap_embedding_and_head(model, recipe, empty=False, rounded_head=head)
        return
    for layer_idx, (layer, rounded) in enumerate(zip(model.backbone.layers, layers, strict=True)):
        layer_scales = {tap: scales[tap_name(layer_idx, tap)] for tap in static_taps(recipe.scheme.act)}
        layer.mixer = QuantMamba1Mixer.from_float(
            model.config,
            layer.mixer,
            recipe.scheme,
            layer_scales,
            {name.removeprefix(MIXER): integers for name, integers in rounded.items()},
            _mixer_names(recipe.multipliers),
        )
        layer.norm = PassThroughNorm()
    _swap_final_norm(model)
    _swap_embedding_and_head(model, recipe, empty=False, rounded_head=head)
    if HEAD_TAP in static_tap_names(model, recipe):
        model.lm_head.head_in_scale = scales[HEAD_TAP].detach().float().reshape(()).clone()


@torch.no_grad()
def _swap_linears(model: nn.Module, recipe: QuantizationRecipe, layers: Sequence[Layer] | None) -> None:
    """Puts quantized linear layers in the slots of all nn.Linear of the decoder layers (None: empty ones), and takes
    the vectors of those that alone read a norm into that norm's weight."""
    readers = NORM_READERS.get(type(model).__name__, {})
    for index, layer in enumerate(decoder_layers(model)):
        linears = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
        for name, linear in linears:
            multiplier = name in recipe.multipliers
            if layers is None:
                sizes = (linear.in_features, linear.out_features, linear.bias is not None)
                swapped = WeightOnlyLinear(*sizes, recipe.scheme.weight, multiplier)
            else:
                rounded = layers[index].get(name)
                swapped = WeightOnlyLinear.from_float(linear, recipe.scheme.weight, rounded, multiplier)
            layer.set_submodule(name, swapped)
        for norm, names in readers.items() if layers is not None else ():
            rounded = layers[index].get(names[0])
            if rounded is not None and rounded.input_scales is not None and names[0] not in recipe.multipliers:
                weight = layer.get_submodule(norm).weight
                weight.copy_(fold_into_norm(weight, rounded.input_scales))


def build_skeleton(model: nn.Module, recipe: QuantizationRecipe) -> None:
    """Gives a model that is still on the meta device the modules of a quantized one, for a checkpoint to fill."""
    if not is_mamba(model.config.model_type):
        check_model_type(model.config.model_type, recipe.scheme)
        with torch.device("meta"):
            _swap_linears(model, recipe, None)
            _swap_embedding_and_head(model, recipe, empty=True)
        return
    check_architecture(model)
    with torch.device("meta"):
        for layer_idx, layer in enumerate(model.backbone.layers):
            layer.mixer = QuantMamba1Mixer.from_config(
                model.config, layer_idx, recipe.scheme, _mixer_names(recipe.multipliers)
            )
        _swap_embedding_and_head(model, recipe, empty=True)
    for layer in model.backbone.layers:
        layer.norm = PassThroughNorm()  # holds nothing that a checkpoint could fill
    _swap_final_norm(model)
