"""The Mamba2 block's mixer (arXiv 2405.21060): float with taps, and quantized (Quamba2, arXiv 2503.22879).

Dims: B batch, L tokens, H hidden_size, S heads, P head_dim, D = S * P d_inner, G SSD groups (of S / G heads each, one
behind the other), N d_state, K conv width, X = D + 2 G N channels of the convolution: x | B | C.
Activations are token-major [B, L, channels] throughout: channels are contiguous for the convolution and the scan.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import QuambaError
from ..hadamard import base_on
from ..scheme.formats import Scheme
from ..weights.rounded import RoundedWeight
from . import float_kernels
from .conv1d import QuantConv1d
from .gradients import without_gradient
from .linear import QuantLinear, split_rows
from .mixer import FloatMixer, QuantMixer
from .states import check_options, each_row, layer_states
from .taps import STATE_TAP, static_taps

# The activations that are quantized, in the order in which a block computes them: in_proj's input, the gate, the
# convolution's inputs (x, B, C), conv + SiLU's outputs (x, B, C), out_proj's input. dt stays float.
CONV_INPUTS, CONV_OUTPUTS = ("conv_in", "B_in", "C_in"), ("x", "B", "C")
TAPS = ("in", "z", *CONV_INPUTS, *CONV_OUTPUTS, "out")
SCAN_CHUNK = 96  # tokens: what the scan sums at once with AMX, and twice what it does without (csrc/cpu/kernels.h)
WATCHED_STRIDE = 64  # tokens from state to state, where somebody watches the states


@dataclass(frozen=True)
class Mamba2Sizes:
    """The sizes of a block's recurrence. Raises QuambaError where its heads do not split into its groups."""

    heads: int
    head_dim: int
    groups: int
    d_state: int

    def __post_init__(self):
        if self.groups < 1 or self.heads % self.groups:
            raise QuambaError(f"n_groups {self.groups} does not divide the {self.heads} heads of the model")

    @classmethod
    def of(cls, config) -> "Mamba2Sizes":
        """Return the sizes that a transformers Mamba2Config describes."""
        return cls(config.num_heads, config.head_dim, config.n_groups, config.state_size)

    @property
    def d_inner(self) -> int:
        """D."""
        return self.heads * self.head_dim

    @property
    def conv_parts(self) -> list[int]:
        """Channels of x, B and C: [D, G N, G N]."""
        return [self.d_inner, self.groups * self.d_state, self.groups * self.d_state]

    @property
    def in_proj_parts(self) -> list[int]:
        """Rows of in_proj: z, x | B | C, dt: [D, X, S]."""
        return [self.d_inner, sum(self.conv_parts), self.heads]

    def state_shape(self, batch: int) -> tuple[int, int, int, int]:
        """Return the shape of the SSM state: [B, S, P, N]."""
        return (batch, self.heads, self.head_dim, self.d_state)

    def grouped(self, B: Tensor) -> Tensor:
        """B or C of all groups [B, L, G N] -> [B, L, G, N]."""
        return B.unflatten(-1, (self.groups, self.d_state))


