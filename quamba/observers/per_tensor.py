"""The per-tensor observers: one class, one streaming statistic. The grouped ones are in grouped_observer.py.

name                    statistic                                    the integers cover
minmax                  largest magnitude                            all values
percentile              moving average of each window's percentile   all but about one value in 100 000
outlier_aware           99th percentile of |x| over all data         up to 127/120 of it
outlier_aware_adaptive  histogram                                    q_r / r, the best of four percentiles r
mse                     histogram                                    the range of least mean squared error
"""

import logging
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from .. import numerics
from ..errors import QuambaError
from .base import Observer, create_observer, observer_names, register_observer, try_observer
from .histogram import MANTISSA_BITS, Distribution, MagnitudeHistogram, SignedDistribution, SignedHistogram
from .quantile import exact_quantiles

__all__ = [
    "Observer",
    "PerChannelMinmaxObserver",
    "PerTensorMSEObserver",
    "PerTensorMinmaxObserver",
    "PerTensorOutlierAwareAdaptiveObserver",
    "PerTensorOutlierAwareObserver",
    "PerTensorPercentileObserver",
    "create_observer",
    "observer_names",
    "register_observer",
    "try_observer",
]

logger = logging.getLogger(__name__)

NORMAL_RATIO = 0.99
NORMAL_RATIOS = (0.95, 0.97, 0.99, 0.995)
PERCENTILE_SIGMA = 0.01
PERCENTILE_ALPHA = 0.99999
GRID_OCTAVES, GRID_STEP = 12, 1 / 8  # the MSE grid: clip ratios 2^0, 2^-1/8 ... 2^-12


@register_observer("minmax")
class PerTensorMinmaxObserver(Observer):
    """The range from the smallest to the largest value seen: nothing saturates."""

    by_update = False

    def _update(self, x: Tensor) -> None:
        pass  # the base class keeps the extremes

    def _merge(self, other: "PerTensorMinmaxObserver") -> None:
        pass

    def _parameters(self) -> tuple[Tensor, Tensor]:
        return self.range_parameters(self.minimum, self.maximum)


class PerChannelMinmaxObserver(Observer):
    """Min-max of each channel: scale and base are [channels].

    channel_dim: the dimension of `x` that holds the channels; its size must stay the same.
    """

    by_update = False

    def __init__(self, n_bits: int = 8, clip_ratio: float = 1.0, sym: bool = True, channel_dim: int = -1):
        super().__init__(n_bits, clip_ratio, sym)
        self.channel_dim = channel_dim
        self.low: Tensor | None = None  # [channels], float32
        self.high: Tensor | None = None

    def _update(self, x: Tensor) -> None:
        if not -x.dim() <= self.channel_dim < x.dim():
            raise QuambaError(f"{self}: x of shape {tuple(x.shape)} has no dimension {self.channel_dim}")
        x = x.movedim(self.channel_dim, 0)  # [channels, ...]
        others = tuple(range(1, x.dim()))
        self._widen(x.amin(others).float(), x.amax(others).float())

    def _merge(self, other: "PerChannelMinmaxObserver") -> None:
        self._widen(other.low, other.high)

    def _widen(self, low: Tensor, high: Tensor) -> None:
        if self.low is None:
            self.low, self.high = low.clone(), high.clone()
        elif self.low.shape != low.shape:
            raise QuambaError(f"{self}: got {low.numel()} channels after {self.low.numel()}")
        else:
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)

    def _parameters(self) -> tuple[Tensor, Tensor]:
        return self.range_parameters(self.low, self.high)


