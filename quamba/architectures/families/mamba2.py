"""Mamba2 (arXiv 2405.21060): heads of channels that share a decay, B and C shared by SSD groups, a gated norm.

Dims: H hidden_size, D d_inner, S heads, X channels of the convolution.
"""

import torch
from torch import Tensor

from ...nn.mamba2 import SCAN_CHUNK, TAPS, Mamba2Mixer, Mamba2Sizes, QuantMamba2Mixer
from ...nn.mamba2_step import Mamba2Step
from ...transforms import fuse_gated_norm, fuse_norm
from ..base import Architecture
from ..plain import named, plain_conv1d, plain_linear, plain_out_proj


def plain_tensors(mixer: QuantMamba2Mixer) -> dict[str, Tensor]:
    """Return the tensors of transformers' Mamba2Mixer, as floats: dt_proj's rows are the last of its in_proj."""
    in_proj, dt_proj = plain_linear(mixer.in_proj), plain_linear(mixer.dt_proj)
    dt_proj["weight"] = mixer.in_proj.multiplied(dt_proj["weight"])  # [S, H]: it reads in_proj's input
    joined = {part: torch.cat([in_proj[part], dt_proj[part]]) for part in in_proj}  # [D + X + S, ...]
    return {
        "A_log": torch.log(-mixer.A),
        "D": mixer.D,
        "dt_bias": mixer.dt_bias,
        "norm.weight": torch.ones(mixer.d_inner),
        **named("in_proj", joined),
        **named("conv1d", plain_conv1d(mixer.conv1d)),
        **named("out_proj", plain_out_proj(mixer)),
    }


ARCHITECTURE = Architecture(
    model_types=("mamba2",),
    float_mixer=Mamba2Mixer,
    quant_mixer=QuantMamba2Mixer,
    taps=TAPS,
    inputs={"in_proj": "in", "out_proj": "out"},
    d_inner=lambda config: Mamba2Sizes.of(config).d_inner,
    fusions=(fuse_norm, fuse_gated_norm),
    step=Mamba2Step.create,
    plain_tensors=plain_tensors,
    integer_states=True,
    channel_groups=True,
    prefill_rows=512,  # a tenth faster than 256 at the shape of mamba2-130m
    scan_chunk=SCAN_CHUNK,
)
