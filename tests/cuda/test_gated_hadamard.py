"""Mamba2's gated norm, rotated and quantized: the CUDA kernel against the reference."""

import pytest
import torch
from torch import Tensor

from quamba import numerics
from quamba.ops import reference

from ..ops.conftest import assert_within_one_step, random_int8
from ..ops.test_gated_hadamard import EPS, SCALE, base_of, gates

# channels, groups: every base, parts of one value and of no whole four, fewer warps than groups, as many, and a number
# that groups do not divide
SIZES = [(1, 1), (2, 2), (8, 1), (12, 3), (20, 4), (24, 1), (24, 24), (28, 1), (40, 8), (96, 8), (160, 2), (192, 1)]
SIZES += [(224, 7), (512, 1), (640, 1), (896, 2), (1536, 1), (1536, 2), (1536, 8), (2048, 4), (8192, 8)]


def reference_of(y: Tensor, z: Tensor, z_scale: Tensor | None, groups: int, multiplier: Tensor | None = None) -> Tensor:
    return reference.gated_hadamard_quant(y, z, z_scale, EPS, groups, base_of(y.shape[-1]), SCALE, multiplier)


def fused(kernels, y: Tensor, z: Tensor, z_scale: Tensor | None, groups: int, multiplier: Tensor | None = None):
    return kernels.gated_hadamard_quant(y, z, z_scale, EPS, groups, base_of(y.shape[-1]), SCALE, multiplier)


@pytest.mark.parametrize(("n", "groups"), SIZES)
def test_it_is_the_gated_norm_then_the_quantized_rotation(kernels, n, groups):
    for z, z_scale in gates(1, 2, n):
        y = torch.randn(1, 2, n) * 4
        assert_within_one_step(fused(kernels, y, z, z_scale, groups), reference_of(y, z, z_scale, groups))


@pytest.mark.parametrize("order", [7, 17, 31, 32])
@pytest.mark.parametrize(("copies", "groups"), [(1, 1), (2, 2), (64, 4)])
def test_a_base_that_warps_are_no_multiple_of(kernels, order, copies, groups):
    n, base = order * copies, torch.randn(order, order) / order**0.5
    y, z = torch.randn(2, n), torch.randn(2, n)
    arguments = (y, z, None, EPS, groups, base, SCALE)
    assert_within_one_step(kernels.gated_hadamard_quant(*arguments), reference.gated_hadamard_quant(*arguments))


@pytest.mark.parametrize(("n", "groups"), [(1, 1), (24, 1), (512, 4)])
def test_a_multiplier_is_applied_behind_the_rotation(kernels, n, groups):
    y, multiplier = torch.randn(3, n), torch.rand(n) + 0.5
    for z, z_scale in gates(3, n):
        expected = reference_of(y, z, z_scale, groups, multiplier)
        assert_within_one_step(fused(kernels, y, z, z_scale, groups, multiplier), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_rows_are_read_where_they_lie(kernels, dtype):
    """z as it lies in the input projection's output, at a vector's address or not; then rows that no view holds."""
    z_scale = torch.tensor(0.02) if dtype == torch.int8 else None
    y = torch.randn(2, 3, 80)[..., 40:]
    for width, start in ((88, 0), (88, 4), (90, 0), (89, 4), (88, 5)):
        wide = (torch.randn(2, 3, width) * 50).to(dtype)
        z = wide[..., start : start + 40]
        assert_within_one_step(fused(kernels, y, z, z_scale, 2), reference_of(y, z, z_scale, 2))
    z, y = wide[..., 5:85:2], torch.randn(2, 40, 3).mT
    assert_within_one_step(fused(kernels, y, z, z_scale, 2), reference_of(y, z, z_scale, 2))


def test_integers_are_what_they_stand_for(kernels):
    y, z = torch.randn(5, 96), random_int8(5, 96)
    expected = fused(kernels, y, numerics.dequantize(z, torch.tensor(0.07)), None, 2)
    assert torch.equal(fused(kernels, y, z, torch.tensor(0.07), 2), expected)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_row_does_not_depend_on_its_neighbours(kernels, groups):
    for z, z_scale in gates(9, 96):
        y = torch.randn(9, 96)
        rows = [fused(kernels, a[None], b[None], z_scale, groups) for a, b in zip(y, z, strict=True)]
        assert torch.equal(fused(kernels, y, z, z_scale, groups), torch.cat(rows))


def test_zeros_and_closed_gates_give_zeros(kernels):
    y = torch.randn(2, 24)
    assert fused(kernels, torch.zeros(2, 24), y, None, 2).eq(0).all()
    assert fused(kernels, y, torch.full((2, 24), -200.0), None, 2).eq(0).all()


def test_one_row_alone_and_no_rows(kernels):
    y, z = torch.randn(24), torch.randn(24)
    assert_within_one_step(fused(kernels, y, z, None, 2), reference_of(y, z, None, 2))
    assert fused(kernels, torch.zeros(0, 3, 8), torch.zeros(0, 3, 8), None, 2).shape == (0, 3, 8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": torch.randn(2, 8).double()}, "y must be"),
        ({"z": torch.randn(2, 9)}, "z must have shape"),
        ({"z": random_int8(2, 8)}, "z without a z_scale must be"),
        ({"z_scale": torch.tensor(0.1)}, "z must be"),
        ({"groups": 3}, "8 channels do not split into 3 groups"),
        ({"base": torch.ones(3, 3)}, "no Hadamard matrix of size 8 over a base of 3"),
        ({"scale": torch.ones(2)}, "scale must hold one value"),
        ({"multiplier": torch.ones(4)}, "multiplier must have shape"),
        ({"y": torch.randn(1, 32768), "z": torch.randn(1, 32768)}, "a row of 32768 values takes"),
    ],
)
def test_misfitting_arguments_are_refused_by_name(kernels, changed, message):
    arguments = {"y": torch.randn(2, 8), "z": torch.randn(2, 8), "z_scale": None, "eps": EPS, "groups": 1}
    arguments |= {"base": base_of(8), "scale": SCALE, "multiplier": None}
    with pytest.raises(ValueError, match=message):
        kernels.gated_hadamard_quant(**arguments | changed)
