"""Simulated formats: a float model whose weights and activations take the values that integers would stand for."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..architectures import convert
from ..architectures.anatomy import Anatomy
from ..calibration.defaults import check_observer_options, check_tap, parse_observers
from ..calibration.run import CalibrationText, calibrate, default_text, read_windows
from ..checkpoint.quantized import recipe_of
from ..errors import QuambaError
from ..models.model_checks import check_float_model, check_float_tensors, require_finite_activations
from ..models.original import in_eval_mode, own_configs, plain_computation, put_back_on_error
from ..nn.taps import PER_TOKEN_TAPS, split_tap_name
from ..scheme.formats import WEIGHTS
from ..scheme.simulation import Simulation, simulation_of
from ..weights.grid import Grid
from ..weights.method import DEFAULT_METHODS, WeightMethod
from .fake_quantize import per_token_hook, per_token_pre_hook, static_hook
from .layerwise import round_weights
from .transform import transform
from .weights import WINDOWS


def simulate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    formats: Simulation | str,
    observer: str | Mapping[str, str] | None = None,
    calibration: CalibrationText | Tensor | None = None,
    *,
    weights: WeightMethod | None = None,
    weight_text: CalibrationText | Tensor | None = None,
    observer_options: Mapping[str, Mapping] | None = None,
    progress: bool = True,
) -> PreTrainedModel:
    """Make a float model, in place, compute what one of these formats would, but for the order of float sums.

    Weights of the decoder layers' linear layers become what their integers would stand for, chosen by `weights` (None:
    as `quantize` would, GPTQ below 8 bits); with integer activations convolutions have int8 weights. In Mamba blocks
    every tap is rounded: with static scales from calibration, or token by token at the taps that only linear layers
    read; all other linear layers round their inputs token by token. Embedding, head, norms and states stay float. The
    model is as slow as a float one and cannot be saved; its formats are at `model.quamba_simulation`.
    Arguments as of `quamba.quantize`. Raises QuambaError for what does not fit, before anything changed.
    """
    formats = Simulation.parse(formats) if isinstance(formats, str) else formats
    if isinstance(model, PreTrainedModel) and (recipe_of(model) is not None or simulation_of(model) is not None):
        raise QuambaError("the model is quantized already, or simulates it: load the float model")
    check_float_model(model)
    check_float_tensors(model)
    anatomy = Anatomy.of(model)
    observers, options = _observers(anatomy, formats, observer, observer_options or {})
    method = weights or DEFAULT_METHODS[method_bits(formats)]
    text = weight_windows = None
    windows = None
    if anatomy.architecture and formats.quantizes_activations:
        windows, text = read_windows(calibration, model, tokenizer)
    if method.calibrated and not formats.weight.is_float:
        weight_windows = _weight_windows(weight_text, calibration, model, tokenizer)
    elif weight_text is not None:
        raise QuambaError(f"weight_text does nothing with the weight method {method.describe()!r}: drop it")
    with plain_computation(model), in_eval_mode(model), own_configs(model), put_back_on_error(model) as original:
        if anatomy.architecture:
            convert.install_float_mixers(model)
            convert.to_float32(model)
        for read in (windows, weight_windows):
            if read is not None:
                require_finite_activations(model, read[:1])
        original.let_go()
        if anatomy.architecture:
            transform(model, rotate_residual=False)
        _round_weights(anatomy, formats, method, weight_windows, progress)
        batch_size = text.batch_size if text else CalibrationText().batch_size
        _round_activations(anatomy, formats, windows, observers, options, batch_size, progress)
        if formats.quantizes_activations:
            _round_convolutions(anatomy)
    model.quamba_simulation = formats
    return model


def method_bits(formats: Simulation) -> int:
    """Return the bits whose weight method in `DEFAULT_METHODS` is the default of these formats."""
    return max(bits for bits in DEFAULT_METHODS if bits <= max(formats.weight.bits, min(DEFAULT_METHODS)))


def reads_text(formats: Simulation, method: WeightMethod) -> bool:
    """Return whether a simulation reads calibration text, of a model with Mamba blocks."""
    return formats.quantizes_activations or (method.calibrated and not formats.weight.is_float)


def _observers(
    anatomy: Anatomy, formats: Simulation, observer: str | Mapping[str, str] | None, options: Mapping[str, Mapping]
) -> tuple[dict[str, str], dict[str, dict]]:
    """Tap -> observer, of the taps with static scales, and the arguments of those."""
    static = [] if anatomy.architecture is None else [t for t in anatomy.architecture.taps if _is_static(formats, t)]
    for tap in formats.taps:
        check_tap(tap, anatomy.architecture.taps if anatomy.architecture else ())
    if not static:
        if observer or options:
            raise QuambaError("no tap has a static scale here, for which an observer could be named: drop the observer")
        return {}, {}
    found = parse_observers(observer, head=False, taps=anatomy.architecture.taps)
    found = {tap: name for tap, name in found.items() if tap in static}
    used = {name: dict(arguments) for name, arguments in options.items()}
    check_observer_options(found, used, min(formats.act_of(tap).bits for tap in static))
    return found, used


def _is_static(formats: Simulation, tap: str) -> bool:
    """Return whether a tap has a static scale: all but those that are float, or have one for each token."""
    spec = formats.act_of(tap)
    return not spec.is_float and not (spec.is_per_token and tap in PER_TOKEN_TAPS)


def _weight_windows(
    text: CalibrationText | Tensor | None,
    calibration: CalibrationText | Tensor | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Tensor:
    """The calibration text of the weights, as `quantize` takes it."""
    if text is None and isinstance(calibration, Tensor):
        return read_windows(calibration[:WINDOWS], model, tokenizer)[0]
    if text is None:
        text = calibration or default_text(model)
        text = replace(text, data_num=min(text.data_num, WINDOWS), sampling="slices")
    return read_windows(text, model, tokenizer)[0]


@torch.no_grad()
def _round_weights(
    anatomy: Anatomy, formats: Simulation, method: WeightMethod, windows: Tensor | None, progress: bool
) -> None:
    """Gives the linear layers of the decoder layers the weights that their integers would stand for."""
    if formats.weight.is_float:
        return
    if windows is not None:
        round_weights(
            anatomy.model,
            windows,
            formats.weight,
            method,
            float_activations=not formats.quantizes_activations,
            batch_size=CalibrationText().batch_size,
            progress=progress,
        )
        return
    grid = Grid.of(formats.weight)
    for layer in anatomy.layers:
        for linear in (module for module in layer.modules() if isinstance(module, nn.Linear)):
            linear.weight.copy_(grid.nearest(linear.weight).dequantized())


def _round_activations(
    anatomy: Anatomy,
    formats: Simulation,
    windows: Tensor | None,
    observers: Mapping[str, str],
    options: Mapping[str, Mapping],
    batch_size: int,
    progress: bool,
) -> None:
    """Hooks the taps of Mamba blocks, and the inputs of the linear layers beside them."""
    inside = {module for slot in anatomy.slots for module in slot.mixer.modules()}
    if not formats.act.is_float:
        for layer in anatomy.layers:
            for module in layer.modules():
                if isinstance(module, nn.Linear) and module not in inside:
                    module.register_forward_pre_hook(per_token_pre_hook(formats.act.bits), with_kwargs=True)
    if windows is None:
        return
    scales: dict[str, Tensor] = {}
    for n_bits in sorted({formats.act_of(tap).bits for tap in observers}):
        chosen = {tap: name for tap, name in observers.items() if formats.act_of(tap).bits == n_bits}
        given = {name: arguments for name, arguments in options.items() if name in chosen.values()}
        result = calibrate(
            anatomy.model,
            windows,
            chosen,
            fingerprint="",  # of the scales, which are not kept
            n_bits=n_bits,
            options=given,
            batch_size=batch_size,
            progress=progress,
        )
        scales |= result.scales()
    for name, module in convert.tap_modules(anatomy.model, head=False).items():
        n_bits = formats.act_of(split_tap_name(name)[1]).bits
        if name in scales:
            module.register_forward_hook(static_hook(name, scales[name], n_bits))
        elif not formats.act_of(split_tap_name(name)[1]).is_float:
            module.register_forward_hook(per_token_hook(n_bits))


@torch.no_grad()
def _round_convolutions(anatomy: Anatomy) -> None:
    """Gives the convolutions int8 weights; after the calibration, as a quantized model has them."""
    for slot in anatomy.slots:
        weight = slot.mixer.conv1d.weight  # [X, 1, K]
        weight.copy_(Grid.of(WEIGHTS[8]).nearest(weight.flatten(1)).dequantized().view_as(weight))
