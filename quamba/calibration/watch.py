"""Watches the taps of a float model while text runs through it: an observer each, and a sample that judges its scale.

What is found depends on the windows and their order alone, not on the batches that they come in, but for the rounding
of the float model's own products.
Dims: B batch, L tokens, S heads, P head_dim, D = S * P d_inner, G SSD groups, N d_state.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .. import numerics
from ..architectures.anatomy import Anatomy
from ..architectures.convert import tap_modules
from ..errors import QuambaError
from ..nn.mamba2 import Mamba2Sizes
from ..nn.taps import STATE_TAP, split_tap_name
from ..observers.grouped import (
    CachedStatesCrossHeadMinmaxObserver,
    CrossHeadMinmaxObserver,
    GroupedObserver,
    PerSSDGroupObserver,
    expand_to_channels,
)
from ..observers.histogram import SignedHistogram
from ..observers.per_tensor import Observer
from ..transforms.clusters import ChannelOrder
from .defaults import create_tap_observer
from .recording import ActivationRecorder

DIAGNOSTIC_SAMPLE = 1 << 13  # values of each tap and window that SQNR and saturation are measured on
# Bits of a bin in the histograms of a group, of which there may be thousands: a quarter of the usual memory, and less
# where those of all groups would exceed GROUPED_MEMORY. At 9 bits a tap's squared error was within 0.04 % of that at
# 11, at 7 within 0.2 %, at 5 within 0.6 % (every observer, taps x and conv_in of mamba2-tiny, 4 x 4 groups).
GROUPED_MANTISSA, LEAST_MANTISSA = 9, 5
GROUPED_MEMORY = 1 << 30  # bytes
GROUP_BYTES = 2 * 24 * 16  # a bin an octave: signs, octaves that values lie in (20 on average), bytes of a bin
GROUPED_SAMPLE = 1 << 14  # the same of a tap with a scale per group, whose sampled values are kept as they are:
GROUPED_WINDOWS = 16  # of as many windows, spread over all of them, a MB or two a tap


@dataclass
class TapResult:
    """Hold what calibration found at one tap: the scale, and how well it fits the values that were seen."""

    observer: str
    scale: float | list[float]  # one, or one of each group
    max: float  # largest magnitude
    saturated_share: float
    sqnr_db: float | None  # None where nothing was lost
    group_id: list | None = None  # the group of each channel, [D] or [S, P]; None where a scale is a tensor's as it is

    def __post_init__(self):
        scales = self.scale if isinstance(self.scale, list) else [self.scale]
        for scale in scales or [None]:
            if not isinstance(scale, float) or not 0 < float(torch.tensor(scale, dtype=torch.float32)) < math.inf:
                raise ValueError(f"{scale!r} is no scale")
        figures = [self.max, self.saturated_share, 0.0 if self.sqnr_db is None else self.sqnr_db]
        if not all(isinstance(figure, int | float) and math.isfinite(figure) for figure in figures):
            raise ValueError(f"{figures} hold something else than finite numbers")
        if self.group_id is not None:
            groups = torch.tensor(self.group_id)
            if (
                not isinstance(self.scale, list)
                or groups.dtype != torch.int64
                or not torch.equal(groups.unique(), torch.arange(len(scales)))
            ):
                raise ValueError(f"the groups of channels do not fit {len(scales)} scales")

    def scales(self) -> Tensor:
        """float32: one value, one for each group, or, where there is a `group_id`, one for each channel."""
        scale = torch.tensor(self.scale, dtype=torch.float32)
        return scale if self.group_id is None else expand_to_channels(scale, torch.tensor(self.group_id))


class _TapWatch:
    """An observer and a sample of the same values, which says how well the observer's scale fits."""

    def __init__(self, name: str, observer: Observer, observer_name: str):
        self.name, self.observer, self.observer_name = name, observer, observer_name
        self.sample = SignedHistogram()

    def update(self, batch: Tensor) -> None:
        """Takes in a batch of windows [B, ...]."""
        try:
            for x in batch.split(1) if self.observer.by_update else [batch]:
                self.observer.update(x)
        except QuambaError as error:
            raise QuambaError(f"tap {self.name}: {error}") from error
        self._sample(batch)

    def _sample(self, batch: Tensor) -> None:
        values = batch.flatten(1)  # [B, values of a window]
        stride = max(1, values.shape[1] // DIAGNOSTIC_SAMPLE)
        while math.gcd(stride, batch.shape[-1]) > 1:  # so that every channel is sampled, not always the same few
            stride += 1
        self.sample.update(values[:, ::stride])

    def result(self) -> TapResult:
        scale, _ = self.observer.get_quantization_parameters()
        self._check_scale(scale)
        low, high = numerics.integer_range(self.observer.n_bits)
        distribution = self.sample.distribution()
        step = scale.double().reshape(1)
        noise = float(distribution.mean_squared_error(step, high, -low))
        saturated = (
            distribution.positive.above((high + 0.5) * step)[0] + distribution.negative.above((0.5 - low) * step)[0]
        )
        share = float(saturated) / distribution.count
        return self._result(float(scale), distribution.mean_square(), noise, share)

    def _check_scale(self, scale: Tensor) -> None:
        if scale.numel() != self._scale_count():
            raise QuambaError(
                f"observer {self.observer_name!r} gave {scale.numel()} scales: tap {self.name} takes "
                f"{'one' if self._scale_count() == 1 else self._scale_count()}"
            )
        for value in scale.flatten().tolist():
            if not 0 < value < math.inf:
                raise QuambaError(f"observer {self.observer_name!r} gave the scale {value} for tap {self.name}")

    def _scale_count(self) -> int:
        return 1

    def _result(self, scale: float | list[float], signal: float, noise: float, saturated_share: float) -> TapResult:
        return TapResult(
            observer=self.observer_name,
            scale=scale,
            max=max(-self.observer.minimum, self.observer.maximum),
            saturated_share=saturated_share,
            sqnr_db=10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None,
        )


class _GroupedTapWatch(_TapWatch):
    """Watch a tap with a scale per group of channels; `expanded`: whether the block takes one per channel."""

    def __init__(self, name: str, observer: GroupedObserver, observer_name: str, expanded: bool):
        super().__init__(name, observer, observer_name)
        self.expanded = expanded
        self._samples: list[Tensor] = []  # [n, channels] each, of every `_every`-th window
        self._seen, self._every = 0, 1

    def _sample(self, batch: Tensor) -> None:
        for x in batch.split(1):  # a window
            if self._seen % self._every == 0:
                self._samples.append(self._rows_of(x))
            self._seen += 1
            if len(self._samples) > GROUPED_WINDOWS:  # every second one goes, and of those to come too
                self._samples, self._every = self._samples[::2], 2 * self._every

    def _rows_of(self, x: Tensor) -> Tensor:
        """About GROUPED_SAMPLE values, float32 [n, channels], one row at least."""
        values = self.observer.view(x).movedim(-2, -1)  # [..., rest, channels]
        inner, rows = values.shape[-2], values.flatten(0, -2)  # [n, channels]
        stride = max(1, rows.numel() // GROUPED_SAMPLE)
        while math.gcd(stride, inner) > 1:  # so that every place of the rest is sampled, not always the same few
            stride += 1
        return rows[::stride].float().clone()

    def _scale_count(self) -> int:
        return self.observer.groups

    def result(self) -> TapResult:
        scale, _ = self.observer.get_quantization_parameters()
        self._check_scale(scale)
        values, steps = torch.cat(self._samples), scale.float()[self.observer.group_id.flatten()]  # [n | 1, channels]
        integers = numerics.quantize(values, steps, bits=self.observer.n_bits)
        low, high = numerics.integer_range(self.observer.n_bits)
        saturated = ((values > (high + 0.5) * steps) | (values < (low - 0.5) * steps)).double().mean()
        noise = (values - numerics.dequantize(integers, steps)).double().square().mean()
        signal = float(values.double().square().mean())
        result = self._result(scale.float().tolist(), signal, float(noise), float(saturated))
        result.group_id = self.observer.group_id.tolist() if self.expanded else None
        return result


@dataclass(frozen=True)
class _TapGroups:
    """The groups of a tap that have a scale each: the kind of observer, its arguments, and see `_GroupedTapWatch`."""

    kind: type[GroupedObserver]
    arguments: dict
    expanded: bool = True

    @property
    def count(self) -> int:
        """Return how many groups there are."""
        return self.arguments.get("n_groups") or int(self.arguments["group_id"].max()) + 1


def _tap_groups(tap: str, sizes: Mamba2Sizes, order: ChannelOrder | None) -> _TapGroups | None:
    """Return the groups of a tap of a Mamba2 block whose channels may have an `order`; None where one scale serves
    all."""
    if (
        tap == STATE_TAP
    ):  # a scale for every channel: per head, or per cluster of x, int8 states lose four times as much
        channels = torch.arange(sizes.d_inner).view(sizes.heads, sizes.head_dim)  # [S, P]
        return _TapGroups(CachedStatesCrossHeadMinmaxObserver, {"group_id": channels})
    if tap in ("conv_in", "x") and order is not None:
        return _TapGroups(CrossHeadMinmaxObserver, {"group_id": order.group_id.flatten()})
    if tap in ("B", "C") and sizes.groups > 1:
        return _TapGroups(PerSSDGroupObserver, {"n_groups": sizes.groups}, expanded=False)
    return None


def grouped_mantissa(groups: int) -> int:
    """Bits of a bin for the histograms of so many groups: as many as keep all of them within GROUPED_MEMORY."""
    fitting = [
        bits for bits in range(LEAST_MANTISSA, GROUPED_MANTISSA + 1) if (groups * GROUP_BYTES) << bits <= GROUPED_MEMORY
    ]
    return max(fitting, default=LEAST_MANTISSA)


def _has_histograms(observer: Observer) -> bool:
    """Return whether an observer keeps bins, of as many bits as it is told."""
    takes_bits = "mantissa_bits" in inspect.signature(type(observer)).parameters
    return takes_bits and getattr(observer, "histogram", True) is not None


def _create_watch(
    name: str,
    observer_name: str,
    n_bits: int,
    options: Mapping,
    groups: _TapGroups | None,
    mantissa_bits: int = GROUPED_MANTISSA,
) -> _TapWatch:
    plain = create_tap_observer(observer_name, n_bits, options)
    if groups is None:
        return _TapWatch(name, plain, observer_name)
    coarse = {"mantissa_bits": mantissa_bits} if _has_histograms(plain) else {}
    observer = groups.kind(n_bits, statistic=observer_name, statistic_args=coarse | dict(options), **groups.arguments)
    return _GroupedTapWatch(name, observer, observer_name, groups.expanded)


class Calibrator:
    """Context manager that feeds the output of every tap of a model that has an observer to one of its own.

    `observers`: tap -> observer name; `recorder`: is given the same, where it wants the tap; `orders`: the channel
    orders of Mamba2's layers, whose groups have a scale each; `states`: whether SSM states are watched. The hooks are
    removed when the block is left, however it is left.
    """

    def __init__(
        self,
        model: nn.Module,
        observers: dict[str, str],
        n_bits: int,
        head: bool,
        options: dict,
        recorder: ActivationRecorder | None = None,
        orders: Mapping[int, ChannelOrder] | None = None,
        states: bool = False,
    ):
        self._recorder = recorder
        taps = {name: (module, split_tap_name(name)[1]) for name, module in tap_modules(model, head, states).items()}
        self._modules = {name: module for name, (module, tap) in taps.items() if tap in observers}
        watched = {name: observers[split_tap_name(name)[1]] for name in self._modules}
        arguments = {name: (observer, n_bits, options.get(observer, {})) for name, observer in watched.items()}
        groups = self._groups(model, orders or {})
        with_bins = [name for name in groups if _has_histograms(create_tap_observer(*arguments[name]))]
        mantissa_bits = grouped_mantissa(sum(groups[name].count for name in with_bins))
        self._watches = {
            name: _create_watch(name, *arguments[name], groups.get(name), mantissa_bits) for name in self._modules
        }
        self._hooks: list = []

    def _groups(self, model: nn.Module, orders: Mapping[int, ChannelOrder]) -> dict[str, _TapGroups]:
        """Return the groups of the watched taps that have some."""
        sizes_of = {slot.index: getattr(slot.mixer, "sizes", None) for slot in Anatomy.of(model).slots}
        found = {}
        for name in self._modules:
            layer, tap = split_tap_name(name)
            sizes = None if layer is None else sizes_of[layer]
            if sizes is not None and (groups := _tap_groups(tap, sizes, orders.get(layer))) is not None:
                found[name] = groups
        return found

    def __enter__(self) -> "Calibrator":
        for name, module in self._modules.items():
            self._hooks.append(module.register_forward_hook(partial(self._watch, name)))
        return self

    def _watch(self, name: str, _module: nn.Module, _args: tuple, out: Tensor) -> None:
        self._watches[name].update(out)
        if self._recorder and self._recorder.wants(name):
            self._recorder.update(name, out)

    def __exit__(self, *_) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def results(self) -> dict[str, TapResult]:
        """Return what each tap's observer found."""
        return {name: watch.result() for name, watch in self._watches.items()}
