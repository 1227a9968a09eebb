"""RMSNorm without weight."""

import pytest
import torch

from quamba import ops


@pytest.mark.parametrize("hidden", [1, 16, 37, 768])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_torchs_norm_in_float32(capability, hidden, dtype):
    x = (torch.randn(3, 5, hidden) * 4).to(dtype)
    expected = torch.nn.functional.rms_norm(x.float(), (hidden,), eps=1e-5)
    torch.testing.assert_close(ops.rms_norm(x, 1e-5), expected)


def test_a_row_does_not_depend_on_its_neighbours(capability):
    x = torch.randn(9, 50)
    assert torch.equal(ops.rms_norm(x, 1e-5), torch.cat([ops.rms_norm(row[None], 1e-5) for row in x]))


@pytest.mark.parametrize("hidden", [1, 37, 768])
def test_a_multiplier_is_applied_behind_the_norm(capability, hidden):
    x, multiplier = torch.randn(3, 5, hidden), torch.rand(hidden) + 0.5
    expected = ops.rms_norm(x, 1e-5) * multiplier
    assert torch.equal(ops.rms_norm(x, 1e-5, multiplier), expected)
    scale = torch.tensor(0.02)
    assert torch.equal(ops.rms_norm_quant(x, 1e-5, scale, multiplier), ops.quantize(expected, scale))


def test_a_multiplier_of_another_size_is_refused():
    with pytest.raises(ValueError, match="multiplier must have shape"):
        ops.rms_norm(torch.randn(2, 8), 1e-5, torch.ones(7))
