"""How well each observer fits the activations of each tap: errors, saturation, levels, and who wins where."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from ... import numerics
from ...calibration.recording import TapActivations
from ...errors import QuambaError
from ...nn.taps import tap_name
from ...observers.quantile import exact_quantiles
from .specs import ObserverSpec

NORMAL_RATIO = 0.99  # values beyond this quantile of |x| are called outliers
TIE = 1e-3  # relative difference of MSE below which two observers win together: what the histograms resolve


@dataclass(frozen=True)
class ObserverResult:
    """Hold what one observer does to one tap's values; errors in the unit of the activations."""

    observer: str
    scale: float
    mse: float
    sqnr_db: float | None  # None where nothing was lost
    saturated_share: float
    outlier_levels: int  # distinct integers that the outliers are mapped to
    normal_error: float  # mean |x - dequantize(quantize(x))| of the normal values
    outlier_error: float  # the same of the outliers
    relative_mse: float  # to the baseline's; 1 for the baseline
    calibration_sqnr_db: float | None  # of the same scale on everything that calibration saw, None where not recorded


@dataclass(frozen=True)
class TapComparison:
    """Every observer on one tap of one layer, the baseline first. `layer` is None for the head and synthetic data."""

    tap: str
    layer: int | None
    values: int
    outliers: int
    results: list[ObserverResult]

    @property
    def name(self) -> str:
        """`layers.3.x`, or the tap's name where it belongs to no layer."""
        return tap_name(self.layer, self.tap)

    def winners(self) -> list[str]:
        """The observers of least MSE: several where they tie."""
        least = min(result.mse for result in self.results)
        return [result.observer for result in self.results if result.mse <= least * (1 + TIE)]


@dataclass(frozen=True)
class Aggregate:
    """One observer over several tap comparisons."""

    observer: str
    relative_mse: float  # geometric mean over the comparisons
    sqnr_db: float | None  # mean, None where a comparison has none
    wins: int
    of: int


@dataclass(frozen=True)
class Comparison:
    """All taps and layers, with what they were captured from. `real` is False for synthetic values."""

    source: str
    real: bool
    n_bits: int
    observers: list[str]  # the baseline first
    taps: list[TapComparison] = field(repr=False)

    def aggregate(self, tap: str | None = None) -> list[Aggregate]:
        """Every observer over the layers of a tap, or over everything."""
        chosen = [comparison for comparison in self.taps if tap in (None, comparison.tap)]
        winners = [comparison.winners() for comparison in chosen]
        return [
            _aggregate(name, [comparison.results[index] for comparison in chosen], sum(name in w for w in winners))
            for index, name in enumerate(self.observers)
        ]

    def tap_names(self) -> list[str]:
        """The taps that were compared, each once, in order."""
        return list(dict.fromkeys(comparison.tap for comparison in self.taps))

    def to_dict(self) -> dict:
        """Plain data: every comparison, and the aggregates by tap and over all (`null`)."""
        aggregates = [
            {"tap": tap, "observers": [asdict(a) for a in self.aggregate(tap)]} for tap in (*self.tap_names(), None)
        ]
        taps = [{**asdict(comparison), "winners": comparison.winners()} for comparison in self.taps]
        return {**asdict(self), "taps": taps, "aggregates": aggregates}


def _aggregate(observer: str, results: Sequence[ObserverResult], wins: int) -> Aggregate:
    decibels = [result.sqnr_db for result in results]
    logs = [math.log(max(result.relative_mse, torch.finfo(torch.float64).tiny)) for result in results]
    return Aggregate(
        observer=observer,
        relative_mse=math.exp(sum(logs) / len(logs)),
        sqnr_db=None if None in decibels else sum(decibels) / len(decibels),
        wins=wins,
        of=len(results),
    )


