"""Puts our modules in the slots of a transformers model: float mixers, quantized modules, or an empty skeleton."""

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..errors import QuambaError
from ..models.mamba_slot import MambaSlot
from ..models.tying import state_tying, untie_embedding
from ..nn.embedding import QuantEmbedding, QuantHead
from ..nn.linear import WeightOnlyLinear
from ..nn.module import FIRST_USE, QuantModule
from ..nn.norm import FinalNorm, PassThroughNorm
from ..nn.taps import STATE_TAP, static_taps, tap_name
from ..scheme.formats import Scheme
from ..scheme.recipe import QuantizationRecipe
from ..weights.awq import fold_into_norm
from ..weights.rounded import RoundedWeight
from .anatomy import Anatomy
from .base import Architecture
from .table import ARCHITECTURES, norm_readers

HEAD_TAP = "head_in"

Layer = Mapping[str, RoundedWeight]  # linear layer, by its name within the decoder layer


def check_model_type(model_type: str, scheme: Scheme | None = None) -> None:
    """Raises QuambaError unless this version quantizes models of that `model_type` to the scheme.

    The weights of any causal LM, and the activations of the blocks in `ARCHITECTURES`, in hybrids too; no scheme: the
    latter.
    """
    if model_type in ARCHITECTURES or (scheme is not None and scheme.act.is_float):
        return
    raise QuambaError(
        f"the activations of models of type {model_type!r} cannot be quantized by this version, only those of "
        f"{', '.join(map(repr, ARCHITECTURES))}: quantize the weights alone (--a_bits 16)"
    )


def check_architecture(model: nn.Module) -> Architecture:
    """The model's architecture. Raises QuambaError unless there are mixers here for its type, activation and sizes."""
    check_model_type(model.config.model_type)
    anatomy = Anatomy.of(model)
    if anatomy.architecture is None:
        raise QuambaError(
            f"no layer of this {type(model).__name__} has a Mamba block whose activations could be quantized: quantize "
            "the weights alone (--a_bits 16)"
        )
    anatomy.architecture.check(anatomy.block_config)
    return anatomy.architecture


def check_transformable(model: nn.Module) -> Architecture:
    """`check_architecture`; raises QuambaError also for blocks whose output `transform` cannot rotate."""
    architecture = check_architecture(model)
    architecture.check_rotation(Anatomy.of(model).block_config)
    return architecture


def check_quantizable(model: nn.Module, recipe: QuantizationRecipe) -> None:
    """Raises QuambaError unless this version quantizes the model as the recipe says."""
    anatomy = Anatomy.of(model)
    _check_blocks(anatomy, recipe)
    if anatomy.architecture:
        check_transformable(model)
    if not anatomy.has_blocks_alone:
        _check_linear_layers(anatomy)
        if recipe.rotate_residual:
            raise QuambaError(f"rotate_residual is for Mamba models, not for {model.config.model_type!r}: drop it")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if recipe.lm_head_bits is not None and getattr(head, "bias", None) is not None:
        raise QuambaError("the head has a bias, which a quantized one has no place for: drop quantize_lm_head")
    if recipe.embedding_bits is not None and type(embedding) is not nn.Embedding:
        raise QuambaError(f"a {type(embedding).__name__} cannot be quantized: drop quantize_embedding")


def _check_blocks(anatomy: Anatomy, recipe: QuantizationRecipe) -> None:
    """Raises QuambaError where the recipe's schemes of blocks, or its SSM states, are not for such a model."""
    model_type, architecture = anatomy.model.config.model_type, anatomy.architecture
    for scheme in dict.fromkeys([recipe.scheme, *recipe.block_schemes]):
        check_model_type(model_type, scheme)
    layers = len(anatomy.layers)
    if recipe.layers and len(recipe.layers) != layers:
        raise QuambaError(f"there are schemes of {len(recipe.layers)} layers, but the model has {layers}")
    if architecture is None and recipe.quantizes_activations:
        check_architecture(anatomy.model)
    if recipe.state_bits == 8 and not (architecture and architecture.integer_states):
        raise QuambaError(f"models of type {model_type!r} keep float32 states: leave state_bits at 32")


def _check_linear_layers(anatomy: Anatomy) -> None:
    """Raises QuambaError for matrices that are not those of an nn.Linear: they would stay float unnoticed."""
    mixers = {module for slot in anatomy.slots for module in slot.mixer.modules()}
    for index, layer in enumerate(anatomy.layers):
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear) or module in mixers:
                continue
            if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
                raise QuambaError(
                    f"layers.{index}.{name}, a {type(module).__name__}, has weights that are not a linear layer's: "
                    f"{type(anatomy.model).__name__} cannot be quantized (experts and convolutions are not supported)"
                )


def is_supported(model: nn.Module, transformed: bool = False) -> bool:
    """Return whether `check_architecture` accepts the model; `transformed`: whether `check_transformable` does."""
    try:
        (check_transformable if transformed else check_architecture)(model)
    except QuambaError:
        return False
    return True