@register_observer("percentile")
class PerTensorPercentileObserver(Observer):
    """An exponential moving average of each update's percentile, or, outlier-aware, one percentile of all the data.

    A calibration updates it once a window, whatever the batches.
    percentile_alpha: every update's alpha-quantile of |x| (of x, and its 1 - alpha quantile, where sym=False) is
    computed exactly, whatever the size. percentile_sigma: weight of a new one; the first initialises the average, then
    w += sigma * (current - w).

    use_outlier_aware: instead, the `normal_ratio` quantile of |x| over everything seen maps to the integer
    `normal_level` (120 at 8 bits, qmax * 120/127 in general): scale = q / normal_level. **Linear INT8 thus keeps seven
    levels (121..127) just above the normal range and clamps the rest**: whatever lies beyond 127 * scale, 5.8 % above
    the 99th percentile, saturates. It buys finer steps for the normal values with the outliers' magnitudes. Symmetric
    only: sym=False is an error.

    A quantile of 0 (nearly all values are 0) says nothing about the range: the largest magnitude then takes its
    place, with a warning. Source: Quamba, arXiv 2410.13229 (percentile clipping of the scan's input x).
    """

    def __init__(
        self,
        n_bits: int = 8,
        clip_ratio: float = 1.0,
        sym: bool = True,
        percentile_sigma: float = PERCENTILE_SIGMA,
        percentile_alpha: float = PERCENTILE_ALPHA,
        use_outlier_aware: bool = False,
        normal_ratio: float = NORMAL_RATIO,
        normal_level: float | None = None,
        mantissa_bits: int = MANTISSA_BITS,
    ):
        super().__init__(n_bits, clip_ratio, sym)
        self.percentile_sigma, self.percentile_alpha = percentile_sigma, percentile_alpha
        self.use_outlier_aware, self.mantissa_bits = use_outlier_aware, mantissa_bits
        self.normal_ratio, self.normal_level = normal_ratio, normal_level
        _check_ratio(self, "percentile_sigma", percentile_sigma)
        _check_ratio(self, "percentile_alpha", percentile_alpha)
        _check_ratio(self, "normal_ratio", normal_ratio)
        if normal_level is not None and not 0 < normal_level <= numerics.integer_range(n_bits)[1]:
            raise QuambaError(
                f"{self}: normal_level must be in (0, {numerics.integer_range(n_bits)[1]}], got {normal_level!r}"
            )
        if use_outlier_aware:
            _check_symmetric(self)
        self.percentiles: list[tuple[float, float]] = []  # (low, high) of each update
        self.histogram = MagnitudeHistogram(mantissa_bits) if use_outlier_aware else None
        self.by_update = not use_outlier_aware

    def _update(self, x: Tensor) -> None:
        if self.use_outlier_aware:
            self.histogram.update(x)
        else:
            self.percentiles.append(_percentiles(x, self.percentile_alpha, self.sym))

    def _merge(self, other: "PerTensorPercentileObserver") -> None:
        self.percentiles += other.percentiles
        if self.use_outlier_aware:
            self.histogram.merge(other.histogram)

    def _parameters(self) -> tuple[Tensor, Tensor]:
        if not self.use_outlier_aware:
            average = _moving_average(self.percentiles, self.percentile_sigma)
            return self.range_parameters(*_nonzero_range(self, *average))
        normal = self.histogram.distribution().quantile(self.normal_ratio)
        level = self.normal_level or numerics.outlier_aware_level(self.n_bits)
        low, high = _nonzero_range(self, -normal, normal)
        return self.range_parameters(low, high, level if high == normal else None)


@register_observer("outlier_aware")
class PerTensorOutlierAwareObserver(PerTensorPercentileObserver):
    """The percentile observer with use_outlier_aware=True: see there for what it keeps and what it clamps."""

    def __init__(
        self,
        n_bits: int = 8,
        clip_ratio: float = 1.0,
        sym: bool = True,
        normal_ratio: float = NORMAL_RATIO,
        normal_level: float | None = None,
        mantissa_bits: int = MANTISSA_BITS,
    ):
        super().__init__(
            n_bits,
            clip_ratio,
            sym,
            use_outlier_aware=True,
            normal_ratio=normal_ratio,
            normal_level=normal_level,
            mantissa_bits=mantissa_bits,
        )


@register_observer("outlier_aware_adaptive")
class PerTensorOutlierAwareAdaptiveObserver(Observer):
    """Take, of several normal ratios r, the one whose scale q_r / (qmax * r) has the least mean squared error.

    q_r: the r-quantile of |x| over everything seen. Symmetric only: sym=False is an error.
    """

    by_update = False

    def __init__(
        self,
        n_bits: int = 8,
        clip_ratio: float = 1.0,
        sym: bool = True,
        normal_ratios: Sequence[float] = NORMAL_RATIOS,
        mantissa_bits: int = MANTISSA_BITS,
    ):
        super().__init__(n_bits, clip_ratio, sym)
        self.normal_ratios, self.mantissa_bits = tuple(normal_ratios), mantissa_bits
        if not self.normal_ratios:
            raise QuambaError(f"{self}: normal_ratios is empty")
        for ratio in self.normal_ratios:
            _check_ratio(self, "normal_ratios", ratio)
        _check_symmetric(self)
        self.histogram = SignedHistogram(mantissa_bits)

    def _update(self, x: Tensor) -> None:
        self.histogram.update(x)

    def _merge(self, other: "PerTensorOutlierAwareAdaptiveObserver") -> None:
        self.histogram.merge(other.histogram)

    def _parameters(self) -> tuple[Tensor, Tensor]:
        peaks = _adaptive_peaks(self.histogram.magnitudes(), self.normal_ratios)
        errors = _errors(self, self.histogram.distribution(), -peaks, peaks)
        best = float(peaks[errors.argmin()])
        return self.range_parameters(*_nonzero_range(self, -best, best))


