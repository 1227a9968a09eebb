"""What the float mixers share, and what the quantized ones do. Dims: B batch, L tokens, H hidden_size, D d_inner."""

from collections.abc import Sequence

from torch import Tensor, nn

from .. import ops
from ..hadamard import base_on
from .module import QuantModule


class FloatMixer(nn.Module):
    """A float mixer on our ops, with an Identity at each tap, which calibration and transforms work on.

    `hadamard_out`: whether the input of out_proj is rotated, whose weight is then rotated too. `out_multiplier`: of
    that input, float32 [D], once out_proj expects one (AWQ).
    """

    def __init__(self, taps: Sequence[str]):
        super().__init__()
        self.hadamard_out = False
        self.out_multiplier: Tensor | None = None
        self.taps = nn.ModuleDict({name: nn.Identity() for name in taps})

    @property
    def gated_norm(self) -> nn.Module | None:
        """The norm of the gated scan output, whose weight out_proj takes in before it is rotated; None without one."""
        return None


class QuantMixer(QuantModule):
    """A quantized mixer: norm + quantize before in_proj, Hadamard + quantize before out_proj.

    A subclass has `scheme`, `eps`, `d_inner`, the linear layers `in_proj` and `out_proj`, and a buffer `{tap}_scale`
    for each of its taps: None where the tap has no static scale.
    """

    def _in_proj_input(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """The normalised input [B, L, H] and its scale: the static one, [B, L], or None of float."""
        multiplier = self.in_proj.input_multiplier
        if self.in_scale is not None:
            return ops.rms_norm_quant(hidden_states, self.eps, self.in_scale, multiplier), self.in_scale
        return self._unscaled_input(ops.rms_norm(hidden_states, self.eps, multiplier))

    def _out_proj_input(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rotated gated scan output [B, L, D] and its scale: the static one, [B, L], or None of float."""
        base, multiplier = base_on(self.d_inner, y.device), self.out_proj.input_multiplier
        if self.out_scale is not None:
            return ops.hadamard_quant(y, base, self.out_scale, multiplier), self.out_scale
        return self._unscaled_input(ops.hadamard(y, base, multiplier))

    def _unscaled_input(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """A linear layer's input without a static scale: quantized token by token, or left float."""
        return (x, None) if self.scheme.act.is_float else ops.quantize_per_token(x)
