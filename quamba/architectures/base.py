"""A family of models with Mamba blocks, as data: where its blocks are, what they are, how they are rewritten."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedConfig

from .. import hadamard
from ..errors import QuambaError
from ..models.mamba_slot import MambaSlot
from ..nn.mixer import QuantMixer
from ..ops.schemas import MAX_CONV_WIDTH


def own_config(config: PreTrainedConfig, _mixer: nn.Module) -> PreTrainedConfig:
    """Return a config that describes the blocks under the names that our mixers read."""
    return config


@dataclass(frozen=True)
class Architecture:
    """A family of models with Mamba blocks, in all layers or, of hybrids, in some beside attention and MLPs.

    model_types: as config.json names them. mixer, norm: a decoder layer's attributes, of the block and of the norm
    that it alone reads. has_block: of what a layer has as `mixer`, None where it has no such attribute. hybrid:
    whether there are linear layers beside the blocks.
    block_config: of a model's config and one of its mixers: the sizes of a block as a config of transformers' Mamba (of
    Mamba2) names them.
    taps: of a mixer, in the order in which it computes them. inputs: the linear layers of the float mixer, and the tap
    that is the input of each. d_inner: of a `block_config`; raises QuambaError for sizes that have no mixer.
    fusions: what moves norm weights into linear layers, before any rotation. step: all blocks of a quantized model for
    one token, made of (mixers, final norm, head), None of those that do not fit. plain_tensors: a quantized mixer as
    floats, under the names that transformers' mixer gives them.
    """

    model_types: tuple[str, ...]
    float_mixer: type[nn.Module]
    quant_mixer: type[QuantMixer]
    taps: tuple[str, ...]
    inputs: Mapping[str, str]
    d_inner: Callable[[PreTrainedConfig], int]
    fusions: tuple[Callable[[Sequence[MambaSlot]], None], ...]
    step: Callable
    plain_tensors: Callable[[QuantMixer], dict[str, Tensor]]
    mixer: str = "mixer"
    norm: str = "norm"
    has_block: Callable[[nn.Module | None], bool] = lambda mixer: mixer is not None
    hybrid: bool = False
    block_config: Callable[[PreTrainedConfig, nn.Module], PreTrainedConfig] = own_config
    integer_states: bool = False  # whether its SSM states may be int8
    channel_groups: bool = False  # whether its x has heads, whose channels may be sorted into groups
    prefill_rows: int = 256  # see Decoder
    scan_chunk: int = 1  # tokens: pieces that end at its multiples give the states that one piece gives, bit for bit

    def slots(self, layers: Sequence[nn.Module]) -> list[MambaSlot]:
        """The places of the blocks in a model's decoder layers."""
        slots = [MambaSlot(index, layer, self.mixer, self.norm) for index, layer in enumerate(layers)]
        return [slot for slot in slots if self.has_block(getattr(slot.layer, self.mixer, None))]

    def check(self, config: PreTrainedConfig) -> None:
        """Raises QuambaError unless there are kernels for the sizes and the activation of a `block_config`."""
        if config.conv_kernel > MAX_CONV_WIDTH:
            raise QuambaError(f"conv_kernel {config.conv_kernel} has no kernels: up to {MAX_CONV_WIDTH} has")
        if config.hidden_act != "silu":
            raise QuambaError(f"hidden_act {config.hidden_act!r} has no kernels: only 'silu' has")
        self.d_inner(config)

    def check_rotation(self, config: PreTrainedConfig) -> None:
        """Raises QuambaError where the output of such a model's blocks cannot be rotated, as quantized ones do it."""
        hadamard.check_kernel_size(self.d_inner(config))
