"""Observers with a scale per group of channels (Quamba2, arXiv 2503.22879).

A grouping is one index vector, `group_id`: the group of every channel. Each observer reshapes its input once to the
canonical view [..., channels, rest]; everything after that is the same for all. With any of the registered statistics
per group: min-max keeps a range per channel and reduces it by scatter; the others keep one observer per group.
"""

import abc
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import QuambaError
from .base import Observer, create_observer


class GroupedObserver(Observer):
    """Hold what the grouped observers share; a subclass says how its input looks in `view`.

    group_id: int64, the group of every channel, 0..groups-1, none left out; flattened in the order of the channels.
    statistic: the name of a registered observer, and statistic_args its further arguments. The histogram ones take
    about 1 MB per group; {"mantissa_bits": 9} takes a quarter of that, each bit less one half.
    """

    def __init__(
        self, n_bits: int, clip_ratio: float, sym: bool, group_id: Tensor, statistic: str, statistic_args: dict | None
    ):
        super().__init__(n_bits, clip_ratio, sym)
        self.group_id, self.statistic, self.statistic_args = group_id, statistic, statistic_args
        channel_group = _checked_group_id(self, group_id).flatten()  # [channels]
        self.channels = channel_group.numel()
        self.groups = int(channel_group.max()) + 1
        self._channel_group = channel_group
        self._members = [(channel_group == g).nonzero().squeeze(1) for g in range(self.groups)]
        args = {"n_bits": n_bits, "clip_ratio": clip_ratio, "sym": sym, **(statistic_args or {})}
        self._statistic = create_observer(statistic, **args)  # it says what a range becomes; its arguments are checked
        self.by_update = self._statistic.by_update
        self._observers: list[Observer] = []
        if statistic != "minmax":
            self._observers = [create_observer(statistic, **args) for _ in range(self.groups)]
        self._low = torch.full((self.channels,), torch.inf, dtype=torch.float32)  # min-max alone: [channels], float32
        self._high = -self._low

    @abc.abstractmethod
    def view(self, x: Tensor) -> Tensor:
        """`x` as [..., channels, rest]; raises QuambaError where its shape does not allow that."""

    def _update(self, x: Tensor) -> None:
        x = self.view(x)
        if self._observers:
            for values, observer in zip(self._split(x), self._observers, strict=True):
                observer.update(values)
        else:
            others = [dim for dim in range(x.dim()) if dim != x.dim() - 2]
            self._widen(x.amin(others), x.amax(others))

    def _split(self, x: Tensor) -> Iterator[Tensor]:
        """The values of each group: [..., channels, rest] -> [..., members of the group, rest]."""
        if x.shape[-1] > 1:
            yield from (x.index_select(-2, members.to(x.device)) for members in self._members)
            return
        # where every value is picked by itself, picking all at once takes a seventh of picking group by group
        x, order = x.squeeze(-1), torch.cat(self._members).to(x.device)  # [..., channels], [channels]
        parts = x.gather(-1, order.expand(x.shape)).split([len(members) for members in self._members], dim=-1)
        yield from (part.contiguous() for part in parts)

    def _merge(self, other: "GroupedObserver") -> None:
        for observer, theirs in zip(self._observers, other._observers, strict=True):
            observer.merge(theirs)
        self._widen(other._low, other._high)

    def _widen(self, low: Tensor, high: Tensor) -> None:
        self._low = torch.minimum(self._low, low.float().to(self._low.device))
        self._high = torch.maximum(self._high, high.float().to(self._high.device))

    def _parameters(self) -> tuple[Tensor, Tensor]:
        if self._observers:
            scales, bases = zip(*(o.get_quantization_parameters() for o in self._observers), strict=True)
            return torch.stack(scales), torch.stack(bases)
        reduced = torch.zeros(2, self.groups, dtype=torch.float32)
        low = reduced[0].scatter_reduce(0, self._channel_group, self._low, "amin", include_self=False)
        high = reduced[1].scatter_reduce(0, self._channel_group, self._high, "amax", include_self=False)
        return self._statistic.range_parameters(low, high)


