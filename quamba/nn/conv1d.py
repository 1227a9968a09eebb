"""Depthwise causal convolution + SiLU on int8. Dims: B batch, L tokens, D channels, K width."""

import torch
from torch import Tensor, nn

from .. import numerics, ops
from .module import QuantModule


class QuantConv1d(QuantModule):
    """weight int8 [D, K] with a scale per channel [D], bias float32 [D] or None."""

    def __init__(self, channels: int, width: int, bias: bool):
        super().__init__()
        self.register_buffer("weight", torch.zeros(channels, width, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(channels, dtype=torch.float32))
        self.register_buffer("bias", torch.zeros(channels, dtype=torch.float32) if bias else None)

    @classmethod
    def from_float(cls, conv: nn.Conv1d) -> "QuantConv1d":
        """Round-to-nearest weights of a depthwise `conv`, one scale per channel."""
        weight = conv.weight.detach().squeeze(1)  # [D, 1, K] -> [D, K]
        quantized = cls(*weight.shape, conv.bias is not None)
        quantized.weight_scale = numerics.per_channel_scale(weight)  # [D]
        quantized.weight = numerics.quantize(weight, quantized.weight_scale[:, None])
        if conv.bias is not None:
            quantized.bias = conv.bias.detach().to(torch.float32).clone()
        return quantized

    def forward(self, x: Tensor, x_scale: Tensor, out_scale: Tensor, conv_state: Tensor | None) -> Tensor:
        """x int8 [B, L, D] -> int8 [B, L, D]; conv_state int8 [B, D, K] is read as left context and moved on."""
        return ops.causal_conv1d_int8(x, self.weight, x_scale * self.weight_scale, self.bias, out_scale, conv_state)

    def extra_repr(self) -> str:
        channels, width = self.weight.shape
        return f"{channels}, width={width}, bias={self.bias is not None}, weight=int8 per channel"
