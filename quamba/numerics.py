"""The definition of scale, round, clamp, quantize and dequantize. csrc/common/quantize.h spells the same for kernels.

Symmetric:   q = clamp(round_half_even(x / scale), qmin, qmax)            x ~ q * scale
Asymmetric:  q = clamp(round_half_even(x / scale) + zero, 0, 2**bits - 1)  x ~ (q - zero) * scale
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import QuambaError

MAX_BITS = 8  # of the integers that `quantize` gives: they are stored in a byte
GROUP_BITS = 4
# what float16 holds: the smallest positive number and the largest
FLOAT16_TINY, FLOAT16_MAX = 2.0**-24, 65504.0
COARSE_SCALE = 8 * FLOAT16_TINY  # below, float16 is off by more than a sixteenth of a scale, and at last 0
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
    """Integers of `x`: int8 when symmetric (no zero), uint8 when asymmetric. NaN gives 0, infinities saturate.

    Raises QuambaError for more bits than the integers' type has.
    """
    if bits > MAX_BITS:
        raise QuambaError(f"integers of {bits} bits do not fit a byte: up to {MAX_BITS} bits can be quantized to")
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


def group_parameters(weight: Tensor, group_size: int, bits: int = GROUP_BITS) -> tuple[Tensor, Tensor]:
    """(scale float16, zero uint8) of asymmetric groups of the last dimension: [..., I] -> [..., ceil(I / group_size)].

    The scale is rounded to float16 before the zero point is computed; the last group may be short.
    """
    columns = weight.shape[-1]
    groups = -(-columns // group_size)
    padded = F.pad(weight.detach().to(torch.float32), (0, groups * group_size - columns))  # zeros are in every range
    low, high = padded.unflatten(-1, (groups, group_size)).aminmax(dim=-1)  # [..., G]
    scale, _ = asymmetric_parameters(low, high, bits)
    if scale.numel() and (largest := float(scale.max())) > FLOAT16_MAX:
        if largest == float("inf"):
            raise QuambaError("a weight holds NaN or infinity, or is too large for float32")
        raise QuambaError(f"a group of weights needs the scale {largest:.3g}, and float16 ends at {FLOAT16_MAX:g}")
    scale = scale.clamp(FLOAT16_TINY, FLOAT16_MAX).to(torch.float16)
    qmin, qmax = integer_range(bits, symmetric=False)
    zero = torch.round(-low.clamp(max=0) / scale.to(torch.float32)).clamp(qmin, qmax)
    return scale, zero.to(torch.uint8)


def range_fault(low: float, high: float, bits: int, grouped: bool) -> str | None:
    """Return what is wrong with weights from `low` to `high` for a format of a scale per group, or per channel; None:
    nothing.

    All zeros are right for both. The scale of a group is a float16, that of a channel at least that of `AMAX_EPS`.
    """
    amax = max(-low, high)
    scale = (max(high, 0.0) - min(low, 0.0)) / integer_range(bits, symmetric=False)[1]
    if amax == 0:
        return None
    if grouped and scale > FLOAT16_MAX:
        return f"values up to {amax:.3g}, too large for the float16 scales of {bits}-bit groups: give it 8 bits"
    if grouped and scale < COARSE_SCALE:
        return f"no value beyond {amax:.3g}, too small for the float16 scales of {bits}-bit groups: give it 8 bits"
    if not grouped and amax < AMAX_EPS:
        return f"no value beyond {amax:.3g}, too small for {bits} bits, whose scales are for {AMAX_EPS:g} at least"
    return None


def _per_column(groups: Tensor, columns: int, group_size: int) -> Tensor:
    """A value per group [..., G] -> float32, one per column [..., columns]."""
    return groups.to(torch.float32).repeat_interleave(group_size, dim=-1)[..., :columns]


def quantize_groups(weight: Tensor, scale: Tensor, zero: Tensor, group_size: int, bits: int = GROUP_BITS) -> Tensor:
    """Integers uint8 [..., I] of `weight` under the scale and zero [..., G] of its groups."""
    columns = weight.shape[-1]
    zeros = _per_column(zero, columns, group_size)
    return quantize(weight, _per_column(scale, columns, group_size), zeros, bits)


def dequantize_groups(q: Tensor, scale: Tensor, zero: Tensor, group_size: int) -> Tensor:
    """float32 [..., I] of group-wise integers [..., I] with scale and zero [..., G]."""
    columns = q.shape[-1]
    return dequantize(q, _per_column(scale, columns, group_size), _per_column(zero, columns, group_size))


def pack_uint4(q: Tensor) -> Tensor:
    """Integers 0..15 uint8 [..., I] -> uint8 [..., ceil(I / 2)]: byte j has element 2j low, 2j + 1 above."""
    q = F.pad(q, (0, q.shape[-1] % 2))
    return q[..., 0::2] | (q[..., 1::2] << 4)


def unpack_uint4(packed: Tensor, columns: int) -> Tensor:
    """uint8 [..., ceil(columns / 2)] -> uint8 [..., columns], the inverse of `pack_uint4`."""
    return torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)[..., :columns]
