"""Sort-and-cluster: which channels of Mamba2's x share a scale, and in which order they stand."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba.errors import QuambaError
from quamba.observers.grouped import expand_to_channels
from quamba.transforms.clusters import ChannelOrder, _divide, cluster_channels

# scipy's, of maxima that are all zero
pytestmark = pytest.mark.filterwarnings("ignore:The symmetric non-negative hollow observation matrix")


def reordered(maxima: torch.Tensor, order: ChannelOrder) -> torch.Tensor:
    """The maxima at their new places [S, P]."""
    return maxima.flatten()[order.permutation()].view_as(maxima)


def group_peaks(maxima: torch.Tensor, order: ChannelOrder) -> torch.Tensor:
    """The largest maximum of each group."""
    peaks = torch.zeros(order.groups, dtype=maxima.dtype)
    return peaks.scatter_reduce(0, order.group_id.flatten(), reordered(maxima, order).flatten(), "amax")


def error_proxy(maxima: torch.Tensor, order: ChannelOrder) -> float:
    """The sum over the groups of n * max^2: what the squared error of quantizing with a scale per group is like."""
    return float((order.group_id.flatten().bincount() * group_peaks(maxima, order).double() ** 2).sum())


@st.composite
def layers(draw) -> tuple[torch.Tensor, int, int, int]:
    """Maxima [S, P] with ties and zeros among them, n_groups, head_groups, channel_groups."""
    n_groups, heads_per_group = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    shape = (n_groups * heads_per_group, draw(st.integers(1, 10)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    kind = draw(st.sampled_from(["smooth", "ties", "zeros", "outliers"]))
    maxima = torch.rand(shape, generator=generator)
    if kind == "ties":
        maxima = (maxima * 3).floor()
    elif kind == "zeros":
        maxima = torch.zeros(shape)
    elif kind == "outliers":
        maxima = torch.exp(maxima * 60 - 30)
    return maxima, n_groups, draw(st.integers(1, 5)), draw(st.integers(1, 5))


def runs(values: list[int]) -> list[int]:
    """The values without repetitions of the one before."""
    return [value for value, _ in itertools.groupby(values)]


@given(layers())
@settings(deadline=None)
def test_the_order_is_a_permutation_that_stays_within_heads_and_ssd_groups(layer):
    maxima, n_groups, head_groups, channel_groups = layer
    heads, head_dim = maxima.shape
    order = cluster_channels(maxima, n_groups, head_groups, channel_groups)
    assert sorted(order.head_order.tolist()) == list(range(heads))
    assert torch.equal(order.channel_order.sort(1).values, torch.arange(head_dim).expand(heads, -1))
    assert sorted(order.permutation().tolist()) == list(range(heads * head_dim))
    per_group = heads // n_groups
    assert torch.equal(order.head_order // per_group, torch.arange(heads) // per_group)
    for place, head in enumerate(order.head_order):
        assert torch.equal(reordered(maxima, order)[place], maxima[head][order.channel_order[place]])


@given(layers())
@settings(deadline=None)
def test_groups_are_whole_ranges_of_heads_and_channels(layer):
    maxima, n_groups, head_groups, channel_groups = layer
    heads, head_dim = maxima.shape
    order = cluster_channels(maxima, n_groups, head_groups, channel_groups)
    clusters = n_groups * min(head_groups, heads // n_groups)
    assert order.groups == clusters * min(channel_groups, head_dim)
    assert set(order.group_id.flatten().tolist()) == set(range(order.groups))
    rows = [tuple(row) for row in order.group_id.tolist()]
    assert len(runs(rows)) == len(set(rows)) == clusters  # the heads of a cluster stand side by side
    assert [group for row in runs(rows) for group in runs(row)] == list(range(order.groups))


@given(layers())
@settings(deadline=None)
def test_no_more_error_than_with_one_scale_and_less_with_more_ranges(layer):
    maxima, n_groups, head_groups, channel_groups = layer
    errors = [error_proxy(maxima, cluster_channels(maxima, n_groups, head_groups, n)) for n in (1, channel_groups)]
    errors.append(error_proxy(maxima, cluster_channels(maxima, n_groups, head_groups, channel_groups + 1)))
    assert errors[0] <= maxima.numel() * float(maxima.max()) ** 2 * (1 + 1e-9)
    assert errors[2] <= errors[1] * (1 + 1e-9) <= errors[0] * (1 + 2e-9)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.integers(1, 5))
def test_places_are_divided_as_well_as_possible(peaks, ranges):
    peaks = np.sort(np.array(peaks))[::-1]

    def cost(cuts: tuple[int, ...]) -> float:
        return sum(peaks[a] ** 2 * (b - a) for a, b in itertools.pairwise((0, *cuts, len(peaks))))

    count = min(ranges, len(peaks))
    best = min(cost(cuts) for cuts in itertools.combinations(range(1, len(peaks)), count - 1))
    found = _divide(peaks, ranges)
    assert runs(found.tolist()) == list(range(count))
    cuts = (found.diff().nonzero().flatten() + 1).tolist()
    assert cost(tuple(cuts)) == pytest.approx(best)


@st.composite
def planted_groups(draw) -> tuple[torch.Tensor, int, int, int]:
    """The number of each channel's group [S, P], in an order of chance; n_groups, head_groups, channel_groups."""
    n_groups, head_groups, channel_groups = (draw(st.integers(1, 3)) for _ in range(3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))

    def members(count: int, parts: int) -> list[torch.Tensor]:
        cuts = torch.randperm(count - 1, generator=generator)[: parts - 1].sort().values + 1
        return torch.randperm(count, generator=generator).tensor_split(cuts)

    heads_per_group, head_dim = 4 * head_groups, 4 * channel_groups
    planted = torch.empty(n_groups, heads_per_group, head_dim, dtype=torch.int64)
    number = itertools.count()
    for group in range(n_groups):
        for heads in members(heads_per_group, head_groups):
            sizes = [len(part) for part in members(head_dim, channel_groups)]  # the same for all heads of a cluster
            numbers = torch.tensor([next(number) for _ in sizes]).repeat_interleave(torch.tensor(sizes))
            for head in heads:
                planted[group, head] = numbers[torch.randperm(head_dim, generator=generator)]
    return planted.flatten(0, 1), n_groups, head_groups, channel_groups


