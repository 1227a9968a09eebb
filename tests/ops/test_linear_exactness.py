"""Sums that float32 holds come out exact: no tolerance hides a weight in the wrong place or a sum that saturates."""

import pytest
import torch

from quamba import ops

from .conftest import random_int8
from .weights import Int8Weight, Uint4Weight, random_int8_weight, random_uint4_weight

# (rows, in, out, group size): rows either side of tiles of 4, 8, 16 and 32, inputs that fill no quad, eight, step or
# group, outputs that fill no tile or leave one without a partner or go past a panel of 512
CASES = [
    (1, 1, 1, 32),
    (1, 48, 16, 32),
    (1, 768, 80, 128),
    (3, 31, 5, 64),
    (4, 100, 33, 32),
    (8, 129, 16, 128),
    (15, 300, 80, 256),
    (16, 1, 5, 64),
    (16, 64, 16, 64),
    (17, 129, 33, 32),
    (33, 31, 1, 32),
    (33, 48, 80, 32),
    (33, 129, 80, 128),
    (17, 33, 600, 32),
    (64, 300, 33, 256),
    (64, 768, 16, 64),
    (151, 100, 5, 32),
    (151, 129, 80, 64),
]
by_case = pytest.mark.parametrize(("rows", "in_features", "out_features", "group_size"), CASES)
by_rows = pytest.mark.parametrize("rows", [1, 4, 8, 16, 35])
ONE = torch.ones(())


def powers_of_two(*shape: int) -> torch.Tensor:
    """Scales 1/4 to 2: sums of a few hundred products of integers are exact, whatever their order."""
    return 2.0 ** torch.randint(-2, 2, shape)


def int8_weight(out_features: int, in_features: int) -> Int8Weight:
    return Int8Weight(random_int8(out_features, in_features), powers_of_two(out_features))


def uint4_weight(out_features: int, in_features: int, group_size: int) -> Uint4Weight:
    weight = random_uint4_weight(out_features, in_features, group_size)
    return Uint4Weight(weight.rows, powers_of_two(*weight.scale.shape).half(), weight.zero, group_size)


def assert_exact(actual: torch.Tensor, x: torch.Tensor, weight: Int8Weight | Uint4Weight) -> None:
    """Every weight is a whole number of quarters."""
    quarters = x.long() @ (weight.dequantized() * 4).long().T
    assert torch.equal(actual.double() * 4, quarters.double())


@by_case
def test_sums_of_int8_weights_are_exact(capability, rows, in_features, out_features, group_size):
    x, weight = random_int8(rows, in_features), int8_weight(out_features, in_features)
    assert_exact(ops.linear_w8a8(x, *weight.args, ONE, None), x, weight)
    x = torch.randint(-8, 9, (rows, in_features))
    assert_exact(ops.linear_w8a16(x.float(), *weight.args, None), x, weight)


@by_case
def test_sums_of_uint4_weights_are_exact(capability, rows, in_features, out_features, group_size):
    x, weight = random_int8(rows, in_features), uint4_weight(out_features, in_features, group_size)
    assert_exact(ops.linear_w4a8(x, *weight.args, ONE, None, *weight.sizes()), x, weight)
    x = torch.randint(-8, 9, (rows, in_features))
    assert_exact(ops.linear_w4a16(x.float(), *weight.args, None, *weight.sizes()), x, weight)


@by_rows
@pytest.mark.parametrize("x", [-128, 127])
@pytest.mark.parametrize("weight", [-128, 127])
def test_the_extremes_of_int8_weights_do_not_saturate(capability, rows, x, weight):
    rows_of_weights = random_int8_weight(33, 1024).rows.fill_(weight)
    tiles = Int8Weight(rows_of_weights, torch.ones(33)).args
    actual = ops.linear_w8a8(torch.full((rows, 1024), x, dtype=torch.int8), *tiles, ONE, None)
    assert (actual == 1024 * x * weight).all()


@by_rows
@pytest.mark.parametrize("x", [-128, 127])
@pytest.mark.parametrize(("integer", "zero"), [(15, 0), (0, 15), (15, 15)])
@pytest.mark.parametrize("group_size", [32, 256])
def test_the_extremes_of_uint4_weights_do_not_saturate(capability, rows, x, integer, zero, group_size):
    drawn = random_uint4_weight(33, 512, group_size)
    scale = torch.ones_like(drawn.scale)
    weight = Uint4Weight(drawn.rows.fill_(integer), scale, drawn.zero.fill_(zero), group_size)
    activations = torch.full((rows, 512), x, dtype=torch.int8)
    actual = ops.linear_w4a8(activations, *weight.args, ONE, None, *weight.sizes())
    assert (actual == 512 * x * (integer - zero)).all()
