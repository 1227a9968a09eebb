"""AWQ's search for a scale per input channel (arXiv 2306.00978, section 3.2), with E[x^2] as a channel's salience.

The weight is rounded as W * s and the layer then reads x / s: channels with large inputs get finer steps. s is
salience^alpha, with the alpha that leaves the least error of the layer's output.

Dims:
    I  input channels of the layer
    O  output channels (rows) of a weight
    o  rows of a chunk of a weight
    n  sampled rows (tokens) of the layer's input
    k  rows that stand for them: min(n, I)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import QuambaError
from .grid import Grid
from .statistics import InputStatistics, compact_rows, dead_channels

SCALE_MIN = 1e-5
TEMPORARY_BYTES = 256 * 2**20  # of what a search holds at once beside the weight and the sample
TEMPORARIES = 8  # tensors of a chunk's shape that are alive at once


@dataclass(frozen=True)
class ScaledStatistics:
    """The statistics of a layer's input divided by its scales: attributes and shapes as those of InputStatistics."""

    count: int
    mean: Tensor
    salience: Tensor
    second: Tensor | None
    sample: Tensor


@dataclass(frozen=True)
class AwqResult:
    """Hold what a search found: alpha, the scales float32 [I], and the output error at each alpha of the grid, 0
    first."""

    alpha: float
    scales: Tensor
    errors: list[float]

    def scaled(self, weight: Tensor) -> Tensor:
        """W * s, float32 [O, I]: what is rounded in place of `weight` [O, I] (any float dtype)."""
        return weight.detach().to(torch.float32) * self.scales


def channel_scales(salience: Tensor, alpha: float) -> Tensor:
    """Return salience^alpha of each channel, at least 1e-5; float32 [I] -> float32 [I]; all ones where alpha is 0.

    Nothing is added before the power: inputs are often small, and an offset would hide which of them are the larger.
    A channel that is never excited (see `dead_channels`) has the scale of a typical one, the geometric mean: its
    weights neither vanish beside the others of their group nor cost them resolution.
    Raises QuambaError where a scale is not finite.
    """
    dead = dead_channels(salience)
    if bool(dead.any()):
        typical = salience[~dead].log().mean().exp() if not bool(dead.all()) else torch.ones_like(salience[0])
        salience = torch.where(dead, typical, salience)
    scales = salience.pow(alpha).clamp(min=SCALE_MIN)
    if not bool(scales.isfinite().all()):
        raise QuambaError(
            f"the scales of alpha {alpha:g} are not finite: the inputs of the layer are too large for float32, "
            "check the model and the calibration text"
        )
    return scales


@torch.no_grad()
def search_scales(
    weights: list[Tensor],
    statistics: InputStatistics | ScaledStatistics,
    grid: Grid,
    *,
    n_grid: int = 20,
    output_rows: int | None = None,
) -> AwqResult:
    """One alpha and one set of input scales for the linears that share an input: the least error summed over them.

    weights: [O, I] each, any float dtype, read as float32; O may differ. output_rows: the most sampled rows that the
    error is taken on, evenly spread over the sample (None: all). alpha = i / n_grid for i = 0..n_grid; of equal errors
    the smaller alpha wins. The error at an alpha is |X (W - Wq)^T|^2, summed over outputs and linears, averaged over
    rows. X is replaced by its triangular factor where that has fewer rows. A bias has no part in it: it cancels.
    Raises QuambaError for n_grid or output_rows below 1, and where a scale or an error is not finite.
    """
    if n_grid < 1 or (output_rows is not None and output_rows < 1):
        raise QuambaError(f"a search over n_grid {n_grid} and {output_rows} rows is none: both must be at least 1")
    sample = spread_rows(statistics.sample, output_rows)  # [n, I]
    rows = compact_rows(sample)  # [k, I]
    salience = statistics.salience
    alphas = [step / n_grid for step in range(n_grid + 1)]
    input_scales = [channel_scales(salience, alpha) for alpha in alphas]
    errors = []
    for alpha, scales in zip(alphas, input_scales, strict=True):
        error = sum(squared_output_error(weight, rows, scales, grid) for weight in weights) / len(sample)
        if not math.isfinite(error):
            raise QuambaError(
                f"the output error at alpha {alpha:g} is {error}: a weight holds NaN or infinity, or is too large"
            )
        errors.append(error)
    best = min(range(len(alphas)), key=errors.__getitem__)
    return AwqResult(alphas[best], input_scales[best], errors)


def squared_output_error(weight: Tensor, rows: Tensor, scales: Tensor, grid: Grid) -> float:
    """|X (W - Wq)^T|^2 with Wq = nearest(W * s) / s: weight [O, I], rows X float32 [k, I], scales float32 [I]."""
    total = 0.0
    for part in row_chunks(weight, TEMPORARIES * weight.shape[1] + 2 * len(rows)):
        part = part.detach().to(torch.float32)  # [o, I]
        difference = part - grid.nearest(part * scales).dequantized() / scales  # [o, I]
        total += float((rows @ difference.T).square().sum(dtype=torch.float64))  # [k, o]
    return total


def spread_rows(sample: Tensor, count: int | None) -> Tensor:
    """At most `count` rows of [n, I], evenly spread over them; None: all."""
    if count is None or count >= len(sample):
        return sample
    return sample[torch.arange(count, device=sample.device) * len(sample) // count]


def row_chunks(weight: Tensor, floats_per_row: int) -> Iterator[Tensor]:
    """Runs of rows of [O, I] whose temporaries, `floats_per_row` float32 each, stay within TEMPORARY_BYTES."""
    size = max(1, TEMPORARY_BYTES // (4 * floats_per_row))
    yield from weight.split(size)


def scale_statistics(statistics: InputStatistics | ScaledStatistics, scales: Tensor) -> ScaledStatistics:
    """The statistics of x / s, which the linear reads once its weight is W * s; scales float32 [I].

    mean / s, salience / s^2, second / (s s^T) and sample / s; the tensors are new ones.
    """
    second = statistics.second
    if second is not None:
        second = (second / scales).div_(scales[:, None])
    return ScaledStatistics(
        count=statistics.count,
        mean=statistics.mean / scales,
        salience=statistics.salience / scales / scales,  # s^2 alone may overflow
        second=second,
        sample=statistics.sample / scales,
    )


def fold_into_norm(norm_weight: Tensor, scales: Tensor) -> Tensor:
    """The weight [I] of a norm whose output is divided by the scales [I]: float32 [I]."""
    return norm_weight.detach().to(torch.float32) / scales
