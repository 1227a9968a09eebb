"""int8 linear: exact accumulators on every path, float and quantized outputs."""

import pytest
import torch

from quamba import numerics, ops
from quamba.ops import reference

from .conftest import assert_within_one_step, random_int8

# rows either side of where oneDNN takes over, inputs and outputs that fill no vector
SIZES = [
    (1, 16, 16),
    (3, 129, 37),
    (4, 64, 5),
    (15, 100, 33),
    (16, 100, 33),
    (17, 1, 1),
    (151, 129, 80),
    (40, 300, 256),
]


@pytest.mark.parametrize(("rows", "in_features", "out_features"), SIZES)
def test_accumulators_are_exact(capability, rows, in_features, out_features):
    x, weight = random_int8(rows, in_features), random_int8(out_features, in_features)
    expected = x.long() @ weight.long().T
    actual = ops.linear_w8a8(x, weight, torch.ones(out_features), torch.ones(()), None)
    assert torch.equal(actual.long(), expected)


def test_the_extremes_do_not_saturate(capability):
    """16-bit intermediate sums would: 2 * 128 * 128 is past int16."""
    for rows in (1, 32):
        x, weight = torch.full((rows, 256), -128, dtype=torch.int8), torch.full((8, 256), -128, dtype=torch.int8)
        assert (ops.linear_w8a8(x, weight, torch.ones(8), torch.ones(()), None) == 256 * 128 * 128).all()


@pytest.mark.parametrize(("rows", "in_features", "out_features"), SIZES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_outputs_match_the_reference(capability, rows, in_features, out_features, with_bias):
    x, weight = random_int8(rows, in_features), random_int8(out_features, in_features)
    scale, bias = torch.rand(out_features) * 1e-3, torch.randn(out_features) if with_bias else None
    expected = reference.linear_w8a8(x, weight, scale, torch.tensor(0.5), bias)
    torch.testing.assert_close(ops.linear_w8a8(x, weight, scale, torch.tensor(0.5), bias), expected)
    out_scale = torch.rand(out_features) * 0.1 + 0.01
    actual = ops.linear_w8a8_requant(x, weight, scale, torch.tensor(0.5), bias, out_scale)
    assert_within_one_step(actual, numerics.quantize(expected, out_scale))


def test_leading_dimensions_and_strided_rows_are_kept(capability):
    x, weight = random_int8(2, 3, 40)[..., 8:24], random_int8(10, 16)
    actual = ops.linear_w8a8(x, weight, torch.ones(10), torch.ones(()), None)
    assert actual.shape == (2, 3, 10)
    assert torch.equal(actual, reference.linear_w8a8(x, weight, torch.ones(10), torch.ones(()), None))


def test_results_do_not_depend_on_the_number_of_threads(capability):
    x, weight, scale = random_int8(33, 200), random_int8(150, 200), torch.rand(150)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.linear_w8a8(x, weight, scale, torch.ones(()), None))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_misfitting_arguments_are_refused_by_name():
    x, weight = random_int8(2, 8), random_int8(3, 8)
    with pytest.raises(ValueError, match="does not fit weight"):
        ops.linear_w8a8(x[:, :7], weight, torch.ones(3), torch.ones(()), None)
    with pytest.raises(ValueError, match="scale must have shape"):
        ops.linear_w8a8(x, weight, torch.ones(4), torch.ones(()), None)
    with pytest.raises(ValueError, match="x must be"):
        ops.linear_w8a8(x.float(), weight, torch.ones(3), torch.ones(()), None)
