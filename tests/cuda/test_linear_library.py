"""Products of many int8 rows by the library (torch's _int_mm, cuBLASLt on a GPU): the bits of our kernel's."""

import pytest
import torch
from torch import Tensor

from quamba import QuambaError, numerics, ops
from quamba.ops import layout, reference

from ..ops.conftest import random_int8
from ..ops.weights import Int8Weight, random_int8_weight
from .platforms import Kernels

ONE = torch.ones(())
VARIABLE = "QUAMBA_CUDA_INT8_PRODUCT"

# (rows, in, out): rows that a block of either kernel holds, and more; inputs and outputs that fill no word, piece of
# 16, tile or block, or exactly one, or several
SIZES = [
    *((rows, inputs, 33) for rows in (17, 33, 151) for inputs in (1, 20, 37, 100, 256)),
    *((33, 37, outputs) for outputs in (1, 16, 130)),
    (32, 64, 128),
    (17, 1100, 20),
]


@pytest.fixture
def kernels(kernels) -> Kernels:
    if kernels.device == "cpu" and "avx512_vnni" not in torch.ops.quamba.cpu_capabilities():
        pytest.skip("torch's int8 product of CPUs without VNNI saturates")
    return kernels


def by_both(run) -> Tensor:
    """The library's result, which is our kernel's."""
    with ops.force_cuda_int8_product("own"):
        own = run()
    with ops.force_cuda_int8_product("library"):
        y = run()
    assert y.dtype == own.dtype
    assert torch.equal(y, own)
    return y


def operators(run) -> set[str]:
    """Names of torch's operators that are called."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize(("rows", "in_features", "out_features"), SIZES)
def test_the_library_gives_the_bits_of_our_kernel(kernels, rows, in_features, out_features):
    x, weight = random_int8(rows, in_features), random_int8_weight(out_features, in_features)
    for x_scale, bias in ((torch.tensor(0.5), None), (torch.rand(rows) + 0.1, torch.randn(out_features))):
        args = (x, *weight.args, x_scale, bias)
        y, expected = by_both(lambda args=args: kernels.linear_w8a8(*args)), reference.linear_w8a8(*args)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-5)
        out_scale = expected.abs().amax(dim=0) / 150 + 0.01  # the largest saturate
        quantized = by_both(lambda args=args, scale=out_scale: kernels.linear_w8a8_requant(*args, scale))
        assert torch.equal(quantized, numerics.quantize(y, out_scale))


@pytest.mark.parametrize(("in_features", "out_features"), [(1, 5), (37, 33), (130, 50)])
def test_one_hot_rows_read_the_weights(kernels, in_features, out_features):
    """Every weight of the tiles is where the library looks for it."""
    weight = Int8Weight(random_int8(out_features, in_features), torch.ones(out_features))
    x = torch.eye(in_features, dtype=torch.int8).repeat(-(-17 // in_features), 1)
    y = by_both(lambda: kernels.linear_w8a8(x, *weight.args, ONE, None))
    assert torch.equal(y[:in_features], weight.rows.T.float())


@pytest.mark.parametrize("x", [-128, 127])
@pytest.mark.parametrize("weight", [-128, 127])
def test_the_extremes_are_exact(kernels, x, weight):
    tiles = layout.tile_int8(torch.full((17, 1040), weight, dtype=torch.int8))
    rows = torch.full((20, 1040), x, dtype=torch.int8)
    assert (by_both(lambda: kernels.linear_w8a8(rows, tiles, torch.ones(17), ONE, None)) == 1040 * x * weight).all()


@pytest.mark.parametrize("leading", [(17,), (2, 9), (3, 1, 7), (2, 0)], ids=str)
def test_leading_dimensions_and_strides_change_nothing(kernels, leading):
    weight, x_scale = random_int8_weight(33, 96), torch.rand(leading)
    wide = random_int8(*leading, 144)
    for x in (wide[..., :96], wide[..., 16:112], wide[..., 5:101]):  # aligned rows, and not
        expected = reference.linear_w8a8(x, *weight.args, x_scale, None)
        for strided in (x, x.mT.contiguous().mT):
            y = by_both(lambda x=strided: kernels.linear_w8a8(x, *weight.args, x_scale, None))
            torch.testing.assert_close(y, expected)
        swapped = (x.transpose(0, -2), *weight.args, x_scale.transpose(0, -1), None)
        y = by_both(lambda args=swapped: kernels.linear_w8a8(*args))
        torch.testing.assert_close(y, expected.transpose(0, -2))


def test_a_row_that_is_every_row(kernels):
    x, weight = random_int8(1, 64), random_int8_weight(20, 64)
    one = kernels.linear_w8a8(x, *weight.args, ONE, None)
    y = by_both(lambda: kernels.linear_w8a8(x.expand(18, 64), *weight.args, ONE, None))
    assert torch.equal(y, one.expand(18, 20))


def test_tensors_may_begin_anywhere(kernels):
    """Where vectors of 16 bytes cannot be read."""
    x, weight, x_scale, bias = random_int8(20, 64), random_int8_weight(24, 64), torch.rand(20), torch.randn(24)
    args = (x, *weight.args, x_scale, bias, torch.rand(24) + 0.1)
    moved = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in args]
    y = by_both(lambda: kernels.linear_w8a8_requant(*moved))
    assert torch.equal(y, kernels.linear_w8a8_requant(*args))


@pytest.mark.parametrize(
    ("rows", "forced", "called"), [(17, "library", True), (17, "own", False), (16, "library", False)]
)
def test_the_variable_chooses_what_multiplies_many_rows(kernels, rows, forced, called):
    args = (random_int8(rows, 20), *random_int8_weight(5, 20).args, ONE, None)
    with ops.force_cuda_int8_product(forced):
        assert ("aten::_int_mm" in operators(lambda: kernels.linear_w8a8(*args))) == called


def test_the_emulation_multiplies_with_our_kernel_if_nothing_is_forced(monkeypatch):
    """What is exact on every CPU."""
    monkeypatch.delenv(VARIABLE, raising=False)
    args = (random_int8(17, 20), *random_int8_weight(5, 20).args, ONE, None)
    assert "aten::_int_mm" not in operators(lambda: torch.ops.quamba_emulated.linear_w8a8(*args))


def test_another_value_is_refused_by_name(kernels, monkeypatch):
    monkeypatch.setenv(VARIABLE, "cutlass")
    args = (random_int8(17, 20), *random_int8_weight(5, 20).args, ONE, None)
    with pytest.raises(ValueError, match=rf"{VARIABLE} must be library .* or own .*, got 'cutlass'"):
        kernels.linear_w8a8(*args)
    with pytest.raises(QuambaError, match=f"{VARIABLE} must be one of library, own, got 'cutlass'"):
        ops.cuda_int8_product()
    with pytest.raises(QuambaError, match="'cublas'"), ops.force_cuda_int8_product("cublas"):
        pass
    monkeypatch.delenv(VARIABLE)
    assert ops.cuda_int8_product() == ""
    assert kernels.linear_w8a8(*args).shape == (17, 5)
