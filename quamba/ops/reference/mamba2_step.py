"""One token through every Mamba2 block. Dims: as in mamba2.py, H hidden, K conv width, X = D + 2 G N conv channels."""

from dataclasses import dataclass

from torch import Tensor

from ..schemas import MAMBA2_STEP_SLOTS
from .mamba2 import gated_rms_norm, ssd_scan, ssd_scan_int8
from .shared import causal_conv1d, causal_conv1d_int8, hadamard, quantize, rms_norm
from .step import layer_slots, step_head, step_input, step_linear


@dataclass(frozen=True)
class Mamba2StepSizes:
    """What a step's tensors do not say themselves: tiles are padded."""

    hidden: int
    groups: int
    eps: float
    dt_limits: tuple[float, float]
    dynamic: bool


def _step_layer(
    hidden: Tensor,
    layer: dict,
    conv_state: Tensor,
    ssm_state: Tensor,
    base: Tensor,
    sizes: Mamba2StepSizes,
    group_size: int,
) -> Tensor:
    """What a block adds to hidden [B, H] for one token."""
    taps, G, (S, P, N) = layer["tap_scales"], sizes.groups, ssm_state.shape[1:]
    in_scale, z_scale, out_scale = (None,) * 3 if taps is None else taps[:3]
    parts = [S * P, G * N, G * N]  # x, B, C
    u = rms_norm(hidden, sizes.eps, layer["in_proj.multiplier"])
    u, u_scale = step_input(u, in_scale, taps, sizes.dynamic)  # [B, H]
    zxBC = step_linear(layer, "in_proj", u, u_scale, S * P + sum(parts), group_size)  # [B, D + X]
    dt = step_linear(layer, "dt_proj", u, u_scale, S, group_size)[:, None]  # [B, 1, S]
    conv_weight, conv_bias = layer["conv_weight"], layer["conv_bias"]
    if taps is None:
        z, xBC = zxBC[:, None].split([S * P, sum(parts)], dim=-1)  # [B, 1, D], [B, 1, X]
        xBC = causal_conv1d(xBC, conv_weight, conv_bias, conv_state)
    else:
        z, xBC = quantize(zxBC, layer["in_proj_out_scale"])[:, None].split([S * P, sum(parts)], dim=-1)
        conv_scales = (layer["conv_scale"], conv_bias, layer["conv_out_scale"])
        xBC = causal_conv1d_int8(xBC, conv_weight, *conv_scales, conv_state)
    x, B, C = xBC.split(parts, dim=-1)
    B, C = (m.unflatten(-1, (G, N)) for m in (B, C))  # [B, 1, G, N]
    scan = (x, dt, layer["A"], B, C, layer["D"], layer["dt_bias"], *sizes.dt_limits, ssm_state)
    if taps is None:
        y = ssd_scan(*scan)  # [B, 1, D]
    else:
        scales = (layer["conv_out_scale"][: S * P], *taps[3:].split(G))
        y = ssd_scan_int8(*scan, *scales, layer["state_scale"])
    y = gated_rms_norm(y, z, z_scale, sizes.eps, G)[:, 0]  # [B, D]
    y, y_scale = step_input(hadamard(y, base, layer["out_proj.multiplier"]), out_scale, taps, sizes.dynamic)
    return step_linear(layer, "out_proj", y, y_scale, sizes.hidden, group_size)  # [B, H]


def mamba2_step(
    hidden: Tensor,
    layers: list[Tensor | None],
    conv_states: list[Tensor],
    ssm_states: list[Tensor],
    base: Tensor,
    groups: int,
    eps: float,
    dt_min: float,
    dt_max: float,
    group_sizes: list[int],
    dynamic: bool,
    norm_weight: Tensor | None,
    head: list[Tensor | None],
    logits: Tensor | None,
) -> None:
    sizes = Mamba2StepSizes(hidden.shape[1], groups, eps, (dt_min, dt_max), dynamic)
    views = layer_slots(layers, MAMBA2_STEP_SLOTS)
    for layer, *states, group_size in zip(views, conv_states, ssm_states, group_sizes, strict=False):
        hidden += _step_layer(hidden, layer, *states, base, sizes, group_size)
    if logits is not None:
        x = rms_norm(hidden, eps) * norm_weight
        logits.copy_(step_head(x, head, views[0]["tap_scales"], dynamic, logits.shape[1], group_sizes[-1]))
