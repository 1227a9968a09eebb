"""The layout in which kernels read weights."""

import pytest
import torch

from quamba import numerics
from quamba.ops import layout

from .conftest import random_int8

SIZES = [(1, 1), (16, 8), (17, 9), (5, 31), (33, 130), (80, 100)]


@pytest.mark.parametrize(("out_features", "in_features"), SIZES)
def test_int8_tiles_hold_every_weight(out_features, in_features):
    weight = random_int8(out_features, in_features)
    assert torch.equal(layout.untile_int8(layout.tile_int8(weight), out_features, in_features), weight)


@pytest.mark.parametrize(("out_features", "in_features"), SIZES)
def test_uint4_tiles_hold_every_weight(out_features, in_features):
    packed = numerics.pack_uint4(torch.randint(0, 16, (out_features, in_features), dtype=torch.uint8))
    assert torch.equal(layout.untile_uint4(layout.tile_uint4(packed), out_features, in_features), packed)


@pytest.mark.parametrize("out_features", [1, 16, 17])
def test_group_tiles_hold_every_value(out_features):
    values = torch.rand(out_features, 3)
    tiles = layout.tile_groups(values)
    assert tiles.shape == (-(-out_features // 16), 3, 16)
    assert torch.equal(layout.untile_groups(tiles, out_features), values)


def test_an_int8_tile_has_four_inputs_of_each_of_sixteen_outputs():
    tiles = layout.tile_int8(torch.arange(20 * 6).reshape(20, 6).to(torch.int8))
    assert tiles.shape == (2, 2, 16, 4)
    assert tiles[0, 0, 3].tolist() == [18, 19, 20, 21]
    assert tiles[1, 1, 2].tolist() == [18 * 6 + 4, 18 * 6 + 5, 0, 0]


def test_a_uint4_tile_has_eight_inputs_of_each_of_sixteen_outputs():
    rows = torch.arange(17 * 9).reshape(17, 9).remainder(16).to(torch.uint8)
    tiles = layout.tile_uint4(numerics.pack_uint4(rows))
    assert tiles.shape == (2, 2, 16, 4)
    assert (tiles[0, 0, 1] & 0xF).tolist() == rows[1, :4].tolist()
    assert (tiles[0, 0, 1] >> 4).tolist() == rows[1, 4:8].tolist()
    assert tiles[1, 1, 0].tolist() == [rows[16, 8], 0, 0, 0]
