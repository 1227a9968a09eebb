"""Every op of quamba: its schema, and the shape and dtype of its result (the "fake" that tracing runs).

Dims: B batch, L tokens, D channels (d_inner), N d_state, K conv width, H hidden, I in, O out features, V vocabulary.
Mamba2: S heads, P head_dim, D = S * P, G SSD groups.
Weights of linear layers and embeddings are the tiles of layout.py. Scales are float32 and per tensor (one value)
unless a shape is given. A `Tensor(a!)` is updated in place.
"""

from torch import Tensor, contiguous_format, empty_like, float32, int8

MAX_CONV_WIDTH = 16  # kMaxConvWidth of csrc/cpu/kernels.h

SCHEMAS = {
    # x [...] -> int8 [...]
    "quantize": "(Tensor x, Tensor scale) -> Tensor",
    # x [..., H] -> int8 [..., H]: RMSNorm without weight, times a multiplier [H], then quantize
    "rms_norm_quant": "(Tensor x, float eps, Tensor scale, Tensor? multiplier=None) -> Tensor",
    # x [..., H] -> float32 [..., H]: RMSNorm without weight, times a multiplier [H]
    "rms_norm": "(Tensor x, float eps, Tensor? multiplier=None) -> Tensor",
    # x [..., n] -> int8 [..., n], float32 [...]: every row with a scale of its own, its largest magnitude / qmax
    "quantize_per_token": "(Tensor x) -> (Tensor, Tensor)",
    # x int8 [..., I], weight int8 tiles, weight_scale [O], x_scale one value or [...], bias [O] -> float32 [..., O]
    "linear_w8a8": "(Tensor x, Tensor weight, Tensor weight_scale, Tensor x_scale, Tensor? bias) -> Tensor",
    # the same, quantized with out_scale [O] -> int8 [..., O]
    "linear_w8a8_requant": (
        "(Tensor x, Tensor weight, Tensor weight_scale, Tensor x_scale, Tensor? bias, Tensor out_scale) -> Tensor"
    ),
    # x float32 [..., I], weight int8 tiles, weight_scale [O], bias [O] -> float32 [..., O]
    "linear_w8a16": "(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias) -> Tensor",
    # x int8 [..., I], weight uint4 tiles, scale float16 and zero uint8 group tiles, x_scale one value or [...],
    # bias [O] -> float32 [..., O]
    "linear_w4a8": (
        "(Tensor x, Tensor weight, Tensor scale, Tensor zero, Tensor x_scale, Tensor? bias, int out_features, "
        "int group_size) -> Tensor"
    ),
    # the same, quantized with out_scale [O] -> int8 [..., O]
    "linear_w4a8_requant": (
        "(Tensor x, Tensor weight, Tensor scale, Tensor zero, Tensor x_scale, Tensor? bias, int out_features, "
        "int group_size, Tensor out_scale) -> Tensor"
    ),
    # the same weights on x float32 [..., I] -> float32 [..., O]
    "linear_w4a16": (
        "(Tensor x, Tensor weight, Tensor scale, Tensor zero, Tensor? bias, int out_features, int group_size) -> Tensor"
    ),
    # x float32 [B, L, D], weight [D, K], conv_state [B, D, K] newest last -> float32 [B, L, D]: convolution + SiLU
    "causal_conv1d": "(Tensor x, Tensor weight, Tensor? bias, Tensor(a!)? conv_state) -> Tensor",
    # the same on int8 x, weight and conv_state; scale [D] = input scale * weight scale, out_scale one value or [D]
    # -> int8 [B, L, D]
    "causal_conv1d_int8": (
        "(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor out_scale, Tensor(a!)? conv_state) -> Tensor"
    ),
    # x, dt, z [B, L, D], A [D, N], B, C [B, L, N], D, dt_bias [D], state [B, D, N] -> float32 [B, L, D]
    "selective_scan": (
        "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
        "Tensor(a!)? state) -> Tensor"
    ),
    # the same with int8 x, B, C, z; dt, A, D, dt_bias, state float32
    "selective_scan_int8": (
        "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
        "Tensor(a!)? state, Tensor x_scale, Tensor B_scale, Tensor C_scale, Tensor z_scale) -> Tensor"
    ),
    # Mamba2's recurrence: x [B, L, D], dt [B, L, S], A, D, dt_bias [S], B, C [B, L, G, N], state [B, S, P, N]
    # -> float32 [B, L, D]; dt is softplus(dt + dt_bias), kept within dt_min and dt_max
    "ssd_scan": (
        "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, float dt_min, float dt_max, "
        "Tensor(a!)? state) -> Tensor"
    ),
    # the same with int8 x (x_scale [D]), B and C (scales [G]); state float32, or int8 with state_scale [S, P]
    "ssd_scan_int8": (
        "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, float dt_min, float dt_max, "
        "Tensor(a!)? state, Tensor x_scale, Tensor B_scale, Tensor C_scale, Tensor? state_scale) -> Tensor"
    ),
    # y float32 [..., D], z float32 or, with z_scale, int8 [..., D] -> float32 [..., D]: RMSNorm without weight of
    # y * SiLU(z), over each of `groups` parts
    "gated_rms_norm": "(Tensor y, Tensor z, Tensor? z_scale, float eps, int groups) -> Tensor",
    # x [..., n], base [p, p] of +-1 -> float32 [..., n]: x @ kron(Sylvester(n / p), base) / sqrt(n), times a
    # multiplier [n]
    "hadamard": "(Tensor x, Tensor base, Tensor? multiplier=None) -> Tensor",
    # the same, quantized -> int8 [..., n]
    "hadamard_quant": "(Tensor x, Tensor base, Tensor scale, Tensor? multiplier=None) -> Tensor",
    # gated_rms_norm of y and z, then hadamard_quant -> int8 [..., D]
    "gated_hadamard_quant": (
        "(Tensor y, Tensor z, Tensor? z_scale, float eps, int groups, Tensor base, Tensor scale, "
        "Tensor? multiplier=None) -> Tensor"
    ),
    # ids int64 [...], weight int8 tiles of [V, H], scale [V] -> float32 [..., H]
    "embedding_int8": "(Tensor ids, Tensor weight, Tensor scale, int hidden) -> Tensor",
    # ids int64 [...], weight uint4 tiles of [V, H], scale float16 and zero uint8 group tiles -> float32 [..., H]
    "embedding_int4": (
        "(Tensor ids, Tensor weight, Tensor scale, Tensor zero, int hidden, int vocab, int group_size) -> Tensor"
    ),
    # one token through every block: hidden float32 [B, H], conv_states [B, D, K] and ssm_states [B, D, N] of each layer
    # move on in place; `layers`: MAMBA1_STEP_TENSORS of each layer in turn; base as in `hadamard`; dynamic: scales per
    # token. With ssm_norm_eps x_proj's outputs stay float32, and dt, B and C are quantized behind an RMSNorm of each.
    # With logits float32 [B, V] also the final norm, of weight [H], and the head: weight, scale, zero, head_in's scale.
    # group_sizes: of the uint4 weights of each layer, then of the head where there are logits; of int8 ones not read
    "mamba1_step": (
        "(Tensor(a!) hidden, Tensor?[] layers, Tensor(b!)[] conv_states, Tensor(c!)[] ssm_states, Tensor base, "
        "int dt_rank, float eps, float? ssm_norm_eps, int[] group_sizes, bool dynamic, Tensor? norm_weight, "
        "Tensor?[] head, Tensor(d!)? logits) -> ()"
    ),
    # the same of Mamba2's blocks: MAMBA2_STEP_TENSORS of each layer, conv_states [B, D + 2 G N, K] and ssm_states
    # [B, S, P, N], float32 or int8; groups: G; dt_min and dt_max as in `ssd_scan`
    "mamba2_step": (
        "(Tensor(a!) hidden, Tensor?[] layers, Tensor(b!)[] conv_states, Tensor(c!)[] ssm_states, Tensor base, "
        "int groups, float eps, float dt_min, float dt_max, int[] group_sizes, bool dynamic, Tensor? norm_weight, "
        "Tensor?[] head, Tensor(d!)? logits) -> ()"
    ),
    # counts int64 [n], sums float64 [n] of |x| by bin (float32 bits of |x| >> (23 - mantissa_bits)) - first_bin
    "magnitude_histogram": ("(Tensor x, Tensor(a!) counts, Tensor(b!) sums, int first_bin, int mantissa_bits) -> ()"),
}

