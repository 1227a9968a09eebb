"""What Mamba2's block has of its own (arXiv 2405.21060): the recurrence of state-space duality and the gated norm.

Dims: B batch, L tokens, S heads, P head_dim, D = S * P d_inner, G SSD groups (of S / G heads each), N d_state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import numerics
from .shared import hadamard_quant


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_min: float,
    dt_max: float,
    state: Tensor | None,
) -> Tensor:
    """h_t = exp(dt A) h_{t-1} + dt x B^T, y = h C + D x, a scalar A per head (Mamba2, arXiv 2405.21060, section 2)."""
    batch, tokens, channels = x.shape
    heads, (groups, d_state) = A.shape[0], B.shape[2:]
    x = x.unflatten(-1, (heads, channels // heads))  # [B, L, S, P]
    dt = F.softplus(dt if dt_bias is None else dt + dt_bias).clamp(dt_min, dt_max)  # [B, L, S]
    B, C = (m.repeat_interleave(heads // groups, dim=2) for m in (B, C))  # [B, L, S, N]
    zeros = torch.zeros(batch, *x.shape[2:], d_state, dtype=torch.float32)
    h = zeros if state is None else state.clone()  # [B, S, P, N]
    ys = []
    for t in range(tokens):
        decay = torch.exp(dt[:, t] * A)[..., None, None]  # [B, S, 1, 1]
        h = decay * h + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        ys.append((h * C[:, t, :, None, :]).sum(dim=-1))  # [B, S, P]
    if state is not None:
        state.copy_(h)
    y = torch.stack(ys, dim=1) if ys else torch.zeros_like(x)  # [B, L, S, P]
    y = y if D is None else y + D[:, None] * x
    return y.flatten(2)  # [B, L, D]


def ssd_scan_int8(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_min: float,
    dt_max: float,
    state: Tensor | None,
    x_scale: Tensor,
    B_scale: Tensor,
    C_scale: Tensor,
    state_scale: Tensor | None,
) -> Tensor:
    x = numerics.dequantize(x, x_scale)
    B, C = numerics.dequantize(B, B_scale[:, None]), numerics.dequantize(C, C_scale[:, None])
    if state_scale is None:
        return ssd_scan(x, dt, A, B, C, D, dt_bias, dt_min, dt_max, state)
    h = numerics.dequantize(state, state_scale[..., None])  # [B, S, P, N]
    y = ssd_scan(x, dt, A, B, C, D, dt_bias, dt_min, dt_max, h)
    state.copy_(numerics.quantize(h, state_scale[..., None]))
    return y


def gated_rms_norm(y: Tensor, z: Tensor, z_scale: Tensor | None, eps: float, groups: int) -> Tensor:
    """RMSNorm without weight of y * SiLU(z), over each of `groups` parts of the channels (Mamba2's gated norm)."""
    gated = y * F.silu(z if z_scale is None else numerics.dequantize(z, z_scale))  # [..., D]
    parts = gated.unflatten(-1, (groups, -1))  # [..., G, D / G]
    return (parts * torch.rsqrt(parts.square().mean(dim=-1, keepdim=True) + eps)).flatten(-2)


def gated_hadamard_quant(
    y: Tensor,
    z: Tensor,
    z_scale: Tensor | None,
    eps: float,
    groups: int,
    base: Tensor,
    scale: Tensor,
    multiplier: Tensor | None = None,
) -> Tensor:
    return hadamard_quant(gated_rms_norm(y, z, z_scale, eps, groups), base, scale, multiplier)