@register_observer("mse")
class PerTensorMSEObserver(Observer):
    """The range of least E[(x - dequantize(quantize(x)))^2] over everything seen.

    A grid of ranges, refined around the best; the ranges of every other observer here are among the candidates, so
    its error is at most theirs (within 0.1 %, what the histogram resolves). percentile_sigma, percentile_alpha: those
    of the `percentile` observer among the candidates.
    """

    def __init__(
        self,
        n_bits: int = 8,
        clip_ratio: float = 1.0,
        sym: bool = True,
        percentile_sigma: float = PERCENTILE_SIGMA,
        percentile_alpha: float = PERCENTILE_ALPHA,
        mantissa_bits: int = MANTISSA_BITS,
    ):
        super().__init__(n_bits, clip_ratio, sym)
        self.percentile_sigma, self.percentile_alpha = percentile_sigma, percentile_alpha
        self.mantissa_bits = mantissa_bits
        _check_ratio(self, "percentile_sigma", percentile_sigma)
        _check_ratio(self, "percentile_alpha", percentile_alpha)
        self.histogram = SignedHistogram(mantissa_bits)
        self.percentiles: list[tuple[float, float]] = []  # (low, high) of each update

    def _update(self, x: Tensor) -> None:
        self.histogram.update(x)
        self.percentiles.append(_percentiles(x, self.percentile_alpha, self.sym))

    def _merge(self, other: "PerTensorMSEObserver") -> None:
        self.percentiles += other.percentiles
        self.histogram.merge(other.histogram)

    def _parameters(self) -> tuple[Tensor, Tensor]:
        values = self.histogram.distribution()

        def best_of(ranges: Tensor) -> Tensor:  # [candidates, 2] -> [2]
            return ranges[_errors(self, values, ranges[:, 0], ranges[:, 1]).argmin()]

        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        extremes = torch.tensor([low, high], dtype=torch.float64)
        if self.sym:
            extremes = extremes.abs().max() * torch.tensor([-1.0, 1.0], dtype=torch.float64)
        ratios = 2.0 ** -torch.arange(0, GRID_OCTAVES, GRID_STEP, dtype=torch.float64)
        best = best_of(torch.cat([self._ranges_of_other_observers(), ratios[:, None] * extremes]))

        directions = [(1, 1)] if self.sym else [(1, 1), (1, 0), (0, 1)]  # both ends together, then each by itself
        steps = torch.linspace(-1, 1, 33, dtype=torch.float64)[:, None]  # holds 0: a round never loses the best
        for width in (GRID_STEP, GRID_STEP / 8):
            for direction in directions:
                best = best_of(best * 2.0 ** (width * steps * torch.tensor(direction)))
        return self.range_parameters(float(best[0]), float(best[1]))

    def _ranges_of_other_observers(self) -> Tensor:
        """[n, 2] float64; min-max is the grid's first ratio."""
        ranges = torch.tensor([_moving_average(self.percentiles, self.percentile_sigma)], dtype=torch.float64)
        if not self.sym:
            return ranges
        magnitudes = self.histogram.magnitudes()
        headroom = numerics.integer_range(self.n_bits)[1] / numerics.outlier_aware_level(self.n_bits)
        outlier_aware = torch.tensor([magnitudes.quantile(NORMAL_RATIO) * headroom], dtype=torch.float64)
        peaks = torch.cat([outlier_aware, _adaptive_peaks(magnitudes, NORMAL_RATIOS)])
        return torch.cat([ranges, torch.stack([-peaks, peaks], dim=1)])


def _percentiles(x: Tensor, alpha: float, sym: bool) -> tuple[float, float]:
    """(low, high): the alpha-quantile of |x| on both sides, or the 1 - alpha and the alpha-quantile of x; exact."""
    if sym:
        (high,) = exact_quantiles(x, [alpha])
        return -high, high
    low, high = exact_quantiles(x, [1 - alpha, alpha], signed=True)
    return low, high


def _moving_average(percentiles: list[tuple[float, float]], sigma: float) -> tuple[float, float]:
    """The exponential moving average of (low, high), in order; the first initialises it."""
    low, high = percentiles[0]
    for next_low, next_high in percentiles[1:]:
        low += sigma * (next_low - low)
        high += sigma * (next_high - high)
    return low, high


def _adaptive_peaks(magnitudes: Distribution, ratios: Sequence[float]) -> Tensor:
    """q_r / r for each normal ratio r: the magnitude that maps to the largest integer; float64."""
    return torch.tensor([magnitudes.quantile(r) / r for r in ratios], dtype=torch.float64)


def _errors(observer: Observer, values: SignedDistribution, low: Tensor, high: Tensor) -> Tensor:
    """Mean squared error of quantizing `values` to each of the ranges [low, high], in the observer's format."""
    qmin, qmax = numerics.integer_range(observer.n_bits, observer.sym)
    if observer.sym:
        scale = numerics.symmetric_scale(torch.maximum(-low, high), observer.n_bits)
        return values.mean_squared_error(scale, qmax, -qmin)
    scale, zero = numerics.asymmetric_parameters(low, high, observer.n_bits)
    return values.mean_squared_error(scale, qmax - zero, zero)


def _nonzero_range(observer: Observer, low: float, high: float) -> tuple[float, float]:
    """The range, or the extremes where it is [0, 0] though some values are not 0."""
    if low == high == 0 and (observer.minimum, observer.maximum) != (0, 0):
        logger.warning("%s: nearly all values are 0, and so is their percentile: using the extremes", observer)
        return observer.minimum, observer.maximum
    return low, high


def _check_ratio(observer: Observer, name: str, value: float) -> None:
    if not isinstance(value, Real) or not 0 < value <= 1:
        raise QuambaError(f"{observer}: {name} must be in (0, 1], got {value!r}")


def _check_symmetric(observer: Observer) -> None:
    if not observer.sym:
        raise QuambaError(f"{observer}: outlier-aware scales are symmetric: sym=False is not supported")
