"""The Mamba block's mixer (arXiv 2312.00752): float with taps, and quantized (Quamba, arXiv 2410.13229, section 4).

Dims: B batch, L tokens, H hidden_size, D d_inner, N d_state, R dt_rank, K conv width.
Activations are token-major [B, L, channels] throughout: channels are contiguous for the convolution and the scan.
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..hadamard import base_on
from ..scheme.formats import Scheme
from ..weights.rounded import RoundedWeight
from . import float_kernels
from .conv1d import QuantConv1d
from .gradients import without_gradient
from .linear import QuantLinear
from .mixer import FloatMixer, QuantMixer
from .states import check_options, each_row, layer_states
from .taps import static_taps

# The activations that are quantized, in the order in which a block computes them:
# in_proj's input, the convolution's input, the gate, conv + SiLU's output, dt_proj's input, B, C, out_proj's input.
TAPS = ("in", "conv_in", "z", "x", "dt_rank", "B", "C", "out")
LINEARS = ("in_proj", "x_proj", "dt_proj", "out_proj")


class Mamba1Mixer(FloatMixer):
    """transformers' MambaMixer on our float ops, its parameters under the same names, with an Identity at each tap.

    Unlike the original it is fast on a CPU (no Python loop over time) and continues from a cache with any number of
    tokens. `ssm_norm_eps`: that of Falcon-Mamba's RMSNorms without weights, of dt, B and C behind x_proj; None
    without them.
    """

    def __init__(self, mixer: nn.Module):
        super().__init__(TAPS)
        self.layer_idx = mixer.layer_idx
        self.in_proj, self.x_proj, self.dt_proj = mixer.in_proj, mixer.x_proj, mixer.dt_proj
        self.conv1d, self.out_proj = mixer.conv1d, mixer.out_proj
        self.A_log, self.D = mixer.A_log, mixer.D
        self.d_inner, self.d_state = mixer.A_log.shape
        self.dt_rank = mixer.dt_proj.in_features
        self.ssm_norm_eps: float | None = getattr(mixer, "rms_eps", None)

    def forward(
        self, hidden_states: Tensor, cache_params=None, attention_mask: Tensor | None = None, **options
    ) -> Tensor:
        """Normalised hidden states [B, L, H] -> [B, L, H] in their dtype; convolution and scan run in float32."""
        check_options(options)
        batch, D, K, dtype = hidden_states.shape[0], self.d_inner, self.conv1d.weight.shape[-1], hidden_states.dtype
        shapes = {"conv_shape": (batch, D, K), "conv_dtype": torch.float32, "ssm_shape": (batch, D, self.d_state)}
        states = layer_states(cache_params, self.layer_idx, **shapes, device=hidden_states.device)
        xz = self.in_proj(self.taps["in"](hidden_states)).float()  # [B, L, H] -> [B, L, 2D]
        y = each_row(partial(self._recurrence, dtype), xz.chunk(2, dim=-1), states, attention_mask, D)  # [B, L, D]
        if self.hadamard_out:
            y = ops.hadamard(y, base_on(D, y.device), self.out_multiplier)
        y = self.out_proj(self.taps["out"](y).to(dtype))  # [B, L, D] -> [B, L, H]
        return without_gradient(y, xz, *self.parameters())

    def _recurrence(
        self, dtype: torch.dtype, x: Tensor, z: Tensor, conv_state: Tensor | None, ssm_state: Tensor | None
    ) -> Tensor:
        """in_proj's outputs x and z [B, L, D] -> the gated scan output [B, L, D]; linear layers run in `dtype`."""
        tap, N = self.taps, self.d_state
        x, z = tap["conv_in"](x), tap["z"](z)
        conv_weight = self.conv1d.weight.squeeze(1).float()  # [D, 1, K] -> [D, K]
        conv_bias = None if self.conv1d.bias is None else self.conv1d.bias.float()
        x = tap["x"](float_kernels.causal_conv1d(x, conv_weight, conv_bias, conv_state))  # [B, L, D]
        dt, B, C = self.x_proj(x.to(dtype)).float().split([self.dt_rank, N, N], dim=-1)  # [B, L, R | N | N]
        if self.ssm_norm_eps is not None:
            dt, B, C = (ops.rms_norm(part, self.ssm_norm_eps) for part in (dt, B, C))
        dt, B, C = tap["dt_rank"](dt), tap["B"](B), tap["C"](C)
        dt = F.linear(dt.to(dtype), self.dt_proj.weight).float()  # [B, L, R] -> [B, L, D]
        A, dt_bias = -torch.exp(self.A_log.float()), self.dt_proj.bias.float()
        return float_kernels.selective_scan(x, dt, A, B, C, self.D.float(), z, dt_bias, ssm_state)


