"""Random quantized weights for tests of linear ops and embeddings, as a file holds them and as kernels read them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quamba import numerics
from quamba.ops import layout

from .conftest import random_int8


@dataclass(frozen=True)
class Int8Weight:
    rows: Tensor  # int8 [O, I]
    scale: Tensor  # [O]

    @property
    def args(self) -> tuple[Tensor, Tensor]:
        """What ops take: tiles, scale."""
        return layout.tile_int8(self.rows), self.scale

    def dequantized(self) -> Tensor:
        """float32 [O, I]."""
        return numerics.dequantize(self.rows, self.scale[:, None])


@dataclass(frozen=True)
class Uint4Weight:
    rows: Tensor  # 0..15 uint8 [O, I]
    scale: Tensor  # float16 [O, G]
    zero: Tensor  # uint8 [O, G]
    group_size: int

    @property
    def args(self) -> tuple[Tensor, Tensor, Tensor]:
        """What ops take: tiles, scale tiles, zero tiles."""
        tiles = layout.tile_uint4(numerics.pack_uint4(self.rows))
        return tiles, layout.tile_groups(self.scale), layout.tile_groups(self.zero)

    def sizes(self) -> tuple[int, int]:
        """out_features, group_size: what linear ops take last."""
        return self.rows.shape[0], self.group_size

    def dequantized(self) -> Tensor:
        """float32 [O, I]."""
        return numerics.dequantize_groups(self.rows, self.scale, self.zero, self.group_size)

    def largest(self) -> Tensor:
        """float64 [O, I]: what a weight weighs in a kernel's sums, the integer and its zero point apart."""
        scale, zero = (v.double().repeat_interleave(self.group_size, -1) for v in (self.scale, self.zero))
        columns = self.rows.shape[1]
        return (self.rows.double() + zero[:, :columns]) * scale[:, :columns]


def random_int8_weight(out_features: int, in_features: int) -> Int8Weight:
    return Int8Weight(random_int8(out_features, in_features), torch.rand(out_features) * 1e-2 + 1e-4)


def random_uint4_weight(out_features: int, in_features: int, group_size: int) -> Uint4Weight:
    groups = -(-in_features // group_size)
    return Uint4Weight(
        rows=torch.randint(0, 16, (out_features, in_features), dtype=torch.uint8),
        scale=(torch.rand(out_features, groups) * 1e-2 + 1e-4).half(),
        zero=torch.randint(0, 16, (out_features, groups), dtype=torch.uint8),
        group_size=group_size,
    )
