"""int8 activations give the same bits in any batch, on any number of threads and with any fused instruction set."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quamba import numerics, ops

from .conftest import random_int8
from .weights import random_int8_weight, random_uint4_weight

# those whose fused multiply-adds round alike; the portable one rounds twice
FUSED = [name for name in torch.ops.quamba.cpu_capabilities() if name != "portable"]
OPS = ["linear_w8a8", "linear_w8a8_requant", "linear_w4a8", "linear_w4a8_requant"]
by_op = pytest.mark.parametrize("name", OPS)


def product(name: str, in_features: int, out_features: int, group_size: int = 64) -> Callable[[Tensor, Tensor], Tensor]:
    """An op as a function of x [..., I] and x_scale, with a random weight and bias."""
    bias, out_scale = torch.randn(out_features), torch.rand(out_features) + 0.1
    if name.startswith("linear_w8"):
        weight, sizes = random_int8_weight(out_features, in_features).args, ()
    else:
        uint4 = random_uint4_weight(out_features, in_features, group_size)
        weight, sizes = uint4.args, uint4.sizes()
    last = (out_scale,) if name.endswith("requant") else ()
    return lambda x, x_scale: getattr(ops, name)(x, *weight, x_scale, bias, *sizes, *last)


@by_op
@pytest.mark.parametrize("rows", [3, 13, 16, 47, 151])
def test_a_batch_is_its_rows_one_by_one(capability, name, rows):
    linear, x, x_scale = product(name, 300, 49), random_int8(rows, 300), torch.rand(rows)
    one_by_one = [linear(x[row : row + 1], x_scale[row : row + 1]) for row in range(rows)]
    assert torch.equal(linear(x, x_scale), torch.cat(one_by_one))


@pytest.mark.skipif(len(FUSED) < 2, reason="needs a machine with two instruction sets")
@by_op
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    in_features=st.integers(1, 300),
    out_features=st.integers(1, 50),
    group_size=st.sampled_from([32, 64, 128, 256]),
)
def test_fused_instruction_sets_agree(name, rows, in_features, out_features, group_size):
    linear = product(name, in_features, out_features, group_size)
    x, x_scale, results = random_int8(rows, in_features), torch.rand(rows), []
    for capability in FUSED:
        with ops.force_cpu_capability(capability):
            results.append(linear(x, x_scale))
    assert all(torch.equal(result, results[0]) for result in results)


@by_op
@pytest.mark.parametrize("rows", [1, 15, 400])
def test_the_number_of_threads_changes_nothing(capability, name, rows):
    """Enough rows and outputs that threads share both."""
    linear, x, x_scale = product(name, 600, 250), random_int8(rows, 600), torch.rand(rows)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(linear(x, x_scale))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@by_op
@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 3, 4), (2, 0)], ids=str)
def test_leading_dimensions_and_strided_values_change_nothing(capability, name, leading):
    linear, x = product(name, 100, 33), random_int8(*leading, 120)[..., 8:108]
    x_scale = torch.rand(leading)
    expected = linear(x.reshape(-1, 100).contiguous(), x_scale.reshape(-1)).reshape(*leading, 33)
    assert torch.equal(linear(x, x_scale), expected)
    if leading:  # neighbouring values of a row far apart in memory
        assert torch.equal(linear(x.mT.contiguous().mT, x_scale), expected)


@by_op
def test_one_scale_for_all_rows_is_that_scale_for_each(capability, name):
    linear, x, x_scale = product(name, 100, 33), random_int8(35, 100), torch.tensor(0.37)
    assert torch.equal(linear(x, x_scale), linear(x, x_scale.repeat(35)))


@pytest.mark.parametrize("rows", [1, 4, 16, 35])
def test_quantized_outputs_are_the_float_ones_quantized(capability, rows):
    x, x_scale, bias = random_int8(rows, 129), torch.rand(rows), torch.randn(33)
    int8, uint4 = random_int8_weight(33, 129), random_uint4_weight(33, 129, 32)
    y = ops.linear_w8a8(x, *int8.args, x_scale, bias)
    out_scale = y.abs().amax(dim=0) / 150  # the largest saturate
    quantized = ops.linear_w8a8_requant(x, *int8.args, x_scale, bias, out_scale)
    assert torch.equal(quantized, numerics.quantize(y, out_scale))
    y = ops.linear_w4a8(x, *uint4.args, x_scale, bias, *uint4.sizes())
    out_scale = y.abs().amax(dim=0) / 150
    quantized = ops.linear_w4a8_requant(x, *uint4.args, x_scale, bias, *uint4.sizes(), out_scale)
    assert torch.equal(quantized, numerics.quantize(y, out_scale))
