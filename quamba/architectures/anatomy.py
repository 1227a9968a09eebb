"""Where a causal LM has its parts: found once where a model enters, and handed on."""

from dataclasses import dataclass
from functools import cached_property

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..models.layer_stack import decoder_layers, final_norm
from ..models.mamba_slot import MambaSlot
from .base import Architecture
from .table import ARCHITECTURES


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal LM. Of modules that are replaced later, the place is kept, not the module.

    architecture: the row of the model's type; None where this package has no mixers for it, or where no layer of the
    hybrid has a Mamba block.
    """

    model: PreTrainedModel
    architecture: Architecture | None
    slots: tuple[MambaSlot, ...]  # of the Mamba blocks, in the order of the layers

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Anatomy":
        """Find the parts of a model. Raises QuambaError for a model with Mamba blocks and no one list of layers."""
        architecture = ARCHITECTURES.get(model.config.model_type)
        slots = tuple(architecture.slots(decoder_layers(model))) if architecture else ()
        return cls(model, architecture if slots else None, slots)

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The decoder layers. Raises QuambaError where the text decoder has no one list of them."""
        return decoder_layers(self.model)

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last layer and the head. Raises QuambaError where it has none of the usual names."""
        return final_norm(self.model)

    @property
    def has_blocks_alone(self) -> bool:
        """Return whether all layers are Mamba blocks: hidden states are float32 between them, whatever
        `model.dtype`."""
        return self.architecture is not None and not self.architecture.hybrid

    @property
    def has_blocks(self) -> list[bool]:
        """Return whether each decoder layer has a Mamba block."""
        indices = {slot.index for slot in self.slots}
        return [index in indices for index in range(len(self.layers))]

    @property
    def block_config(self) -> PreTrainedConfig:
        """The sizes of a Mamba block as transformers' Mamba (Mamba2) names them; of a model that has some."""
        return self.architecture.block_config(self.model.config, self.slots[0].mixer)
