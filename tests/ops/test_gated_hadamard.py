"""Mamba2's gated norm, rotated and quantized: equal to the two ops that it fuses."""

import pytest
import torch
from torch import Tensor

from quamba import ops
from quamba.hadamard import base_on
from quamba.ops import reference

from .conftest import assert_within_one_step, random_int8

EPS, SCALE, Z_SCALE = 1e-5, torch.tensor(0.03), torch.tensor(0.05)
# channels, groups: every base, parts that fill no vector, one channel, a group for every channel
SIZES = [(1, 1), (2, 2), (8, 1), (12, 3), (20, 4), (24, 1), (28, 1), (160, 2), (224, 7), (512, 1), (1536, 1), (1536, 8)]


def base_of(n: int) -> Tensor:
    return base_on(n, torch.device("cpu"))


def gates(*shape: int) -> list[tuple[Tensor, Tensor | None]]:
    """z and its scale, float and int8."""
    return [(torch.randn(shape) * 2, None), (random_int8(*shape), Z_SCALE)]


def unfused(y: Tensor, z: Tensor, z_scale: Tensor | None, groups: int, multiplier: Tensor | None = None) -> Tensor:
    normed = ops.gated_rms_norm(y, z, z_scale, EPS, groups)
    return ops.hadamard_quant(normed, base_of(y.shape[-1]), SCALE, multiplier)


def fused(y: Tensor, z: Tensor, z_scale: Tensor | None, groups: int, multiplier: Tensor | None = None) -> Tensor:
    return ops.gated_hadamard_quant(y, z, z_scale, EPS, groups, base_of(y.shape[-1]), SCALE, multiplier)


@pytest.mark.parametrize(("n", "groups"), SIZES)
def test_it_is_the_gated_norm_then_the_quantized_rotation(capability, n, groups):
    for z, z_scale in gates(2, 5, n):
        y = torch.randn(2, 5, n) * 4
        actual = fused(y, z, z_scale, groups)
        assert torch.equal(actual, unfused(y, z, z_scale, groups))
        assert_within_one_step(
            actual, reference.gated_hadamard_quant(y, z, z_scale, EPS, groups, base_of(n), SCALE), differing=0.1
        )


@pytest.mark.parametrize(("n", "groups"), [(1, 1), (24, 1), (160, 2), (1536, 8)])
def test_a_multiplier_is_applied_behind_the_rotation(capability, n, groups):
    y, multiplier = torch.randn(7, n), torch.rand(n) + 0.5
    for z, z_scale in gates(7, n):
        assert torch.equal(fused(y, z, z_scale, groups, multiplier), unfused(y, z, z_scale, groups, multiplier))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_slice_of_a_wider_tensor_needs_no_copy_to_be_right(capability, dtype):
    """z as it lies in the input projection's output, y as every other channel's row; then rows that no view holds."""
    wide = (torch.randn(2, 7, 90) * 50).to(dtype)
    z_scale = torch.tensor(0.02) if dtype == torch.int8 else None
    for z, y in ((wide[..., 5:45], torch.randn(2, 7, 80)[..., 40:]), (wide[:, 1:4, 5:85:2], torch.randn(2, 40, 3).mT)):
        assert torch.equal(fused(y, z, z_scale, 2), fused(y.contiguous(), z.contiguous(), z_scale, 2))


def test_a_row_does_not_depend_on_its_neighbours_or_on_threads(capability):
    y, z = torch.randn(300, 384), torch.randn(300, 384)
    rows = torch.cat([fused(a[None], b[None], None, 4) for a, b in zip(y, z, strict=True)])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(fused(y, z, None, 4), rows)
    finally:
        torch.set_num_threads(threads)


def test_one_row_alone_and_no_rows(capability):
    y, z = torch.randn(24), torch.randn(24)
    assert torch.equal(fused(y, z, None, 2), unfused(y, z, None, 2))
    assert fused(torch.zeros(0, 3, 8), torch.zeros(0, 3, 8), None, 2).shape == (0, 3, 8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": torch.randn(2, 8).double()}, "y must be"),
        ({"z": torch.randn(2, 9)}, "z must have shape"),
        ({"z": random_int8(2, 8)}, "z without a z_scale must be"),
        ({"z_scale": torch.tensor(0.1)}, "z must be"),
        ({"z": random_int8(2, 8), "z_scale": torch.rand(8)}, "z_scale must hold one value"),
        ({"groups": 3}, "8 channels do not split into 3 groups"),
        ({"base": torch.ones(3, 3)}, "no Hadamard matrix of size 8 over a base of 3"),
        ({"base": torch.ones(2, 4)}, "base must have shape"),
        ({"scale": torch.ones(2)}, "scale must hold one value"),
        ({"multiplier": torch.ones(4)}, "multiplier must have shape"),
    ],
)
def test_misfitting_arguments_are_refused_by_name(changed, message):
    arguments = {"y": torch.randn(2, 8), "z": torch.randn(2, 8), "z_scale": None, "eps": EPS, "groups": 1}
    arguments |= {"base": base_of(8), "scale": SCALE, "multiplier": None}
    with pytest.raises(ValueError, match=message):
        ops.gated_hadamard_quant(**arguments | changed)
