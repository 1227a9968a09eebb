"""Two loaded models side by side: which of their tensors correspond, and what they compute on the same tokens.

Dims: n tokens of a window, H hidden, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from ...architectures.anatomy import Anatomy
from ...architectures.convert import install_float_mixers, is_supported
from ...architectures.table import norm_readers
from ...checkpoint import recipe_of
from ...errors import QuambaError
from ...models.layer_stack import decoder_layers, hidden_of
from ...models.text_config import text_config
from ...nn.conv1d import QuantConv1d
from ...nn.embedding import QuantHead
from ...nn.mamba2 import QuantMamba2Mixer
from ...nn.weight import QuantWeight
from ...pipeline.quantize import transform
from ...transforms import apply_hadamard
from ...weights.head import head_chunks
from .diagnose import (
    LayerDifference,
    LogitsDifference,
    RunningDifference,
    ScaledWeight,
    TensorComparison,
    Values,
    compare_logits,
    compare_tensors,
    first_parting,
    layer_differences,
    values_of,
)

# what a rotation of the residual stream changes: no counterpart in a quantized model whose stream is not rotated
ROTATED = (
    "embeddings.weight",
    "in_proj.weight",
    "out_proj.weight",
    "out_proj.bias",
    "norm_f.weight",
    "lm_head.weight",
)


@dataclass(frozen=True)
class Diagnosis:
    """All that was compared. `layers` is empty, and `notes` says why, where the models' blocks do not correspond."""

    logits: LogitsDifference
    layers: tuple[LayerDifference, ...]
    parting: LayerDifference | None
    tolerance: float
    tensors: TensorComparison
    notes: tuple[str, ...]


def diagnose(
    a: PreTrainedModel, b: PreTrainedModel, windows: Tensor, tolerance: float = 1e-3, progress: bool = True
) -> Diagnosis:
    """Compares model b with the reference a, on windows of token ids int64 [count, n], a window at a time.

    A float Mamba beside a quantized one is rewritten in place as quantization rewrites it (the same function, other
    weights), once its logits are known: only then do the weights correspond.
    Raises QuambaError for vocabularies of different sizes.
    """
    notes: list[str] = []
    running = _comparable_blocks(a, b, notes)
    logits = compare_logits(_run_both(a, b, windows, running, progress))
    layers = layer_differences(running)
    tensors = compare_tensors(*_corresponding_tensors(a, b, notes))
    return Diagnosis(logits, layers, first_parting(layers, tolerance), tolerance, tensors, tuple(notes))


