"""Norms, linear layers, the convolution, the selective scan, rotations, tables.

Dims: B batch, L tokens, D channels, N d_state, K conv width, H hidden, V vocabulary; see schemas.py for every shape,
layout.py for tiles.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import numerics
from .. import layout


def quantize(x: Tensor, scale: Tensor) -> Tensor:
    return numerics.quantize(x, scale)


def multiplied(x: Tensor, multiplier: Tensor | None) -> Tensor:
    return x if multiplier is None else x * multiplier


def rms_norm(x: Tensor, eps: float, multiplier: Tensor | None = None) -> Tensor:
    x = x.float()
    return multiplied(x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps), multiplier)


def rms_norm_quant(x: Tensor, eps: float, scale: Tensor, multiplier: Tensor | None = None) -> Tensor:
    return numerics.quantize(rms_norm(x, eps, multiplier), scale)


def quantize_per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    magnitude = x.float().abs()
    magnitude = magnitude.masked_fill(magnitude.isnan(), 0)  # a NaN is quantized to 0 and leaves its row alone
    scale = numerics.symmetric_scale(magnitude.amax(dim=-1))  # [...]
    return numerics.quantize(x, scale[..., None]), scale


def _scaled(acc: Tensor, x_scale: Tensor, bias: Tensor | None) -> Tensor:
    """acc [..., O] times the scale of its row (or of all rows), plus bias."""
    y = acc * (x_scale if x_scale.numel() == 1 else x_scale[..., None])
    return y if bias is None else y + bias


def _int8_weight(tiles: Tensor, scale: Tensor, in_features: int) -> Tensor:
    """float32 [O, I] of int8 tiles and their scale [O]."""
    return numerics.dequantize(layout.untile_int8(tiles, scale.shape[0], in_features), scale[:, None])


def _uint4_weight(tiles: Tensor, scale: Tensor, zero: Tensor, out_in: tuple[int, int], group_size: int) -> Tensor:
    """float32 [O, I] of uint4 tiles and the scale and zero tiles of their groups."""
    packed = layout.untile_uint4(tiles, *out_in)  # [O, ceil(I / 2)]
    scale, zero = (layout.untile_groups(groups, out_in[0]) for groups in (scale, zero))  # [O, G]
    return numerics.dequantize_groups(numerics.unpack_uint4(packed, out_in[1]), scale, zero, group_size)


def linear_w8a8(x: Tensor, weight: Tensor, weight_scale: Tensor, x_scale: Tensor, bias: Tensor | None) -> Tensor:
    integers = layout.untile_int8(weight, weight_scale.shape[0], x.shape[-1])  # [O, I]
    # float64 holds every product and sum of int8 exactly
    acc = (x.double() @ integers.double().T).float()  # [..., O]
    return _scaled(acc * weight_scale, x_scale, bias)


def linear_w8a8_requant(
    x: Tensor, weight: Tensor, weight_scale: Tensor, x_scale: Tensor, bias: Tensor | None, out_scale: Tensor
) -> Tensor:
    return numerics.quantize(linear_w8a8(x, weight, weight_scale, x_scale, bias), out_scale)


def linear_w8a16(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.float(), _int8_weight(weight, weight_scale, x.shape[-1]), bias)


def linear_w4a8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor,
    x_scale: Tensor,
    bias: Tensor | None,
    out_features: int,
    group_size: int,
) -> Tensor:
    values = _uint4_weight(weight, scale, zero, (out_features, x.shape[-1]), group_size)  # [O, I]
    return _scaled((x.double() @ values.double().T).float(), x_scale, bias)


def linear_w4a8_requant(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor,
    x_scale: Tensor,
    bias: Tensor | None,
    out_features: int,
    group_size: int,
    out_scale: Tensor,
) -> Tensor:
    y = linear_w4a8(x, weight, scale, zero, x_scale, bias, out_features, group_size)
    return numerics.quantize(y, out_scale)


def linear_w4a16(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None, out_features: int, group_size: int
) -> Tensor:
    return F.linear(x.float(), _uint4_weight(weight, scale, zero, (out_features, x.shape[-1]), group_size), bias)


def _convolve(x: Tensor, weight: Tensor, conv_state: Tensor | None) -> Tensor:
    """sum_k weight[d, k] x[t - K + 1 + k, d] with the state as left context, which is then moved on."""
    width = weight.shape[1]
    context = x.new_zeros(x.shape[0], x.shape[2], width) if conv_state is None else conv_state
    padded = torch.cat([context, x.transpose(1, 2)], dim=-1)  # [B, D, K + L]
    if conv_state is not None:
        conv_state.copy_(padded[..., -width:].clone())
    windows = padded[..., 1:].unfold(-1, width, 1)  # [B, D, L, K]
    return (windows.float() * weight.float()[:, None, :]).sum(dim=-1).transpose(1, 2)  # [B, L, D]


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, conv_state: Tensor | None) -> Tensor:
    y = _convolve(x, weight, conv_state)
    return F.silu(y if bias is None else y + bias).contiguous()


def causal_conv1d_int8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_scale: Tensor, conv_state: Tensor | None
) -> Tensor:
    y = _convolve(x, weight, conv_state) * scale
    return numerics.quantize(F.silu(y if bias is None else y + bias), out_scale).contiguous()


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor | None,
) -> Tensor:
    """h_t = exp(dt A) h_{t-1} + dt x B, y = C h + D x, gated by SiLU(z) (Mamba, arXiv 2312.00752, section 3)."""
    dt = F.softplus(dt if dt_bias is None else dt + dt_bias)  # [B, L, D]
    h = torch.zeros(x.shape[0], *A.shape, dtype=torch.float32) if state is None else state.clone()  # [B, D, N]
    ys = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t, :, None] * A)  # [B, D, N]
        h = decay * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None, :]
        ys.append((h * C[:, t, None, :]).sum(dim=-1))  # [B, D]
    if state is not None:
        state.copy_(h)
    y = torch.stack(ys, dim=1) if ys else torch.zeros_like(dt)  # [B, L, D]
    y = y if D is None else y + D * x
    return y if z is None else y * F.silu(z)


def selective_scan_int8(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor | None,
    x_scale: Tensor,
    B_scale: Tensor,
    C_scale: Tensor,
    z_scale: Tensor,
) -> Tensor:
    x, B, C = (numerics.dequantize(q, s) for q, s in ((x, x_scale), (B, B_scale), (C, C_scale)))
    z = None if z is None else numerics.dequantize(z, z_scale)
    return selective_scan(x, dt, A, B, C, D, z, dt_bias, state)


def hadamard(x: Tensor, base: Tensor, multiplier: Tensor | None = None) -> Tensor:
    n, p = x.shape[-1], base.shape[0]
    y = x.float().reshape(-1, n // p, p) @ base  # [M, n/p, p]: the base's side of the Kronecker product
    run = 1
    while run < n // p:  # butterflies over the Sylvester side
        low, high = y.reshape(-1, n // p // (2 * run), 2, run, p).unbind(dim=2)
        y = torch.stack([low + high, low - high], dim=2)
        run *= 2
    return multiplied(y.reshape(x.shape) / math.sqrt(n), multiplier)


def hadamard_quant(x: Tensor, base: Tensor, scale: Tensor, multiplier: Tensor | None = None) -> Tensor:
    return numerics.quantize(hadamard(x, base, multiplier), scale)


def embedding_int8(ids: Tensor, weight: Tensor, scale: Tensor, hidden: int) -> Tensor:
    return _int8_weight(weight, scale, hidden)[ids]  # [..., H]


def embedding_int4(
    ids: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, hidden: int, vocab: int, group_size: int
) -> Tensor:
    return _uint4_weight(weight, scale, zero, (vocab, hidden), group_size)[ids]  # [..., H]


def magnitude_histogram(x: Tensor, counts: Tensor, sums: Tensor, first_bin: int, mantissa_bits: int) -> None:
    magnitude = x.flatten().to(torch.float32).abs()
    magnitude = magnitude[magnitude.isfinite()]
    bins = (magnitude.view(torch.int32) >> (23 - mantissa_bits)).long() - first_bin
    bins = bins.clamp(0, counts.numel() - 1)
    counts += torch.bincount(bins, minlength=counts.numel())
    sums += torch.bincount(bins, weights=magnitude.double(), minlength=counts.numel())
