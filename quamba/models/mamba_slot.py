"""The place of a Mamba block in a decoder layer: its mixer, and the norm that it alone reads."""

from dataclasses import dataclass

from torch import nn


@dataclass
class MambaSlot:
    """The places of a Mamba block in a decoder layer; what is assigned to `mixer` and `norm` goes into the layer."""

    index: int  # of the layer
    layer: nn.Module
    mixer_name: str
    norm_name: str

    @property
    def mixer(self) -> nn.Module:
        """Return what computes the block."""
        return getattr(self.layer, self.mixer_name)

    @mixer.setter
    def mixer(self, module: nn.Module) -> None:
        setattr(self.layer, self.mixer_name, module)

    @property
    def norm(self) -> nn.Module:
        """Return what is before it."""
        return getattr(self.layer, self.norm_name)

    @norm.setter
    def norm(self, module: nn.Module) -> None:
        setattr(self.layer, self.norm_name, module)

    def within(self, name: str) -> str | None:
        """The name within the mixer of what has that name within the layer; None where it is not part of the mixer."""
        prefix = f"{self.mixer_name}."
        return name.removeprefix(prefix) if name.startswith(prefix) else None
