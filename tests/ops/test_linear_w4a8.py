"""int8 rows times group-wise uint4 weights: exact sums within a group, the same bits for any number of rows."""

import pytest
import torch

from quamba import numerics, ops
from quamba.ops import reference

from .conftest import assert_within_one_step, random_int8
from .weights import Uint4Weight, random_uint4_weight

GROUP_SIZES = [32, 64, 128, 256]
# rows that fill tiles of 1, 4, 8, 16 and 32 and leave some over; inputs that leave a byte, a group, a vector unfilled
SIZES = [
    (1, 1, 1),
    (1, 768, 80),
    (3, 31, 5),
    (5, 48, 33),
    (16, 100, 33),
    (17, 129, 80),
    (33, 1536, 20),
    (151, 130, 33),
]
by_size = pytest.mark.parametrize(("rows", "in_features", "out_features"), SIZES)
by_group = pytest.mark.parametrize("group_size", GROUP_SIZES)


def assert_close_to_sums(actual, expected, x, weight: Uint4Weight, x_scale) -> None:
    """Within the rounding of float32 sums whose terms are as large as these."""
    largest = (x.double().abs() @ weight.largest().T) * x_scale.double().reshape(-1, 1)
    assert ((actual.double() - expected.double()).abs() <= 1e-6 * largest + 1e-6).all()


@by_size
@by_group
def test_outputs_match_the_reference(capability, rows, in_features, out_features, group_size):
    x, weight = random_int8(rows, in_features), random_uint4_weight(out_features, in_features, group_size)
    for x_scale in (torch.tensor(0.5), torch.rand(rows) + 0.1):
        for bias in (None, torch.randn(out_features)):
            args = (x, *weight.args, x_scale, bias, *weight.sizes())
            expected = reference.linear_w4a8(*args)
            assert_close_to_sums(ops.linear_w4a8(*args), expected, x, weight, x_scale)
            out_scale = expected.abs().amax(dim=0) / 100 + 0.01
            actual = ops.linear_w4a8_requant(*args, out_scale)
            assert_within_one_step(actual, numerics.quantize(expected, out_scale))


@by_group
@pytest.mark.parametrize("rows", [1, 48])
def test_the_extremes_are_exact(capability, rows, group_size):
    """16-bit sums would saturate, 24-bit floats hold a group's."""
    groups = -(-512 // group_size)
    weight = Uint4Weight(
        rows=torch.full((20, 512), 15, dtype=torch.uint8),
        scale=torch.ones(20, groups).half(),
        zero=torch.zeros(20, groups, dtype=torch.uint8),
        group_size=group_size,
    )
    x = torch.full((rows, 512), -128, dtype=torch.int8)
    y = ops.linear_w4a8(x, *weight.args, torch.ones(()), None, *weight.sizes())
    assert (y == -128 * 15 * 512).all()


@by_group
def test_one_hot_rows_read_the_dequantized_weights(capability, group_size):
    weight = random_uint4_weight(33, 127, group_size)
    y = ops.linear_w4a8(torch.eye(127, dtype=torch.int8), *weight.args, torch.ones(()), None, 33, group_size)  # [I, O]
    assert torch.equal(y, weight.dequantized().T)


def test_every_float16_scale_is_read_exactly(capability):
    """Subnormal numbers too."""
    scale = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16)[:, None]  # [O, 1], every positive one
    outputs = scale.shape[0]
    weight = Uint4Weight(
        torch.ones(outputs, 1, dtype=torch.uint8), scale, torch.zeros(outputs, 1, dtype=torch.uint8), 32
    )
    y = ops.linear_w4a8(torch.ones(1, 1, dtype=torch.int8), *weight.args, torch.ones(()), None, outputs, 32)
    assert torch.equal(y[0], scale[:, 0].float())


@by_group
def test_a_row_does_not_depend_on_its_neighbours(capability, group_size):
    """Prefill and decoding agree bit for bit, whatever kernel takes so many rows."""
    x, weight = random_int8(45, 300), random_uint4_weight(40, 300, group_size)
    x_scale, bias = torch.rand(45), torch.randn(40)
    whole = ops.linear_w4a8(x, *weight.args, x_scale, bias, *weight.sizes())
    for size in (1, 7, 18, 32):
        parts = [
            ops.linear_w4a8(x[i : i + size], *weight.args, x_scale[i : i + size], bias, *weight.sizes())
            for i in range(0, 45, size)
        ]
        assert torch.equal(whole, torch.cat(parts))


