"""What a method of the weight path makes of one weight: integers, their scales, and what the input is divided by.

Dims: I in features, O out features, G groups of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass
class RoundedWeight:
    """The integers of a weight, ready to be packed.

    integers int8 (symmetric) or uint8 [O, I]; scale float32 and zero float32 [O, G], G = 1 per channel; input_scales
    float32 [I] or None: the integers stand for W * input_scales, and inputs are divided by them.
    """

    integers: Tensor
    scale: Tensor
    zero: Tensor
    input_scales: Tensor | None = None

    def split(self, sizes: Sequence[int]) -> list["RoundedWeight"]:
        """Copies of so many rows each, one behind the other, all O of them; they share the input scales."""
        parts = (getattr(self, name).split(list(sizes)) for name in ("integers", "scale", "zero"))
        return [RoundedWeight(*(part.clone() for part in rows), self.input_scales) for rows in zip(*parts, strict=True)]
