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
