"""The rule "mean" against a plain loop, what no rule may do, options, statistics and the registry."""

import logging
import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from quamba.errors import QuambaError
from quamba.weights import rounding
from quamba.weights.grid import Grid
from quamba.weights.rounding import (
    FlipOptions,
    FlipStatistics,
    flip_by_mean,
    get_rounding,
    mean_error,
)
from quamba.weights.rounding_state import RoundingState
from tests.weights.rounding_cases import (
    Moments,
    assert_only_flips,
    cancelling_case,
    cases,
    flat,
    random_case,
    some_options,
)

EVERYTHING = FlipOptions(outlier_percent=0.0, max_flip_percent=1.0)


def flip_row(state: RoundingState, row: int, mean: Tensor, masked: Tensor, most: int) -> list[float]:
    """The oracle: the integers of one row after the rule "mean", by its definition, without groups and without sorts
    of torch."""
    integers, positions = state.integers[row].tolist(), state.positions()[row].tolist()
    scales, zeros = state.per_column(state.scale)[row].tolist(), state.per_column(state.zero)[row].tolist()
    weights, means = state.weight[row].tolist(), mean.tolist()
    error = math.fsum(
        m * (w - (q - z) * s) for m, w, q, z, s in zip(means, weights, integers, zeros, scales, strict=True)
    )
    candidates = []
    for j, (position, integer) in enumerate(zip(positions, integers, strict=True)):
        direction = (position > integer) - (position < integer)
        removed = means[j] * direction * scales[j]
        if removed * error > 0 and state.low <= integer + direction <= state.high and not masked[j]:
            candidates.append((-abs(position - integer), j, direction, removed))
    candidates = sorted(candidates)[:most]
    left = [abs(error - math.fsum(c[3] for c in candidates[:n])) for n in range(len(candidates) + 1)]
    for _, j, direction, _ in candidates[: left.index(min(left))]:
        integers[j] += direction
    return integers


# --- what the rules may and may not do ---


def test_nearest_leaves_the_state_as_it_is():
    state, moments = random_case(0, 3, 37, Grid(4, False, 8))
    after, statistics = get_rounding("nearest")(state, moments, EVERYTHING)
    assert after is state
    assert (statistics.flips, statistics.candidates, statistics.masked_share) == (0, 0, 0)


@given(cases, some_options)
@settings(max_examples=200, deadline=None)
def test_the_mean_rule_equals_a_plain_loop_over_rows(case, options):
    state, moments = case
    after, _ = flip_by_mean(state, moments, options)
    masked, most = options.outliers(moments.mean).mask, options.most_flips(state.weight.shape[1])
    assert after.integers.tolist() == [
        flip_row(state, row, moments.mean, masked, most) for row in range(len(state.weight))
    ]


@given(cases, some_options)
@settings(max_examples=200, deadline=None)
def test_the_mean_error_of_no_row_grows(case, options):
    state, moments = case
    after, _ = flip_by_mean(state, moments, options)
    assert (mean_error(after, moments.mean).abs() <= mean_error(state, moments.mean).abs()).all()
    weighted = [s.double().error() * moments.mean.double() for s in (state, after)]
    before, now = ([abs(math.fsum(row)) for row in part.tolist()] for part in weighted)
    assert all(new <= old for new, old in zip(now, before, strict=True))


@given(cases, some_options)
@settings(max_examples=200, deadline=None)
def test_the_mean_rule_moves_unmasked_integers_by_one_across_their_value(case, options):
    state, moments = case
    integers = state.integers.clone()
    after, statistics = flip_by_mean(state, moments, options)
    outliers, most = options.outliers(moments.mean), options.most_flips(state.weight.shape[1])
    assert_only_flips(state, after, outliers.mask, most)
    assert torch.equal(state.integers, integers)
    assert statistics.flips == int((after.integers != integers).sum()) <= statistics.candidates
    assert (statistics.masked_share, statistics.knee) == (outliers.share, outliers.knee)


@given(cases, some_options)
@settings(max_examples=100, deadline=None)
def test_groups_make_no_difference_to_the_mean_rule(case, options):
    state, moments = case
    after, _ = flip_by_mean(state, moments, options)
    assert torch.equal(after.integers, flip_by_mean(flat(state), moments, options)[0].integers)


@pytest.mark.parametrize("name", ["mean", "hessian"])
def test_a_cap_of_no_flips_touches_nothing(name):
    state, moments = random_case(0, 5, 99, Grid(4, False, 32))
    after, statistics = get_rounding(name)(state, moments, FlipOptions(max_flip_percent=0.01))  # 0.99 of a weight
    assert torch.equal(after.integers, state.integers)
    assert statistics.flips == 0
    assert statistics.candidates > 0


