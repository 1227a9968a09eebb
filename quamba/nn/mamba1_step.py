"""A single token through every quantized Mamba block as one op.

Dims: B batch, H hidden, D d_inner, N d_state, K conv width.
"""

import torch
from torch import Tensor

from .. import ops
from ..ops.schemas import MAMBA1_STEP_LINEARS
from .embedding import QuantHead
from .mamba1 import TAPS, QuantMamba1Mixer
from .norm import FinalNorm
from .step import Step, linear_tensors


def _layer_tensors(mixer: QuantMamba1Mixer) -> list[Tensor | None]:
    """Return what `mamba1_step` reads of a layer, in the order of ops.schemas.MAMBA1_STEP_TENSORS."""
    tensors = [tensor for name in MAMBA1_STEP_LINEARS for tensor in linear_tensors(getattr(mixer, name))]
    conv = mixer.conv1d
    if mixer.scheme.act.is_float:
        return [*tensors, conv.weight, None, conv.bias, mixer.A, mixer.D, None, None, None]
    # a tap whose scales are dynamic has none, and its place is not read
    scales = [getattr(mixer, f"{tap}_scale") for tap in TAPS]
    taps = torch.stack([torch.ones_like(mixer.x_scale) if scale is None else scale for scale in scales])  # [8]
    conv_scale = mixer.conv_in_scale * conv.weight_scale  # [D]
    return [*tensors, conv.weight, conv_scale, conv.bias, mixer.A, mixer.D, taps, *mixer.output_scales()]


class Mamba1Step(Step):
    """A quantized Mamba for one token at a time, on the recurrent states that a prefill left: its blocks, and with
    `norm` and `head` the final norm and the quantized head too."""

    def __init__(self, mixers: list[QuantMamba1Mixer], norm: FinalNorm | None = None, head: QuantHead | None = None):
        super().__init__(mixers, norm, head)
        first = mixers[0]
        self.tensors = [tensor for mixer in mixers for tensor in _layer_tensors(mixer)]
        self.sizes = (first.dt_rank, first.eps, first.ssm_norm_eps, self.group_sizes)

    def __call__(self, hidden: Tensor, conv_states: list[Tensor], ssm_states: list[Tensor]) -> Tensor | None:
        """hidden float32 [B, H], conv_states [B, D, K] and ssm_states [B, D, N] of every layer: updated in place.

        Returns float32 logits [B, V] where there is a head.
        """
        logits, states = self.new_logits(hidden), (hidden, self.tensors, conv_states, ssm_states)
        ops.mamba1_step(*states, self.base, *self.sizes, self.dynamic, self.norm_weight, self.head, logits)
        return logits
