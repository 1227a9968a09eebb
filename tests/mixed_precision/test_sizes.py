"""The bytes that a budget counts are those of the quantized weights as they are stored."""

import pytest

from quamba.architectures.anatomy import Anatomy
from quamba.architectures.convert import install_float_mixers
from quamba.mixed_precision.sizes import layer_sizes, matrix_bytes
from quamba.nn.weight import QuantWeight
from quamba.scheme.formats import SCHEMES, get_scheme, variants
from tests.tiny_llama import tiny_llama

WEIGHT_SPECS = list(dict.fromkeys(scheme.weight for scheme in variants()))


def stored_bytes(weight: QuantWeight) -> int:
    return sum(tensor.nbytes for tensor in weight.rows().values())


@pytest.mark.parametrize("shape", [(1, 1), (16, 128), (5, 129), (33, 63), (24, 257)])
@pytest.mark.parametrize("spec", WEIGHT_SPECS, ids=lambda spec: spec.describe())
def test_a_matrix_takes_what_its_buffers_take(spec, shape):
    assert matrix_bytes(spec, *shape) == stored_bytes(QuantWeight(*shape, spec))


def test_a_layer_takes_what_the_linear_layers_of_its_quantized_mixer_take(tiny_ssm):
    model = tiny_ssm(num_hidden_layers=3)
    schemes = {name: get_scheme(name) for name in SCHEMES}
    mixer_class = Anatomy.of(model).architecture.quant_mixer
    expected = {
        name: [
            sum(stored_bytes(m) for m in mixer_class.from_config(model.config, i, scheme).modules() if _is_weight(m))
            for i in range(3)
        ]
        for name, scheme in schemes.items()
    }
    sizes, weight_count = layer_sizes(model.backbone.layers, schemes)
    assert sizes == expected
    integers = [m for i in range(3) for m in mixer_class.from_config(model.config, i, schemes["w8a8"]).modules()]
    assert weight_count == sum(m.out_features * m.in_features for m in integers if _is_weight(m))
    install_float_mixers(model)
    assert layer_sizes(model.backbone.layers, schemes) == (sizes, weight_count)


def _is_weight(module) -> bool:
    return isinstance(module, QuantWeight)


def test_any_decoder_layer_will_do():
    layers = tiny_llama().model.layers
    sizes, weight_count = layer_sizes(layers, {"w8a16": get_scheme("w8a16"), "w4a16": get_scheme("w4a16", 32)})
    assert len(sizes["w4a16"]) == len(layers)
    assert weight_count < sum(sizes["w8a16"]) < 2 * weight_count
    assert sum(sizes["w4a16"]) < sum(sizes["w8a16"])
