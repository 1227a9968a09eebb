"""The convolution on int8 and on float."""

import pytest
import torch
from torch import nn

from quamba import numerics, ops
from quamba.nn.conv1d import QuantConv1d
from quamba.scheme.formats import FLOAT, weight_spec


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def conv(request) -> nn.Conv1d:
    torch.manual_seed(0)
    return nn.Conv1d(6, 6, 4, groups=6, bias=request.param).requires_grad_(False)


def test_float_weights_stay_as_they_are_and_run_on_float(conv):
    x, state = torch.randn(2, 5, 6), torch.randn(2, 6, 4)
    converted, expected_state = QuantConv1d.from_float(conv.to(torch.bfloat16), FLOAT), state.clone()
    weight, bias = conv.weight.squeeze(1).float(), None if conv.bias is None else conv.bias.float()
    expected = ops.causal_conv1d(x, weight, bias, expected_state)
    assert torch.equal(converted(x, None, None, state), expected)
    assert torch.equal(state, expected_state)
    assert {buffer.dtype for buffer in converted.buffers()} == {torch.float32}


def test_int8_weights_are_within_half_a_step(conv):
    converted = QuantConv1d.from_float(conv, weight_spec(8))
    restored = numerics.dequantize(converted.weight, converted.weight_scale[:, None])
    assert ((restored - conv.weight.squeeze(1)).abs() <= converted.weight_scale[:, None] * 0.501).all()