class Mamba2Mixer(FloatMixer):
    """transformers' Mamba2Mixer on our float ops, its parameters under the same names, with an Identity at each tap.

    Unlike the original it keeps dt within `time_step_limit` in single steps too, and a padded position adds nothing to
    the states. `hadamard_out` rotates the gated norm's output before out_proj, whose weight is then rotated too, and
    has taken in the gated norm's weight.
    """

    def __init__(self, mixer: nn.Module):
        super().__init__((*TAPS, STATE_TAP))
        self.layer_idx = mixer.layer_idx
        self.in_proj, self.conv1d, self.out_proj = mixer.in_proj, mixer.conv1d, mixer.out_proj
        self.A_log, self.D, self.dt_bias = mixer.A_log, mixer.D, mixer.dt_bias
        self.norm = mixer.norm  # of the gated scan output: not called, it holds the weight
        self.sizes = Mamba2Sizes(mixer.num_heads, mixer.head_dim, mixer.n_groups, mixer.ssm_state_size)
        self.dt_min, self.dt_max = (float(limit) for limit in mixer.time_step_limit)

    @property
    def gated_norm(self) -> nn.Module:
        """The norm of the gated scan output."""
        return self.norm

    @property
    def time_step_limit(self) -> tuple[float, float]:
        """The limits of dt."""
        return self.dt_min, self.dt_max

    def forward(
        self, hidden_states: Tensor, cache_params=None, attention_mask: Tensor | None = None, **options
    ) -> Tensor:
        """Normalised hidden states [B, L, H] -> [B, L, H] in their dtype; convolution and scan run in float32."""
        check_options(options)
        tap, dtype, sizes = self.taps, hidden_states.dtype, self.sizes
        batch, device = hidden_states.shape[0], hidden_states.device
        conv_shape = (batch, self.conv1d.weight.shape[0], self.conv1d.weight.shape[-1])  # [B, X, K]
        states = layer_states(cache_params, self.layer_idx, conv_shape, torch.float32, sizes.state_shape(batch), device)
        zxBCdt = self.in_proj(tap["in"](hidden_states)).float()  # [B, L, H] -> [B, L, D + X + S]
        z, xBC, dt = zxBCdt.split(sizes.in_proj_parts, dim=-1)
        z, y = tap["z"](z), each_row(self._recurrence, (xBC, dt), states, attention_mask, sizes.d_inner)  # [B, L, D]
        y = ops.gated_rms_norm(y, z, None, self.norm.variance_epsilon, sizes.groups) * self.norm.weight.float()
        if self.hadamard_out:
            y = ops.hadamard(y, base_on(sizes.d_inner, device), self.out_multiplier)
        y = self.out_proj(tap["out"](y).to(dtype))  # [B, L, D] -> [B, L, H]
        return without_gradient(y, zxBCdt, *self.parameters())

    def _recurrence(self, xBC: Tensor, dt: Tensor, conv_state: Tensor | None, ssm_state: Tensor | None) -> Tensor:
        """in_proj's outputs x | B | C [B, L, X] and dt [B, L, S] -> the scan's output [B, L, D]."""
        conv_weight = self.conv1d.weight.squeeze(1).float()  # [X, 1, K] -> [X, K]
        conv_bias = None if self.conv1d.bias is None else self.conv1d.bias.float()
        xBC = torch.cat(self._tapped(xBC, CONV_INPUTS), dim=-1)
        xBC = float_kernels.causal_conv1d(xBC, conv_weight, conv_bias, conv_state)  # [B, L, X]
        x, B, C = self._tapped(xBC, CONV_OUTPUTS)
        return self._scan(x, dt, self.sizes.grouped(B), self.sizes.grouped(C), ssm_state)

    def _scan(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, ssm_state: Tensor | None) -> Tensor:
        """The recurrence on x [B, L, D], dt [B, L, S], B and C [B, L, G, N] -> [B, L, D]."""
        A, D, dt_bias = -torch.exp(self.A_log.float()), self.D.float(), self.dt_bias.float()
        limits, state_tap = (self.dt_min, self.dt_max), self.taps[STATE_TAP]
        if not state_tap._forward_hooks:
            return float_kernels.ssd_scan(x, dt, A, B, C, D, dt_bias, *limits, ssm_state)
        state = x.new_zeros(self.sizes.state_shape(len(x))) if ssm_state is None else ssm_state
        pieces = []
        for part in zip(*(tensor.split(WATCHED_STRIDE, dim=1) for tensor in (x, dt, B, C)), strict=True):
            x, dt, B, C = part
            pieces.append(float_kernels.ssd_scan(x, dt, A, B, C, D, dt_bias, *limits, state))
            state_tap(state)
        return torch.cat(pieces, dim=1)

    def _tapped(self, xBC: Tensor, taps: tuple[str, ...]) -> list[Tensor]:
        """[B, L, X] -> x [B, L, D], B and C [B, L, G N], each through its tap."""
        parts = xBC.split(self.sizes.conv_parts, dim=-1)
        return [self.taps[name](part) for name, part in zip(taps, parts, strict=True)]


