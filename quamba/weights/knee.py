"""Which input channels are outliers, by the size of their mean: a fixed share, or all before the knee of the curve.

Dims: I in features.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ..errors import QuambaError

MIN_CHANNELS = 10  # below it half of the curve has too few points to speak of a knee


def share_of(share: float, count: int) -> int:
    """Return how many whole ones that share of `count` is, cut towards 0; the share as written: 0.29 of 100 is 29, not
    28."""
    return int(Fraction(str(share)) * count)


@dataclass(frozen=True, eq=False)
class OutlierMask:
    """The channels that count as outliers, and how they were found.

    mask bool [I]; knee: the place of the knee in the descending order of |E[x]|, None where none was found or looked
    for.
    """

    mask: Tensor
    knee: int | None = None

    @property
    def share(self) -> float:
        """The masked share of the channels."""
        return int(self.mask.sum()) / self.mask.numel()


def _descending(mean: Tensor) -> tuple[Tensor, Tensor]:
    """(|mean| float64 [I] in descending order, their channels [I]); of equal ones the lower channel comes first."""
    if not bool(torch.isfinite(mean).all()):
        raise QuambaError(
            "the mean of a layer's inputs holds NaN or infinity: check the model and its calibration text"
        )
    return mean.detach().to(torch.float64).abs().sort(descending=True, stable=True)


def _first(order: Tensor, count: int, knee: int | None = None) -> OutlierMask:
    """Masks the first `count` channels of an order of all of them [I]."""
    mask = torch.zeros(order.numel(), dtype=torch.bool, device=order.device)
    mask[order[:count]] = True
    return OutlierMask(mask, knee)


def outlier_mask_fixed(mean: Tensor, percent: float) -> OutlierMask:
    """Masks the share `percent` (0.05: 5 %) of the channels with the largest |E[x]|.

    mean [I], any float dtype. The number of masked channels is rounded down, so that a share below 1 leaves one channel
    or more; of equal means the lower channel is masked. Raises QuambaError for a share outside [0, 1) and for a mean
    that is not finite.
    """
    if not 0 <= percent < 1:
        raise QuambaError(f"the share of masked channels is at least 0 and below 1, not {percent!r}")
    _, order = _descending(mean)
    return _first(order, share_of(percent, order.numel()))


def find_knee(curve: Tensor) -> int | None:
    """The place of the knee of a descending convex curve float64 [n], None where it has none (flat or straight).

    Source: Kneedle (Satopaa et al., "Finding a 'Kneedle' in a Haystack", ICDCS workshops 2011).
    """
    from kneed import KneeLocator  # only where a knee is looked for: it takes a while to import

    with np.errstate(divide="ignore", invalid="ignore"):  # it divides 0 by 0 on a flat curve: the knee is then None
        knee = KneeLocator(range(len(curve)), curve.cpu().numpy(), curve="convex", direction="decreasing").knee
    return int(knee) if knee else None  # it calls the start of a curve that bends the other way a knee, too


def outlier_mask_knee(mean: Tensor, tolerance: float = 0.0) -> OutlierMask:
    """Masks the channels before the knee of the first half of the descending curve of |E[x]|.

    mean [I], any float dtype. `tolerance` shifts the threshold by that share of the I channels (cut towards 0, kept
    within 0..I), so that a positive one masks more. No knee, or fewer than MIN_CHANNELS channels: nobody is masked.
    Raises QuambaError for a tolerance or a mean that is not finite.
    """
    if not math.isfinite(tolerance):
        raise QuambaError(f"knee_tolerance is a share of the channels, such as 0.02 or -0.01, not {tolerance!r}")
    curve, order = _descending(mean)
    channels = order.numel()
    knee = find_knee(curve[: channels // 2]) if channels >= MIN_CHANNELS else None
    if knee is None:
        return _first(order, 0)
    return _first(order, min(max(knee + share_of(tolerance, channels), 0), channels), knee)