def install_float_mixers(model: nn.Module) -> None:
    """Replaces every transformers mixer by ours, sharing the parameters; a model that has them already is unchanged."""
    mixer_class = check_architecture(model).float_mixer
    with FIRST_USE:
        for slot in Anatomy.of(model).slots:
            if not isinstance(slot.mixer, mixer_class):
                slot.mixer = mixer_class(slot.mixer)


def tap_modules(model: nn.Module, head: bool, states: bool = False) -> dict[str, nn.Module]:
    """Name -> module whose output is the tapped activation, for every Mamba block and, if asked for, the head's input
    and Mamba2's SSM states."""
    anatomy = Anatomy.of(model)
    modules = {
        tap_name(slot.index, tap): slot.mixer.taps[tap]
        for slot in anatomy.slots
        for tap in (*anatomy.architecture.taps, *((STATE_TAP,) if states else ()))
    }
    if head:
        modules[HEAD_TAP] = anatomy.final_norm
    return modules


def scaled_taps(architecture: Architecture, recipe: QuantizationRecipe, layer_idx: int) -> tuple[str, ...]:
    """Return what of a layer has a scale from calibration: its static taps, and the SSM states that are integers."""
    taps = static_taps(architecture.taps, recipe.layer_scheme(layer_idx).act)
    return taps + ((STATE_TAP,) if recipe.state_bits == 8 else ())


def static_tap_names(model: nn.Module, recipe: QuantizationRecipe) -> list[str]:
    """The names of all taps of a model whose scales the recipe takes from calibration."""
    anatomy = Anatomy.of(model)
    names = [
        tap_name(slot.index, tap)
        for slot in anatomy.slots
        for tap in scaled_taps(anatomy.architecture, recipe, slot.index)
    ]
    return names + ([HEAD_TAP] if recipe.head_act.is_static else [])


def _swap_embedding_and_head(
    anatomy: Anatomy, recipe: QuantizationRecipe, empty: bool, rounded_head: RoundedWeight | None = None
) -> None:
    """Quantized embedding and head (empty ones for a skeleton), sharing one table where the recipe says so."""
    if recipe.embedding_bits is None and recipe.lm_head_bits is None:
        return
    model = anatomy.model
    untie_embedding(model)
    if recipe.embedding_bits is not None:
        spec = recipe.table(recipe.embedding_bits)
        dtype = torch.float32 if anatomy.has_blocks_alone else model.dtype
        embedding = QuantEmbedding(*model.get_input_embeddings().weight.shape, spec, dtype)
        if not empty:
            embedding.round_to_nearest(model.get_input_embeddings().weight)
        model.set_input_embeddings(embedding)
    if recipe.lm_head_bits is not None:
        spec = recipe.table(recipe.lm_head_bits)
        table = model.get_input_embeddings() if recipe.tied_head else None
        float_weight = model.get_output_embeddings().weight
        vocab_size, hidden_size = float_weight.shape
        head = QuantHead(hidden_size, vocab_size, spec, recipe.scheme.act, table, recipe.lm_head_chunks)
        if rounded_head is not None:
            head.table.take(rounded_head)
            if recipe.lm_head_chunks:
                head.input_multipliers = rounded_head.input_scales.reciprocal()
        elif not (empty or recipe.tied_head):
            head.linear.round_to_nearest(float_weight)
        model.set_output_embeddings(head)


def _swap_final_norm(anatomy: Anatomy) -> None:
    """Not of a hybrid: its own is the one that casts to the head's dtype."""
    if anatomy.has_blocks_alone:
        backbone = anatomy.model.backbone
        backbone.norm_f = FinalNorm(backbone.norm_f.weight, backbone.norm_f.variance_epsilon)


def _mixer_names(slot: MambaSlot, names: Sequence[str]) -> tuple[str, ...]:
    """Names within a decoder layer -> names within its mixer, of what is part of it."""
    return tuple(within for name in names if (within := slot.within(name)) is not None)


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
    anatomy = Anatomy.of(model)
    layers = layers or [{}] * len(anatomy.layers)
    for slot in anatomy.slots:
        slot.mixer = quantized_mixer(anatomy, slot, recipe, scales, layers[slot.index])
        slot.norm = PassThroughNorm()
    _swap_linears(anatomy, recipe, layers)
    _swap_final_norm(anatomy)
    _swap_embedding_and_head(anatomy, recipe, empty=False, rounded_head=head)
    state_tying(model)
    if recipe.head_act.is_static:
        model.lm_head.head_in_scale = scales[HEAD_TAP].detach().float().reshape(()).clone()


