"""What a rounding rule tells of its flips, and the rules that are known by name."""

import json

import pytest
import torch

from quamba.errors import QuambaError
from quamba.weights.grid import Grid
from quamba.weights.rounding import (
    FlipOptions,
    FlipStatistics,
    flip_by_mean,
    get_rounding,
    register_rounding,
    rounding_names,
)
from tests.weights.rounding_cases import (
    random_case,
)

# --- statistics ---


def test_statistics_count_flips_per_row_and_per_channel():
    before = torch.zeros(6, 5)
    after = before.clone()
    after[0, :3], after[1, 1:3], after[2, 2] = 1, -1, 1
    statistics = FlipStatistics.of(before, after, candidates=9)
    assert statistics.flips == 6
    assert statistics.per_row == {0: 0, 50: 0, 90: 2, 99: 2, 100: 3}  # of 0, 0, 0, 1, 2, 3: the lower between two ranks
    assert statistics.per_channel == {0: 0, 50: 1, 90: 2, 99: 2, 100: 3}  # of 0, 0, 1, 2, 3
    assert json.loads(json.dumps(statistics.to_dict())) == {
        "flips": 6,
        "candidates": 9,
        "per_row": {"0": 0, "50": 0, "90": 2, "99": 2, "100": 3},
        "per_channel": {"0": 0, "50": 1, "90": 2, "99": 2, "100": 3},
        "masked_share": 0.0,
        "knee": None,
    }


def test_statistics_tell_candidates_before_the_cap_from_flips_after_it():
    state, moments = random_case(0, 8, 100, Grid(4, False, 32))
    options = FlipOptions(outlier_percent=0.1, max_flip_percent=0.01)
    after, statistics = flip_by_mean(state, moments, options)
    assert statistics.masked_share == 0.1
    assert statistics.per_row[100] == 1
    assert statistics.flips == int((after.integers != state.integers).sum()) <= 8
    assert statistics.candidates > 8 * 10


# --- the registry ---


def test_the_built_in_rules_are_known_by_name():
    assert rounding_names() == ["nearest", "mean", "hessian"]
    assert get_rounding("mean") is flip_by_mean


def test_a_rule_of_ones_own_is_found_by_its_name():
    @register_rounding("down")
    def down(state, statistics, options):
        integers = state.positions().floor().clamp(state.low, state.high)
        return state.with_integers(integers), FlipStatistics.of(state.integers, integers)

    assert rounding_names()[-1] == "down"
    state, moments = random_case(0, 2, 20, Grid(4, False, None))
    after, statistics = get_rounding("down")(state, moments, FlipOptions())
    assert statistics.flips == int((after.integers != state.integers).sum()) > 0


def test_an_unknown_name_is_refused_and_the_known_ones_listed():
    with pytest.raises(QuambaError, match="unknown rounding rule 'means': choose one of nearest, mean, hessian"):
        get_rounding("means")


def test_a_name_is_not_taken_twice_but_a_function_may_replace_itself():
    def other(state, statistics, options):
        return state, FlipStatistics.of(state.integers, state.integers)

    with pytest.raises(QuambaError, match=r"'mean' is taken by quamba\.weights\.rounding\.flip_by_mean"):
        register_rounding("mean")(other)
    register_rounding("mean")(flip_by_mean)
    assert get_rounding("mean") is flip_by_mean


@pytest.mark.parametrize("rule", [lambda state: state, "mean", None], ids=["one argument", "a name", "nothing"])
def test_what_does_not_take_a_rules_arguments_is_refused(rule):
    with pytest.raises(QuambaError, match="must take \\(state, statistics, options\\)"):
        register_rounding("broken")(rule)
    assert "broken" not in rounding_names()
