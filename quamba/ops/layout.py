"""The layout in which kernels read weights: tiles of 16 output features, so that a vector lane is an output.

A file holds a weight as rows [O, I]. Kernels want the next inputs of 16 outputs side by side: nothing is then summed
across lanes, a token streams through memory once from end to end, and a matrix unit's tile is a kilobyte in one piece.
The layout is made from the file's once, when a model is first used; it has the file's size, up to padding.

Dims: O outputs, I inputs, G groups of a row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

OUTPUTS = 16  # of a tile
INT8_INPUTS, UINT4_INPUTS = 4, 8  # that 4 bytes of an output hold


def _pad(x: Tensor, rows: int, columns: int) -> Tensor:
    return F.pad(x, (0, -x.shape[1] % columns, 0, -x.shape[0] % rows))


def tile_int8(weight: Tensor) -> Tensor:
    """int8 [O, I] -> int8 [ceil(O / 16), ceil(I / 4), 16, 4], zeros where there is no weight."""
    padded = _pad(weight, OUTPUTS, INT8_INPUTS)
    return padded.unflatten(1, (-1, INT8_INPUTS)).unflatten(0, (-1, OUTPUTS)).transpose(1, 2).contiguous()


def untile_int8(tiles: Tensor, out_features: int, in_features: int) -> Tensor:
    """The inverse of `tile_int8`: int8 [O, I]."""
    return tiles.transpose(1, 2).flatten(0, 1).flatten(1)[:out_features, :in_features].contiguous()


def tile_uint4(packed: Tensor) -> Tensor:
    """uint8 [O, ceil(I / 2)] as `numerics.pack_uint4` makes it -> uint8 [ceil(O / 16), ceil(I / 8), 16, 4].

    Byte j of an output's 4 holds input j of 8 in its low half and input 4 + j in its high half.
    """
    bytes_ = _pad(packed, OUTPUTS, UINT4_INPUTS // 2).unflatten(1, (-1, 2, 2))  # [O, I / 8, half, pair]
    low, high = bytes_ & 0xF, bytes_ >> 4  # inputs 0, 2 | 4, 6 and 1, 3 | 5, 7
    first, second = low[:, :, 0] | (low[:, :, 1] << 4), high[:, :, 0] | (high[:, :, 1] << 4)  # [O, I / 8, pair]
    tiles = _interleave(first, second)  # [O, I / 8, 4]
    return tiles.unflatten(0, (-1, OUTPUTS)).transpose(1, 2).contiguous()


def untile_uint4(tiles: Tensor, out_features: int, in_features: int) -> Tensor:
    """The inverse of `tile_uint4`: uint8 [O, ceil(I / 2)]."""
    rows = tiles.transpose(1, 2).flatten(0, 1)  # [O, I / 8, 4]
    low, high = rows & 0xF, rows >> 4  # inputs 0..3 and 4..7
    halves = [half[..., 0::2] | (half[..., 1::2] << 4) for half in (low, high)]  # [O, I / 8, 2] each
    return _concatenate(*halves)[:out_features, : -(-in_features // 2)].contiguous()


def _interleave(a: Tensor, b: Tensor) -> Tensor:
    """a0 b0 a1 b1 ... along the last dimension."""
    return torch.stack([a, b], dim=-1).flatten(-2)


def _concatenate(a: Tensor, b: Tensor) -> Tensor:
    """[O, E, 2] twice -> [O, 4 E]: of each E the two of a, then the two of b."""
    return torch.cat([a, b], dim=-1).flatten(1)


def tile_groups(values: Tensor) -> Tensor:
    """A value per group [O, G] -> [ceil(O / 16), G, 16]."""
    return _pad(values, OUTPUTS, 1).unflatten(0, (-1, OUTPUTS)).transpose(1, 2).contiguous()


def untile_groups(tiles: Tensor, out_features: int) -> Tensor:
    """The inverse of `tile_groups`: [O, G]."""
    return tiles.transpose(1, 2).flatten(0, 1)[:out_features].contiguous()
