"""What every rounding rule shares: its options, its statistics, and the registry that finds one by name.

Dims: O out features, I in features.
"""

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..borders import described_with_line
from ..errors import QuambaError
from ..numerics import integer_range, quantize
from ..registry import Registry
from .knee import OutlierMask, outlier_mask_fixed, outlier_mask_knee, share_of
from .rounding_state import RoundingState

logger = logging.getLogger(__name__)

PERCENTILES = (0, 50, 90, 99, 100)
TRIAL_BITS = 8
MASKS_MOST = 0.5  # a mask of more channels than this is more likely a misunderstanding than a wish


class InputMoments(Protocol):
    """Hold what a rounding rule knows of a layer's inputs x."""

    @property
    def mean(self) -> Tensor:
        """E[x], float32 [I]."""

    @property
    def second(self) -> Tensor | None:
        """E[x x^T], float32 or float64 [I, I], where it was kept."""


@dataclass(frozen=True)
class FlipOptions:
    """Which integers may flip, and how many.

    outlier_percent: the share of the channels with the largest |E[x]| that cannot flip; None: those before the knee of
    the curve. knee_tolerance: shifts that knee, as a share of the channels. max_flip_percent: at most this share of a
    row flips, rounded down to whole weights. Shares are numbers such as 0.05, not 5. Raises QuambaError for others.
    """

    outlier_percent: float | None = None
    knee_tolerance: float = 0.0
    max_flip_percent: float = 0.01

    def __post_init__(self):
        percent = self.outlier_percent
        if percent is not None and not 0 <= percent < 1:
            raise QuambaError(
                f"outlier_percent {percent!r} is not a share of at least 0 and below 1, such as 0.05; "
                "to do without flips, leave --use_heuristic off"
            )
        if not math.isfinite(self.knee_tolerance):
            raise QuambaError(f"knee_tolerance {self.knee_tolerance!r} is not a share of the channels, such as 0.02")
        if not 0 <= self.max_flip_percent <= 1:
            raise QuambaError(f"max_flip_percent {self.max_flip_percent!r} is not a share from 0 to 1, such as 0.01")
        if percent is not None and percent > MASKS_MOST:
            logger.warning(
                "outlier_percent %s: the %s %% of the channels with the largest means cannot flip, the rest still can. "
                "To do without flips, leave --use_heuristic off",
                percent,
                f"{100 * percent:g}",
            )

    def outliers(self, mean: Tensor) -> OutlierMask:
        """The channels that cannot flip, of the mean [I] of the inputs. Raises QuambaError where it is not finite."""
        if self.outlier_percent is None:
            return outlier_mask_knee(mean, self.knee_tolerance)
        return outlier_mask_fixed(mean, self.outlier_percent)

    def most_flips(self, columns: int) -> int:
        """Return how many weights of a row of that many may flip; 0 is possible."""
        return share_of(self.max_flip_percent, columns)


DEFAULT_OPTIONS = FlipOptions()


@dataclass(frozen=True)
class FlipStatistics:
    """Count how many integers a rule flipped, for the log; plain data.

    candidates: weights that the rule could choose from, before the cap. per_row, per_channel: percentile -> flips of an
    output row and of an input channel (the lower one between two ranks). knee: see OutlierMask.
    """

    flips: int
    candidates: int
    per_row: dict[int, int]
    per_channel: dict[int, int]
    masked_share: float = 0.0
    knee: int | None = None

    @classmethod
    def of(
        cls, before: Tensor, after: Tensor, candidates: int = 0, outliers: OutlierMask | None = None
    ) -> "FlipStatistics":
        """The statistics of integers [O, I] `before` and `after` a rule."""
        flipped = before != after
        return cls(
            flips=int(flipped.sum()),
            candidates=candidates,
            per_row=_percentiles(flipped.sum(dim=1)),
            per_channel=_percentiles(flipped.sum(dim=0)),
            masked_share=outliers.share if outliers else 0.0,
            knee=outliers.knee if outliers else None,
        )

    def to_dict(self) -> dict:
        """Plain data for a log; the percentiles are keyed by strings, as JSON has them."""
        fields = asdict(self)
        for name in ("per_row", "per_channel"):
            fields[name] = {str(percentile): flips for percentile, flips in fields[name].items()}
        return fields


