"""Mamba (arXiv 2312.00752): one recurrence per channel, dt, B and C from the convolved x."""

import torch
from torch import Tensor

from ...nn.mamba1 import TAPS, Mamba1Mixer, QuantMamba1Mixer
from ...nn.mamba1_step import Mamba1Step
from ...transforms import fuse_norm
from ..base import Architecture
from ..plain import named, plain_conv1d, plain_linear, plain_out_proj


def plain_tensors(mixer: QuantMamba1Mixer) -> dict[str, Tensor]:
    """Return the tensors of transformers' MambaMixer, as floats."""
    tensors = {"A_log": torch.log(-mixer.A), "D": mixer.D, **named("conv1d", plain_conv1d(mixer.conv1d))}
    for name in ("in_proj", "x_proj", "dt_proj"):
        tensors |= named(name, plain_linear(getattr(mixer, name)))
    return tensors | named("out_proj", plain_out_proj(mixer))


ARCHITECTURE = Architecture(
    model_types=("mamba",),
    float_mixer=Mamba1Mixer,
    quant_mixer=QuantMamba1Mixer,
    taps=TAPS,
    inputs={"in_proj": "in", "x_proj": "x", "dt_proj": "dt_rank", "out_proj": "out"},
    d_inner=lambda config: config.intermediate_size,
    fusions=(fuse_norm,),
    step=Mamba1Step.create,
    plain_tensors=plain_tensors,
)
