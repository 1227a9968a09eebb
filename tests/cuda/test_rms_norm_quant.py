"""RMSNorm, and rows quantized with a given scale or one of their own: CUDA kernels against the references."""

import pytest
import torch

from quamba import numerics
from quamba.ops import reference

from ..ops.conftest import assert_within_one_step

kernels = torch.ops.quamba_emulated
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (3, 16), (2, 5, 37), (33, 70), (768,), (2, 600)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_matches_the_reference(shape, dtype):
    x = (torch.randn(shape) * 4).to(dtype)
    actual = kernels.rms_norm(x, 1e-5)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, reference.rms_norm(x, 1e-5))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_and_quantize_matches_the_reference(shape, dtype):
    x, scale, multiplier = (torch.randn(shape) * 4).to(dtype), torch.tensor(0.03), torch.rand(shape[-1]) + 0.5
    for factors in (None, multiplier):
        actual = kernels.rms_norm_quant(x, 1e-5, scale, factors)
        assert_within_one_step(actual, reference.rms_norm_quant(x, 1e-5, scale, factors))


def test_norm_and_quantize_is_the_two_in_turn_bit_for_bit():
    x, scale, multiplier = torch.randn(9, 300) * 3, torch.tensor(0.02), torch.rand(300) + 0.5
    expected = kernels.quantize(kernels.rms_norm(x, 1e-5, multiplier), scale)
    assert torch.equal(kernels.rms_norm_quant(x, 1e-5, scale, multiplier), expected)


def test_a_row_does_not_depend_on_its_neighbours():
    x = torch.randn(9, 50)
    assert torch.equal(kernels.rms_norm(x, 1e-5), torch.cat([kernels.rms_norm(row[None], 1e-5) for row in x]))


@pytest.mark.parametrize("shape", [*SHAPES, (), (3, 1100), (0, 8)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_is_the_references(shape, dtype):
    x, scale = (torch.randn(shape) * 4).to(dtype), torch.tensor(0.03)
    assert torch.equal(kernels.quantize(x, scale), reference.quantize(x, scale))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_with_a_scale_of_their_own_are_the_references(shape, dtype):
    x = (torch.randn(shape) * torch.logspace(-3, 3, shape[-1])).to(dtype)
    for actual, expected in zip(kernels.quantize_per_token(x), reference.quantize_per_token(x), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


def test_what_is_not_finite():
    special = torch.tensor([[float("nan"), 1.0, -3.0], [0.0, 0.0, -0.0], [1.0, float("-inf"), 2.0]])
    for actual, expected in zip(
        kernels.quantize_per_token(special), reference.quantize_per_token(special), strict=True
    ):
        assert torch.equal(actual, expected)
    assert torch.equal(kernels.quantize(special, torch.tensor(0.1)), numerics.quantize(special, torch.tensor(0.1)))


def test_rows_may_be_strided():
    x = torch.randn(50, 6)
    for op in (lambda x: kernels.rms_norm(x, 1e-5), lambda x: kernels.quantize(x, torch.tensor(0.1))):
        assert torch.equal(op(x.T), op(x.T.clone()))
    assert torch.equal(kernels.quantize_per_token(x.T)[0], kernels.quantize_per_token(x.T.clone())[0])


def test_wrong_arguments_are_refused():
    x, scale = torch.randn(2, 8), torch.tensor(0.1)
    with pytest.raises(ValueError, match=r"multiplier must have shape \[8\], got \[7\]"):
        kernels.rms_norm(x, 1e-5, torch.ones(7))
    with pytest.raises(ValueError, match=r"scale must hold one value, got shape \[2\]"):
        kernels.quantize(x, torch.ones(2))
    with pytest.raises(ValueError, match="scale must be Float, got Double"):
        kernels.quantize(x, scale.double())
    with pytest.raises(ValueError, match="float32, float16 or bfloat16, got Int"):
        kernels.quantize(x.int(), scale)
    with pytest.raises(ValueError, match="got a scalar"):
        kernels.rms_norm_quant(torch.tensor(1.0), 1e-5, scale)