@given(planted_groups(), st.integers(0, 1 << 30))
@settings(deadline=None)
def test_planted_clusters_are_found(groups, seed):
    planted, n_groups, head_groups, channel_groups = groups
    cluster, part = planted // channel_groups % head_groups, planted % channel_groups
    noise = torch.rand(planted.shape, generator=torch.Generator().manual_seed(seed))
    maxima = 16.0**-cluster * 2.0**-part * (1 + 0.004 * noise)
    order = cluster_channels(maxima, n_groups, head_groups, channel_groups)
    assert torch.equal(reordered(planted, order), order.group_id)


def test_the_largest_heads_and_channels_come_first():
    maxima = torch.tensor([[1.0, 2.0, 1.1], [40.0, 41.0, 80.0], [2.1, 1.0, 1.0], [30.0, 81.0, 29.0]])
    order = cluster_channels(maxima, n_groups=1, head_groups=2, channel_groups=2)
    assert order.head_order.tolist() == [3, 1, 2, 0]
    assert order.channel_order.tolist() == [[1, 0, 2], [2, 1, 0], [0, 1, 2], [1, 2, 0]]
    assert order.group_id.tolist() == [[0, 1, 1], [0, 1, 1], [2, 3, 3], [2, 3, 3]]
    assert order.permutation().tolist() == [10, 9, 11, 5, 4, 3, 6, 7, 8, 1, 2, 0]


def test_fewer_heads_and_channels_than_groups():
    order = cluster_channels(torch.rand(2, 3), n_groups=2)
    assert order.groups == 2 * 1 * 3


def test_the_default_is_four_by_four_groups_of_each_ssd_group():
    assert cluster_channels(torch.rand(24, 64), n_groups=1).groups == 16
    assert cluster_channels(torch.rand(32, 16), n_groups=4).groups == 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_same_maxima_give_the_same_order(dtype):
    maxima = (torch.rand(16, 32, generator=torch.Generator().manual_seed(0)) * 8).floor().to(dtype)  # many ties
    first, second = cluster_channels(maxima, 2), cluster_channels(maxima.float() * 4, 2)
    assert first.to_dict() == second.to_dict()


