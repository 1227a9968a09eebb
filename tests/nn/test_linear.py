"""Linear layers of every weight format on every kind of input."""

import pytest
import torch
from torch import nn

from quamba import numerics, ops
from quamba.nn.linear import QuantLinear
from quamba.scheme.formats import weight_spec

SPECS = [weight_spec(8), *(weight_spec(4, size) for size in (32, 64, 128))]
by_format = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.describe())


@pytest.fixture(params=[(96, 40), (131, 7), (3, 5)], ids=str)
def linear(request) -> nn.Linear:
    """Inputs that fill groups, and such that leave the last one short and a byte half full."""
    torch.manual_seed(0)
    return nn.Linear(*request.param).requires_grad_(False)


@by_format
def test_weights_are_within_half_a_step(linear, spec):
    """With a zero point, which is an integer too, the end of a group's range may be another half away."""
    quantized = QuantLinear.from_float(linear, spec)
    step = quantized.weight_scale.float()
    step = step[:, None] if step.dim() == 1 else step.repeat_interleave(spec.group_size, 1)[:, : linear.in_features]
    error = (quantized.dequantized() - linear.weight).abs() / step
    assert error.max() <= (0.501 if spec.symmetric else 1.01)
    assert (error > 0.501).sum() <= 2 * quantized.weight_scale.numel()  # an end or two of each group


@by_format
def test_float_inputs_meet_dequantized_weights(linear, spec):
    quantized = QuantLinear.from_float(linear, spec)
    x = torch.randn(2, 3, linear.in_features)
    expected = x @ quantized.dequantized().T + linear.bias
    torch.testing.assert_close(quantized(x), expected, rtol=1e-5, atol=1e-5)


@by_format
def test_int8_inputs_have_a_scale_for_all_or_one_each(linear, spec):
    quantized = QuantLinear.from_float(linear, spec)
    x = torch.randn(2, 3, linear.in_features)
    static = torch.tensor(0.02)
    for q, scale in ((ops.quantize(x, static), static), ops.quantize_per_token(x)):
        per_row = scale if scale.dim() == 0 else scale[..., None]
        expected = numerics.dequantize(q, per_row) @ quantized.dequantized().T + linear.bias
        torch.testing.assert_close(quantized(q, scale), expected, rtol=1e-5, atol=1e-5)


@by_format
def test_the_output_is_quantized_with_a_scale_per_channel(linear, spec):
    quantized, scale = QuantLinear.from_float(linear, spec), torch.tensor(0.02)
    q = ops.quantize(torch.randn(2, 3, linear.in_features), scale)
    out_scale = torch.linspace(0.01, 0.05, linear.out_features)
    out = quantized(q, scale, out_scale)
    assert out.dtype == torch.int8
    steps = (out.int() - numerics.quantize(quantized(q, scale), out_scale).int()).abs()
    assert steps.max() <= 1


@by_format
def test_buffers_keep_their_dtypes(linear, spec):
    quantized = QuantLinear.from_float(linear, spec)
    before = {name: buffer.clone() for name, buffer in quantized.named_buffers()}
    for cast in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        quantized.to(cast)
        for name, buffer in quantized.named_buffers():
            assert buffer.dtype == before[name].dtype
            assert torch.equal(buffer, before[name])


def test_the_formats_on_disk():
    def formats(spec):
        layer = QuantLinear(131, 7, bias=True, spec=spec)
        return {name: (tuple(b.shape), b.dtype) for name, b in layer.state_dict().items()}

    bias = {"bias": ((7,), torch.float32)}
    assert formats(weight_spec(8)) == bias | {
        "weight": ((7, 131, 1), torch.int8),
        "weight_scale": ((7,), torch.float32),
    }
    assert formats(weight_spec(4, 64)) == bias | {
        "weight": ((7, 66, 1), torch.uint8),
        "weight_scale": ((7, 3), torch.float16),
        "weight_zero": ((7, 3), torch.uint8),
    }
