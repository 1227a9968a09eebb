"""Linear layer with quantized weights. Dims: I in features, O out features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..scheme.formats import TensorSpec
from ..weights.rounded import RoundedWeight
from .gradients import without_gradient
from .weight import QuantWeight


class QuantLinear(QuantWeight):
    """A `QuantWeight` [O, I] and a bias float32 [O] or None; inputs come quantized, with a scale, or float.

    `input_multiplier` float32 [I] or None: the weight is that of inputs multiplied by it (AWQ, arXiv 2306.00978:
    W x = (W s)(x / s)). Whoever computes the input multiplies it, before it is quantized: see `multiplied`.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, spec: TensorSpec, multiplier: bool = False):
        super().__init__(out_features, in_features, spec)
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float32) if bias else None)
        self.register_buffer("input_multiplier", torch.ones(in_features, dtype=torch.float32) if multiplier else None)

    @classmethod
    def from_float(
        cls, linear: nn.Linear, spec: TensorSpec, rounded: RoundedWeight | None = None, multiplier: bool = False
    ) -> "QuantLinear":
        """The weights of `linear` rounded to nearest, or the integers that a method of the weight path chose for them.

        `multiplier`: keep multipliers of the input even where the integers are for the input itself (it is ones then).
        """
        quantized = cls(linear.in_features, linear.out_features, linear.bias is not None, spec, multiplier)
        if rounded is None:
            quantized.round_to_nearest(linear.weight)
        else:
            quantized.take(rounded)
        if multiplier and rounded is not None and rounded.input_scales is not None:
            quantized.input_multiplier = rounded.input_scales.float().reciprocal()
        if linear.bias is not None:
            quantized.bias = linear.bias.detach().to(torch.float32).clone()
        return quantized

    def multiplied(self, x: Tensor) -> Tensor:
        """float x [..., I] as the weights expect it."""
        return x if self.input_multiplier is None else x * self.input_multiplier

    def forward(self, x: Tensor, x_scale: Tensor | None = None, out_scale: Tensor | None = None) -> Tensor:
        """x int8 [..., I] with its scale, or float32 -> float32 [..., O], or int8 where `out_scale` [O] is given."""
        return without_gradient(self.product(x, x_scale, self.bias, out_scale), x)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"{self.in_features}, {self.out_features}, bias={bias}, weight={self.spec.describe()}"


class WeightOnlyLinear(QuantLinear):
    """A `QuantLinear` in the slot of any model's nn.Linear: float inputs and outputs, of whatever dtype comes in."""

    def forward(self, x: Tensor) -> Tensor:
        """float [..., I] -> [..., O] in the input's dtype; computed in float32."""
        return without_gradient(self.product(self.multiplied(x.float()), bias=self.bias).to(x.dtype), x)


def split_rows(linear: nn.Linear, sizes: Sequence[int]) -> list[nn.Linear]:
    """A linear layer as several that read the same input, of so many outputs each, in order; views, no copies."""
    weights = linear.weight.detach().split(list(sizes))  # [O, I] -> [size, I] each
    biases = [None] * len(weights) if linear.bias is None else linear.bias.detach().split(list(sizes))
    parts = []
    for weight, bias in zip(weights, biases, strict=True):
        part = nn.Linear(linear.in_features, len(weight), bias=bias is not None, device="meta")
        part.weight = nn.Parameter(weight, requires_grad=False)
        part.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        parts.append(part)
    return parts