def test_sizes_at_the_ends_of_float64():
    maxima = torch.tensor([[1e300, 1e-300], [2e300, 5e-324]], dtype=torch.float64)
    assert cluster_channels(maxima, 1, 1, 2).group_id.tolist() == [[0, 1], [0, 1]]


def test_scales_of_groups_expand_to_the_new_places():
    maxima = torch.rand(8, 16)
    order = cluster_channels(maxima, n_groups=2)
    scales = expand_to_channels(group_peaks(maxima, order), order.group_id)  # [S, P]
    assert (scales >= reordered(maxima, order)).all()
    assert scales.unique().numel() == order.groups


def test_json_and_back():
    order = cluster_channels(torch.rand(8, 16), n_groups=2)
    again = ChannelOrder.from_dict(json.loads(json.dumps(order.to_dict())))
    for name in ("head_order", "channel_order", "group_id"):
        assert torch.equal(getattr(again, name), getattr(order, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_order": [0, 0]}, "must name every head once"),
        ({"head_order": [0, 2]}, "must name every head once"),
        ({"channel_order": [[0, 1, 2], [0, 1, 1]]}, "every channel of a head once"),
        ({"head_order": [0]}, r"got head_order \[1\], channel_order \[2, 3\], group_id \[2, 3\]"),
        ({"group_id": [0, 0, 0]}, r"group_id \[3\]"),
        ({"group_id": [[0, 0, 0], [2, 2, 2]]}, r"must use every number from 0 on, got \[0, 2\]"),
        ({"group_id": [[0, 0, 0], [-1, 0, 0]]}, "must use every number from 0 on"),
        ({"group_id": [[0, 0, 0], [1, 1]]}, "this is no channel order"),
        ({"group_id": [[0.0, 0, 0], [0, 0, 0]]}, "group_id of a channel order must be a non-empty int64 tensor"),
        ({"group_id": None}, "this is no channel order"),
        ({"groups": 3}, "this is no channel order"),
    ],
)
def test_data_that_is_no_order(change, message):
    data = {"head_order": [1, 0], "channel_order": [[0, 1, 2], [2, 1, 0]], "group_id": [[0, 0, 1], [2, 2, 3]]}
    assert ChannelOrder.from_dict(data).groups == 4
    with pytest.raises(QuambaError, match=message):
        ChannelOrder.from_dict(data | change)


def test_data_that_lacks_a_part_or_is_no_mapping():
    with pytest.raises(QuambaError, match=r"this is no channel order.*group_id"):
        ChannelOrder.from_dict({"head_order": [0], "channel_order": [[0]]})
    with pytest.raises(QuambaError, match="this is no channel order"):
        ChannelOrder.from_dict([1, 2])


@pytest.mark.parametrize(
    ("maxima", "counts", "message"),
    [
        (torch.rand(4, 3), (0, 4, 4), "n_groups must be an integer from 1 on, got 0"),
        (torch.rand(4, 3), (1, 0, 4), "head_groups must be an integer from 1 on, got 0"),
        (torch.rand(4, 3), (1, 4, -1), "channel_groups must be an integer from 1 on, got -1"),
        (torch.rand(4, 3), (1, 4, 2.0), "channel_groups must be an integer from 1 on, got 2.0"),
        (torch.rand(4, 3), (3, 4, 4), "4 heads do not split into n_groups = 3"),
        (torch.rand(12), (1, 4, 4), r"must be a float tensor \[heads, head_dim\], got \[12\]"),
        (torch.rand(0, 3), (1, 4, 4), r"must be a float tensor \[heads, head_dim\], got \[0, 3\]"),
        (torch.ones(4, 3, dtype=torch.int64), (1, 4, 4), "must be a float tensor"),
        ([[1.0]], (1, 4, 4), "must be a float tensor .* got list"),
        (torch.tensor([[1.0, float("nan")]]), (1, 4, 4), "hold NaN or infinity"),
        (torch.tensor([[1.0, float("inf")]]), (1, 4, 4), "hold NaN or infinity"),
        (torch.tensor([[1.0, -2.0]]), (1, 4, 4), "are magnitudes, got -2.0"),
    ],
)
def test_arguments_that_cannot_be_clustered(maxima, counts, message):
    with pytest.raises(QuambaError, match=message):
        cluster_channels(maxima, *counts)