def _percentiles(counts: Tensor) -> dict[int, int]:
    """Percentile -> count, of counts [n]."""
    ranks = torch.tensor(PERCENTILES, dtype=torch.float64, device=counts.device) / 100
    found = torch.quantile(counts.to(torch.float64), ranks, interpolation="lower")
    return {percentile: int(count) for percentile, count in zip(PERCENTILES, found.tolist(), strict=True)}


RoundingRule = Callable[[RoundingState, InputMoments, FlipOptions], tuple[RoundingState, FlipStatistics]]

_rules: Registry[RoundingRule] = Registry("rounding rule")


def register_rounding(name: str) -> Callable[[RoundingRule], RoundingRule]:
    """Function decorator: makes a rounding rule known as `name`.

        @register_rounding("mine")
        def mine(state, statistics, options):      # statistics: .mean [I], .second [I, I] or None
            integers = ...                         # float32 [O, I], whole numbers in [state.low, state.high]
            return state.with_integers(integers), FlipStatistics.of(state.integers, integers)

    A rule leaves the state that it is given as it is. Raises QuambaError for what takes other arguments, and where the
    name is taken by another function; the same function defined again replaces itself.
    """

    def register(rule: RoundingRule) -> RoundingRule:
        if not callable(rule) or not _takes_three(rule):
            raise QuambaError(f"register_rounding({name!r}): {rule!r} must take (state, statistics, options)")
        _rules.add(name, rule)
        return rule

    return register


def _takes_three(rule: Callable) -> bool:
    try:
        inspect.signature(rule).bind(None, None, None)
    except TypeError:
        return False
    return True


def rounding_names() -> list[str]:
    """The names that `get_rounding` knows, in the order of registration."""
    return _rules.names()


def get_rounding(name: str) -> RoundingRule:
    """The rounding rule of that name. Raises QuambaError on an unknown one, listing the known ones."""
    return _rules.get(name)


def apply_rounding(
    name: str, state: RoundingState, statistics: InputMoments, options: FlipOptions
) -> tuple[RoundingState, FlipStatistics]:
    """Return what the rule of that name makes of a state. Raises QuambaError where that is no state of the same
    weight."""
    found = get_rounding(name)(state, statistics, options)
    what = f"rounding rule {name!r}"
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], RoundingState)):
        raise QuambaError(f"{what} must return (RoundingState, FlipStatistics), not {type(found).__name__}")
    rounded, flips = found
    if not isinstance(flips, FlipStatistics):
        raise QuambaError(f"{what} gave {type(flips).__name__} in place of FlipStatistics: see FlipStatistics.of")
    for field in ("integers", "scale", "zero"):
        given, expected = getattr(rounded, field), getattr(state, field)
        if not isinstance(given, Tensor) or given.shape != expected.shape or given.dtype != expected.dtype:
            shape = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise QuambaError(f"{what} gave {field} of {shape}, not {expected.dtype} {list(expected.shape)}")
    integers = rounded.integers
    if not bool(((integers.frac() == 0) & (integers >= state.low) & (integers <= state.high)).all()):
        raise QuambaError(f"{what} gave integers that are not whole numbers from {state.low} to {state.high}")
    if not bool((rounded.scale.isfinite() & (rounded.scale > 0) & rounded.zero.isfinite()).all()):
        raise QuambaError(f"{what} gave scales that are not positive and finite, or zero points that are not finite")
    return rounded, flips


class _TrialMoments:
    """Moments of a few made-up inputs [n, I]."""

    def __init__(self, inputs: Tensor):
        self.mean, self.second = inputs.mean(dim=0), inputs.T @ inputs / len(inputs)


def try_rounding(name: str, options: FlipOptions = DEFAULT_OPTIONS) -> None:
    """Runs a rule that is not this package's own on a small weight, as a run would after an hour of calibration.

    Raises QuambaError where it fails, or gives no rounded weight.
    """
    if getattr(get_rounding(name), "__module__", "").split(".")[0] == __name__.split(".")[0]:
        return
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 16, generator=generator)
    scale, zero = torch.full((4, 1), 0.25), torch.zeros(4, 1)
    low, high = integer_range(TRIAL_BITS)
    integers = quantize(weight, scale, bits=TRIAL_BITS).float()
    state = RoundingState(weight, integers, scale, zero, group_size=16, low=low, high=high)
    try:
        apply_rounding(name, state, _TrialMoments(torch.randn(32, 16, generator=generator)), options)
    except QuambaError:
        raise
    except Exception as error:  # a user's code may raise anything
        raise QuambaError(
            f"rounding rule {name!r} fails on a trial of a weight [4, 16]: {described_with_line(error)}"
        ) from error
