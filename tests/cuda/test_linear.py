"""Linear layers: CUDA kernels of few and of many rows against the references and, bit for bit, the CPU's kernels."""

import pytest
import torch
from torch import Tensor

from quamba import numerics, ops
from quamba.ops import layout, reference

from ..ops.conftest import assert_within_one_step, random_int8
from ..ops.weights import Int8Weight, Uint4Weight, random_int8_weight, random_uint4_weight
from .platforms import Kernels

ONE = torch.ones(())
# the portable instruction set rounds a multiply-add twice
FUSED_CPU = ops.cpu_capability() != "portable"

# rows that one fragment, one warp, one tile holds, and some more; few rows: up to 16
ROWS = [1, 2, 5, 8, 9, 16, 17, 40, 70]
# (in, out) that fill no word, slice, group or tile, or exactly one of each, or several
SIZES = [(1, 1), (31, 7), (64, 16), (100, 33), (129, 80), (300, 70)]
# (rows, in, out) that blocks of 16 and of 32 outputs take with few rows, and tiles of 128 by 128 with many
LARGE = [(3, 70, 2050), (16, 40, 4100), (140, 33, 6100)]
GROUP_SIZES = [32, 128]
by_rows = pytest.mark.parametrize("rows", ROWS)
by_size = pytest.mark.parametrize(("in_features", "out_features"), SIZES)
by_large = pytest.mark.parametrize(("rows", "in_features", "out_features"), LARGE)
by_group = pytest.mark.parametrize("group_size", GROUP_SIZES)


def assert_close_sums(actual: Tensor, expected: Tensor, x: Tensor, weight: Tensor, x_scale: Tensor = ONE) -> None:
    """Within the rounding of x to two bfloat16 numbers, 2^-17, and that of float32 sums; weight [O, I] dequantized."""
    largest = (x.double().abs() @ weight.double().abs().T) * x_scale.double().reshape(-1, 1)
    assert actual.shape == expected.shape
    assert ((actual.double() - expected.double()).abs() <= 1e-5 * largest + 1e-5).all()


def check_int8_rows(kernels: Kernels, op: str, x: Tensor, weight: Int8Weight | Uint4Weight) -> None:
    """Float and quantized results, one scale and one per row, with and without bias: the reference's and the CPU's."""
    rows, outputs = x.shape[0], weight.rows.shape[0]
    sizes = weight.sizes() if isinstance(weight, Uint4Weight) else ()
    for x_scale, bias in ((torch.tensor(0.5), None), (torch.rand(rows) + 0.1, torch.randn(outputs))):
        args = (x, *weight.args, x_scale, bias, *sizes)
        expected, actual = getattr(reference, op)(*args), getattr(kernels, op)(*args)
        assert_close_sums(actual, expected, x, weight.dequantized(), x_scale)
        out_scale = expected.abs().amax(dim=0) / 150 + 0.01  # the largest saturate
        quantized = getattr(kernels, op + "_requant")(*args, out_scale)
        assert_within_one_step(quantized, numerics.quantize(expected, out_scale))
        assert torch.equal(quantized, numerics.quantize(actual, out_scale))
        if FUSED_CPU:
            assert torch.equal(actual, getattr(ops, op)(*args))


def check_float_rows(kernels: Kernels, op: str, x: Tensor, weight: Int8Weight | Uint4Weight) -> None:
    sizes = weight.sizes() if isinstance(weight, Uint4Weight) else ()
    for bias in (None, torch.randn(weight.rows.shape[0])):
        args = (x, *weight.args, bias, *sizes)
        assert_close_sums(getattr(kernels, op)(*args), getattr(reference, op)(*args), x, weight.dequantized())


@by_rows
@by_size
def test_w8a8_is_the_references(kernels, rows, in_features, out_features):
    check_int8_rows(
        kernels, "linear_w8a8", random_int8(rows, in_features), random_int8_weight(out_features, in_features)
    )


@by_rows
@by_size
@by_group
def test_w4a8_is_the_references(kernels, rows, in_features, out_features, group_size):
    weight = random_uint4_weight(out_features, in_features, group_size)
    check_int8_rows(kernels, "linear_w4a8", random_int8(rows, in_features), weight)


