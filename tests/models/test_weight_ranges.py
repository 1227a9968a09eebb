"""Weights that their format would make infinite or zero are refused by name."""

import pytest
import torch

import quamba
from quamba import QuambaError, numerics
from quamba.weights.method import WeightMethod
from tests.tiny_llama import tiny_llama
from tests.tiny_mamba2 import tiny_mamba2


def quantize(model, scheme: str, **options):
    return quamba.quantize(model, None, scheme, weights=WeightMethod("rtn"), progress=False, **options)


@pytest.mark.parametrize(
    ("scheme", "factor", "message"),
    [
        ("w4a16", 1e7, "too large for the float16 scales of 4-bit groups: give it 8 bits"),
        ("w3a16", 1e7, "too large for the float16 scales of 3-bit groups"),
        ("w4a16", 1e-8, "too small for the float16 scales of 4-bit groups"),
        ("w8a16", 1e-9, "too small for 8 bits"),
    ],
)
def test_a_matrix_out_of_range_is_named(scheme, factor, message):
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight.mul_(factor)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(QuambaError, match=rf"^layers\.1\.mlp\.up_proj\.weight has .*{message}"):
        quantize(model, scheme)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("table", "name"), [("embedding", "the embedding"), ("lm_head", "the head")])
def test_a_table_out_of_range_is_named_where_it_is_quantized(table, name):
    model = tiny_llama()
    model.lm_head.weight.mul_(1e7), model.model.embed_tokens.weight.mul_(1e7)
    with pytest.raises(QuambaError, match=f"^{name} has values .* too large"):
        quantize(model, "w4a16", **{f"quantize_{table}": True})
    quantize(model, "w4a16")


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16"])
def test_zeros_and_ordinary_weights_pass(scheme):
    model = tiny_llama()
    linear = model.model.layers[0].mlp.up_proj
    linear.weight.zero_()
    linear.weight[3, 4] = 0.5  # a group that is not zero beside many that are
    model.model.layers[0].mlp.down_proj.weight.zero_()
    quantize(model, scheme)
    layer = model.model.layers[0].mlp
    assert float(layer.up_proj.dequantized()[3, 4]) == pytest.approx(0.5, abs=0.01)
    assert not layer.down_proj.dequantized().any()


def test_layers_in_8_bits_may_be_larger():
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight.mul_(1e7)
    quantize(model, "w4a16", layer_schemes=["w4a16", "w8a16", "w4a16"])


def test_a_norm_that_makes_weights_too_large_is_noticed_behind_it():
    """The norm's weight goes into in_proj: what is rounded is larger than what the model holds."""
    model = tiny_mamba2()
    model.backbone.layers[0].norm.weight.mul_(1e8)
    with pytest.raises(QuambaError, match=r"layers\.0\.mixer\.in_proj\.weight has values up to .* too large"):
        quantize(model, "w4a16")


def test_a_groups_scale_beyond_float16_is_an_error():
    weight = torch.full((2, 8), 65504.0 * 16)
    with pytest.raises(QuambaError, match=r"needs the scale 6\.99e\+04, and float16 ends at 65504"):
        numerics.group_parameters(weight, 4)
    scale, _ = numerics.group_parameters(weight / 16 * 15, 4)
    assert scale.unique().tolist() == [65504.0]