def compare_observers(
    activations: Iterable[TapActivations],
    specs: Sequence[ObserverSpec],
    *,
    source: str,
    real: bool,
    n_bits: int = 8,
    normal_ratio: float = NORMAL_RATIO,
    total: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Finds every observer's scale from the values of every tap, and measures it on the same values.

    `specs`: the baseline first. `normal_ratio`: the quantile of |x| beyond which values count as outliers, where
    the activations do not say themselves; `total`: how many activations there are, for the progress bar.
    Raises QuambaError where an observer fails or gives no single positive scale, naming the tap.
    """
    with tqdm(activations, total=total, desc="Comparing", unit="tap", disable=not progress) as bar:
        taps = [compare_tap(tap, specs, n_bits, normal_ratio) for tap in bar]
    if not taps:
        raise QuambaError("there are no activations to compare observers on")
    return Comparison(source, real, n_bits, [spec.label for spec in specs], taps)


def compare_tap(
    activations: TapActivations, specs: Sequence[ObserverSpec], n_bits: int, normal_ratio: float = NORMAL_RATIO
) -> TapComparison:
    """Every observer on one tap; see `compare_observers`."""
    values = activations.values.float()
    outliers = activations.outliers
    if outliers is None:
        outliers = values.abs() > exact_quantiles(values, [normal_ratio])[0]
    results: list[ObserverResult] = []
    for spec in specs:
        scale = _scale(spec, activations, n_bits)
        results.append(_measure(spec, scale, activations, values, outliers, n_bits, results))
    return TapComparison(activations.tap, activations.layer, values.numel(), int(outliers.sum()), results)


def _scale(spec: ObserverSpec, activations: TapActivations, n_bits: int) -> Tensor:
    observer = spec.create(n_bits)
    try:
        observer.update(activations.values)
        scale, _ = observer.get_quantization_parameters()
    except QuambaError as error:
        raise QuambaError(f"tap {activations.name}: {error}") from error
    except Exception as error:  # a plug-in may fail in any way
        failure = f"observer {spec.label!r} failed: {type(error).__name__}: {error}"
        raise QuambaError(f"tap {activations.name}: {failure}") from error
    if scale.numel() != 1 or not 0 < float(scale) < math.inf:
        raise QuambaError(f"tap {activations.name}: observer {spec.label!r} gave {scale.tolist()}: a tap takes one")
    return scale.reshape(())


def _measure(
    spec: ObserverSpec,
    scale: Tensor,
    activations: TapActivations,
    values: Tensor,
    outliers: Tensor,
    n_bits: int,
    earlier: Sequence[ObserverResult],
) -> ObserverResult:
    qmin, qmax = numerics.integer_range(n_bits)
    integers = numerics.quantize(values, scale, bits=n_bits)
    error = (values - numerics.dequantize(integers, scale)).abs()
    mse, signal = (float(v.double().square().mean()) for v in (error, values))
    saturated = (values > (qmax + 0.5) * scale) | (values < (qmin - 0.5) * scale)
    baseline = earlier[0].mse if earlier else mse
    return ObserverResult(
        observer=spec.label,
        scale=float(scale),
        mse=mse,
        sqnr_db=_decibels(signal, mse),
        saturated_share=float(saturated.double().mean()),
        outlier_levels=integers[outliers].unique().numel(),
        normal_error=_mean(error[~outliers]),
        outlier_error=_mean(error[outliers]),
        relative_mse=mse / baseline if baseline > 0 else 1.0 if mse == 0 else math.inf,
        calibration_sqnr_db=_calibration_sqnr(activations, scale, n_bits),
    )


def _mean(errors: Tensor) -> float:
    return float(errors.double().mean()) if errors.numel() else 0.0


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def _calibration_sqnr(activations: TapActivations, scale: Tensor, n_bits: int) -> float | None:
    if activations.histogram is None:
        return None
    qmin, qmax = numerics.integer_range(n_bits)
    distribution = activations.histogram.distribution()
    noise = float(distribution.mean_squared_error(scale.double().reshape(1), qmax, -qmin))
    return _decibels(distribution.mean_square(), noise)