# What mamba1_step reads of a layer, None where the scheme has none. A linear layer is weight, scale, zero (None: int8),
# bias, and the multiplier [I] of its input (that of x_proj and dt_proj with float activations only). `tap_scales` [8]
# (None: float activations) in the order in, conv_in, z, x, dt_rank, B, C, out; `conv_scale` [D] is that of conv_in
# times the weight's; `in_proj_out_scale` [2D] is conv_in's | z's, `x_proj_out_scale` [R + 2N] dt_rank's | B's | C's.
MAMBA1_STEP_LINEARS = ("in_proj", "x_proj", "dt_proj", "out_proj")
LINEAR_TENSORS = ("weight", "scale", "zero", "bias", "multiplier")
MAMBA1_STEP_TENSORS = (
    *(f"{linear}.{part}" for linear in MAMBA1_STEP_LINEARS for part in LINEAR_TENSORS),
    "conv_weight",
    "conv_scale",
    "conv_bias",
    "A",
    "D",
    "tap_scales",
    "in_proj_out_scale",
    "x_proj_out_scale",
)

# The same of mamba2_step, X = D + 2 G N channels of the convolution (x | B | C). dt_proj reads in_proj's input: it has
# no multiplier. `tap_scales` [3 + 2G] (None: float activations) in the order in, z, out, B of each group, C of each;
# `in_proj_out_scale` [D + X] is z's | x's | B's | C's; `conv_scale` [X] is that of the convolution's input times the
# weight's, `conv_out_scale` [X] its output's; `state_scale` [S, P] that of int8 states (None: they are float32).
MAMBA2_STEP_LINEARS = ("in_proj", "dt_proj", "out_proj")
MAMBA2_STEP_TENSORS = (
    *(f"{linear}.{part}" for linear in MAMBA2_STEP_LINEARS for part in LINEAR_TENSORS),
    "conv_weight",
    "conv_scale",
    "conv_bias",
    "A",
    "D",
    "dt_bias",
    "tap_scales",
    "in_proj_out_scale",
    "conv_out_scale",
    "state_scale",
)


