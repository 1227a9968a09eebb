"""float rows times int8 weights: few rows by a kernel, many in tiles of bfloat16 or, without them,
through dequantized panels."""

import pytest
import torch

from quamba import ops
from quamba.ops import reference

from .conftest import random_int8
from .weights import random_int8_weight

# rows either side of where the product of many takes over, outputs of more than one panel, rows of more than one chunk
SIZES = [
    (1, 1, 1),
    (1, 768, 80),
    (3, 31, 5),
    (5, 48, 33),
    (15, 1536, 20),
    (16, 100, 33),
    (17, 129, 600),
    (151, 130, 33),
    (100, 5000, 20),
]


@pytest.mark.parametrize(("rows", "in_features", "out_features"), SIZES)
def test_outputs_match_the_reference(capability, rows, in_features, out_features):
    x, weight = torch.randn(rows, in_features), random_int8_weight(out_features, in_features)
    largest = x.double().abs() @ weight.dequantized().double().abs().T
    for bias in (None, torch.randn(out_features)):
        difference = (ops.linear_w8a16(x, *weight.args, bias) - reference.linear_w8a16(x, *weight.args, bias)).abs()
        assert (difference <= 2e-6 * largest + 1e-6).all()


@pytest.mark.parametrize("rows", [9, 127])
def test_one_hot_rows_read_the_dequantized_weights(capability, rows):
    weight = random_int8_weight(33, 127)
    assert torch.equal(ops.linear_w8a16(torch.eye(127)[:rows], *weight.args, None), weight.dequantized().T[:rows])


def test_one_of_few_rows_does_not_depend_on_its_neighbours(capability):
    x, weight, bias = torch.randn(15, 300), random_int8_weight(40, 300), torch.randn(40)
    whole = ops.linear_w8a16(x, *weight.args, bias)
    assert torch.equal(whole, torch.cat([ops.linear_w8a16(row[None], *weight.args, bias) for row in x]))


@pytest.mark.parametrize("tokens", [3, 20])
def test_leading_dimensions_and_strided_rows_are_kept(capability, tokens):
    x, weight = torch.randn(2, 40, tokens).transpose(1, 2)[..., 8:], random_int8_weight(10, 32)
    flat = ops.linear_w8a16(x.reshape(-1, 32), *weight.args, None)
    assert torch.equal(ops.linear_w8a16(x, *weight.args, None), flat.view(2, tokens, 10))


def test_misfitting_arguments_are_refused_by_name():
    x, (weight, scale) = torch.randn(2, 8), random_int8_weight(3, 8).args
    with pytest.raises(ValueError, match="x must be"):
        ops.linear_w8a16(random_int8(2, 8), weight, scale, None)
    with pytest.raises(ValueError, match="weight must have shape"):
        ops.linear_w8a16(x[:, :4], weight, scale, None)
    with pytest.raises(ValueError, match="weight_scale must be"):
        ops.linear_w8a16(x, weight, scale.half(), None)
    with pytest.raises(ValueError, match="bias must have shape"):
        ops.linear_w8a16(x, weight, scale, torch.ones(4))
