"""One token through every Mamba block. Dims: B batch, D channels, N d_state, R dt_rank, K conv width, H hidden."""

from dataclasses import dataclass

from torch import Tensor

from ..schemas import MAMBA1_STEP_TENSORS
from .step import layer_tensors, linear, multiplied, normalized, predict, rotated


@dataclass(frozen=True)
class StepSizes:
    """Hold what a step's tensors do not say themselves: tiles are padded."""

    hidden: int
    dt_rank: int
    eps: float
    ssm_norm_eps: float | None
    dynamic: bool


def _step_layer(
    ops,
    hidden: Tensor,
    layer: dict,
    conv_state: Tensor,
    ssm_state: Tensor,
    base: Tensor,
    sizes: StepSizes,
    group_size: int,
) -> Tensor:
    """Return what a block adds to hidden [B, H] for one token."""
    taps, (D, N), R = layer["tap_scales"], layer["A"].shape, sizes.dt_rank
    scales = dict.fromkeys(range(8)) if taps is None else taps.unbind()

    def project(name: str, x: Tensor, x_scale: Tensor | None, out_features: int, out_scale=None) -> Tensor:
        return linear(ops, layer, name, x, x_scale, out_features, group_size, out_scale)

    u, u_scale = normalized(ops, hidden, sizes.eps, layer["in_proj.multiplier"], scales[0], sizes.dynamic)
    x, z = project("in_proj", u, u_scale, 2 * D, layer["in_proj_out_scale"])[:, None].chunk(2, dim=-1)  # [B, 1, D] each
    conv = (x, layer["conv_weight"])
    if taps is None:
        x = ops.causal_conv1d(*conv, layer["conv_bias"], conv_state)
    else:
        x = ops.causal_conv1d_int8(*conv, layer["conv_scale"], layer["conv_bias"], scales[3], conv_state)
    dt, B, C = _mix(ops, project, layer, x[:, 0], scales, sizes, [R, N, N])  # [B, R | N | N]
    dt = project("dt_proj", multiplied(dt, layer["dt_proj.multiplier"]), scales[4], D)
    scan = (x, dt[:, None], layer["A"], B[:, None], C[:, None], layer["D"], z, None, ssm_state)
    if taps is None:
        y = ops.selective_scan(*scan)
    else:
        y = ops.selective_scan_int8(*scan, scales[3], scales[5], scales[6], scales[2])  # of x, B, C, z
    multiplier = layer["out_proj.multiplier"]
    y, y_scale = rotated(ops, y[:, 0], base, multiplier, scales[7], sizes.dynamic)  # [B, D]
    return project("out_proj", y, y_scale, sizes.hidden)  # [B, H]


def _mix(ops, project, layer: dict, x: Tensor, scales, sizes: StepSizes, parts: list[int]) -> list[Tensor]:
    """x_proj of x [B, D], with the norms that Falcon-Mamba has: dt, B and C as the scan and dt_proj read them."""
    x, int8 = multiplied(x, layer["x_proj.multiplier"]), scales[3] is not None
    if sizes.ssm_norm_eps is None:
        return list(project("x_proj", x, scales[3], sum(parts), layer["x_proj_out_scale"]).split(parts, dim=-1))
    mixed = [part.contiguous() for part in project("x_proj", x, scales[3], sum(parts)).split(parts, dim=-1)]
    if not int8:
        return [ops.rms_norm(part, sizes.ssm_norm_eps) for part in mixed]
    of_parts = (scales[4], scales[5], scales[6])
    return [ops.rms_norm_quant(part, sizes.ssm_norm_eps, scale) for part, scale in zip(mixed, of_parts, strict=True)]


def mamba1_step(
    ops,
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
    """See ops.schemas; `ops`: see this package."""
    sizes = StepSizes(hidden.shape[1], dt_rank, eps, ssm_norm_eps, dynamic)
    views = layer_tensors(layers, MAMBA1_STEP_TENSORS, (conv_states, ssm_states), group_sizes, logits is not None)
    for layer, *states, group_size in zip(views, conv_states, ssm_states, group_sizes, strict=False):  # the head's last
        hidden += _step_layer(ops, hidden, layer, *states, base, sizes, group_size)
    if logits is not None:
        act = (views[0]["tap_scales"] is not None, dynamic)
        predict(ops, hidden, eps, norm_weight, head, act, group_sizes[-1], logits)
