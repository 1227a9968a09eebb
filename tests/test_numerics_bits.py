"""Integers are stored in a byte: more bits than it has are refused, not wrapped around."""

import pytest
import torch

from quamba import QuambaError, numerics


@pytest.mark.parametrize("zero", [None, 3.0], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [9, 16])
def test_more_bits_than_a_byte_has_are_refused(bits, zero):
    with pytest.raises(QuambaError, match=f"integers of {bits} bits do not fit a byte"):
        numerics.quantize(torch.tensor([300.0]), 1.0, zero, bits)


@pytest.mark.parametrize("bits", range(2, numerics.MAX_BITS + 1))
def test_every_width_up_to_a_byte_reaches_both_ends(bits):
    x = torch.tensor([-1e9, 1e9])
    assert numerics.quantize(x, 1.0, bits=bits).tolist() == list(numerics.integer_range(bits))
    assert numerics.quantize(x, 1.0, 1.0, bits).tolist() == list(numerics.integer_range(bits, symmetric=False))
