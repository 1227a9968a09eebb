"""Hadamard rotation: equal to the dense matrix product, alone and quantized."""

import math

import pytest
import torch

from quamba import numerics, ops
from quamba.errors import QuambaError
from quamba.hadamard import base_on, hadamard_matrix
from quamba.ops import reference

from .conftest import assert_within_one_step

SIZES = [1, 2, 8, 16, 32, 512, 12, 24, 96, 192, 20, 160, 28, 224, 1536, 36, 72, 288, 44, 176, 52, 1664, 60, 120, 240]
SIZES += [3, 6, 34, 68, 66, 21 * 64, 63 * 16]  # over Hartley matrices


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rows", [(1,), (3, 5)])
def test_it_is_the_product_with_the_normalised_matrix(capability, n, rows):
    x = torch.randn(*rows, n)
    expected = x.double() @ hadamard_matrix(n).double() / math.sqrt(n)
    torch.testing.assert_close(ops.hadamard(x, base_on(n, x.device)).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", SIZES)
def test_quantized_it_is_the_rotation_then_quantize(capability, n):
    x, scale = torch.randn(7, n), torch.tensor(0.03)
    base = base_on(n, x.device)
    rotated = ops.hadamard(x, base)
    assert torch.equal(ops.hadamard_quant(x, base, scale), ops.quantize(rotated, scale))
    expected = numerics.quantize(x.double() @ hadamard_matrix(n).double() / math.sqrt(n), scale)
    assert_within_one_step(ops.hadamard_quant(x, base, scale), expected, differing=0.1)


@pytest.mark.parametrize("n", [1, 24, 512, 1536])
def test_a_multiplier_is_applied_behind_the_rotation(capability, n):
    x, multiplier, scale = torch.randn(7, n), torch.rand(n) + 0.5, torch.tensor(0.03)
    base = base_on(n, x.device)
    expected = ops.hadamard(x, base) * multiplier
    assert torch.equal(ops.hadamard(x, base, multiplier), expected)
    assert torch.equal(ops.hadamard_quant(x, base, scale, multiplier), ops.quantize(expected, scale))


def test_the_input_is_left_alone(capability):
    x = torch.randn(4, 32)
    before = x.clone()
    ops.hadamard(x, base_on(32, x.device))
    assert torch.equal(x, before)


def test_sizes_without_a_matrix_are_refused():
    with pytest.raises(QuambaError, match="size 130: kernels"):
        base_on(130, torch.device("cpu"))
    with pytest.raises(ValueError, match="no Hadamard matrix of size 36"):
        ops.hadamard(torch.randn(1, 36), torch.ones(12, 12))


@pytest.mark.parametrize("order", [2, 15, 17, 33, 48, 49, 63, 64])
@pytest.mark.parametrize("copies", [1, 2, 4, 16])
def test_the_base_may_be_any_matrix_up_to_64(capability, order, copies):
    x, base = torch.randn(3, order * copies), torch.randn(order, order)
    torch.testing.assert_close(ops.hadamard(x, base), reference.hadamard(x, base), rtol=1e-5, atol=1e-5)


def test_a_larger_base_is_refused():
    with pytest.raises(ValueError, match="no Hadamard matrix of size 65 over a base of 65"):
        ops.hadamard(torch.randn(1, 65), torch.ones(65, 65))


def test_a_base_that_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match="base"):
        ops.hadamard(torch.randn(1, 8), torch.ones(0, 0))
