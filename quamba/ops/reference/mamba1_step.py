"""One token through every Mamba block. Dims: B batch, D channels, N d_state, R dt_rank, K conv width, H hidden."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..schemas import STEP_SLOTS
from .shared import (
    causal_conv1d,
    causal_conv1d_int8,
    hadamard,
    multiplied,
    quantize,
    rms_norm,
    selective_scan,
    selective_scan_int8,
)
from .step import layer_slots, step_head, step_input, step_linear


@dataclass(frozen=True)
class StepSizes:
    """What a step's tensors do not say themselves: tiles are padded."""

    hidden: int
    dt_rank: int
    eps: float
    ssm_norm_eps: float | None
    dynamic: bool


def _step_layer(
    hidden: Tensor,
    layer: dict,
    conv_state: Tensor,
    ssm_state: Tensor,
    base: Tensor,
    sizes: StepSizes,
    group_size: int,
) -> Tensor:
    """What a block adds to hidden [B, H] for one token."""
    taps, (D, N), R = layer["tap_scales"], layer["A"].shape, sizes.dt_rank
    scales = dict.fromkeys(range(8)) if taps is None else taps.unbind()

    def linear(name: str, x: Tensor, x_scale: Tensor | None, out_features: int) -> Tensor:
        return step_linear(layer, name, x, x_scale, out_features, group_size)

    u, u_scale = step_input(rms_norm(hidden, sizes.eps, layer["in_proj.multiplier"]), scales[0], taps, sizes.dynamic)
    xz = linear("in_proj", u, u_scale, 2 * D)  # [B, 2D]
    if taps is None:
        x, z = xz[:, None].chunk(2, dim=-1)  # [B, 1, D] each
        x = causal_conv1d(x, layer["conv_weight"], layer["conv_bias"], conv_state)
    else:
        x, z = quantize(xz, layer["in_proj_out_scale"])[:, None].chunk(2, dim=-1)
        conv_scale, conv_bias = layer["conv_scale"], layer["conv_bias"]
        x = causal_conv1d_int8(x, layer["conv_weight"], conv_scale, conv_bias, scales[3], conv_state)
    dt_B_C = linear("x_proj", multiplied(x[:, 0], layer["x_proj.multiplier"]), scales[3], R + 2 * N)  # [B, R + 2N]
    if sizes.ssm_norm_eps is not None:
        dt_B_C = torch.cat([rms_norm(part, sizes.ssm_norm_eps) for part in dt_B_C.split([R, N, N], dim=-1)], dim=-1)
    if taps is not None:
        dt_B_C = quantize(dt_B_C, layer["x_proj_out_scale"])
    dt, B, C = dt_B_C.split([R, N, N], dim=-1)
    dt = multiplied(dt, layer["dt_proj.multiplier"])
    dt, B, C = linear("dt_proj", dt, scales[4], D)[:, None], B[:, None], C[:, None]
    if taps is None:
        y = selective_scan(x, dt, layer["A"], B, C, layer["D"], z, None, ssm_state)
    else:
        of_scan = (scales[3], scales[5], scales[6], scales[2])  # x, B, C, z
        y = selective_scan_int8(x, dt, layer["A"], B, C, layer["D"], z, None, ssm_state, *of_scan)
    y = hadamard(y[:, 0], base, layer["out_proj.multiplier"])  # [B, D]
    y, y_scale = step_input(y, scales[7], taps, sizes.dynamic)
    return linear("out_proj", y, y_scale, sizes.hidden)  # [B, H]


def mamba1_step(
    hidden: Tensor,
    layers: list[Tensor | None],
    conv_states: list[Tensor],
    ssm_states: list[Tensor],
    base: Tensor,
    dt_rank: int,
    eps: float,
    ssm_norm_eps: float | None,
    group_sizes: list[int],
    dynamic: bool,
    norm_weight: Tensor | None,
    head: list[Tensor | None],
    logits: Tensor | None,
) -> None:
    sizes = StepSizes(hidden.shape[1], dt_rank, eps, ssm_norm_eps, dynamic)
    views = layer_slots(layers, STEP_SLOTS)
    for layer, *states, group_size in zip(views, conv_states, ssm_states, group_sizes, strict=False):
        hidden += _step_layer(hidden, layer, *states, base, sizes, group_size)
    if logits is not None:
        x = rms_norm(hidden, eps) * norm_weight
        logits.copy_(step_head(x, head, views[0]["tap_scales"], dynamic, logits.shape[1], group_sizes[-1]))
