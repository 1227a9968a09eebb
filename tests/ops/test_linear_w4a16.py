"""float rows times group-wise uint4 weights: few rows by a kernel, many in tiles of bfloat16 or, without them,
through dequantized panels."""

import pytest
import torch

from quamba import ops
from quamba.ops import reference

from .conftest import random_int8
from .weights import Uint4Weight, random_uint4_weight

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
by_group = pytest.mark.parametrize("group_size", [32, 64, 128, 256])


@pytest.mark.parametrize(("rows", "in_features", "out_features"), SIZES)
@by_group
def test_outputs_match_the_reference(capability, rows, in_features, out_features, group_size):
    x, weight = torch.randn(rows, in_features), random_uint4_weight(out_features, in_features, group_size)
    largest = x.double().abs() @ weight.largest().T
    for bias in (None, torch.randn(out_features)):
        args = (x, *weight.args, bias, *weight.sizes())
        difference = (ops.linear_w4a16(*args) - reference.linear_w4a16(*args)).abs()
        assert (difference <= 2e-6 * largest + 1e-6).all()


@by_group
@pytest.mark.parametrize("rows", [9, 127])
def test_one_hot_rows_read_the_dequantized_weights(capability, group_size, rows):
    weight = random_uint4_weight(33, 127, group_size)
    y = ops.linear_w4a16(torch.eye(127)[:rows], *weight.args, None, *weight.sizes())  # [rows, O]
    assert torch.equal(y, weight.dequantized().T[:rows])


@by_group
def test_one_of_few_rows_does_not_depend_on_its_neighbours(capability, group_size):
    x, weight, bias = torch.randn(15, 300), random_uint4_weight(40, 300, group_size), torch.randn(40)
    whole = ops.linear_w4a16(x, *weight.args, bias, *weight.sizes())
    rows = [ops.linear_w4a16(row[None], *weight.args, bias, *weight.sizes()) for row in x]
    assert torch.equal(whole, torch.cat(rows))


@pytest.mark.parametrize("rows", [3, 33])
def test_results_do_not_depend_on_the_number_of_threads(capability, rows):
    """But for the library's float32 product of many rows, which may split its sums."""
    x, weight = torch.randn(rows, 200), random_uint4_weight(150, 200, 64)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.linear_w4a16(x, *weight.args, None, *weight.sizes()))
    finally:
        torch.set_num_threads(threads)
    for result in results:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0 if rows < 16 else 1e-4)


@pytest.mark.parametrize("tokens", [3, 20])
def test_leading_dimensions_and_strided_rows_are_kept(capability, tokens):
    x, weight = torch.randn(2, 40, tokens).transpose(1, 2)[..., 8:], random_uint4_weight(10, 32, 32)
    actual = ops.linear_w4a16(x, *weight.args, None, *weight.sizes())
    flat = ops.linear_w4a16(x.reshape(-1, 32), *weight.args, None, *weight.sizes())
    assert torch.equal(actual, flat.view(2, tokens, 10))


def test_an_output_does_not_depend_on_its_neighbours(capability):
    x, weight = torch.randn(7, 100), random_uint4_weight(37, 100, 32)
    rolled = Uint4Weight(*(t.roll(5, 0) for t in (weight.rows, weight.scale, weight.zero)), 32)
    y, of_rolled = (ops.linear_w4a16(x, *w.args, None, *w.sizes()) for w in (weight, rolled))
    assert torch.equal(y.roll(5, 1), of_rolled)


def test_misfitting_arguments_are_refused_by_name():
    x = torch.randn(2, 100)
    weight, scale, zero = random_uint4_weight(20, 100, 32).args
    with pytest.raises(ValueError, match="x must be"):
        ops.linear_w4a16(random_int8(2, 100), weight, scale, zero, None, 20, 32)
    with pytest.raises(ValueError, match="weight must have shape"):
        ops.linear_w4a16(x[:, :90], weight, scale, zero, None, 20, 32)
    with pytest.raises(ValueError, match="scale must have shape"):
        ops.linear_w4a16(x, weight, scale, zero, None, 20, 128)
    with pytest.raises(ValueError, match="bias must have shape"):
        ops.linear_w4a16(x, weight, scale, zero, torch.ones(21), 20, 32)
    with pytest.raises(ValueError, match="bias must have shape"):
        ops.linear_w4a16(torch.randn(20, 100), weight, scale, zero, torch.ones(21), 20, 32)
    with pytest.raises(ValueError, match="weight must have shape"):
        ops.linear_w4a16(x, weight, scale, zero, None, 40, 32)
    with pytest.raises(ValueError, match="zero must have shape"):
        ops.linear_w4a16(x, weight, scale, zero[:, :2], None, 20, 32)
    with pytest.raises(ValueError, match="group_size must be 32 times a power of two, got 48"):
        ops.linear_w4a16(x, weight, scale, zero, None, 20, 48)
