"""A weight together with the integers that stand for it: what every rounding rule reads and changes.

Dims: O out features, I in features, G groups of a row (G = 1: the scale belongs to the whole row).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class RoundingState:
    """A weight and the integers that stand for it, whatever rule chose them.

    weight float32 [O, I]: the real values; integers float32 [O, I]: whole numbers in [low, high], the range of the
    format; scale float32 and zero float32 [O, G], one per group of `group_size` neighbouring columns (per channel:
    G = 1, group_size = I; symmetric: zero 0). weight ~ (integers - zero) * scale.
    """

    weight: Tensor
    integers: Tensor
    scale: Tensor
    zero: Tensor
    group_size: int
    low: int
    high: int

    def per_column(self, values: Tensor) -> Tensor:
        """A value per group [O, G] -> one per column [O, I]; the last group may be short."""
        columns = self.weight.shape[1]
        if values.shape[1] == 1:
            return values.expand(-1, columns)
        return values.repeat_interleave(self.group_size, dim=1)[:, :columns]

    def positions(self) -> Tensor:
        """Return where each weight lies on the grid of the integers, as a real number: weight / scale + zero, [O,
        I]."""
        return self.weight / self.per_column(self.scale) + self.per_column(self.zero)

    def dequantized(self) -> Tensor:
        """The values that the integers stand for, [O, I]."""
        return (self.integers - self.per_column(self.zero)) * self.per_column(self.scale)

    def error(self) -> Tensor:
        """weight - dequantized, [O, I]."""
        return self.weight - self.dequantized()

    def with_integers(self, integers: Tensor) -> "RoundingState":
        """Return the same weight and grid with other integers [O, I]; this state is left as it is."""
        return replace(self, integers=integers)

    def rows(self, start: int, stop: int) -> "RoundingState":
        """The state of the output rows from `start` to before `stop`, as views."""
        parts = {name: getattr(self, name)[start:stop] for name in ("weight", "integers", "scale", "zero")}
        return replace(self, **parts)

    def double(self) -> "RoundingState":
        """Return the same values in float64, for sums that must not depend on the order of their terms."""
        parts = {name: getattr(self, name).to(torch.float64) for name in ("weight", "integers", "scale", "zero")}
        return replace(self, **parts)