class QuantMamba2Mixer(QuantMixer):
    """Norm + quantize -> in_proj, dt_proj -> conv + SiLU -> scan -> gated norm -> Hadamard + quantize -> out_proj.

    Weights and activations are what `scheme` says. in_proj's rows are z | x | B | C, int8 with the scales of their
    taps; dt's rows are a linear layer of their own, dt_proj, because dt stays float. `{tap}_scale` is the static scale
    of a tap, None where it has none: one value, of conv_in and x [D], of B and C [G]. dt, A, D and the biases are
    float32; so is the SSM state, unless `state_bits` is 8: then it is int8 with the scales `state_scale` [S, P]. The
    norm's weight is fused into in_proj, the gated norm's into out_proj, whose weight is rotated.
    """

    def __init__(
        self,
        scheme: Scheme,
        layer_idx: int,
        hidden_size: int,
        sizes: Mamba2Sizes,
        conv_width: int,
        eps: float,
        dt_limit: tuple[float, float],
        use_bias: bool,
        use_conv_bias: bool,
        multipliers: tuple[str, ...] = (),
        state_bits: int = 32,
    ):
        super().__init__()
        self.scheme, self.layer_idx, self.sizes, self.eps = scheme, layer_idx, sizes, eps
        self.d_inner, self.state_bits = sizes.d_inner, state_bits
        self.dt_min, self.dt_max = (float(limit) for limit in dt_limit)
        d_inner, channels, heads = sizes.in_proj_parts
        weight = scheme.weight
        self.in_proj = QuantLinear(hidden_size, d_inner + channels, use_bias, weight, "in_proj" in multipliers)
        self.dt_proj = QuantLinear(hidden_size, heads, use_bias, weight)
        self.conv1d = QuantConv1d(channels, conv_width, use_conv_bias, scheme.conv_weight)
        self.out_proj = QuantLinear(d_inner, hidden_size, use_bias, weight, "out_proj" in multipliers)
        for name in ("A", "D", "dt_bias"):
            self.register_buffer(name, torch.zeros(heads, dtype=torch.float32))
        static = static_taps(TAPS, scheme.act)
        for name in TAPS:
            scale = torch.ones(self._scale_shape(name), dtype=torch.float32) if name in static else None
            self.register_buffer(f"{name}_scale", scale)
        state_shape = sizes.state_shape(1)[1:3]
        self.register_buffer("state_scale", torch.ones(state_shape, dtype=torch.float32) if state_bits == 8 else None)

    @property
    def time_step_limit(self) -> tuple[float, float]:
        """The limits of dt."""
        return self.dt_min, self.dt_max

    def _scale_shape(self, tap: str) -> tuple[int, ...]:
        """The shape of a tap's static scale."""
        if tap in ("conv_in", "x"):
            return (self.d_inner,)
        return (self.sizes.groups,) if tap in ("B", "C") else ()

    @classmethod
    def from_config(
        cls, config, layer_idx: int, scheme: Scheme, multipliers: tuple[str, ...] = (), state_bits: int = 32
    ) -> "QuantMamba2Mixer":
        """An empty mixer of the shape that a transformers Mamba2Config describes; `multipliers`: the linear layers
        that multiply their input; dt_proj reads in_proj's."""
        return cls(
            scheme,
            layer_idx=layer_idx,
            hidden_size=config.hidden_size,
            sizes=Mamba2Sizes.of(config),
            conv_width=config.conv_kernel,
            eps=config.layer_norm_epsilon,
            dt_limit=config.time_step_limit,
            use_bias=config.use_bias,
            use_conv_bias=config.use_conv_bias,
            multipliers=multipliers,
            state_bits=state_bits,
        )

    @classmethod
    def from_float(
        cls,
        config,
        mixer: Mamba2Mixer,
        scheme: Scheme,
        scales: dict[str, Tensor],
        rounded: Mapping[str, RoundedWeight] = MappingProxyType({}),
        multipliers: tuple[str, ...] = (),
        state_bits: int = 32,
    ) -> "QuantMamba2Mixer":
        """Quantizes the weights of a fused and rotated float mixer.

        `scales`: that of every static tap, one value or as many as `{tap}_scale` has, and with `state_bits` 8 the
        states', "state", one value or [S, P]. `rounded`: the integers of in_proj (all rows) and out_proj; one without
        them is rounded to nearest.
        """
        quantized = cls.from_config(config, mixer.layer_idx, scheme, multipliers, state_bits)
        d_inner, channels, heads = mixer.sizes.in_proj_parts
        rows = (d_inner + channels, heads)
        integers = rounded["in_proj"].split(rows) if "in_proj" in rounded else (None, None)
        in_proj, dt_proj = split_rows(mixer.in_proj, rows)
        weight = scheme.weight
        quantized.in_proj = QuantLinear.from_float(in_proj, weight, integers[0], "in_proj" in multipliers)
        quantized.dt_proj = QuantLinear.from_float(dt_proj, weight, integers[1])
        quantized.out_proj = QuantLinear.from_float(
            mixer.out_proj, weight, rounded.get("out_proj"), "out_proj" in multipliers
        )
        quantized.conv1d = QuantConv1d.from_float(mixer.conv1d, scheme.conv_weight)
        quantized.A = -torch.exp(mixer.A_log.detach().float())
        quantized.D, quantized.dt_bias = mixer.D.detach().float().clone(), mixer.dt_bias.detach().float().clone()
        for name in (*static_taps(TAPS, scheme.act), *(["state"] if state_bits == 8 else [])):
            shape = getattr(quantized, f"{name}_scale").shape
            setattr(quantized, f"{name}_scale", _expanded(scales[name], shape))
        return quantized

    def forward(
        self, hidden_states: Tensor, cache_params=None, attention_mask: Tensor | None = None, **options
    ) -> Tensor:
        """Hidden states before normalisation, float [B, L, H] -> [B, L, H] in their dtype (in Mamba2 float32).

        With 8-bit activations what is int8 below is int8, with float ones it is float32 and no tensor has a scale.
        """
        check_options(options)
        batch, sizes, conv = hidden_states.shape[0], self.sizes, self.conv1d
        states = layer_states(
            cache_params,
            self.layer_idx,
            (batch, *conv.weight.shape),  # [B, X, K]
            conv.weight.dtype,
            sizes.state_shape(batch),
            hidden_states.device,
            torch.float32 if self.state_scale is None else torch.int8,
        )
        in_proj_out, conv_in, conv_out = self.output_scales()
        recurrence = partial(self._recurrence, conv_in, conv_out)
        u, u_scale = self._in_proj_input(hidden_states)  # int8 [B, L, H]
        z, xBC = self.in_proj(u, u_scale, in_proj_out).split(sizes.in_proj_parts[:2], dim=-1)  # int8 [B, L, D | X]
        dt = self.dt_proj(u, u_scale)  # float32 [B, L, S]
        y = each_row(recurrence, (xBC, dt), states, attention_mask, sizes.d_inner)  # float32 [B, L, D]
        y, y_scale = self._gated_out_proj_input(y, z)  # int8 [B, L, D]
        return without_gradient(self.out_proj(y, y_scale).to(hidden_states.dtype), hidden_states)  # [B, L, H]

    def _recurrence(
        self,
        conv_in: Tensor | None,
        conv_out: Tensor | None,
        xBC: Tensor,
        dt: Tensor,
        conv_state: Tensor | None,
        ssm_state: Tensor | None,
    ) -> Tensor:
        """x | B | C int8 [B, L, X] and dt float32 [B, L, S] -> the scan's output, float32 [B, L, D].

        conv_in, conv_out: the scales of the convolution's input and output [X], as `output_scales` gives them.
        """
        xBC = self.conv1d(xBC, conv_in, conv_out, conv_state)  # int8 [B, L, X]
        x, B, C = xBC.split(self.sizes.conv_parts, dim=-1)  # int8 [B, L, D | G N | G N]
        return self._scan(x, dt, self.sizes.grouped(B), self.sizes.grouped(C), ssm_state)

    def _gated_out_proj_input(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gated norm of y and z [B, L, D], rotated, and its scale: the static one, [B, L], or None of float."""
        gated = (y, z, self.z_scale, self.eps, self.sizes.groups)
        if self.out_scale is None:
            return self._out_proj_input(ops.gated_rms_norm(*gated))
        base, multiplier = base_on(self.d_inner, y.device), self.out_proj.input_multiplier
        return ops.gated_hadamard_quant(*gated, base, self.out_scale, multiplier), self.out_scale

    def output_scales(self) -> tuple[Tensor, Tensor, Tensor] | tuple[None, None, None]:
        """Scales per channel: of in_proj's output [D + X] (z | conv_in | B_in | C_in), the convolution's input, a part
        of the same [X], and its output [X] (x | B | C); None three times with float activations."""
        if self.scheme.act.is_float:
            return None, None, None
        N, B_channels = self.sizes.d_state, self.sizes.conv_parts[1]
        inputs = (self.z_scale.expand(self.d_inner), self.conv_in_scale)
        in_proj = torch.cat([*inputs, self.B_in_scale.expand(B_channels), self.C_in_scale.expand(B_channels)])
        outputs = (self.x_scale, self.B_scale.repeat_interleave(N), self.C_scale.repeat_interleave(N))
        return in_proj, in_proj[self.d_inner :], torch.cat(outputs)

    def _scan(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, ssm_state: Tensor | None) -> Tensor:
        """The recurrence on int8 or on float x [B, L, D], B and C [B, L, G, N] -> float32 [B, L, D]."""
        limits = (self.dt_min, self.dt_max)
        if self.scheme.act.is_float:
            return ops.ssd_scan(x, dt, self.A, B, C, self.D, self.dt_bias, *limits, ssm_state)
        scales = (self.x_scale, self.B_scale, self.C_scale)
        state_scale = None if ssm_state is None else self.state_scale  # without a cache no state is kept
        return ops.ssd_scan_int8(x, dt, self.A, B, C, self.D, self.dt_bias, *limits, ssm_state, *scales, state_scale)


def _expanded(scale: Tensor, shape: torch.Size) -> Tensor:
    """A scale, one value or one for each place, as float32 of that shape."""
    scale = scale.detach().float()
    return (scale.reshape(()) if scale.numel() == 1 else scale).expand(shape).clone()
