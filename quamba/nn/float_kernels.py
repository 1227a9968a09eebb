"""The float convolution and scans of calibration: on a GPU those of causal-conv1d and mamba-ssm where they are
installed and take the case, and our own ops everywhere else.

Both compute the same from float32, up to the order of sums and, in mamba-ssm's Mamba2 scan, products of TF32 (10 bits).

Dims: B batch, L tokens, D channels, N d_state, K conv width; of Mamba2 S heads, P head_dim, G SSD groups.
"""

import importlib
import logging
from functools import cache

import torch
from torch import Tensor

from .. import ops

logger = logging.getLogger(__name__)

DEVICES = {"cuda"}  # on which the libraries' kernels run
CONV_WIDTHS = range(2, 5)  # that causal-conv1d has
CONV_MULTIPLE = 8  # of channels, where tokens are the outer dimension
CHUNK = 256  # tokens, of mamba-ssm's Mamba2 scan


@cache
def _function(module: str, name: str):
    """A library's function, None where the library is not installed or does not load."""
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        logger.info("%s.%s is not available (%s): our own float kernels run", module, name, error)
        return None
    logger.info("float %s runs %s.%s", name, module, name)
    return function


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, conv_state: Tensor | None) -> Tensor:
    """`ops.causal_conv1d`: float32 x [B, L, D], weight [D, K], conv_state [B, D, K], moved on in place -> [B, L, D]."""
    K, fits = weight.shape[1], weight.shape[1] in CONV_WIDTHS and x.shape[2] % CONV_MULTIPLE == 0
    convolve = _function("causal_conv1d", "causal_conv1d_fn") if fits and x.device.type in DEVICES else None
    if convolve is None:
        return ops.causal_conv1d(x, weight, bias, conv_state)
    columns = x.contiguous().transpose(1, 2)  # [B, L, D] -> [B, D, L], channels still innermost in memory
    context = None
    if conv_state is not None:  # channels innermost, as the library wants them beside such an x
        context = conv_state[:, :, 1:].transpose(1, 2).contiguous().transpose(1, 2)  # [B, D, K - 1]
        conv_state.copy_(torch.cat([conv_state, columns], dim=-1)[:, :, -K:])
    return convolve(columns, weight, bias, initial_states=context, activation="silu").transpose(1, 2).contiguous()


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
    """`ops.selective_scan`: float32 x, dt, z [B, L, D], A [D, N], B and C [B, L, N] -> [B, L, D].

    mamba-ssm's scan starts from zeros: with a `state` ours runs.
    """
    scan = None
    if state is None and x.device.type in DEVICES:
        scan = _function("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
    if scan is None:
        return ops.selective_scan(x, dt, A, B, C, D, z, dt_bias, state)
    u, delta, gate = (None if t is None else t.transpose(1, 2).contiguous() for t in (x, dt, z))  # [B, D, L]
    B, C = (t.transpose(1, 2).contiguous() for t in (B, C))  # [B, N, L]
    return scan(u, delta, A, B, C, D, gate, dt_bias, delta_softplus=True).transpose(1, 2).contiguous()


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
    """`ops.ssd_scan`: float32 x [B, L, D], dt [B, L, S], B and C [B, L, G, N], state [B, S, P, N], moved on in place ->
    [B, L, D]."""
    scan = None
    if x.device.type in DEVICES:
        scan = _function("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
    if scan is None:
        return ops.ssd_scan(x, dt, A, B, C, D, dt_bias, dt_min, dt_max, state)
    heads = x.unflatten(-1, (len(A), -1)).contiguous()  # [B, L, D] -> [B, L, S, P]
    options = {"dt_bias": dt_bias, "dt_softplus": True, "dt_limit": (dt_min, dt_max)}
    y, last = scan(
        heads,
        dt.contiguous(),
        A,
        B.contiguous(),
        C.contiguous(),
        CHUNK,
        D=D,
        initial_states=state,
        return_final_states=True,
        **options,
    )
    if state is not None:
        state.copy_(last)
    return y.flatten(-2)  # [B, L, S, P] -> [B, L, D]
