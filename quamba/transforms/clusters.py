"""Which channels of Mamba2's x share a scale, and the order that puts them side by side (sort-and-cluster, Quamba2).

Dims: S heads, P head_dim, D = S * P d_inner, G SSD groups (of S / G heads each, one behind the other).

The heads of an SSD group share B and C, the channels of a head share A, dt and D: heads may change places within their
SSD group, and channels within their head, every head in its own way. Sorting both by size before they are clustered
gives every cluster of heads one division of its places into few ranges (arXiv 2503.22879, section 4.2).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ..errors import QuambaError
from ..observers.grouped import cross_head_group_id

HEAD_GROUPS = CHANNEL_GROUPS = 4


@dataclass(frozen=True, eq=False)
class ChannelOrder:
    """The new order of a layer's heads and channels, and the groups that share a scale. All int64.

    head_order [S]: place s of the new order holds the old head head_order[s]. channel_order [S, P]: place (s, p) holds
    the old channel channel_order[s, p] of that head. group_id [S, P]: the group of each *new* place, every number from
    0 on used. Raises QuambaError where a shape does not fit, an order is no permutation, or a group is left out.
    """

    head_order: Tensor
    channel_order: Tensor
    group_id: Tensor

    def __post_init__(self):
        for field in fields(self):
            tensor = getattr(self, field.name)
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or tensor.numel() == 0:
                raise QuambaError(f"{field.name} of a channel order must be a non-empty int64 tensor, got {tensor!r}")
        heads, shape = self.head_order.numel(), self.channel_order.shape
        if self.head_order.dim() != 1 or len(shape) != 2 or shape[0] != heads or self.group_id.shape != shape:
            shapes = ", ".join(f"{field.name} {list(getattr(self, field.name).shape)}" for field in fields(self))
            raise QuambaError(f"a channel order is head_order [S], channel_order [S, P], group_id [S, P], got {shapes}")
        if not _are_permutations(self.head_order) or not _are_permutations(self.channel_order):
            raise QuambaError("a channel order must name every head once, and every channel of a head once")
        used = self.group_id.unique()
        if not torch.equal(used, torch.arange(used.numel())):
            raise QuambaError(f"the groups of a channel order must use every number from 0 on, got {used.tolist()}")

    @property
    def groups(self) -> int:
        """Return how many groups there are."""
        return int(self.group_id.max()) + 1

    def permutation(self) -> Tensor:
        """int64 [D]: the old channel of d_inner at each new place, heads and channels together."""
        return (self.head_order[:, None] * self.channel_order.shape[1] + self.channel_order).flatten()  # [S, P] -> [D]

    def to_dict(self) -> dict[str, list]:
        """Return plain data, for JSON."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, list]) -> "ChannelOrder":
        """The inverse of `to_dict`. Raises QuambaError where the data is none."""
        try:
            return cls(**{name: torch.tensor(values) for name, values in data.items()})
        except QuambaError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise QuambaError(f"this is no channel order: {error}") from error


def cluster_channels(
    maxima: Tensor, n_groups: int, head_groups: int = HEAD_GROUPS, channel_groups: int = CHANNEL_GROUPS
) -> ChannelOrder:
    """Sorts and clusters the heads of every SSD group, then the channels of every cluster of heads.

    maxima: float [S, P], the largest |x| of every channel of the convolution's output. Within an SSD group the heads
    are sorted by their largest channel and clustered (Ward) by their channels' maxima in falling order; within a
    cluster the places of the sorted channels are divided into ranges. Both begin with the largest. At most
    n_groups * head_groups * channel_groups groups, fewer where an SSD group has fewer heads or a head fewer channels.
    Raises QuambaError for counts below 1, heads that do not split into n_groups, and maxima that are none.
    Source: Quamba2 (arXiv 2503.22879), section 4.2.
    """
    _check(maxima, n_groups, head_groups, channel_groups)
    maxima = maxima.detach().to("cpu", torch.float64)
    maxima = maxima / maxima.max().clamp(min=torch.finfo(torch.float64).tiny)  # so that no square overflows
    profiles, channels = maxima.sort(dim=1, descending=True, stable=True)  # [S, P]
    head_order, head_cluster, channel_group = [], [], []
    for heads in torch.arange(len(maxima)).chunk(n_groups):  # of one SSD group
        by_size = heads[profiles[heads, 0].argsort(descending=True, stable=True)]
        labels = _cluster_heads(profiles[by_size].numpy(), head_groups)
        for label in range(int(labels.max()) + 1):
            cluster = by_size[labels == label]
            head_order.append(cluster)
            head_cluster += [len(channel_group)] * len(cluster)
            channel_group.append(_divide(profiles[cluster].amax(0).numpy(), channel_groups))  # [P]
    order = torch.cat(head_order)  # [S]
    group_id = cross_head_group_id(torch.tensor(head_cluster), torch.stack(channel_group))  # [S, P]
    return ChannelOrder(order, channels[order], group_id)


