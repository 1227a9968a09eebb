"""Mamba2's gated norm: the CUDA kernel against the reference."""

import pytest
import torch

from quamba import numerics
from quamba.ops import reference

from ..ops.conftest import random_int8

EPS = 1e-5
SIZES = [(1, 1), (37, 1), (64, 4), (60, 4), (600, 1), (600, 3)]  # channels, groups; 25600 channels exceed shared memory


@pytest.mark.parametrize(("channels", "groups"), [*SIZES, (25600, 1)])
def test_float_matches_the_reference(kernels, channels, groups):
    y, z = torch.randn(1, 3, channels) * 4, torch.randn(1, 3, channels) * 4
    actual = kernels.gated_rms_norm(y, z, None, EPS, groups)
    torch.testing.assert_close(actual, reference.gated_rms_norm(y, z, None, EPS, groups), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("channels", "groups"), SIZES)
def test_int8_is_the_float_norm_of_what_the_integers_stand_for(kernels, channels, groups):
    y, z, scale = torch.randn(5, channels), random_int8(5, channels), torch.tensor(0.07)
    actual = kernels.gated_rms_norm(y, z, scale, EPS, groups)
    assert torch.equal(actual, kernels.gated_rms_norm(y, numerics.dequantize(z, scale), None, EPS, groups))
    torch.testing.assert_close(actual, reference.gated_rms_norm(y, z, scale, EPS, groups), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_slice_of_a_wider_tensor_is_read_where_it_lies(kernels, dtype):
    """z as it lies in the input projection's output, y as every other channel's row; then rows that no view holds."""
    wide = (torch.randn(2, 7, 90) * 50).to(dtype)
    scale = torch.tensor(0.02) if dtype == torch.int8 else None
    for z, y in ((wide[..., 5:45], torch.randn(2, 7, 80)[..., 40:]), (wide[:, 1:4, 5:85:2], torch.randn(2, 40, 3).mT)):
        expected = kernels.gated_rms_norm(y.contiguous(), z.contiguous(), scale, EPS, 2)
        assert torch.equal(kernels.gated_rms_norm(y, z, scale, EPS, 2), expected)


def test_a_row_does_not_depend_on_its_neighbours(kernels):
    y, z = torch.randn(9, 100), torch.randn(9, 100)
    rows = torch.cat([kernels.gated_rms_norm(a[None], b[None], None, EPS, 4) for a, b in zip(y, z, strict=True)])
    assert torch.equal(kernels.gated_rms_norm(y, z, None, EPS, 4), rows)


def test_zeros_and_closed_gates_give_zeros(kernels):
    y = torch.randn(2, 20)
    assert kernels.gated_rms_norm(torch.zeros(2, 20), y, None, EPS, 1).eq(0).all()
    assert kernels.gated_rms_norm(y, torch.full((2, 20), -200.0), None, EPS, 1).abs().max() < 1e-6


def test_one_row_alone_and_no_rows(kernels):
    y, z = torch.randn(8), torch.randn(8)
    expected = reference.gated_rms_norm(y, z, None, EPS, 2)
    torch.testing.assert_close(kernels.gated_rms_norm(y, z, None, EPS, 2), expected)
    assert kernels.gated_rms_norm(torch.zeros(0, 8), torch.zeros(0, 8), None, EPS, 2).shape == (0, 8)


@pytest.mark.parametrize(
    ("z", "z_scale", "groups", "message"),
    [
        (torch.randn(2, 9), None, 1, "z must have shape"),
        (random_int8(2, 8), None, 1, "z without a z_scale must be"),
        (torch.randn(2, 8), torch.tensor(0.1), 1, "z must be"),
        (random_int8(2, 8), torch.rand(8), 1, "z_scale must hold one value"),
        (torch.randn(2, 8), None, 3, "8 channels do not split into 3 groups"),
        (torch.randn(2, 8), None, 0, "8 channels do not split into 0 groups"),
    ],
)
def test_misfitting_arguments_are_refused_by_name(kernels, z, z_scale, groups, message):
    with pytest.raises(ValueError, match=message):
        kernels.gated_rms_norm(torch.randn(2, 8), z, z_scale, EPS, groups)