@by_rows
@by_size
def test_w8a16_is_the_references(kernels, rows, in_features, out_features):
    check_float_rows(
        kernels, "linear_w8a16", torch.randn(rows, in_features), random_int8_weight(out_features, in_features)
    )


@by_rows
@by_size
@by_group
def test_w4a16_is_the_references(kernels, rows, in_features, out_features, group_size):
    weight = random_uint4_weight(out_features, in_features, group_size)
    check_float_rows(kernels, "linear_w4a16", torch.randn(rows, in_features), weight)


@by_large
@pytest.mark.parametrize("op", ["linear_w8a8", "linear_w4a8", "linear_w8a16", "linear_w4a16"])
def test_many_outputs_are_the_references(kernels, op, rows, in_features, out_features):
    uint4 = op.startswith("linear_w4")
    drawn = (
        random_uint4_weight(out_features, in_features, 32) if uint4 else random_int8_weight(out_features, in_features)
    )
    x, x_scale = (torch.randn(rows, in_features), ()) if op.endswith("16") else (random_int8(rows, in_features), (ONE,))
    args = (x, *drawn.args, *x_scale, torch.randn(out_features), *(drawn.sizes() if uint4 else ()))
    assert_close_sums(getattr(kernels, op)(*args), getattr(reference, op)(*args), x, drawn.dequantized())


@pytest.mark.parametrize("rows", [1, 16, 17])
def test_many_inputs(kernels, rows):
    """Every warp has several slices, every stage of shared memory is used again."""
    x, int8 = random_int8(rows, 1500), random_int8_weight(40, 1500)
    check_int8_rows(kernels, "linear_w8a8", x, int8)
    check_float_rows(kernels, "linear_w8a16", torch.randn(rows, 1500), int8)
    uint4 = random_uint4_weight(40, 1500, 64)
    check_int8_rows(kernels, "linear_w4a8", x, uint4)
    check_float_rows(kernels, "linear_w4a16", torch.randn(rows, 1500), uint4)