@pytest.mark.parametrize("name", ["mean", "hessian"])
def test_rounding_twice_gives_the_same_integers_and_chunks_of_rows_change_nothing(name, monkeypatch):
    state, moments = random_case(1, 23, 150, Grid(4, False, 32))
    rule, options = get_rounding(name), FlipOptions(max_flip_percent=0.1)
    after, statistics = rule(state, moments, options)
    assert statistics.flips > 0
    assert torch.equal(rule(state, moments, options)[0].integers, after.integers)
    monkeypatch.setattr(rounding, "CHUNK_BYTES", 150 * rounding.BYTES_PER_WEIGHT * 4)  # four rows
    chunked, again = rule(state, moments, options)
    assert torch.equal(chunked.integers, after.integers)
    assert again == statistics


# --- the mean rule by hand ---


def by_hand(weight: list[float], mean: list[float], **options) -> list[float]:
    """The integers of one row on a grid of step 1 from 0 to 15, after the rule "mean"."""
    state = Grid(4, False, None).nearest(torch.tensor([weight]), torch.ones(1, 1), torch.zeros(1, 1))
    options = {"outlier_percent": 0.0, "max_flip_percent": 1.0} | options
    after, _ = flip_by_mean(state, Moments(torch.tensor(mean).float()), FlipOptions(**options))
    return after.integers[0].tolist()


def test_flips_go_by_rounding_cost_and_stop_where_the_error_is_least():
    # errors 0.25, 0.375, 0.3125: e = 0.9375; the costliest flip leaves -0.0625
    assert by_hand([1.25, 2.375, 3.3125], [1, 1, 1]) == [1, 3, 3]
    # a mean of 0.25 takes 0.25 of e = 0.65625 at a time: 0.40625 is left, then 0.15625, then -0.09375
    assert by_hand([1.375, 2.375, 3.375, 4.375, 5.375, 6.375, 7.375], [0.25] * 7) == [2, 3, 4, 4, 5, 6, 7]


def test_a_flip_that_only_turns_the_error_around_is_not_made():
    assert by_hand([1.5], [1]) == [2]  # e = -0.5, and 0.5 after the flip


def test_weights_on_the_grid_and_at_the_end_of_the_range_do_not_flip():
    # e = 0.25 + 0.25 + 0.4375: the flip of the last would go to 16, that of the second has no direction
    assert by_hand([2.25, 3.0, 2.25, 15.4375], [1, 1, 1, 1]) == [3, 3, 2, 15]


def test_flips_whose_effect_has_the_other_sign_are_not_candidates():
    # e = 0.219 - 0.059 + 0.125. Raising the second, the costliest, would add 0.125 to it; the first takes 0.5.
    assert by_hand([1.4375, 2.46875, 3.25], [0.5, -0.125, 0.5]) == [2, 2, 3]
    assert by_hand([1.375, 2.5625], [0.5, -0.125]) == [1, 2]  # e = 0.242: lowering the second takes 0.125


def test_a_gain_that_float64_sums_cannot_tell_is_none():
    state, moments = cancelling_case()
    after, statistics = flip_by_mean(state, moments, FlipOptions(outlier_percent=0.7, max_flip_percent=1.0))
    assert statistics.candidates == 64
    assert torch.equal(after.integers, state.integers)


def test_a_channel_whose_mean_is_zero_does_not_flip():
    assert by_hand([1.4375, 2.375, 3.25], [0, 1, 1]) == [1, 3, 3]


def test_masked_channels_do_not_flip():
    weight, mean = [1.4375] * 10, [2.0] + [1.0] * 9
    assert by_hand(weight, mean, max_flip_percent=0.1) == [2] + [1] * 9
    assert by_hand(weight, mean, max_flip_percent=0.1, outlier_percent=0.1) == [1, 2] + [1] * 8


def test_states_that_are_not_nearest_flip_towards_the_real_value():
    """GPTQ leaves integers more than half a step from their value: a flip is still one step, towards it."""
    state = Grid(4, False, None).nearest(torch.tensor([[5.25, 5.0]]), torch.ones(1, 1), torch.zeros(1, 1))
    state = state.with_integers(torch.tensor([[3.0, 5.0]]))
    after, _ = flip_by_mean(state, Moments(torch.ones(2)), EVERYTHING)
    assert after.integers.tolist() == [[4, 5]]


# --- masks are not a switch ---

# Share of masked channels -> mean |e| of a row, sum of |W - Wq|, flips; None: flips are off. 10 outputs x 100 inputs on
# uint4 in groups of 32, normal weights and means, at most 5 flips a row.
MASKING = {
    None: (0.6379, 73.2611, 0),
    0.999: (0.6373, 74.1080, 4),
    0.9: (0.5318, 80.0098, 46),
    0.5: (0.3833, 74.0319, 37),
    0.05: (0.2537, 73.6320, 31),
}