def _like(dtype):
    def fake(x: Tensor, *_args) -> Tensor:
        return empty_like(x, dtype=dtype, memory_format=contiguous_format)

    return fake


def _linear_int8(dtype):
    def fake(x: Tensor, _weight: Tensor, weight_scale: Tensor, *_args) -> Tensor:
        return x.new_empty((*x.shape[:-1], weight_scale.shape[0]), dtype=dtype)

    return fake


def _linear_int4(dtype):
    def fake(x: Tensor, _weight: Tensor, _scale: Tensor, _zero: Tensor, *args) -> Tensor:
        out_features = next(arg for arg in args if isinstance(arg, int))
        return x.new_empty((*x.shape[:-1], out_features), dtype=dtype)

    return fake


def _embedding_int8(ids: Tensor, _weight: Tensor, _scale: Tensor, hidden: int) -> Tensor:
    return ids.new_empty((*ids.shape, hidden), dtype=float32)


def _per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    return empty_like(x, dtype=int8, memory_format=contiguous_format), x.new_empty(x.shape[:-1], dtype=float32)


def _embedding_int4(ids: Tensor, _weight: Tensor, _scale: Tensor, _zero: Tensor, hidden: int, *_args) -> Tensor:
    return ids.new_empty((*ids.shape, hidden), dtype=float32)


def _nothing(*_args) -> None:
    return None


FAKES = {
    "quantize": _like(int8),
    "rms_norm_quant": _like(int8),
    "rms_norm": _like(float32),
    "quantize_per_token": _per_token,
    "linear_w8a8": _linear_int8(float32),
    "linear_w8a8_requant": _linear_int8(int8),
    "linear_w8a16": _linear_int8(float32),
    "linear_w4a8": _linear_int4(float32),
    "linear_w4a8_requant": _linear_int4(int8),
    "linear_w4a16": _linear_int4(float32),
    "causal_conv1d": _like(float32),
    "causal_conv1d_int8": _like(int8),
    "selective_scan": _like(float32),
    "selective_scan_int8": _like(float32),
    "ssd_scan": _like(float32),
    "ssd_scan_int8": _like(float32),
    "gated_rms_norm": _like(float32),
    "hadamard": _like(float32),
    "hadamard_quant": _like(int8),
    "gated_hadamard_quant": _like(int8),
    "embedding_int8": _embedding_int8,
    "embedding_int4": _embedding_int4,
    "mamba1_step": _nothing,
    "mamba2_step": _nothing,
    "magnitude_histogram": _nothing,
}
