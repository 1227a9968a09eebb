"""Random bad calls of the CUDA kernels' emulation: argument checks are those that stand before a GPU's memory."""

import pytest
import torch

from tests.ops.arguments import argument_variants
from tests.ops.test_bad_arguments import python


def test_random_bad_calls_raise_or_return():
    counts = python("-m", "tests.ops.bad_calls", "--calls", "600", "--seed", "1", "--namespace", "quamba_emulated")
    assert "ValueError" in counts.splitlines()[-1]


@pytest.mark.parametrize("group_size", [2**31, 2**32, 2**62])
def test_a_group_may_be_larger_than_32_bits_number(group_size):
    """One group of the whole row, as on the CPU; the kernels number values by 32 bits."""
    code = f"""
import torch
from quamba import ops
from quamba.ops import emulated
from tests.ops.arguments import argument_variants
for name, at in {{"embedding_int4": 6, "linear_w4a8": 7}}.items():
    args = list(argument_variants()[name][0])
    args[at] = {group_size}
    found, expected = (getattr(kernels, name)(*args) for kernels in (torch.ops.quamba_emulated, ops))
    torch.testing.assert_close(found, expected)
"""
    python("-c", code)


def test_a_convolution_has_taps():
    x, weight, bias, _ = argument_variants()["causal_conv1d"][0]
    with pytest.raises(ValueError, match="conv width 0 is under 1"):
        torch.ops.quamba_emulated.causal_conv1d(x, weight[:, :0], bias, None)