def masking(share: float | None) -> tuple[Tensor, RoundingState, FlipStatistics]:
    """(mean [I], the state after flips with that share of the channels masked, their statistics)."""
    generator = torch.Generator().manual_seed(0)
    state = Grid(4, False, 32).nearest(torch.randn(10, 100, generator=generator))
    mean = torch.randn(100, generator=generator)
    if share is None:
        return mean, *get_rounding("nearest")(state, Moments(mean), FlipOptions())
    return mean, *flip_by_mean(state, Moments(mean), FlipOptions(share, max_flip_percent=0.05))


@pytest.mark.parametrize("share", MASKING)
def test_the_table_of_masks_is_what_the_rule_does(share):
    mean, after, statistics = masking(share)
    error, distance = mean_error(after, mean).abs().mean(), after.double().error().abs().sum()
    assert (error.item(), distance.item()) == pytest.approx(MASKING[share][:2], abs=1e-4)
    assert statistics.flips == MASKING[share][2]


def test_masking_99_9_percent_is_not_the_same_as_switching_flips_off():
    """99.9 % of 100 channels is 99: the one with the smallest mean is free, and its weights do flip. They move W away
    from its values and gain nothing to speak of; the fewer channels are masked, the lower the error."""
    mean, after, statistics = masking(0.999)
    _, off, none = masking(None)
    flipped = (after.integers != off.integers).any(dim=0).nonzero().flatten().tolist()
    assert flipped == [int(mean.abs().argmin())]
    assert statistics.flips > none.flips == 0
    assert statistics.masked_share == 0.99
    errors = [error for error, _, _ in MASKING.values()]
    assert errors == sorted(errors, reverse=True)


# --- options ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outlier_percent": 1.0}, "outlier_percent 1.0 .* leave --use_heuristic off"),
        ({"outlier_percent": 5}, "outlier_percent 5 "),
        ({"outlier_percent": -0.1}, "outlier_percent -0.1 "),
        ({"outlier_percent": float("nan")}, "outlier_percent nan "),
        ({"max_flip_percent": -0.01}, "max_flip_percent -0.01 "),
        ({"max_flip_percent": 1.5}, "max_flip_percent 1.5 "),
        ({"max_flip_percent": float("nan")}, "max_flip_percent nan "),
        ({"knee_tolerance": float("inf")}, "knee_tolerance inf "),
        ({"knee_tolerance": float("nan")}, "knee_tolerance nan "),
    ],
)
def test_options_out_of_range_are_refused_by_name(fields, message):
    with pytest.raises(QuambaError, match=message):
        FlipOptions(**fields)


def test_a_mask_of_more_than_half_of_the_channels_warns_of_what_it_does(caplog):
    with caplog.at_level(logging.WARNING, logger="quamba"):
        FlipOptions(outlier_percent=0.5)
        assert not caplog.records
        FlipOptions(outlier_percent=0.999)
    (record,) = caplog.records
    assert record.getMessage() == (
        "outlier_percent 0.999: the 99.9 % of the channels with the largest means cannot flip, the rest still can. "
        "To do without flips, leave --use_heuristic off"
    )


@pytest.mark.parametrize(("share", "flips"), [(0.01, 7), (0.0, 0), (1.0, 768), (0.0013, 0), (0.25, 192)])
def test_the_cap_is_rounded_down_to_whole_weights(share, flips):
    assert FlipOptions(max_flip_percent=share).most_flips(768) == flips


def test_without_a_share_the_knee_decides_who_is_masked():
    mean = torch.cat([torch.tensor([50.0, -40.0, 45.0]), torch.linspace(1, 0.5, 47)])
    assert FlipOptions().outliers(mean).mask.nonzero().flatten().tolist() == [0, 1, 2]
    assert int(FlipOptions(knee_tolerance=0.04).outliers(mean).mask.sum()) == 5
    assert int(FlipOptions(outlier_percent=0.02, knee_tolerance=0.04).outliers(mean).mask.sum()) == 1


@pytest.mark.parametrize("name", ["mean", "hessian"])
@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (torch.ones(7), "a weight of 8 columns needs a mean of as many inputs, not \\(7,\\)"),
        (torch.full((8,), float("nan")), "NaN or infinity"),
    ],
    ids=["another size", "not finite"],
)
def test_a_mean_that_does_not_fit_is_refused(name, mean, message):
    state, _ = random_case(0, 2, 8, Grid(4, False, 8))
    with pytest.raises(QuambaError, match=message):
        get_rounding(name)(state, Moments(mean, torch.eye(8)), FlipOptions())
