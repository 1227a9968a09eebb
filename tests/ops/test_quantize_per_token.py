"""Rows quantized with a scale of their own."""

import pytest
import torch

from quamba import numerics, ops
from quamba.ops import reference


@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (2, 5, 37), (151, 100), (768,)], ids=str)
def test_it_is_the_references_integers_and_scales(capability, shape):
    x = torch.randn(shape) * torch.logspace(-3, 3, shape[-1])
    for actual, expected in zip(ops.quantize_per_token(x), reference.quantize_per_token(x), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


def test_the_largest_magnitude_of_a_row_is_127(capability):
    x = torch.tensor([[1.0, -3.0, 2.0], [-1e-3, 5e-4, 0.0]])
    q, scale = ops.quantize_per_token(x)
    assert q.tolist() == [[42, -127, 85], [-127, 64, 0]]
    torch.testing.assert_close(scale, torch.tensor([3.0, 1e-3]) / 127)


def test_a_row_of_zeros_has_a_positive_scale(capability):
    q, scale = ops.quantize_per_token(torch.zeros(2, 20))
    assert q.eq(0).all()
    assert torch.equal(scale, numerics.symmetric_scale(torch.zeros(2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_float_types_are_converted_first(capability, dtype):
    x = torch.randn(4, 50).to(dtype)
    for actual, expected in zip(ops.quantize_per_token(x), ops.quantize_per_token(x.float()), strict=True):
        assert torch.equal(actual, expected)


def test_rows_may_be_strided(capability):
    x = torch.randn(50, 6)
    for actual, expected in zip(ops.quantize_per_token(x.T), ops.quantize_per_token(x.T.clone()), strict=True):
        assert torch.equal(actual, expected)