def _cluster_heads(profiles: np.ndarray, clusters: int) -> Tensor:
    """int64 [heads]: the cluster of each of the `profiles` [heads, P], numbered in the order of their first heads."""
    if len(profiles) <= clusters:
        return torch.arange(len(profiles))
    from sklearn.cluster import AgglomerativeClustering  # here: importing it takes a second

    labels = AgglomerativeClustering(clusters, linkage="ward").fit_predict(profiles).tolist()
    number = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return torch.tensor([number[label] for label in labels])


def _divide(peaks: np.ndarray, ranges: int) -> Tensor:
    """int64 [P]: the range of each place of the falling `peaks` [P], for the least sum of n * peak^2 over the ranges.

    That sum is proportional to the squared error of quantizing a range's n channels with a scale for its first, largest
    one. Exact, by dynamic programming: on mamba2-tiny's x it was 6 % below Ward's clusters of the same places.
    """
    places = len(peaks)
    begin, end = np.arange(places)[:, None], np.arange(places + 1)  # a range holds the places begin .. end - 1
    cost = np.where(end > begin, (end - begin) * peaks[:, None] ** 2, np.inf)  # [P, P + 1]
    best = cost[0]  # [P + 1]: of the places before `end`, in as many ranges as are counted so far
    begins = []  # of the last of these ranges
    for _ in range(min(ranges, places) - 1):
        total = best[:places, None] + cost  # [P, P + 1]
        begins.append(total.argmin(axis=0))
        best = total.min(axis=0)
    is_begin, end = torch.zeros(places, dtype=torch.int64), places
    for begin in reversed(begins):
        end = int(begin[end])
        is_begin[end] = 1
    return is_begin.cumsum(0)


def _are_permutations(rows: Tensor) -> bool:
    """Return whether each row [..., n] holds every number below n once."""
    return bool((rows.sort(dim=-1).values == torch.arange(rows.shape[-1])).all())


def _check(maxima: Tensor, n_groups: int, head_groups: int, channel_groups: int) -> None:
    counts = {"n_groups": n_groups, "head_groups": head_groups, "channel_groups": channel_groups}
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise QuambaError(f"{name} must be an integer from 1 on, got {value!r}")
    if not isinstance(maxima, Tensor) or not maxima.is_floating_point() or maxima.dim() != 2 or maxima.numel() == 0:
        what = list(maxima.shape) if isinstance(maxima, Tensor) else type(maxima).__name__
        raise QuambaError(f"the maxima of a layer's channels must be a float tensor [heads, head_dim], got {what}")
    if len(maxima) % n_groups:
        raise QuambaError(f"the maxima of {len(maxima)} heads do not split into n_groups = {n_groups}")
    if not bool(maxima.isfinite().all()):
        raise QuambaError("the maxima of a layer's channels hold NaN or infinity: does the float model give finite x?")
    if bool((maxima < 0).any()):
        raise QuambaError(f"the maxima of a layer's channels are magnitudes, got {float(maxima.min())}")
