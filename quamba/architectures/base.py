"""The families of models whose blocks are quantized, as data: what their mixers are and how they are rewritten."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from .. import hadamard
from ..errors import QuambaError
from ..models.mamba_slots import hybrid_of, mamba_slots
from ..nn.mamba1 import TAPS as MAMBA1_TAPS
from ..nn.mamba1 import Mamba1Mixer, QuantMamba1Mixer
from ..nn.mamba1_step import Mamba1Step
from ..nn.mamba2 import SCAN_CHUNK, Mamba2Mixer, Mamba2Sizes, QuantMamba2Mixer
from ..nn.mamba2 import TAPS as MAMBA2_TAPS
from ..nn.mamba2_step import Mamba2Step
from ..nn.mixer import QuantMixer
from ..ops.schemas import MAX_CONV_WIDTH
from ..transforms import fuse_gated_norm, fuse_norm


@dataclass(frozen=True)
class Architecture:
    """A family of models with Mamba blocks, in all layers or, of hybrids, in some: see `mamba_slots`.

    taps: of a mixer, in the order in which it computes them. inputs: the linear layers of the float mixer, and the tap
    that is the input of each. d_inner: of a config of the blocks (`block_config`); raises QuambaError for sizes that
    have no mixer.
    fusions: what moves norm weights into linear layers, before any rotation. step: all blocks of a quantized model for
    one token, made of (mixers, final norm, head), None of those that do not fit.
    """

    float_mixer: type[nn.Module]
    quant_mixer: type[QuantMixer]
    taps: tuple[str, ...]
    inputs: Mapping[str, str]
    d_inner: Callable[[PreTrainedConfig], int]
    fusions: tuple[Callable[[nn.Module], None], ...]
    step: Callable
    integer_states: bool = False  # whether its SSM states may be int8
    prefill_rows: int = 256  # see Decoder
    scan_chunk: int = 1  # tokens: pieces that end at its multiples give the states that one piece gives, bit for bit

    def check(self, config: PreTrainedConfig) -> None:
        """Raises QuambaError unless there are kernels for the sizes and the activation of such a model."""
        if config.conv_kernel > MAX_CONV_WIDTH:
            raise QuambaError(f"conv_kernel {config.conv_kernel} has no kernels: up to {MAX_CONV_WIDTH} has")
        if config.hidden_act != "silu":
            raise QuambaError(f"hidden_act {config.hidden_act!r} has no kernels: only 'silu' has")
        self.d_inner(config)

    def check_rotation(self, config: PreTrainedConfig) -> None:
        """Raises QuambaError where the output of such a model's blocks cannot be rotated, as quantized ones do it."""
        hadamard.check_kernel_size(self.d_inner(config))


_MAMBA1 = Architecture(
    float_mixer=Mamba1Mixer,
    quant_mixer=QuantMamba1Mixer,
    taps=MAMBA1_TAPS,
    inputs={"in_proj": "in", "x_proj": "x", "dt_proj": "dt_rank", "out_proj": "out"},
    d_inner=lambda config: config.intermediate_size,
    fusions=(fuse_norm,),
    step=Mamba1Step.create,
)
# by `model_type`, as config.json names it, of models of these blocks alone; hybrids name one of them as their kind
ARCHITECTURES = {
    "mamba": _MAMBA1,
    "falcon_mamba": _MAMBA1,  # its config has mixer_rms_eps, of the norms of dt, B and C
    "mamba2": Architecture(
        float_mixer=Mamba2Mixer,
        quant_mixer=QuantMamba2Mixer,
        taps=MAMBA2_TAPS,
        inputs={"in_proj": "in", "out_proj": "out"},
        d_inner=lambda config: Mamba2Sizes.of(config).d_inner,
        fusions=(fuse_norm, fuse_gated_norm),
        step=Mamba2Step.create,
        integer_states=True,
        prefill_rows=512,  # a tenth faster than 256 at the shape of mamba2-130m
        scan_chunk=SCAN_CHUNK,
    ),
}
# every tap that some mixer has
BLOCK_TAPS = tuple(dict.fromkeys(tap for architecture in ARCHITECTURES.values() for tap in architecture.taps))


def architecture_of(model: nn.Module) -> Architecture | None:
    """The row of a model's type, or of a hybrid's kind; None where this package has no mixers for it, or where no layer
    of the hybrid has a Mamba block."""
    hybrid = hybrid_of(model)
    if hybrid is None:
        return ARCHITECTURES.get(model.config.model_type)
    return ARCHITECTURES[hybrid.kind] if mamba_slots(model) else None
