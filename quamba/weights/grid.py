"""Which integers, scales and groups a weight is rounded to, and rounding to nearest on them.

Dims: O out features, I in features, G groups of a row (G = 1: the scale belongs to the whole row).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import numerics
from ..errors import QuambaError
from ..scheme.formats import TensorSpec
from .rounding_state import RoundingState


@dataclass(frozen=True)
class Grid:
    """Which integers and groups a weight is rounded to; made from a TensorSpec by `Grid.of(spec)`; plain data.

    Symmetric integers with a scale per row, or unsigned ones with a scale and a zero point per group of `group_size`
    columns (None: a whole row). Raises QuambaError for bits that do not fit a byte, and for other groups.
    """

    bits: int
    symmetric: bool
    group_size: int | None

    def __post_init__(self):
        if type(self.bits) is not int or not 2 <= self.bits <= numerics.MAX_BITS:
            raise QuambaError(f"a weight is rounded to 2 to {numerics.MAX_BITS} bits, not {self.bits!r}")
        if self.group_size is None:
            return
        if self.symmetric:
            raise QuambaError(f"symmetric weights have a scale per channel: drop the group size {self.group_size!r}")
        if type(self.group_size) is not int or self.group_size < 1:
            raise QuambaError(f"a group has at least one column, not {self.group_size!r}")

    @classmethod
    def of(cls, spec: TensorSpec) -> "Grid":
        """The grid of a weight's format. Raises QuambaError for a format whose scales are not per channel or group."""
        if spec.granularity != "per_channel" and not spec.is_grouped:
            raise QuambaError(f"a weight has a scale per channel or per group, which {spec.describe()!r} has not")
        return cls(spec.bits, spec.symmetric, spec.group_size if spec.is_grouped else None)

    def columns_per_group(self, columns: int) -> int:
        """Return how many neighbouring columns share a scale in a weight of that many."""
        return self.group_size or columns

    def parameters(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, zero) float32 [O, G] of the range of each group of `weight` [O, I], of any float dtype.

        The scales of groups are numbers that float16 holds; the zero of a symmetric grid is 0.
        """
        if self.symmetric:
            scale = numerics.per_channel_scale(weight, self.bits).unsqueeze(1)  # [O, 1]
            return scale, torch.zeros_like(scale)
        scale, zero = numerics.group_parameters(weight, self.columns_per_group(weight.shape[1]), self.bits)
        return scale.to(torch.float32), zero.to(torch.float32)

    def nearest(self, weight: Tensor, scale: Tensor | None = None, zero: Tensor | None = None) -> RoundingState:
        """`weight` [O, I] of any float dtype, rounded to nearest on the scale and zero [O, G] given, or on its own.

        A scale without a zero has zeros.
        """
        weight = weight.detach().to(torch.float32)
        if scale is None:
            scale, zero = self.parameters(weight)
        elif zero is None:
            zero = torch.zeros_like(scale)
        group_size = self.columns_per_group(weight.shape[1])
        if self.symmetric:
            integers = numerics.quantize(weight, scale, bits=self.bits)
        else:
            integers = numerics.quantize_groups(weight, scale, zero, group_size, self.bits)
        low, high = numerics.integer_range(self.bits, self.symmetric)
        return RoundingState(weight, integers.to(torch.float32), scale, zero, group_size, low, high)
