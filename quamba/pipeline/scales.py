"""Where the scales of a quantization come from, checked before anything slow runs: a calibration, or its result."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..architectures import convert
from ..architectures.anatomy import Anatomy
from ..calibration.channel_groups import ChannelGroups
from ..calibration.defaults import check_observer_options, parse_observers
from ..calibration.recording import ActivationRecorder
from ..calibration.run import (
    CalibrationResult,
    CalibrationText,
    calibrate,
    model_fingerprint,
    read_windows,
    windows_sha256,
)
from ..errors import QuambaError
from ..nn.taps import STATE_TAP
from ..scheme.recipe import QuantizationRecipe
from ..transforms.clusters import ChannelOrder
from .weights import WeightRun


@dataclass
class CalibrationRun:
    """A calibration that was checked, to be run once the model is transformed."""

    windows: Tensor  # int64 [count, seqlen]
    text: CalibrationText | None
    observers: dict[str, str]
    options: dict[str, dict]
    n_bits: int
    fingerprint: str
    recorder: ActivationRecorder | None
    groups: ChannelGroups | None
    states: bool

    def channel_orders(self, model: PreTrainedModel, progress: bool) -> dict[int, ChannelOrder] | None:
        """Return the orders of the layers of a float model, by what their channels hold; None without groups."""
        return self.groups and self.groups.orders(model, self.windows, self.batch_size, progress)

    @property
    def batch_size(self) -> int:
        """Windows at a time."""
        return (self.text or CalibrationText()).batch_size

    def run(
        self, model: PreTrainedModel, orders: Mapping[int, ChannelOrder] | None, progress: bool
    ) -> CalibrationResult:
        """The scales of every tap that has an observer, of a model whose channels are in those orders."""
        return calibrate(
            model,
            self.windows,
            self.observers,
            fingerprint=self.fingerprint,
            n_bits=self.n_bits,
            head=convert.HEAD_TAP in self.observers,
            options=self.options,
            text=self.text,
            batch_size=self.batch_size,
            orders=orders,
            states=self.states,
            recorder=self.recorder,
            progress=progress,
        )


def check_scale_arguments(
    model: PreTrainedModel, recipe: QuantizationRecipe, group_heads: ChannelGroups | None, **given
) -> None:
    """Raises QuambaError for groups of heads where there are none, and for arguments that a recipe has no use for."""
    if not recipe.quantizes_activations:
        for name, value in (given | {"group_heads": group_heads}).items():
            if value is not None and not (isinstance(value, Mapping) and not value):
                raise QuambaError(f"{name} does nothing with scheme {recipe.name}: its activations stay float")
    if group_heads:
        group_heads.check(model)


def scale_source(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    recipe: QuantizationRecipe,
    rounding: WeightRun | None,
    group_heads: ChannelGroups | None,
    *,
    observer: str | Mapping[str, str] | None,
    observer_options: Mapping[str, Mapping] | None,
    calibration: CalibrationText | CalibrationResult | Tensor | None,
    save_activations: str | Path | None,
) -> CalibrationRun | CalibrationResult | None:
    """Return where scales come from: a run, an earlier result, None where activations stay float.

    Arguments as of `quamba.quantize`, checked. Raises QuambaError for what that says, before anything slow.
    """
    integers = recipe.integer_acts
    options = {name: dict(arguments) for name, arguments in (observer_options or {}).items()}
    if integers:
        n_bits, states = integers[0].bits, recipe.state_bits == 8
        head, dynamic = not recipe.head_act.is_float, any(act.is_per_token for act in integers)
        taps = (*Anatomy.of(model).architecture.taps, *((STATE_TAP,) if states else ()))
        observers = parse_observers(observer or None, head, dynamic, taps)
        check_observer_options(observers, options, n_bits)
    if not integers:
        return None
    fingerprint = f"{model_fingerprint(model)}{'-rotated' if recipe.rotate_residual else ''}"
    fingerprint += f"-{group_heads.describe()}" if group_heads else ""
    fingerprint += f"-{rounding.fingerprint()}" if rounding else ""
    if isinstance(calibration, CalibrationResult):
        if save_activations is not None:
            raise QuambaError("save_activations needs a calibration run, and an earlier result is reused: drop one")
        asked_for = (observers, options) if observer or options else (None, None)
        calibration.check_fits(fingerprint, set(convert.static_tap_names(model, recipe)), n_bits, *asked_for)
        return calibration
    windows, text = read_windows(calibration, model, tokenizer)
    recorder = None
    if save_activations is not None:
        recorder = ActivationRecorder(save_activations, Path(model.config.name_or_path).name, best_effort=True)
    return CalibrationRun(windows, text, observers, options, n_bits, fingerprint, recorder, group_heads, states)


def channel_order_key(source: CalibrationRun | CalibrationResult | None, groups: ChannelGroups | None) -> str:
    """Return what an interrupted run must share beside the model, where that puts channels in another order: empty or
    text."""
    if groups is None:
        return ""
    seen = windows_sha256(source.windows) if isinstance(source, CalibrationRun) else source.windows_sha256
    return f" {groups.describe()} of {seen}"
