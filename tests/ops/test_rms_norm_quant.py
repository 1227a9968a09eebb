"""RMSNorm + quantize."""

import pytest
import torch

from quamba import numerics, ops
from quamba.ops import reference

from .conftest import assert_within_one_step


@pytest.mark.parametrize("hidden", [1, 16, 37, 768])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_matches_the_reference(capability, hidden, dtype):
    x, scale = (torch.randn(3, 5, hidden) * 4).to(dtype), torch.tensor(0.03)
    assert_within_one_step(ops.rms_norm_quant(x, 1e-5, scale), reference.rms_norm_quant(x, 1e-5, scale))


def test_the_reference_is_rms_norm_then_quantize():
    x, scale = torch.randn(4, 32) * 3, torch.tensor(0.02)
    expected = numerics.quantize(torch.nn.functional.rms_norm(x, (32,), eps=1e-5), scale)
    assert_within_one_step(reference.rms_norm_quant(x, 1e-5, scale), expected)


def test_a_row_of_zeros_stays_zero(capability):
    assert ops.rms_norm_quant(torch.zeros(2, 20), 1e-5, torch.tensor(0.1)).eq(0).all()


def test_a_row_does_not_depend_on_its_neighbours(capability):
    x, scale = torch.randn(9, 50), torch.tensor(0.02)
    whole = ops.rms_norm_quant(x, 1e-5, scale)
    assert torch.equal(whole, torch.cat([ops.rms_norm_quant(row[None], 1e-5, scale) for row in x]))


def test_it_is_rms_norm_then_quantize_bit_for_bit(capability):
    """A token's result is the same whichever of the two ways a scheme takes."""
    x, scale = torch.randn(9, 300) * 3, torch.tensor(0.02)
    assert torch.equal(ops.rms_norm_quant(x, 1e-5, scale), ops.quantize(ops.rms_norm(x, 1e-5), scale))
