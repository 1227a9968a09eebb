"""What stands in the norm slots of a quantized model. Dims: H hidden."""

import torch
from torch import Tensor, nn

from .. import ops
from .gradients import without_gradient
from .module import QuantModule


class PassThroughNorm(QuantModule):
    """Returns its input: the block still casts to `weight.dtype`, which is float32 and stays so."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.ones(0, dtype=torch.float32), persistent=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


class FinalNorm(nn.Module):
    """The norm before the head, on the op that a decoding step computes it with: the same bits either way."""

    def __init__(self, weight: nn.Parameter, eps: float):
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float [..., H] -> float32 [..., H]."""
        y = ops.rms_norm(hidden_states, self.eps) * self.weight.float()
        return without_gradient(y, hidden_states, self.weight)
