"""Depthwise causal convolution + SiLU, on int8 or on float. Dims: B batch, L tokens, D channels, K width."""

import torch
from torch import Tensor, nn

from .. import numerics, ops
from ..scheme.formats import TensorSpec
from .module import QuantModule


class QuantConv1d(QuantModule):
    """weight int8 [D, K] with a scale per channel [D], or float32 without, as `spec` says; bias float32 [D] or None."""

    def __init__(self, channels: int, width: int, bias: bool, spec: TensorSpec):
        super().__init__()
        self.spec = spec
        quantized = not spec.is_float
        self.register_buffer("weight", torch.zeros(channels, width, dtype=torch.int8 if quantized else torch.float32))
        self.register_buffer("weight_scale", torch.ones(channels, dtype=torch.float32) if quantized else None)
        self.register_buffer("bias", torch.zeros(channels, dtype=torch.float32) if bias else None)

    @classmethod
    def from_float(cls, conv: nn.Conv1d, spec: TensorSpec) -> "QuantConv1d":
        """The weights of a depthwise `conv`, rounded to nearest with one scale per channel where `spec` is int8."""
        weight = conv.weight.detach().squeeze(1)  # [D, 1, K] -> [D, K]
        converted = cls(*weight.shape, conv.bias is not None, spec)
        if spec.is_float:
            converted.weight = weight.to(torch.float32).clone()
        else:
            converted.weight_scale = numerics.per_channel_scale(weight, spec.bits)  # [D]
            converted.weight = numerics.quantize(weight, converted.weight_scale[:, None], bits=spec.bits)
        if conv.bias is not None:
            converted.bias = conv.bias.detach().to(torch.float32).clone()
        return converted

    def dequantized(self) -> Tensor:
        """The values of the weights, float32 [D, K]."""
        return (
            self.weight if self.weight_scale is None else numerics.dequantize(self.weight, self.weight_scale[:, None])
        )

    def forward(self, x: Tensor, x_scale: Tensor | None, out_scale: Tensor | None, conv_state: Tensor | None) -> Tensor:
        """x [B, L, D] -> [B, L, D], int8 with both scales or float32 without any, as the weight is.

        conv_state [B, D, K], of the weight's dtype, is read as left context and moved on.
        """
        if self.weight_scale is None:
            return ops.causal_conv1d(x, self.weight, self.bias, conv_state)
        return ops.causal_conv1d_int8(x, self.weight, x_scale * self.weight_scale, self.bias, out_scale, conv_state)

    def extra_repr(self) -> str:
        channels, width = self.weight.shape
        return f"{channels}, width={width}, bias={self.bias is not None}, weight={self.spec.describe()}"
