"""A single token through every quantized Mamba2 block as one op.

Dims: B batch, H hidden, S heads, P head_dim, D = S * P, G SSD groups, N d_state, K conv width, X = D + 2 G N.
"""

import torch
from torch import Tensor

from .. import ops
from ..ops.schemas import MAMBA2_STEP_LINEARS
from .embedding import QuantHead
from .mamba2 import QuantMamba2Mixer
from .norm import FinalNorm
from .step import Step, linear_tensors


def _layer_tensors(mixer: QuantMamba2Mixer) -> list[Tensor | None]:
    """Return what `mamba2_step` reads of a layer, in the order of ops.schemas.MAMBA2_STEP_TENSORS."""
    tensors = [tensor for name in MAMBA2_STEP_LINEARS for tensor in linear_tensors(getattr(mixer, name))]
    conv, recurrence = mixer.conv1d, (mixer.A, mixer.D, mixer.dt_bias)
    if mixer.scheme.act.is_float:
        return [*tensors, conv.weight, None, conv.bias, *recurrence, None, None, None, None]
    in_proj_out, conv_in, conv_out = mixer.output_scales()
    # a tap whose scales are dynamic has none, and its place is not read
    ones = torch.ones_like(mixer.z_scale)
    single = [ones if scale is None else scale for scale in (mixer.in_scale, mixer.z_scale, mixer.out_scale)]
    taps = torch.cat([torch.stack(single), mixer.B_scale, mixer.C_scale])  # [3 + 2G]
    conv_scale = conv_in * conv.weight_scale  # [X]
    scales = (taps, in_proj_out, conv_out, mixer.state_scale)
    return [*tensors, conv.weight, conv_scale, conv.bias, *recurrence, *scales]


class Mamba2Step(Step):
    """A quantized Mamba2 for one token at a time, on the recurrent states that a prefill left: its blocks, and with
    `norm` and `head` the final norm and the quantized head too."""

    def __init__(self, mixers: list[QuantMamba2Mixer], norm: FinalNorm | None = None, head: QuantHead | None = None):
        super().__init__(mixers, norm, head)
        first = mixers[0]
        self.tensors = [tensor for mixer in mixers for tensor in _layer_tensors(mixer)]
        self.sizes = (first.sizes.groups, first.eps, first.dt_min, first.dt_max, self.group_sizes)

    def __call__(self, hidden: Tensor, conv_states: list[Tensor], ssm_states: list[Tensor]) -> Tensor | None:
        """hidden float32 [B, H], conv_states [B, X, K] and ssm_states [B, S, P, N] of every layer: updated in place.

        Returns float32 logits [B, V] where there is a head.
        """
        logits, states = self.new_logits(hidden), (hidden, self.tensors, conv_states, ssm_states)
        ops.mamba2_step(*states, self.base, *self.sizes, self.dynamic, self.norm_weight, self.head, logits)
        return logits
