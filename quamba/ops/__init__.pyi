"""Written by tools/op_stubs.py from schemas.py, which says what the ops compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

KERNELS: str | None
REFERENCE_ONLY: bool
CUDA_BUILT: bool
INT8_PRODUCTS: tuple[str, ...]
BUILD_CUDA: str

def has_kernel(name: str, device_type: str) -> bool: ...
def check_device(device: str | torch.device) -> torch.device: ...
def cpu_capability() -> str: ...
def cuda_int8_product() -> str: ...
@contextmanager
def force_cuda_int8_product(name: str) -> Iterator[None]: ...
@contextmanager
def force_cpu_capability(name: str) -> Iterator[None]: ...
def backends(device_type: str) -> dict[str, str]: ...

# x [...] -> int8 [...]
def quantize(x: Tensor, scale: Tensor) -> Tensor: ...

# x [..., H] -> int8 [..., H]: RMSNorm without weight, times a multiplier [H], then quantize
def rms_norm_quant(x: Tensor, eps: float, scale: Tensor, multiplier: Tensor | None = None) -> Tensor: ...

# x [..., H] -> float32 [..., H]: RMSNorm without weight, times a multiplier [H]
def rms_norm(x: Tensor, eps: float, multiplier: Tensor | None = None) -> Tensor: ...

# x [..., n] -> int8 [..., n], float32 [...]: every row with a scale of its own, its largest magnitude / qmax
def quantize_per_token(x: Tensor) -> tuple[Tensor, Tensor]: ...

# x int8 [..., I], weight int8 tiles, weight_scale [O], x_scale one value or [...], bias [O] -> float32 [..., O]
def linear_w8a8(x: Tensor, weight: Tensor, weight_scale: Tensor, x_scale: Tensor, bias: Tensor | None) -> Tensor: ...

# the same, quantized with out_scale [O] -> int8 [..., O]
def linear_w8a8_requant(
    x: Tensor, weight: Tensor, weight_scale: Tensor, x_scale: Tensor, bias: Tensor | None, out_scale: Tensor
) -> Tensor: ...

# x float32 [..., I], weight int8 tiles, weight_scale [O], bias [O] -> float32 [..., O]
def linear_w8a16(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor: ...

# x int8 [..., I], weight uint4 tiles, scale float16 and zero uint8 group tiles, x_scale one value or [...],
# bias [O] -> float32 [..., O]
def linear_w4a8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor,
    x_scale: Tensor,
    bias: Tensor | None,
    out_features: int,
    group_size: int,
) -> Tensor: ...

# the same, quantized with out_scale [O] -> int8 [..., O]
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
) -> Tensor: ...

# the same weights on x float32 [..., I] -> float32 [..., O]
def linear_w4a16(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None, out_features: int, group_size: int
) -> Tensor: ...

# x float32 [B, L, D], weight [D, K], conv_state [B, D, K] newest last -> float32 [B, L, D]: convolution + SiLU
def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, conv_state: Tensor | None) -> Tensor: ...

# the same on int8 x, weight and conv_state; scale [D] = input scale * weight scale, out_scale one value or [D]
# -> int8 [B, L, D]
def causal_conv1d_int8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_scale: Tensor, conv_state: Tensor | None
) -> Tensor: ...

# x, dt, z [B, L, D], A [D, N], B, C [B, L, N], D, dt_bias [D], state [B, D, N] -> float32 [B, L, D]
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
) -> Tensor: ...

# the same with int8 x, B, C, z; dt, A, D, dt_bias, state float32
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
) -> Tensor: ...

# Mamba2's recurrence: x [B, L, D], dt [B, L, S], A, D, dt_bias [S], B, C [B, L, G, N], state [B, S, P, N]
# -> float32 [B, L, D]; dt is softplus(dt + dt_bias), kept within dt_min and dt_max
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
) -> Tensor: ...

# the same with int8 x (x_scale [D]), B and C (scales [G]); state float32, or int8 with state_scale [S, P]
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
) -> Tensor: ...

# y float32 [..., D], z float32 or, with z_scale, int8 [..., D] -> float32 [..., D]: RMSNorm without weight of
# y * SiLU(z), over each of `groups` parts
def gated_rms_norm(y: Tensor, z: Tensor, z_scale: Tensor | None, eps: float, groups: int) -> Tensor: ...

# x [..., n], base [p, p] of +-1 -> float32 [..., n]: x @ kron(Sylvester(n / p), base) / sqrt(n), times a
# multiplier [n]
def hadamard(x: Tensor, base: Tensor, multiplier: Tensor | None = None) -> Tensor: ...

# the same, quantized -> int8 [..., n]
def hadamard_quant(x: Tensor, base: Tensor, scale: Tensor, multiplier: Tensor | None = None) -> Tensor: ...

# gated_rms_norm of y and z, then hadamard_quant -> int8 [..., D]
def gated_hadamard_quant(
    y: Tensor,
    z: Tensor,
    z_scale: Tensor | None,
    eps: float,
    groups: int,
    base: Tensor,
    scale: Tensor,
    multiplier: Tensor | None = None,
) -> Tensor: ...

# ids int64 [...], weight int8 tiles of [V, H], scale [V] -> float32 [..., H]
def embedding_int8(ids: Tensor, weight: Tensor, scale: Tensor, hidden: int) -> Tensor: ...

# ids int64 [...], weight uint4 tiles of [V, H], scale float16 and zero uint8 group tiles -> float32 [..., H]
def embedding_int4(
    ids: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, hidden: int, vocab: int, group_size: int
) -> Tensor: ...

# one token through every block: hidden float32 [B, H], conv_states [B, D, K] and ssm_states [B, D, N] of each layer
# move on in place; `layers`: MAMBA1_STEP_TENSORS of each layer in turn; base as in `hadamard`; dynamic: scales per
# token. With ssm_norm_eps x_proj's outputs stay float32, and dt, B and C are quantized behind an RMSNorm of each.
# With logits float32 [B, V] also the final norm, of weight [H], and the head: weight, scale, zero, head_in's scale.
# group_sizes: of the uint4 weights of each layer, then of the head where there are logits; of int8 ones not read
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
) -> None: ...

# the same of Mamba2's blocks: MAMBA2_STEP_TENSORS of each layer, conv_states [B, D + 2 G N, K] and ssm_states
# [B, S, P, N], float32 or int8; groups: G; dt_min and dt_max as in `ssd_scan`
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
) -> None: ...

# counts int64 [n], sums float64 [n] of |x| by bin (float32 bits of |x| >> (23 - mantissa_bits)) - first_bin
def magnitude_histogram(x: Tensor, counts: Tensor, sums: Tensor, first_bin: int, mantissa_bits: int) -> None: ...
