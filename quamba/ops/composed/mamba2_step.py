"""One token through every Mamba2 block.

Dims: as in reference/mamba2.py; H hidden, K conv width, X = D + 2 G N conv channels.
"""

from dataclasses import dataclass

from torch import Tensor

from ..schemas import MAMBA2_STEP_TENSORS
from .step import layer_tensors, linear, normalized, predict, rotated


@dataclass(frozen=True)
class Mamba2StepSizes:
    """Hold what a step's tensors do not say themselves: tiles are padded."""

    hidden: int
    groups: int
    eps: float
    dt_limits: tuple[float, float]
    dynamic: bool


def _step_layer(
    ops,
    hidden: Tensor,
    layer: dict,
    conv_state: Tensor,
    ssm_state: Tensor,
    base: Tensor,
    sizes: Mamba2StepSizes,
    group_size: int,
) -> Tensor:
    """Return what a block adds to hidden [B, H] for one token."""
    taps, G, (S, P, N) = layer["tap_scales"], sizes.groups, ssm_state.shape[1:]
    in_scale, z_scale, out_scale = (None,) * 3 if taps is None else taps[:3]
    parts = [S * P, G * N, G * N]  # x, B, C
    u, u_scale = normalized(ops, hidden, sizes.eps, layer["in_proj.multiplier"], in_scale, sizes.dynamic)  # [B, H]
    of_layer = (layer, "in_proj", u, u_scale, S * P + sum(parts), group_size, layer["in_proj_out_scale"])
    z, xBC = linear(ops, *of_layer)[:, None].split([S * P, sum(parts)], dim=-1)  # [B, 1, D], [B, 1, X]
    dt = linear(ops, layer, "dt_proj", u, u_scale, S, group_size)[:, None]  # [B, 1, S]
    conv = (xBC, layer["conv_weight"])
    if taps is None:
        xBC = ops.causal_conv1d(*conv, layer["conv_bias"], conv_state)
    else:
        conv_scales = (layer["conv_scale"], layer["conv_bias"], layer["conv_out_scale"])
        xBC = ops.causal_conv1d_int8(*conv, *conv_scales, conv_state)
    x, B, C = xBC.split(parts, dim=-1)
    B, C = (m.unflatten(-1, (G, N)) for m in (B, C))  # [B, 1, G, N]
    scan = (x, dt, layer["A"], B, C, layer["D"], layer["dt_bias"], *sizes.dt_limits, ssm_state)
    if taps is None:
        y = ops.ssd_scan(*scan)  # [B, 1, D]
    else:
        scales = (layer["conv_out_scale"][: S * P], *taps[3:].split(G))
        y = ops.ssd_scan_int8(*scan, *scales, layer["state_scale"])
    gated, multiplier = (y[:, 0], z[:, 0], z_scale, sizes.eps, G), layer["out_proj.multiplier"]
    if out_scale is None or sizes.dynamic:
        y, y_scale = rotated(ops, ops.gated_rms_norm(*gated), base, multiplier, out_scale, sizes.dynamic)  # [B, D]
    else:
        y, y_scale = ops.gated_hadamard_quant(*gated, base, out_scale, multiplier), out_scale  # [B, D]
    return linear(ops, layer, "out_proj", y, y_scale, sizes.hidden, group_size)  # [B, H]


def mamba2_step(
    ops,
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
    """See ops.schemas; `ops`: see this package."""
    sizes = Mamba2StepSizes(hidden.shape[1], groups, eps, (dt_min, dt_max), dynamic)
    views = layer_tensors(layers, MAMBA2_STEP_TENSORS, (conv_states, ssm_states), group_sizes, logits is not None)
    for layer, *states, group_size in zip(views, conv_states, ssm_states, group_sizes, strict=False):  # the head's last
        hidden += _step_layer(ops, hidden, layer, *states, base, sizes, group_size)
    if logits is not None:
        act = (views[0]["tap_scales"] is not None, dynamic)
        predict(ops, hidden, eps, norm_weight, head, act, group_sizes[-1], logits)