def test_an_output_does_not_depend_on_its_neighbours(capability):
    x, weight = random_int8(19, 100), random_uint4_weight(37, 100, 32)
    rolled = Uint4Weight(*(t.roll(5, 0) for t in (weight.rows, weight.scale, weight.zero)), 32)
    y, of_rolled = (ops.linear_w4a8(x, *w.args, torch.ones(()), None, *w.sizes()) for w in (weight, rolled))
    assert torch.equal(y.roll(5, 1), of_rolled)


@by_group
@pytest.mark.skipif("avx512_amx" not in torch.ops.quamba.cpu_capabilities(), reason="needs a CPU with AMX")
def test_amx_gives_the_bits_of_vnni(group_size):
    x, weight = random_int8(50, 333), random_uint4_weight(40, 333, group_size)
    results = []
    for name in ("avx512_amx", "avx512_vnni"):
        with ops.force_cpu_capability(name):
            results.append(ops.linear_w4a8(x, *weight.args, torch.tensor(0.3), None, *weight.sizes()))
    assert torch.equal(*results)


def test_results_do_not_depend_on_the_number_of_threads(capability):
    x, weight = random_int8(33, 200), random_uint4_weight(150, 200, 64)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.linear_w4a8(x, *weight.args, torch.ones(()), None, *weight.sizes()))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_leading_dimensions_and_strided_rows_are_kept(capability):
    x, weight = random_int8(2, 40, 3).transpose(1, 2)[..., 8:], random_uint4_weight(10, 32, 32)
    x_scale = torch.rand(2, 3)
    actual = ops.linear_w4a8(x, *weight.args, x_scale, None, *weight.sizes())
    flat = ops.linear_w4a8(x.reshape(6, 32), *weight.args, x_scale.view(6), None, *weight.sizes())
    assert torch.equal(actual, flat.view(2, 3, 10))


def test_no_rows_give_no_rows(capability):
    weight = random_uint4_weight(10, 40, 32)
    assert ops.linear_w4a8(random_int8(0, 40), *weight.args, torch.ones(()), None, 10, 32).shape == (0, 10)


def test_misfitting_arguments_are_refused_by_name():
    x, one = random_int8(2, 100), torch.ones(())
    weight, scale, zero = random_uint4_weight(20, 100, 32).args

    def linear(x=x, weight=weight, scale=scale, zero=zero, x_scale=one, bias=None, outputs=20, group_size=32):
        return ops.linear_w4a8(x, weight, scale, zero, x_scale, bias, outputs, group_size)

    assert linear().shape == (2, 20)
    for misfit, message in (
        ({"x": x.float()}, "x must be"),
        ({"x": x[:, :90]}, "weight must have shape"),
        ({"weight": weight.view(torch.int8)}, "weight must be"),
        ({"weight": weight.mT.contiguous().mT}, "weight and its scale must be contiguous"),
        ({"outputs": 40}, "weight must have shape"),
        ({"scale": scale.float()}, "scale must be"),
        ({"group_size": 64}, "scale must have shape"),
        ({"zero": zero[:, :2]}, "zero must have shape"),
        ({"zero": zero.to(torch.int8)}, "zero must be"),
        ({"zero": zero.mT.contiguous().mT}, "zero must be contiguous"),
        ({"x_scale": torch.ones(3)}, "x_scale must have shape"),
        ({"x_scale": torch.ones(2, 1)}, "x_scale must have shape"),
        ({"bias": torch.ones(21)}, "bias must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            linear(**misfit)
    for group_size in (0, -32, 16, 48, 96):
        with pytest.raises(ValueError, match=f"group_size must be .* got {group_size}"):
            linear(group_size=group_size)
    with pytest.raises(ValueError, match="out_scale must have shape"):
        ops.linear_w4a8_requant(x, weight, scale, zero, one, None, 20, 32, torch.ones(21))
