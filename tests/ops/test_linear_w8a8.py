"""int8 linear: exact accumulators on every path, float and quantized outputs."""

import pytest
import torch

from quamba import numerics, ops
from quamba.ops import layout, reference

from .conftest import assert_within_one_step, random_int8
from .weights import random_int8_weight

# rows that fill tiles of 1, 4, 8, 16 and 32 and leave some over, inputs and outputs that fill no vector
SIZES = [
    (1, 16, 16),
    (3, 129, 37),
    (4, 64, 5),
    (13, 31, 33),
    (15, 100, 33),
    (16, 100, 33),
    (17, 1, 1),
    (49, 768, 48),
    (151, 129, 80),
]


@pytest.mark.parametrize(("rows", "in_features", "out_features"), SIZES)
def test_accumulators_are_exact(capability, rows, in_features, out_features):
    x, weight = random_int8(rows, in_features), random_int8(out_features, in_features)
    expected = x.long() @ weight.long().T
    actual = ops.linear_w8a8(x, layout.tile_int8(weight), torch.ones(out_features), torch.ones(()), None)
    assert torch.equal(actual.long(), expected)


def test_the_extremes_do_not_saturate(capability):
    """16-bit intermediate sums would: 2 * 128 * 128 is past int16."""
    for rows in (1, 32):
        x, weight = torch.full((rows, 256), -128, dtype=torch.int8), torch.full((8, 256), -128, dtype=torch.int8)
        y = ops.linear_w8a8(x, layout.tile_int8(weight), torch.ones(8), torch.ones(()), None)
        assert (y == 256 * 128 * 128).all()


@pytest.mark.parametrize(("rows", "in_features", "out_features"), SIZES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
def test_outputs_match_the_reference(capability, rows, in_features, out_features, with_bias, per_row):
    x, weight = random_int8(rows, in_features), random_int8_weight(out_features, in_features)
    x_scale = torch.rand(rows) + 0.1 if per_row else torch.tensor(0.5)
    bias = torch.randn(out_features) if with_bias else None
    expected = reference.linear_w8a8(x, *weight.args, x_scale, bias)
    torch.testing.assert_close(ops.linear_w8a8(x, *weight.args, x_scale, bias), expected, rtol=1e-5, atol=1e-4)
    out_scale = expected.abs().amax(dim=0) / 100 + 0.01
    actual = ops.linear_w8a8_requant(x, *weight.args, x_scale, bias, out_scale)
    assert_within_one_step(actual, numerics.quantize(expected, out_scale))


def test_every_row_has_its_own_scale(capability):
    x, weight = random_int8(1, 40).expand(18, 40), random_int8_weight(20, 40)
    x_scale = torch.arange(18) * 0.25
    one = ops.linear_w8a8(x[:1], *weight.args, torch.ones(()), None)
    torch.testing.assert_close(ops.linear_w8a8(x, *weight.args, x_scale, None), one * x_scale[:, None])


def test_scales_per_row_follow_the_leading_dimensions(capability):
    x, weight, x_scale = random_int8(2, 3, 40), random_int8_weight(20, 40), torch.rand(2, 3)
    flat = ops.linear_w8a8(x.view(6, 40), *weight.args, x_scale.view(6), None)
    assert torch.equal(ops.linear_w8a8(x, *weight.args, x_scale, None), flat.view(2, 3, 20))


def test_leading_dimensions_and_strided_rows_are_kept(capability):
    x, weight = random_int8(2, 3, 40)[..., 8:24], random_int8_weight(10, 16)
    actual = ops.linear_w8a8(x, *weight.args, torch.ones(()), None)
    assert actual.shape == (2, 3, 10)
    assert torch.equal(actual, reference.linear_w8a8(x, *weight.args, torch.ones(()), None))


def test_a_row_does_not_depend_on_its_neighbours(capability):
    x, weight = random_int8(45, 100), random_int8_weight(33, 100)
    x_scale, bias = torch.rand(45), torch.randn(33)
    whole = ops.linear_w8a8(x, *weight.args, x_scale, bias)
    rows = [ops.linear_w8a8(x[i : i + 1], *weight.args, x_scale[i : i + 1], bias) for i in range(45)]
    assert torch.equal(whole, torch.cat(rows))


def test_results_do_not_depend_on_the_number_of_threads(capability):
    x, weight = random_int8(33, 200), random_int8_weight(150, 200)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.linear_w8a8(x, *weight.args, torch.ones(()), None))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_no_rows_give_no_rows(capability):
    weight = random_int8_weight(10, 16)
    assert ops.linear_w8a8(random_int8(0, 16), *weight.args, torch.ones(()), None).shape == (0, 10)


def test_misfitting_arguments_are_refused_by_name():
    x, (weight, scale), one = random_int8(2, 8), random_int8_weight(3, 8).args, torch.ones(())
    with pytest.raises(ValueError, match="weight must have shape"):
        ops.linear_w8a8(x[:, :4], weight, scale, one, None)
    with pytest.raises(ValueError, match="weight must have shape"):
        ops.linear_w8a8(x, weight, torch.ones(17), one, None)
    with pytest.raises(ValueError, match="x must be"):
        ops.linear_w8a8(x.float(), weight, scale, one, None)
    with pytest.raises(ValueError, match="weight must be"):
        ops.linear_w8a8(x, weight.view(torch.uint8), scale, one, None)
    with pytest.raises(ValueError, match="x_scale must have shape"):
        ops.linear_w8a8(x, weight, scale, torch.ones(3), None)
    with pytest.raises(ValueError, match="x_scale must have shape"):
        ops.linear_w8a8(x, weight, scale, torch.ones(2, 1), None)
    with pytest.raises(ValueError, match="x_scale must be"):
        ops.linear_w8a8(x, weight, scale, one.half(), None)
    with pytest.raises(ValueError, match="weight_scale must have shape"):
        ops.linear_w8a8(x, weight, scale[:, None], one, None)
    with pytest.raises(ValueError, match="weight_scale must be"):
        ops.linear_w8a8(x, weight, scale.double(), one, None)
    with pytest.raises(ValueError, match=r"x must be \[\.\.\., I\]"):
        ops.linear_w8a8(x[0, 0], weight, scale, one, None)
    with pytest.raises(ValueError, match="bias must have shape"):
        ops.linear_w8a8(x, weight, scale, one, torch.ones(4))
    with pytest.raises(ValueError, match="out_scale must have shape"):
        ops.linear_w8a8_requant(x, weight, scale, one, None, torch.ones(4))
