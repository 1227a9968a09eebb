"""What a model must be before it is worked on, found from its modules and tensors, not from what its config claims."""

import copy
import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import QuambaError
from .layer_stack import decoder_layers, hidden_of, post_hooks, run_to_head
from .original import require_whole
from .tensor_checks import check_tensors
from .tying import share_memory

logger = logging.getLogger(__name__)

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SHOWN = 4  # tensors that a message names
# attribute of a wrapper that holds the model -> what the wrapper is
WRAPPERS = {
    "_orig_mod": "torch.compile made of a model: give the model itself, model._orig_mod",
    "merge_and_unload": "a model with adapters: give model.merge_and_unload()",
    "module": "a wrapper for training in parallel: give the model itself, model.module",
}


def check_float_model(model: nn.Module) -> None:
    """Raises QuambaError for a model that cannot be quantized whatever the options are; changes nothing.

    For what is no causal LM of transformers, and wrappers of one; a model that an earlier quantization left half-way;
    tensors without data (offloaded), on several devices, of another quantization, or shared by layers; and tensors
    that a model of its class and config has not, or has of other shapes: adapters, parametrizations, resized tables.
    """
    _check_kind(model)
    require_whole(model)
    check_placement(model)
    _check_dtypes(model)
    _check_shared(model)
    _check_structure(model)


def check_float_tensors(model: nn.Module) -> None:
    """Raises QuambaError naming the tensors of a float model that hold NaN, infinity or an A_log without a finite A."""
    check_tensors(model, "the model cannot be quantized", "its weights are broken, load or train it again")


def check_placement(model: nn.Module) -> None:
    """Raises QuambaError for tensors without data, as offloaded ones are, and for tensors on several devices."""
    devices: dict[torch.device, str] = {}
    for name, tensor in _tensors(model):
        if tensor.device.type == "meta":
            raise QuambaError(
                f"{name} has no data, as parts of a model that are offloaded to a disk or another device have none: "
                "load the model whole, on one device (without device_map, or with device_map='cpu')"
            )
        devices.setdefault(tensor.device, name)
    if len(devices) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise QuambaError(f"the model lies on several devices ({places}): load it on one")


def require_finite_activations(model: PreTrainedModel, windows: Tensor) -> None:
    """Raises QuambaError naming the first decoder layer that gives NaN or infinity on `windows`, int64 [B, L]."""
    layers = decoder_layers(model)
    indices = {layer: index for index, layer in enumerate(layers)}

    def look(layer: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        hidden = hidden_of(output)
        if isinstance(hidden, Tensor) and not bool(hidden.isfinite().all()):
            raise QuambaError(
                f"layers.{indices[layer]} gives NaN or infinity on the calibration text (in {model.dtype}): its "
                "weights are broken, or the dtype is too narrow"
            )

    with post_hooks(list(layers), look):
        run_to_head(model, windows)


def _check_kind(model: nn.Module) -> None:
    if not isinstance(model, PreTrainedModel):
        kind = next((what for name, what in WRAPPERS.items() if hasattr(model, name)), "no model of transformers")
        raise QuambaError(f"a {type(model).__name__} cannot be quantized: it is {kind}")
    head = model.get_output_embeddings()
    if not isinstance(getattr(head, "weight", None), Tensor):
        raise QuambaError(
            f"a {type(model).__name__} has no language-model head: load the model with AutoModelForCausalLM"
        )


def _check_dtypes(model: nn.Module) -> None:
    """Weights that another tool quantized are not of a float type, or of a class of their own."""
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter or parameter.dtype not in FLOAT_DTYPES:
            kind = type(parameter).__name__
            raise QuambaError(
                f"{name} is a {kind} of {parameter.dtype}, not a float tensor{_claimed_method(model)}: give the float "
                "model it was made from"
            )


def _check_shared(model: nn.Module) -> None:
    """Embedding and head may be one tensor: any other pair would be rewritten twice."""
    tables = {id(part) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    seen: dict[int, tuple[str, Tensor]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if id(module) in tables:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}"
            other, tensor = seen.setdefault(parameter.data_ptr(), (full, parameter))
            if other != full and parameter.numel() and share_memory(tensor, parameter):
                raise QuambaError(
                    f"{other} and {full} are one tensor: models whose layers share weights cannot be quantized"
                )


def _check_structure(model: PreTrainedModel) -> None:
    """The model's tensors are those of its class for its config, as a quantized checkpoint is read again."""
    expected = _expected_shapes(model)
    if expected is None:
        return
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    unknown = [name for name in found if name not in expected]
    missing = [name for name in expected if name not in found]
    misshapen = [
        f"{name} {list(shape)} instead of {list(expected[name])}"
        for name, shape in found.items()
        if shape != expected.get(name, shape)
    ]
    problems = {"unknown": unknown, "missing": missing, "of another shape": misshapen}
    lines = [f"{what}: {', '.join(names[:SHOWN])} ({len(names)} in all)" for what, names in problems.items() if names]
    if lines:
        raise QuambaError(
            f"the tensors are not those of a {type(model).__name__} of this config; {'; '.join(lines)}"
            f"{_claimed_method(model)}: merge adapters, remove added tensors, or correct the config"
        )


def _expected_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]] | None:
    """The names and shapes of a fresh model's tensors; None of a class that is not made from a config alone."""
    try:
        with torch.device("meta"):
            fresh = type(model)(copy.deepcopy(model.config))
    except Exception as error:  # the code of any class of the user's
        logger.warning("%s cannot be made from its config, so its tensors are not compared: %r", type(model), error)
        return None
    return {name: tuple(tensor.shape) for name, tensor in fresh.state_dict().items()}


def _claimed_method(model: PreTrainedModel) -> str:
    """Return, for a message, the quantization that the model's config names."""
    claimed = getattr(model.config, "quantization_config", None)
    method = claimed.get("quant_method") if isinstance(claimed, dict) else getattr(claimed, "quant_method", None)
    return "" if method is None else f" (the config says that {getattr(method, 'value', method)} quantized it)"


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