@torch.inference_mode()
def hidden_states(model: PreTrainedModel, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
    """(the first block's input and every block's output, [n, H] each; logits [n, V]) of a window int64 [n].

    Raises QuambaError for a model without a list of blocks.
    """
    states: list[Tensor] = []

    def enter(_block, args, kwargs) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    def leave(_block, _args, output) -> None:
        states.append(hidden_of(output))

    blocks = decoder_layers(model)
    handles = [blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        logits = logits_of(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return [state[0] for state in states], logits


@torch.inference_mode()
def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """[n, V] of a window int64 [n]."""
    return model(input_ids=tokens[None].to(model.device), use_cache=False).logits[0]


def model_tensors(model: nn.Module) -> dict[str, Values]:
    """The tensors of a checkpoint of the model by name; quantized weights as the modules that hold them."""
    tensors: dict[str, Values] = dict(model.state_dict(keep_vars=True))
    for name, module in model.named_modules():
        if isinstance(module, QuantWeight) or (isinstance(module, QuantConv1d) and module.weight_scale is not None):
            tensors[f"{name}.weight"] = module
    for name, module in model.named_modules():
        if isinstance(module, QuantMamba2Mixer) and module.in_proj.input_multiplier is not None:
            tensors[f"{name}.dt_proj.weight"] = ScaledWeight(module.dt_proj, module.in_proj.input_multiplier)
        if not isinstance(module, QuantHead):
            continue
        own = f"{name}.linear."
        for key in [key for key in tensors if key.startswith(own)]:  # as the float head's are named
            tensors[f"{name}.{key.removeprefix(own)}"] = tensors.pop(key)
        tensors[f"{name}.weight"] = _head_weight(module)
    return tensors


def _head_weight(head: QuantHead) -> Values:
    """[V, H], with the input scales that chunks of its rows have (AWQ)."""
    table, input_scales = head.table, head.input_multipliers
    if input_scales is None:
        return table
    rows = head_chunks(table.out_features, head.chunks)
    return ScaledWeight(table, torch.cat([v.expand(len(r), -1) for v, r in zip(input_scales, rows, strict=True)]))


def _comparable_blocks(a: PreTrainedModel, b: PreTrainedModel, notes: list[str]) -> list[RunningDifference]:
    """One for the first block's input and one for every block; none where the models have other blocks."""
    try:
        depths = len(decoder_layers(a)), len(decoder_layers(b))
    except QuambaError:
        notes.append("the blocks of a model of this class are not known: hidden states are not compared")
        return []
    widths = text_config(a).hidden_size, text_config(b).hidden_size
    if len(set(depths)) > 1 or len(set(widths)) > 1:
        notes.append(
            f"the models have {depths[0]} blocks of width {widths[0]} and {depths[1]} of width {widths[1]}: hidden "
            "states are not compared"
        )
        return []
    return [RunningDifference() for _ in range(depths[0] + 1)]


def _run_both(
    a: PreTrainedModel, b: PreTrainedModel, windows: Tensor, running: Sequence[RunningDifference], progress: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits [n, V] of both for every window; their hidden states are added to `running`."""
    rotated = [_is_rotated(model) for model in (a, b)]
    for tokens in tqdm(windows, desc="diagnose", unit="window", disable=not progress):
        if not running:
            yield logits_of(a, tokens), logits_of(b, tokens)
            continue
        (states_a, logits_a), (states_b, logits_b) = hidden_states(a, tokens), hidden_states(b, tokens)
        for difference, state_a, state_b in zip(running, states_a, states_b, strict=True):
            if rotated[0] != rotated[1]:  # the one stream is the other times H
                state_a = state_a if rotated[0] else apply_hadamard(state_a)
                state_b = state_b if rotated[1] else apply_hadamard(state_b)
            difference.add(state_a, state_b)
        yield logits_a, logits_b


def _is_rotated(model: PreTrainedModel) -> bool:
    recipe = recipe_of(model)
    return recipe is not None and recipe.rotate_residual


def _is_reordered(model: PreTrainedModel) -> bool:
    recipe = recipe_of(model)
    return recipe is not None and recipe.reordered


def _corresponding_tensors(
    a: PreTrainedModel, b: PreTrainedModel, notes: list[str]
) -> tuple[dict[str, Values], dict[str, Values]]:
    """The tensors of both, in a form in which equal names mean the same."""
    recipes = recipe_of(a), recipe_of(b)
    for model, own, other, which in ((a, *recipes, "first"), (b, *reversed(recipes), "second")):
        if own is None and other is not None and is_supported(model, transformed=True):
            install_float_mixers(model)
            model.float()
            transform(model, other.rotate_residual)
            parts = "norms folded into the linear layers behind them, out_proj rotated"
            parts += (
                ", the final norm folded into the head, the residual stream rotated" if other.rotate_residual else ""
            )
            notes.append(f"the {which} model's tensors are compared as its quantization finds them: {parts}")
    tensors_a, tensors_b = model_tensors(a), model_tensors(b)
    for tensors, other in ((tensors_a, tensors_b), (tensors_b, tensors_a)):
        _match_state_matrices(tensors, other)
        _match_dt_rows(tensors, other)
    if type(a) is type(b):
        _read_through_norms(a, tensors_a, tensors_b, notes)
    if _is_reordered(a) != _is_reordered(b):
        for tensors in (tensors_a, tensors_b):
            for name in [name for name in tensors if ".mixer." in name]:
                del tensors[name]
        notes.append(
            "the heads and channels of one model stand in another order, that of their groups: the tensors of the "
            "blocks' mixers are not compared"
        )
    if all(recipes) and _is_rotated(a) != _is_rotated(b):
        for tensors, mark in ((tensors_a, "first"), (tensors_b, "second")):
            for name in [name for name in tensors if name.endswith(ROTATED)]:
                tensors[f"{name} (as the {mark} model's residual stream needs it)"] = tensors.pop(name)
    return tensors_a, tensors_b


def _match_state_matrices(tensors: dict[str, Values], other: dict[str, Values]) -> None:
    """Replaces A_log by A = -exp(A_log) where the other model, a quantized one, holds that."""
    for name in [name for name in tensors if name.endswith(".A_log") and name not in other]:
        if (stored := name.removesuffix("_log")) in other:
            tensors[stored] = -torch.exp(tensors.pop(name).detach().float())


def _match_dt_rows(tensors: dict[str, Values], other: dict[str, Values]) -> None:
    """Splits in_proj's rows in two where the other model, a quantized Mamba2, holds those of dt, the last, apart."""
    for name in [name for name in tensors if ".in_proj." in name]:
        of_dt = name.replace(".in_proj.", ".dt_proj.")
        if of_dt in other and of_dt not in tensors:
            rows, heads = tensors[name].detach(), len(values_of(other[of_dt]))
            tensors[name], tensors[of_dt] = rows.split([len(rows) - heads, heads])


def _read_through_norms(model: PreTrainedModel, a: dict[str, Values], b: dict[str, Values], notes: list[str]) -> None:
    """Take a norm's factors into the layers behind it, where its weights differ: only the product is one.

    A weight search (AWQ, arXiv 2306.00978) moves factors from a norm into the layers that read it.
    """
    anatomy, readers = Anatomy.of(model), norm_readers(model)
    if anatomy.has_blocks_alone:
        readers = {anatomy.architecture.norm: (f"{anatomy.architecture.mixer}.in_proj",)}
    if not readers:
        return
    blocks, changed = anatomy.layers, 0
    (place,) = (name for name, module in model.named_modules() if module is blocks)
    for block in (f"{place}.{index}." for index in range(len(blocks))):
        for norm, names in readers.items():
            key = f"{block}{norm}.weight"
            if key not in a or key not in b or torch.equal(a[key].float(), b[key].float()):
                continue
            changed += 1
            for tensors in (a, b):
                for name in (f"{block}{name}.weight" for name in names):
                    tensors[f"{name} * {norm}"] = ScaledWeight(tensors.pop(name), tensors[key].detach().float())
    if changed:
        notes.append(f"{changed} norms differ: the weights behind them are compared times their norm's (* in the name)")
