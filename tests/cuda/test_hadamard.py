"""Hadamard rotation: the CUDA kernel against the dense matrix product, alone and quantized."""

import math

import pytest
import torch

from quamba import numerics
from quamba.hadamard import base_on, hadamard_matrix
from quamba.ops import reference

from ..ops.conftest import assert_within_one_step

# every number of levels in the first pass with and without further ones of 8 and of 16, for each base
SIZES = [
    1,
    2,
    4,
    8,
    16,
    32,
    64,
    128,
    256,
    512,
    2048,
    12,
    24,
    96,
    192,
    1536,
    20,
    40,
    160,
    640,
    28,
    224,
    896,
    36,
    576,
    44,
    88,
    52,
    60,
    240,
]
LARGE = [4096, 5120, 3584, 10240, 16384]


def base_of(n: int) -> torch.Tensor:
    return base_on(n, torch.device("cpu"))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rows", [(1,), (3, 2)])
def test_it_is_the_product_with_the_normalised_matrix(kernels, n, rows):
    x = torch.randn(*rows, n)
    expected = x.double() @ hadamard_matrix(n).double() / math.sqrt(n)
    torch.testing.assert_close(kernels.hadamard(x, base_of(n)).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", LARGE)
def test_rows_of_whole_models_match_the_reference(kernels, n):
    x = torch.randn(1, n)
    torch.testing.assert_close(kernels.hadamard(x, base_of(n)), reference.hadamard(x, base_of(n)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [2, 3, 5, 7, 31, 32, 33, 63, 64])
@pytest.mark.parametrize("copies", [1, 2, 16, 64])
def test_the_base_may_be_any_matrix_up_to_64(kernels, order, copies):
    x, base = torch.randn(2, order * copies), torch.randn(order, order)
    torch.testing.assert_close(kernels.hadamard(x, base), reference.hadamard(x, base), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", SIZES)
def test_quantized_it_is_the_rotation_then_quantize(kernels, n):
    x, scale, base = torch.randn(3, n), torch.tensor(0.03), base_of(n)
    actual = kernels.hadamard_quant(x, base, scale)
    assert torch.equal(actual, numerics.quantize(kernels.hadamard(x, base), scale))
    expected = numerics.quantize(x.double() @ hadamard_matrix(n).double() / math.sqrt(n), scale)
    assert_within_one_step(actual, expected, differing=0.1)


@pytest.mark.parametrize("n", [1, 24, 512])
def test_a_multiplier_is_applied_behind_the_rotation(kernels, n):
    x, multiplier, scale, base = torch.randn(3, n), torch.rand(n) + 0.5, torch.tensor(0.03), base_of(n)
    expected = kernels.hadamard(x, base) * multiplier
    assert torch.equal(kernels.hadamard(x, base, multiplier), expected)
    assert torch.equal(kernels.hadamard_quant(x, base, scale, multiplier), numerics.quantize(expected, scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_may_be_strided_unaligned_and_of_any_float_type(kernels, dtype):
    wide = torch.randn(3, 70).to(dtype)
    for x in (wide[:, 5:69], wide.flatten()[1:65], wide[:, ::2][:, :32], torch.randn(1600).to(dtype)[1:1537]):
        base = base_of(x.shape[-1])
        assert torch.equal(kernels.hadamard(x, base), kernels.hadamard(x.float().clone(), base))


def test_the_input_is_left_alone_and_no_rows_give_no_rows(kernels):
    x = torch.randn(4, 32)
    before = x.clone()
    kernels.hadamard(x, base_of(32))
    assert torch.equal(x, before)
    assert kernels.hadamard(x[:0], base_of(32)).shape == (0, 32)


@pytest.mark.parametrize(
    ("n", "base", "message"),
    [
        (36, torch.ones(12, 12), "no Hadamard matrix of size 36 over a base of 12"),
        (65, torch.ones(65, 65), "no Hadamard matrix of size 65 over a base of 65"),
        (0, torch.ones(1, 1), "no Hadamard matrix of size 0"),
        (8, torch.ones(0, 0), r"base \[p, p\], got \[1, 8\] and \[0, 0\]"),
        (8, torch.ones(2, 4), "base must have shape"),
        (8, torch.ones(1, 1).double(), "base must be Float"),
        (32768, torch.ones(1, 1), "a row of 32768 values takes"),
    ],
)
def test_misfitting_arguments_are_refused(kernels, n, base, message):
    with pytest.raises(ValueError, match=message):
        kernels.hadamard(torch.randn(1, n), base)


def test_a_misfitting_multiplier_or_scale_is_refused(kernels):
    with pytest.raises(ValueError, match="multiplier must have shape"):
        kernels.hadamard(torch.randn(1, 8), base_of(8), torch.ones(4))
    with pytest.raises(ValueError, match="scale must hold one value"):
        kernels.hadamard_quant(torch.randn(1, 8), base_of(8), torch.ones(2))