@pytest.mark.parametrize(("in_features", "out_features"), [(736, 4100), (5504, 8)])
def test_more_groups_than_blocks_of_few_rows_have_room_for(kernels, in_features, out_features):
    weight = random_uint4_weight(out_features, in_features, 32)
    args = (random_int8(16, in_features), *weight.args, ONE, None, *weight.sizes())
    torch.testing.assert_close(kernels.linear_w4a8(*args), reference.linear_w4a8(*args), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("group_size", [2048, 4096])
@pytest.mark.parametrize(("integer", "zero"), [(15, 0), (0, 15)])
def test_the_largest_sums_of_groups_are_exact(kernels, rows, group_size, integer, zero):
    drawn = random_uint4_weight(17, 4096, group_size)
    weight = Uint4Weight(
        drawn.rows.fill_(integer), torch.ones_like(drawn.scale), drawn.zero.fill_(zero), drawn.group_size
    )
    x = torch.full((rows, 4096), -128, dtype=torch.int8)
    y = kernels.linear_w4a8(x, *weight.args, ONE, None, *weight.sizes())
    assert (y == -128 * (integer - zero) * 4096).all()


@pytest.mark.parametrize("rows", [1, 9, 40])
@pytest.mark.parametrize("x", [-128, 127])
@pytest.mark.parametrize("weight", [-128, 127])
def test_the_extremes_of_int8_weights_are_exact(kernels, rows, x, weight):
    """Beyond 2^24, where float32 holds not every integer."""
    tiles = layout.tile_int8(torch.full((17, 2050), weight, dtype=torch.int8))
    y = kernels.linear_w8a8(torch.full((rows, 2050), x, dtype=torch.int8), tiles, torch.ones(17), ONE, None)
    assert (y == torch.tensor(2050 * x * weight).float()).all()


@pytest.mark.parametrize("rows", [4, 16, 127])
@by_group
def test_one_hot_rows_read_the_dequantized_weights(kernels, rows, group_size):
    int8, uint4 = random_int8_weight(33, 127), random_uint4_weight(33, 127, group_size)
    x = torch.eye(127)[-rows:]
    for of_weight, y in (
        (int8, kernels.linear_w8a16(x, *int8.args, None)),
        (int8, kernels.linear_w8a8(x.to(torch.int8), *int8.args, ONE, None)),
        (uint4, kernels.linear_w4a16(x, *uint4.args, None, *uint4.sizes())),
        (uint4, kernels.linear_w4a8(x.to(torch.int8), *uint4.args, ONE, None, *uint4.sizes())),
    ):
        assert torch.equal(y, of_weight.dequantized().T[-rows:])


@pytest.mark.parametrize("rows", [6, 30])
def test_float_rows_keep_far_more_than_bfloat16(kernels, rows):
    """Values that half of bfloat16's terms would round away, over all of float32's range."""
    weight = Int8Weight(torch.tensor([[1, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).to(torch.int8), torch.ones(3))
    x = torch.tensor([1 + 2**-14, 1, 3.0e38, 1e-30]).expand(rows, 4)
    y = kernels.linear_w8a16(x, *weight.args, None)
    torch.testing.assert_close(y, torch.tensor([2**-14, 3.0e38, 1e-30]).expand(rows, 3), rtol=2**-16, atol=0)


@pytest.mark.parametrize("rows", [5, 40])
def test_a_nan_stays_in_its_row(kernels, rows):
    x, weight, uint4 = torch.randn(rows, 70), random_int8_weight(20, 70), random_uint4_weight(20, 70, 32)
    x[2, 3] = float("nan")
    for y in (kernels.linear_w8a16(x, *weight.args, None), kernels.linear_w4a16(x, *uint4.args, None, *uint4.sizes())):
        assert y[2].isnan().all()
        assert y[[i for i in range(rows) if i != 2]].isfinite().all()


@pytest.mark.parametrize("rows", [3, 16, 45])
@by_group
def test_a_batch_is_its_rows_one_by_one(kernels, rows, group_size):
    """Decoding and prefill give the same bits where activations are int8."""
    x, x_scale, bias = random_int8(rows, 200), torch.rand(rows), torch.randn(70)
    int8, uint4 = random_int8_weight(70, 200), random_uint4_weight(70, 200, group_size)

    def w8(x, x_scale):
        return kernels.linear_w8a8(x, *int8.args, x_scale, bias)

    def w4(x, x_scale):
        return kernels.linear_w4a8(x, *uint4.args, x_scale, bias, *uint4.sizes())

    for linear in (w8, w4):
        one_by_one = [linear(x[i : i + 1], x_scale[i : i + 1]) for i in range(rows)]
        assert torch.equal(linear(x, x_scale), torch.cat(one_by_one))


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 4), (3, 7), (2, 0)], ids=str)
def test_leading_dimensions_and_strides_change_nothing(kernels, leading):
    weight = random_int8_weight(33, 96)
    wide, x_scale = random_int8(*leading, 144), torch.rand(leading)

    def linear(x, x_scale):
        return kernels.linear_w8a8(x, *weight.args, x_scale, None)

    for x in (wide[..., :96], wide[..., 16:112], wide[..., 5:101]):  # aligned rows, and not
        expected = linear(x.reshape(-1, 96).contiguous(), x_scale.reshape(-1)).reshape(*leading, 33)
        assert torch.equal(linear(x, x_scale), expected)
        if leading:  # neighbouring values of a row far apart in memory
            assert torch.equal(linear(x.mT.contiguous().mT, x_scale), expected)


@pytest.mark.parametrize("tokens", [3, 20])
def test_strided_float_rows(kernels, tokens):
    x, weight = torch.randn(2, tokens, 40)[..., 8:], random_uint4_weight(10, 32, 32)
    flat = kernels.linear_w4a16(x.reshape(-1, 32), *weight.args, None, *weight.sizes())
    assert torch.equal(kernels.linear_w4a16(x, *weight.args, None, *weight.sizes()), flat.view(2, tokens, 10))
    assert torch.equal(
        kernels.linear_w4a16(x.transpose(0, 1), *weight.args, None, 10, 32).transpose(0, 1), flat.view(2, tokens, 10)
    )


def test_a_row_that_is_every_row():
    kernels = torch.ops.quamba_emulated
    x, weight = random_int8(1, 40), random_int8_weight(20, 40)
    one = kernels.linear_w8a8(x, *weight.args, ONE, None)
    assert torch.equal(kernels.linear_w8a8(x.expand(18, 40), *weight.args, ONE, None), one.expand(18, 20))


