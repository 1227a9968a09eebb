"""Which channels count as outliers: the largest means, by a fixed share or by the knee of their curve."""

import warnings

import pytest
import torch

from quamba.errors import QuambaError
from quamba.weights.knee import MIN_CHANNELS, outlier_mask_fixed, outlier_mask_knee, share_of


def masked(outliers) -> list[int]:
    return outliers.mask.nonzero().flatten().tolist()


def elbow(channels: int = 100, outliers: int = 6) -> torch.Tensor:
    """Means whose first `outliers` channels are large and falling, the others small and nearly flat; signs differ."""
    mean = torch.cat([torch.linspace(100, 75, outliers), 1 - torch.arange(channels - outliers) / channels])
    return mean * torch.tensor([1.0, -1.0]).repeat(channels)[:channels]


# --- a fixed share ---


def test_the_channels_with_the_largest_means_are_masked_whatever_their_sign():
    found = outlier_mask_fixed(torch.tensor([0.1, -9.0, 0.2, 3.0, -0.3, 0.0, 0.0, 0.0, 0.0, 0.0]), 0.2)
    assert masked(found) == [1, 3]
    assert found.share == 0.2
    assert found.knee is None


@pytest.mark.parametrize(
    ("percent", "count"), [(0.0, 0), (0.009, 0), (0.05, 5), (0.29, 29), (0.57, 57), (0.999, 99), (1 - 1e-9, 99)]
)
def test_the_number_of_masked_channels_is_rounded_down(percent, count):
    assert int(outlier_mask_fixed(torch.arange(100.0), percent).mask.sum()) == count


def test_of_equal_means_the_lower_channel_is_masked():
    mean = torch.tensor([0.5, 2.0, -1.0, 1.0] * 25)
    assert masked(outlier_mask_fixed(mean, 0.27)) == sorted([*range(1, 100, 4), 2, 3])


def test_shares_are_taken_as_they_are_written():
    assert [share_of(0.29, 100), share_of(0.07, 100), share_of(1e-05, 100_000), share_of(1, 7)] == [29, 7, 1, 7]
    assert [share_of(0.5, 7), share_of(-0.5, 7)] == [3, -3]  # cut towards 0


@pytest.mark.parametrize("percent", [-0.01, 1.0, 5.0, float("nan")])
def test_shares_that_mask_everything_or_nothing_sensible_are_refused(percent):
    with pytest.raises(QuambaError, match="at least 0 and below 1"):
        outlier_mask_fixed(torch.ones(20), percent)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("find", [lambda mean: outlier_mask_fixed(mean, 0.05), outlier_mask_knee])
def test_means_that_are_not_finite_are_refused(find, bad):
    with pytest.raises(QuambaError, match="NaN or infinity"):
        find(torch.tensor([1.0, bad] * 10))


# --- the knee ---


def test_the_channels_before_the_knee_are_masked():
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    found = outlier_mask_knee(elbow()[shuffled])
    assert found.knee == 6
    assert sorted(shuffled[found.mask].tolist()) == list(range(6))
    assert found.share == 0.06


@pytest.mark.parametrize(("tolerance", "count"), [(0.03, 9), (0.039, 9), (-0.02, 4), (-0.5, 0), (0.94, 100), (7, 100)])
def test_the_tolerance_shifts_the_knee_by_a_share_of_the_channels(tolerance, count):
    found = outlier_mask_knee(elbow(), tolerance)
    assert found.knee == 6
    assert masked(found) == list(range(count))


@pytest.mark.parametrize(
    "mean",
    [
        torch.zeros(64),
        torch.full((64,), -3.0),
        torch.arange(64.0),
        torch.linspace(0.1, 0.7, 1000),
        elbow(100, 60),  # its first half is straight: the elbow lies in the second
        torch.arange(64.0).sqrt(),  # falls faster the further it goes: no knee of a convex curve
        elbow(MIN_CHANNELS - 1, 2),
        torch.ones(1),
    ],
    ids=[
        "zeros",
        "flat",
        "straight",
        "straight in steps",
        "elbow beyond half",
        "concave",
        "few channels",
        "one channel",
    ],
)
@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_without_a_knee_nobody_is_masked(mean, tolerance):
    found = outlier_mask_knee(mean, tolerance)
    assert found.knee is None
    assert masked(found) == []
    assert found.share == 0


def test_looking_for_a_knee_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outlier_mask_knee(torch.zeros(64))
        outlier_mask_knee(torch.arange(64.0))
        outlier_mask_knee(torch.arange(64.0).sqrt())


def test_the_lower_half_of_the_curve_does_not_move_the_knee():
    mean = torch.exp(-torch.arange(100) / 30)
    changed = torch.cat([mean[:50], torch.zeros(50)])
    assert outlier_mask_knee(mean).knee == outlier_mask_knee(changed).knee is not None


def test_ten_channels_are_enough():
    assert outlier_mask_knee(elbow(MIN_CHANNELS, 2)).knee == 2


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf")])
def test_a_tolerance_that_is_not_finite_is_refused(tolerance):
    with pytest.raises(QuambaError, match="knee_tolerance"):
        outlier_mask_knee(elbow(), tolerance)
