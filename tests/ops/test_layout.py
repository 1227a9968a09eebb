"""The layout in which kernels read weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quamba import numerics
from quamba.ops import layout

from .conftest import random_int8

SIZES = [(1, 1), (16, 8), (17, 9), (5, 31), (33, 130), (80, 100)]
OUTPUTS, INPUTS = st.integers(1, 50), st.integers(1, 70)


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


def nonzero(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """1..15, so that padding shows."""
    return torch.arange(rows * columns).reshape(rows, columns).remainder(15).add(1).to(dtype)


def places(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")


@given(OUTPUTS, INPUTS)
def test_every_int8_weight_has_its_place_and_all_else_is_zero(out_features, in_features):
    weight, (o, i) = nonzero(out_features, in_features, torch.int8), places(out_features, in_features)
    expected = torch.zeros(-(-out_features // 16), -(-in_features // 4), 16, 4, dtype=torch.int8)
    expected[o // 16, i // 4, o % 16, i % 4] = weight
    assert torch.equal(layout.tile_int8(weight), expected)
    assert torch.equal(layout.untile_int8(expected, out_features, in_features), weight)


@given(OUTPUTS, INPUTS)
def test_every_uint4_weight_has_its_half_of_a_byte_and_all_else_is_zero(out_features, in_features):
    weight, (o, i) = nonzero(out_features, in_features, torch.uint8), places(out_features, in_features)
    halves = torch.zeros(-(-out_features // 16), -(-in_features // 8), 16, 2, 4, dtype=torch.uint8)
    halves[o // 16, i // 8, o % 16, i % 8 // 4, i % 4] = weight
    expected, packed = halves[..., 0, :] | (halves[..., 1, :] << 4), numerics.pack_uint4(weight)
    assert torch.equal(layout.tile_uint4(packed), expected)
    assert torch.equal(layout.untile_uint4(expected, out_features, in_features), packed)


@given(OUTPUTS, st.integers(1, 9), st.sampled_from([torch.float16, torch.uint8]))
def test_every_groups_value_has_its_place_and_all_else_is_zero(out_features, groups, dtype):
    values, (o, g) = nonzero(out_features, groups, dtype), places(out_features, groups)
    expected = torch.zeros(-(-out_features // 16), groups, 16, dtype=dtype)
    expected[o // 16, g, o % 16] = values
    assert torch.equal(layout.tile_groups(values), expected)
    assert torch.equal(layout.untile_groups(expected, out_features), values)


def test_tiles_and_rows_are_contiguous():
    """Kernels read tiles, and files hold rows, as one run of memory."""
    weight = torch.ones(33, 50, dtype=torch.int8)
    tiles = [layout.tile_int8(weight), layout.tile_uint4(weight.byte()), layout.tile_groups(weight.half())]
    rows = [
        layout.untile_int8(tiles[0], 33, 50),
        layout.untile_uint4(tiles[1], 33, 99),
        layout.untile_groups(tiles[2], 33),
    ]
    assert all(tensor.is_contiguous() for tensor in tiles + rows)