@pytest.mark.parametrize("rows", [2, 20])
def test_tensors_may_begin_anywhere(kernels, rows):
    """Where vectors of 16 bytes cannot be read."""
    x, weight, x_scale, bias = random_int8(rows, 64), random_int8_weight(24, 64), torch.rand(rows), torch.randn(24)

    def moved(t: Tensor) -> Tensor:
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    args = (x, *weight.args, x_scale, bias, torch.rand(24) + 0.1)
    assert torch.equal(kernels.linear_w8a8_requant(*map(moved, args)), kernels.linear_w8a8_requant(*args))


def test_no_rows_give_no_rows(kernels):
    int8, uint4 = random_int8_weight(10, 16), random_uint4_weight(10, 16, 32)
    assert kernels.linear_w8a8(random_int8(0, 16), *int8.args, ONE, None).shape == (0, 10)
    assert kernels.linear_w4a16(torch.randn(3, 0, 16), *uint4.args, None, 10, 32).shape == (3, 0, 10)


def test_misfitting_arguments_of_int8_weights_are_refused_by_name(kernels):
    x, (weight, scale) = random_int8(2, 8), random_int8_weight(3, 8).args

    def linear(x=x, weight=weight, scale=scale, x_scale=ONE, bias=None):
        return kernels.linear_w8a8(x, weight, scale, x_scale, bias)

    assert linear().shape == (2, 3)
    for misfit, message in (
        ({"x": x.float()}, "x must be Char, got Float"),
        ({"x": x[0, 0]}, r"x must be \[\.\.\., I\], got \[\]"),
        ({"x": x[:, :4]}, r"weight must have shape \[1, 1, 16, 4\], got \[1, 2, 16, 4\]"),
        ({"weight": weight.view(torch.uint8)}, "weight must be Char"),
        ({"weight": weight.mT.contiguous().mT}, "weight and its scale must be contiguous"),
        ({"scale": torch.ones(17)}, "weight must have shape"),
        ({"scale": scale[:, None]}, "weight_scale must have shape"),
        ({"scale": scale.double()}, "weight_scale must be Float"),
        ({"x_scale": torch.ones(3)}, r"x_scale must have shape \[2\], got \[3\]"),
        ({"x_scale": torch.ones(2, 1)}, "x_scale must have shape"),
        ({"x_scale": ONE.half()}, "x_scale must be Float"),
        ({"bias": torch.ones(4)}, "bias must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            linear(**misfit)
    with pytest.raises(ValueError, match="out_scale must have shape"):
        kernels.linear_w8a8_requant(x, weight, scale, ONE, None, torch.ones(4))
    with pytest.raises(ValueError, match="x must be Float, got Char"):
        kernels.linear_w8a16(x, weight, scale, None)


def test_misfitting_arguments_of_uint4_weights_are_refused_by_name(kernels):
    x, (weight, scale, zero) = random_int8(2, 100), random_uint4_weight(20, 100, 32).args

    def linear(x=x, weight=weight, scale=scale, zero=zero, x_scale=ONE, bias=None, outputs=20, group_size=32):
        return kernels.linear_w4a8(x, weight, scale, zero, x_scale, bias, outputs, group_size)

    assert linear().shape == (2, 20)
    for misfit, message in (
        ({"x": x[:, :90]}, "weight must have shape"),
        ({"weight": weight.view(torch.int8)}, "weight must be Byte"),
        ({"weight": weight.mT.contiguous().mT}, "weight and its scale must be contiguous"),
        ({"outputs": 40}, "weight must have shape"),
        ({"scale": scale.float()}, "scale must be Half"),
        ({"group_size": 64}, "scale must have shape"),
        ({"zero": zero[:, :2]}, "zero must have shape"),
        ({"zero": zero.to(torch.int8)}, "zero must be Byte"),
        ({"zero": zero.mT.contiguous().mT}, "zero must be contiguous"),
        ({"bias": torch.ones(21)}, "bias must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            linear(**misfit)
    for group_size in (0, -32, 16, 48, 96):
        with pytest.raises(ValueError, match=f"group_size must be 32 times a power of two, got {group_size}"):
            linear(group_size=group_size)
