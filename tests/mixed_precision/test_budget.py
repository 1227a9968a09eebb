"""Budgets as a user writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba.errors import QuambaError
from quamba.mixed_precision.budget import Budget


@pytest.mark.parametrize("text", ["5.5", "5.5bits", "5.5 bits", " 5.50BITS "])
def test_a_plain_number_is_mean_bits_a_weight(text):
    assert Budget.parse(text).limit(1000) == 687  # 687.5 bytes


@pytest.mark.parametrize(("text", "limit"), [("40MB", 40_000_000), ("0.5 mb", 500_000), (".25Mb", 250_000)])
def test_megabytes_are_of_all_blocks_whatever_their_weights(text, limit):
    assert Budget.parse(text).limit(1) == Budget.parse(text).limit(10**9) == limit


def test_a_budget_is_exact():
    assert 4.3 * 800 / 8 != 430 or 4.35 * 800 / 8 != 435  # floats are not
    assert Budget.parse("4.3").limit(800) == 430
    assert Budget.parse("4.35").limit(800) == 435


@pytest.mark.parametrize(
    "text", ["", "w4a8", "-4", "0", "0.0MB", "nan", "inf", "1e3", "4,5", "4..5", ".", "4GB", "0.6x", "4 5", "MB"]
)
def test_anything_else_is_an_error_that_names_it(text):
    with pytest.raises(QuambaError) as raised:
        Budget.parse(text)
    assert repr(text) in str(raised.value) and "such as 5.5 or 5.5bits" in str(raised.value)


@given(size=st.integers(1, 10**12), weights=st.integers(1, 10**12), unit=st.sampled_from(["bits", "MB"]))
def test_a_proposed_budget_holds_the_size_and_is_the_smallest_of_its_digits(size, weights, unit):
    proposed = Budget.parse(f"1{unit}").covering(size, weights)
    assert Budget.parse(proposed).limit(weights) >= size
    thousandths = int(proposed.removesuffix(unit).replace(".", "")) - 1
    assert (
        thousandths == 0 or Budget.parse(f"{thousandths // 1000}.{thousandths % 1000:03}{unit}").limit(weights) < size
    )