class QuantMamba1Mixer(QuantMixer):
    """Norm + quantize -> in_proj -> conv + SiLU -> x_proj -> dt_proj -> scan, gate -> Hadamard + quantize -> out_proj.

    Weights and activations are what `scheme` says. `{tap}_scale` is the static scale of a tap, None where it has none:
    with dynamic scales every token at in_proj's and out_proj's input has its own, with float activations nothing has.
    dt, A, D, the SSM state and the biases are float32. The norm's weight is fused into in_proj, out_proj's weight is
    rotated. With `ssm_norm_eps` (Falcon-Mamba, arXiv 2410.05355) x_proj's output stays float32, and dt, B and C are
    quantized behind the RMSNorm of each.
    """

    def __init__(
        self,
        scheme: Scheme,
        layer_idx: int,
        hidden_size: int,
        d_inner: int,
        d_state: int,
        dt_rank: int,
        conv_width: int,
        eps: float,
        use_bias: bool,
        use_conv_bias: bool,
        multipliers: tuple[str, ...] = (),
        ssm_norm_eps: float | None = None,
    ):
        super().__init__()
        self.scheme, self.layer_idx, self.eps, self.ssm_norm_eps = scheme, layer_idx, eps, ssm_norm_eps
        self.d_inner, self.d_state, self.dt_rank = d_inner, d_state, dt_rank

        def linear(name: str, in_features: int, out_features: int, bias: bool) -> QuantLinear:
            return QuantLinear(in_features, out_features, bias, scheme.weight, name in multipliers)

        self.in_proj = linear("in_proj", hidden_size, 2 * d_inner, use_bias)
        self.conv1d = QuantConv1d(d_inner, conv_width, use_conv_bias, scheme.conv_weight)
        self.x_proj = linear("x_proj", d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = linear("dt_proj", dt_rank, d_inner, bias=True)
        self.out_proj = linear("out_proj", d_inner, hidden_size, use_bias)
        self.register_buffer("A", torch.zeros(d_inner, d_state, dtype=torch.float32))
        self.register_buffer("D", torch.zeros(d_inner, dtype=torch.float32))
        static = static_taps(TAPS, scheme.act)
        for name in TAPS:
            self.register_buffer(f"{name}_scale", torch.ones((), dtype=torch.float32) if name in static else None)

    @classmethod
    def from_config(
        cls, config, layer_idx: int, scheme: Scheme, multipliers: tuple[str, ...] = ()
    ) -> "QuantMamba1Mixer":
        """An empty mixer of the shape that a transformers MambaConfig or FalconMambaConfig describes; `multipliers`:
        the linear layers that multiply their input."""
        return cls(
            scheme,
            layer_idx=layer_idx,
            hidden_size=config.hidden_size,
            d_inner=config.intermediate_size,
            d_state=config.state_size,
            dt_rank=int(config.time_step_rank),
            conv_width=config.conv_kernel,
            eps=config.layer_norm_epsilon,
            use_bias=config.use_bias,
            use_conv_bias=config.use_conv_bias,
            multipliers=multipliers,
            ssm_norm_eps=getattr(config, "mixer_rms_eps", None),
        )

    @classmethod
    def from_float(
        cls,
        config,
        mixer: Mamba1Mixer,
        scheme: Scheme,
        scales: dict[str, Tensor],
        rounded: Mapping[str, RoundedWeight] = MappingProxyType({}),
        multipliers: tuple[str, ...] = (),
    ) -> "QuantMamba1Mixer":
        """Quantizes the weights of a fused and rotated float mixer; `scales` holds that of every static tap.

        `rounded`: the integers of linear layers by name; one without them is rounded to nearest.
        """
        quantized = cls.from_config(config, mixer.layer_idx, scheme, multipliers)
        for name in LINEARS:
            linear = QuantLinear.from_float(getattr(mixer, name), scheme.weight, rounded.get(name), name in multipliers)
            setattr(quantized, name, linear)
        quantized.conv1d = QuantConv1d.from_float(mixer.conv1d, scheme.conv_weight)
        quantized.A = -torch.exp(mixer.A_log.detach().float())
        quantized.D = mixer.D.detach().float().clone()
        for name in static_taps(TAPS, scheme.act):
            setattr(quantized, f"{name}_scale", scales[name].detach().float().reshape(()).clone())
        return quantized

    def forward(
        self, hidden_states: Tensor, cache_params=None, attention_mask: Tensor | None = None, **options
    ) -> Tensor:
        """Hidden states before normalisation, float [B, L, H] -> float32 [B, L, H].

        With 8-bit activations what is int8 below is int8, with float ones it is float32 and no tensor has a scale.
        """
        check_options(options)
        batch, D, N = hidden_states.shape[0], self.d_inner, self.d_state
        conv_shape = (batch, *self.conv1d.weight.shape)  # [B, D, K]
        states = layer_states(
            cache_params, self.layer_idx, conv_shape, self.conv1d.weight.dtype, (batch, D, N), hidden_states.device
        )
        in_proj_out, _ = self.output_scales()
        u, u_scale = self._in_proj_input(hidden_states)  # int8 [B, L, H]
        xz = self.in_proj(u, u_scale, in_proj_out).chunk(2, dim=-1)  # int8 [B, L, D] each
        y = each_row(self._recurrence, xz, states, attention_mask, D)  # float32 [B, L, D]
        y, y_scale = self._out_proj_input(y)  # int8 [B, L, D]
        return without_gradient(self.out_proj(y, y_scale), hidden_states)  # float32 [B, L, H]

    def _recurrence(self, x: Tensor, z: Tensor, conv_state: Tensor | None, ssm_state: Tensor | None) -> Tensor:
        """in_proj's outputs x and z, int8 [B, L, D] -> the gated scan output, float32 [B, L, D]."""
        x = self.conv1d(x, self.conv_in_scale, self.x_scale, conv_state)  # int8 [B, L, D]
        dt, B, C = self._dt_B_C(x)  # int8 [B, L, R | N | N]
        dt = self.dt_proj(dt, self.dt_rank_scale)  # float32 [B, L, D], bias included
        return self._scan(x, dt, B, C, z, ssm_state)

    def _dt_B_C(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The convolution's output [B, L, D] -> dt_proj's input [B, L, R], B and C [B, L, N]; int8, or all float32."""
        parts, multiplier = [self.dt_rank, self.d_state, self.d_state], self.dt_proj.input_multiplier
        x = self.x_proj.multiplied(x)
        if self.ssm_norm_eps is None:
            dt, B, C = self.x_proj(x, self.x_scale, self.output_scales()[1]).split(parts, dim=-1)
            return self.dt_proj.multiplied(dt), B, C
        dt, B, C = self.x_proj(x, self.x_scale).split(parts, dim=-1)  # float32 [B, L, R | N | N]
        eps = self.ssm_norm_eps
        if self.scheme.act.is_float:
            return ops.rms_norm(dt, eps, multiplier), ops.rms_norm(B, eps), ops.rms_norm(C, eps)
        dt = ops.rms_norm_quant(dt, eps, self.dt_rank_scale, multiplier)
        return dt, ops.rms_norm_quant(B, eps, self.B_scale), ops.rms_norm_quant(C, eps, self.C_scale)

    def output_scales(self) -> tuple[Tensor | None, Tensor | None]:
        """Per-channel output scales of in_proj [2D] (conv_in | z) and of x_proj [R + 2N] (dt_rank | B | C)."""
        if self.scheme.act.is_float:
            return None, None
        D, N = self.d_inner, self.d_state
        in_proj = torch.cat([self.conv_in_scale.expand(D), self.z_scale.expand(D)])
        x_proj = torch.cat([self.dt_rank_scale.expand(self.dt_rank), self.B_scale.expand(N), self.C_scale.expand(N)])
        return in_proj, x_proj

    def _scan(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor, ssm_state: Tensor | None) -> Tensor:
        """The selective scan gated by SiLU(z), on int8 or on float x, B, C and z -> float32 [B, L, D]."""
        if self.scheme.act.is_float:
            return ops.selective_scan(x, dt, self.A, B, C, self.D, z, None, ssm_state)
        scales = (self.x_scale, self.B_scale, self.C_scale, self.z_scale)
        return ops.selective_scan_int8(x, dt, self.A, B, C, self.D, z, None, ssm_state, *scales)