def quantized_mixer(
    anatomy: Anatomy,
    slot: MambaSlot,
    recipe: QuantizationRecipe,
    scales: Mapping[str, Tensor],
    rounded: Layer = MappingProxyType({}),
) -> nn.Module:
    """The quantized mixer of one layer of a transformed float model, which stays; arguments as in `convert`."""
    architecture = anatomy.architecture
    return architecture.quant_mixer.from_float(
        anatomy.block_config,
        slot.mixer,
        recipe.layer_scheme(slot.index),
        {tap: scales[tap_name(slot.index, tap)] for tap in scaled_taps(architecture, recipe, slot.index)},
        {within: integers for name, integers in rounded.items() if (within := slot.within(name)) is not None},
        _mixer_names(slot, recipe.multipliers),
        **_state_options(architecture, recipe),
    )


def _state_options(architecture: Architecture, recipe: QuantizationRecipe) -> dict:
    """Return options for the constructors of mixers that can keep their SSM states as integers."""
    return {"state_bits": recipe.state_bits} if architecture.integer_states else {}


@torch.no_grad()
def _swap_linears(anatomy: Anatomy, recipe: QuantizationRecipe, layers: Sequence[Layer] | None) -> None:
    """Puts quantized linear layers in the slots of all nn.Linear of the decoder layers (None: empty ones), and takes
    the input scales of those that alone read a norm into that norm's weight."""
    readers = norm_readers(anatomy.model)
    for index, layer in enumerate(anatomy.layers):
        linears = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
        spec = recipe.layer_scheme(index).weight
        for name, linear in linears:
            multiplier = name in recipe.multipliers
            if layers is None:
                sizes = (linear.in_features, linear.out_features, linear.bias is not None)
                swapped = WeightOnlyLinear(*sizes, spec, multiplier)
            else:
                rounded = layers[index].get(name)
                swapped = WeightOnlyLinear.from_float(linear, spec, rounded, multiplier)
            layer.set_submodule(name, swapped)
        for norm, names in readers.items() if layers is not None else ():
            rounded = layers[index].get(names[0])
            if rounded is not None and rounded.input_scales is not None and names[0] not in recipe.multipliers:
                weight = layer.get_submodule(norm).weight
                weight.copy_(fold_into_norm(weight, rounded.input_scales))


def build_skeleton(model: nn.Module, recipe: QuantizationRecipe, flat: bool = False) -> None:
    """Gives a model that is still on the meta device the modules of a quantized one, for a checkpoint to fill.

    Shapes are those of the files (see `QuantModule`), until `leave_files`; `flat`: of a format before 5.
    """
    anatomy = Anatomy.of(model)
    _check_blocks(anatomy, recipe)
    if anatomy.architecture:
        check_transformable(model)
    with torch.device("meta"):
        for slot in anatomy.slots:
            slot.mixer = _empty_mixer(anatomy, slot, recipe)
        _swap_linears(anatomy, recipe, None)
        _swap_embedding_and_head(anatomy, recipe, empty=True)
    for slot in anatomy.slots:
        slot.norm = PassThroughNorm()  # holds nothing that a checkpoint could fill
    _swap_final_norm(anatomy)
    for module in model.modules():
        if isinstance(module, QuantModule):
            module.expect_file(flat)


def leave_files(model: nn.Module) -> None:
    """Gives the modules of a quantized model that a checkpoint was read into the shapes that they have in memory."""
    for module in model.modules():
        if isinstance(module, QuantModule):
            module.leave_file()


def _empty_mixer(anatomy: Anatomy, slot: MambaSlot, recipe: QuantizationRecipe) -> nn.Module:
    architecture, names = anatomy.architecture, _mixer_names(slot, recipe.multipliers)
    scheme, options = recipe.layer_scheme(slot.index), _state_options(architecture, recipe)
    return architecture.quant_mixer.from_config(anatomy.block_config, slot.index, scheme, names, **options)


def to_float32(model: nn.Module) -> None:
    """Makes the parameters of a model float32, to be rewritten and rounded. Buffers keep their dtype: the frequencies
    of rotary positions."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32)


def restore_dtype(model: nn.Module, dtypes: Mapping[nn.Parameter, torch.dtype], dtype: torch.dtype) -> None:
    """Casts what `to_float32` cast back to what it was, parameters that are new to `dtype`; the scales stay."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtypes.get(parameter, dtype))
    embedding = model.get_input_embeddings()
    if isinstance(embedding, QuantEmbedding) and not Anatomy.of(model).has_blocks_alone:
        embedding.dtype = dtype


def quantized_bytes(model: PreTrainedModel, recipe: QuantizationRecipe) -> int:
    """Bytes of the tensors that a checkpoint of a float model, once quantized, will hold.

    AWQ's input scales, which the recipe does not know yet, are not counted: a thousandth.
    """
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=model.dtype)
    build_skeleton(empty, recipe)
    saved = empty.state_dict().keys()
    parameters = sum(parameter.numel() * model.dtype.itemsize for parameter in empty.parameters())
    return parameters + sum(buffer.nbytes for name, buffer in empty.named_buffers() if name in saved)