class PerSSDGroupObserver(GroupedObserver):
    """A scale per SSD group of Mamba2's B or C: x is [..., n_groups * d_state]; scale and base are [n_groups]."""

    def __init__(
        self,
        n_bits: int = 8,
        clip_ratio: float = 1.0,
        sym: bool = True,
        *,
        n_groups: int,
        statistic: str = "minmax",
        statistic_args: dict | None = None,
    ):
        if not isinstance(n_groups, int) or n_groups < 1:
            raise QuambaError(f"PerSSDGroupObserver: n_groups must be a positive integer, got {n_groups!r}")
        self.n_groups = n_groups
        super().__init__(n_bits, clip_ratio, sym, torch.arange(n_groups), statistic, statistic_args)

    def view(self, x: Tensor) -> Tensor:
        if x.dim() == 0 or x.shape[-1] % self.n_groups:
            raise QuambaError(f"{self}: the last dimension of {tuple(x.shape)} does not split into {self.n_groups}")
        return x.unflatten(-1, (self.n_groups, -1))  # [..., n_groups, d_state]


class CrossHeadMinmaxObserver(GroupedObserver):
    """A scale per group of x's channels, across heads: x is [..., heads * head_dim]; scale and base are [groups].

    group_id: [heads * head_dim] or [heads, head_dim]; `cross_head_group_id` makes it of clustered heads and channels.
    """

    def __init__(
        self,
        n_bits: int = 8,
        clip_ratio: float = 1.0,
        sym: bool = True,
        *,
        group_id: Tensor,
        statistic: str = "minmax",
        statistic_args: dict | None = None,
    ):
        super().__init__(n_bits, clip_ratio, sym, group_id, statistic, statistic_args)

    def view(self, x: Tensor) -> Tensor:
        if x.dim() == 0 or x.shape[-1] != self.channels:
            raise QuambaError(f"{self}: x of shape {tuple(x.shape)} does not end in {self.channels} channels")
        return x.unsqueeze(-1)  # [..., channels, 1]


class CachedStatesCrossHeadMinmaxObserver(GroupedObserver):
    """A scale per group of a cached SSM state's channels: x is [B, heads, head_dim, d_state]; scale and base [groups].

    group_id: [heads, head_dim].
    """

    def __init__(
        self,
        n_bits: int = 8,
        clip_ratio: float = 1.0,
        sym: bool = True,
        *,
        group_id: Tensor,
        statistic: str = "minmax",
        statistic_args: dict | None = None,
    ):
        super().__init__(n_bits, clip_ratio, sym, group_id, statistic, statistic_args)
        if group_id.dim() != 2:
            raise QuambaError(f"{self}: group_id must be [heads, head_dim], got shape {tuple(group_id.shape)}")

    def view(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1:3] != self.group_id.shape:
            heads, head_dim = self.group_id.shape
            raise QuambaError(f"{self}: x must be [B, {heads}, {head_dim}, d_state], got shape {tuple(x.shape)}")
        return x.flatten(1, 2)  # [B, heads * head_dim, d_state]


def cross_head_group_id(head_group: Tensor, channel_group: Tensor) -> Tensor:
    """group_id [heads, head_dim] of heads in clusters, each cluster with a clustering of its channels.

    head_group: int64 [heads], 0..head_groups-1. channel_group: int64 [head_groups, head_dim], 0..channel_groups-1.
    """
    channel_groups = int(channel_group.max()) + 1
    return head_group[:, None] * channel_groups + channel_group[head_group]


def expand_to_channels(values: Tensor, group_id: Tensor) -> Tensor:
    """A value per group [groups] (a scale or base) as a value per channel, in the shape of `group_id`."""
    return values[group_id]


def _checked_group_id(observer: Observer, group_id: Tensor) -> Tensor:
    if not isinstance(group_id, Tensor) or group_id.dtype != torch.int64 or group_id.numel() == 0:
        raise QuambaError(f"{observer}: group_id must be a non-empty int64 tensor with the group of every channel")
    used = group_id.unique()
    if not torch.equal(used, torch.arange(used.numel(), device=used.device)):
        raise QuambaError(f"{observer}: group_id must use every number from 0 on, got {used.tolist()}")
    return group_id
