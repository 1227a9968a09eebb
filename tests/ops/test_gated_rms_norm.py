"""Mamba2's gated norm: RMSNorm of y * SiLU(z) over groups of channels."""

import pytest
import torch
import torch.nn.functional as F

from quamba import numerics, ops
from quamba.ops import reference

from .conftest import random_int8

EPS = 1e-5


def test_the_reference_is_silu_then_rms_norm():
    y, z = torch.randn(3, 5, 32), torch.randn(3, 5, 32)
    expected = F.rms_norm(y * F.silu(z), (32,), eps=EPS)
    torch.testing.assert_close(reference.gated_rms_norm(y, z, None, EPS, 1), expected)


def test_groups_of_the_reference_are_normed_each_alone():
    y, z = torch.randn(7, 24), torch.randn(7, 24)
    expected = [
        reference.gated_rms_norm(a, b, None, EPS, 1) for a, b in zip(y.split(8, -1), z.split(8, -1), strict=True)
    ]
    torch.testing.assert_close(reference.gated_rms_norm(y, z, None, EPS, 3), torch.cat(expected, dim=-1))


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (37, 1), (64, 4), (60, 4), (1536, 1), (1536, 8)])
def test_float_matches_the_reference(capability, channels, groups):
    y, z = torch.randn(3, 5, channels) * 4, torch.randn(3, 5, channels) * 4
    actual = ops.gated_rms_norm(y, z, None, EPS, groups)
    torch.testing.assert_close(actual, reference.gated_rms_norm(y, z, None, EPS, groups), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (37, 1), (60, 4), (1536, 8)])
def test_int8_is_the_float_norm_of_what_the_integers_stand_for(capability, channels, groups):
    y, z, scale = torch.randn(9, channels), random_int8(9, channels), torch.tensor(0.07)
    actual = ops.gated_rms_norm(y, z, scale, EPS, groups)
    assert torch.equal(actual, ops.gated_rms_norm(y, numerics.dequantize(z, scale), None, EPS, groups))
    torch.testing.assert_close(actual, reference.gated_rms_norm(y, z, scale, EPS, groups), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_slice_of_a_wider_tensor_needs_no_copy_to_be_right(capability, dtype):
    """z as it lies in the input projection's output, y as every other channel's row."""
    wide = (torch.randn(2, 7, 90) * 50).to(dtype)
    z, y = wide[..., 5:45], torch.randn(2, 7, 80)[..., 40:]
    scale = torch.tensor(0.02) if dtype == torch.int8 else None
    expected = ops.gated_rms_norm(y.contiguous(), z.contiguous(), scale, EPS, 2)
    assert torch.equal(ops.gated_rms_norm(y, z, scale, EPS, 2), expected)


def test_a_row_does_not_depend_on_its_neighbours_or_on_threads(capability):
    y, z = torch.randn(300, 500), torch.randn(300, 500)
    rows = torch.cat([ops.gated_rms_norm(a[None], b[None], None, EPS, 4) for a, b in zip(y, z, strict=True)])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(ops.gated_rms_norm(y, z, None, EPS, 4), rows)
    finally:
        torch.set_num_threads(threads)


def test_zeros_and_closed_gates_give_zeros(capability):
    y = torch.randn(2, 20)
    assert ops.gated_rms_norm(torch.zeros(2, 20), y, None, EPS, 1).eq(0).all()
    assert ops.gated_rms_norm(y, torch.full((2, 20), -200.0), None, EPS, 1).abs().max() < 1e-6


def test_no_rows_give_no_rows(capability):
    assert ops.gated_rms_norm(torch.zeros(0, 8), torch.zeros(0, 8), None, EPS, 2).shape == (0, 8)


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
def test_misfitting_arguments_are_refused_by_name(z, z_scale, groups, message):
    with pytest.raises(ValueError, match=message):
        ops.gated_rms_norm(torch.randn(2, 8), z, z_scale, EPS, groups)
