"""Rows quantized with a scale of their own."""

import pytest
import torch

from quamba import numerics, ops
from quamba.ops import reference


@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (2, 5, 37), (151, 100), (768,)], ids=str)
def test_it_is_the_references_integers_and_scales(capability, shape):
    x = torch.randn(shape) * torch.logspace(-3, 3, shape[-1])
    for actual, expected in zip(ops.quantize_per_token(x), reference.quantize_per_token(x), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


def test_the_largest_magnitude_of_a_row_is_127(capability):
    x = torch.tensor([[1.0, -3.0, 2.0], [-1e-3, 5e-4, 0.0]])
    q, scale = ops.quantize_per_token(x)
    assert q.tolist() == [[42, -127, 85], [-127, 64, 0]]
    torch.testing.assert_close(scale, torch.tensor([3.0, 1e-3]) / 127)


def test_a_row_of_zeros_has_a_positive_scale(capability):
    q, scale = ops.quantize_per_token(torch.zeros(2, 20))
    assert q.eq(0).all()
    assert torch.equal(scale, numerics.symmetric_scale(torch.zeros(2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_float_types_are_converted_first(capability, dtype):
    x = torch.randn(4, 50).to(dtype)
    for actual, expected in zip(ops.quantize_per_token(x), ops.quantize_per_token(x.float()), strict=True):
        assert torch.equal(actual, expected)


def test_rows_may_be_strided(capability):
    x = torch.randn(50, 6)
    for actual, expected in zip(ops.quantize_per_token(x.T), ops.quantize_per_token(x.T.clone()), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("place", [0, 15, 16, 31, 36])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_magnitude_may_stand_anywhere(capability, place, sign):
    x = torch.rand(3, 37) - 0.5
    x[1, place] = sign * 4
    q, scale = ops.quantize_per_token(x)
    assert scale[1] == numerics.symmetric_scale(torch.tensor(4.0))
    assert q[1, place] == sign * 127


def test_an_infinite_value_gives_an_infinite_scale(capability):
    """And zeros: nothing that looks like a number comes of it."""
    q, scale = ops.quantize_per_token(torch.tensor([[1.0, float("-inf")], [1.0, 2.0]]))
    assert scale.isinf().tolist() == [True, False]
    assert q[0].eq(0).all()


def test_a_row_depends_neither_on_its_neighbours_nor_on_threads(capability):
    x, threads = torch.randn(300, 500), torch.get_num_threads()
    one_by_one = [torch.stack(parts) for parts in zip(*map(ops.quantize_per_token, x), strict=True)]
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(map(torch.equal, ops.quantize_per_token(x), one_by_one))
    finally:
        torch.set_num_threads(threads)


def test_a_nan_is_zero_and_leaves_its_row_alone(capability):
    x = torch.tensor([[1.0, float("nan"), -3.0]])
    for actual, expected in zip(ops.quantize_per_token(x), reference.quantize_per_token(x), strict=True):
        assert torch.equal(actual, expected)
    assert ops.quantize_per_token(x)[0].tolist() == [[42, 0, -127]]


def test_a_scalar_is_refused():
    with pytest.raises(ValueError, match="got a scalar"):
        ops.quantize_per_token(torch.tensor(1.0))
