"""The definition of scale, round, clamp, quantize and dequantize. csrc/common/quantize.h spells the same for kernels.

Symmetric:   q = clamp(round_half_even(x / scale), qmin, qmax)            x ~ q * scale
Asymmetric:  q = clamp(round_half_even(x / scale) + zero, 0, 2**bits - 1)  x ~ (q - zero) * scale
"""

import torch
from torch import Tensor

AMAX_EPS = 1e-8  # an all-zero tensor still gets a positive scale
OUTLIER_AWARE_LEVEL = 120 / 127  # share of qmax that the end of the normal range maps to


def integer_range(bits: int, symmetric: bool = True) -> tuple[int, int]:
    """The integers of a format: (-128, 127) for symmetric 8 bits, (0, 15) for asymmetric 4 bits."""
    if symmetric:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def symmetric_scale(amax: Tensor, bits: int = 8, level: float | None = None) -> Tensor:
    """scale = max(amax, eps) / level, where `level` is the integer that `amax` maps to (qmax by default); float32."""
    level = integer_range(bits)[1] if level is None else level
    return amax.to(torch.float32).clamp(min=AMAX_EPS) / level


def outlier_aware_level(bits: int = 8) -> float:
    """The level that the end of the normal range maps to: 120 of 127 at 8 bits, qmax * 120/127 in general."""
    return integer_range(bits)[1] * OUTLIER_AWARE_LEVEL


def asymmetric_parameters(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(scale, zero) of the range [min(low, 0), max(high, 0)]; scale float32, zero integral in float32."""
    qmin, qmax = integer_range(bits, symmetric=False)
    low, high = low.to(torch.float32).clamp(max=0), high.to(torch.float32).clamp(min=0)
    scale = (high - low).clamp(min=AMAX_EPS) / qmax
    return scale, torch.round(-low / scale).clamp(qmin, qmax)


def quantize(x: Tensor, scale: Tensor | float, zero: Tensor | float | None = None, bits: int = 8) -> Tensor:
    """Integers of `x`: int8 when symmetric (no zero), uint8 when asymmetric. NaN gives 0, infinities saturate."""
    qmin, qmax = integer_range(bits, symmetric=zero is None)
    q = torch.round(x.to(torch.float32) / scale)
    if zero is not None:
        q = q + zero
    q = torch.nan_to_num(q, nan=0.0 if zero is None else float("nan"), posinf=qmax, neginf=qmin)
    if zero is not None:  # NaN is the value 0, which the integer `zero` stands for
        q = torch.where(q.isnan(), torch.as_tensor(zero, dtype=q.dtype), q)
    return q.clamp(qmin, qmax).to(torch.int8 if zero is None else torch.uint8)


def dequantize(q: Tensor, scale: Tensor | float, zero: Tensor | float | None = None) -> Tensor:
    """float32 values that the integers stand for."""
    x = q.to(torch.float32)
    return (x if zero is None else x - zero) * scale


def per_channel_scale(weight: Tensor, bits: int = 8) -> Tensor:
    """Symmetric scale of each output channel (dim 0) of a weight; float32 [out]."""
    return symmetric_scale(weight.detach().to(torch.float32).abs().flatten(1).amax(dim=1), bits)
