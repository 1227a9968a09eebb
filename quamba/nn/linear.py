"""Linear layer with quantized weights. Dims: I in features, O out features."""

import torch
from torch import Tensor, nn

from ..scheme import TensorSpec
from .weight import QuantWeight


class QuantLinear(QuantWeight):
    """A `QuantWeight` [O, I] and a bias float32 [O] or None; inputs come quantized, with a scale, or float."""

    def __init__(self, in_features: int, out_features: int, bias: bool, spec: TensorSpec):
        super().__init__(out_features, in_features, spec)
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float32) if bias else None)

    @classmethod
    def from_float(cls, linear: nn.Linear, spec: TensorSpec) -> "QuantLinear":
        """Round-to-nearest weights of `linear`."""
        quantized = cls(linear.in_features, linear.out_features, linear.bias is not None, spec)
        quantized.round_to_nearest(linear.weight)
        if linear.bias is not None:
            quantized.bias = linear.bias.detach().to(torch.float32).clone()
        return quantized

    def forward(self, x: Tensor, x_scale: Tensor | None = None, out_scale: Tensor | None = None) -> Tensor:
        """x int8 [..., I] with its scale, or float32 -> float32 [..., O], or int8 where `out_scale` [O] is given."""
        return self.product(x, x_scale, self.bias, out_scale)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"{self.in_features}, {self.out_features}, bias={bias}, weight={self.spec.describe()}"
