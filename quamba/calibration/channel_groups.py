"""Scales of Mamba2's x by groups of heads and channels (Quamba2, arXiv 2503.22879, section 4.2).

Dims: S heads, P head_dim.
"""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from ..architectures.anatomy import Anatomy
from ..errors import QuambaError
from ..nn.mamba2 import Mamba2Sizes
from ..transforms.clusters import ChannelOrder, cluster_channels
from .channel_maxima import collect_channel_maxima

MAXIMA_WINDOWS = 128  # of calibration text at most, which the groups are made of


@dataclass(frozen=True)
class ChannelGroups:
    """In how many groups the heads of an SSD group fall, and in how many the channels of those heads.

    Raises QuambaError for numbers below 1.
    """

    head_groups: int = 4
    channel_groups: int = 4

    def __post_init__(self):
        for name in ("head_groups", "channel_groups"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise QuambaError(f"{name} is a whole number from 1 up, not {value!r}")

    def describe(self) -> str:
        """`4x4 groups`."""
        return f"{self.head_groups}x{self.channel_groups} groups"

    def check(self, model: nn.Module, asked: Collection[str] = ()) -> None:
        """Raises QuambaError for a model whose blocks have no heads, and for more groups than heads or channels.

        The latter of what is `asked` for by name alone: otherwise every head, or channel, is a group of its own.
        """
        anatomy = Anatomy.of(model)
        if anatomy.architecture is None or not anatomy.architecture.channel_groups:
            raise QuambaError(
                f"group_heads is for Mamba2, whose blocks have heads, not for {model.config.model_type!r}: drop it"
            )
        sizes = Mamba2Sizes.of(anatomy.block_config)
        there_are = {
            "head_groups": (sizes.heads // sizes.groups, "heads in an SSD group"),
            "channel_groups": (sizes.head_dim, "channels in a head"),
        }
        for name in asked:
            count, what = there_are[name]
            if getattr(self, name) > count:
                raise QuambaError(
                    f"{name} {getattr(self, name)} is too many: there are {count} {what}, so give {count} at most"
                )

    def orders(self, model: nn.Module, windows: Tensor, batch_size: int, progress: bool) -> dict[int, ChannelOrder]:
        """Return, by layer index, the order of heads and channels that puts those of like magnitude together.

        model: a float Mamba2 on this package's mixers; windows: int64 [count, L], of which the first are run.
        """
        maxima = collect_channel_maxima(model, windows[:MAXIMA_WINDOWS], batch_size=batch_size, progress=progress)
        return {
            slot.index: cluster_channels(
                maxima[slot.index], slot.mixer.sizes.groups, self.head_groups, self.channel_groups
            )
            for slot in Anatomy.of(model).slots
        }
