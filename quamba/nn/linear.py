"""Linear layer with int8 weights per output channel and int8 inputs. Dims: I in features, O out features."""

import torch
from torch import Tensor, nn

from .. import numerics, ops
from .module import QuantModule


class QuantLinear(QuantModule):
    """weight int8 [O, I], weight_scale float32 [O], bias float32 [O] or None; inputs come quantized, with a scale."""

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out_features, dtype=torch.float32))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float32) if bias else None)

    @classmethod
    def from_float(cls, linear: nn.Linear) -> "QuantLinear":
        """Round-to-nearest weights of `linear`, one scale per output channel."""
        quantized = cls(linear.in_features, linear.out_features, linear.bias is not None)
        quantized.weight_scale = numerics.per_channel_scale(linear.weight)  # [O]
        quantized.weight = numerics.quantize(linear.weight.detach(), quantized.weight_scale[:, None])  # [O, I]
        if linear.bias is not None:
            quantized.bias = linear.bias.detach().to(torch.float32).clone()
        return quantized

    def forward(self, x: Tensor, x_scale: Tensor, out_scale: Tensor | None = None) -> Tensor:
        """x int8 [..., I] with its scale -> float32 [..., O], or int8 where `out_scale` [O] is given."""
        scale = x_scale * self.weight_scale  # [O]
        if out_scale is None:
            return ops.linear_w8a8(x, self.weight, scale, self.bias)
        return ops.linear_w8a8_requant(x, self.weight, scale, self.bias, out_scale)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, bias={self.bias is not None}, weight=int8 per channel"
