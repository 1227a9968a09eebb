"""Every op of quamba: its schema, and the shape and dtype of its result (the "fake" that tracing runs).

Dims: B batch, L tokens, D channels (d_inner), N d_state, K conv width, H hidden, I in, O out features, V vocabulary.
Scales are float32 and per tensor (one value) unless a shape is given. A `Tensor(a!)` is updated in place.
"""

from torch import Tensor, contiguous_format, empty_like, float32, int8

MAX_CONV_WIDTH = 16  # kMaxConvWidth of csrc/cpu/kernels.h

SCHEMAS = {
    # x [...] -> int8 [...]
    "quantize": "(Tensor x, Tensor scale) -> Tensor",
    # x [..., H] -> int8 [..., H]: RMSNorm without weight, then quantize
    "rms_norm_quant": "(Tensor x, float eps, Tensor scale) -> Tensor",
    # x [..., H] -> float32 [..., H]: RMSNorm without weight
    "rms_norm": "(Tensor x, float eps) -> Tensor",
    # x [..., n] -> int8 [..., n], float32 [...]: every row with a scale of its own, its largest magnitude / qmax
    "quantize_per_token": "(Tensor x) -> (Tensor, Tensor)",
    # x int8 [..., I], weight int8 [O, I], weight_scale [O], x_scale one value or [...], bias [O] -> float32 [..., O]
    "linear_w8a8": "(Tensor x, Tensor weight, Tensor weight_scale, Tensor x_scale, Tensor? bias) -> Tensor",
    # the same, quantized with out_scale [O] -> int8 [..., O]
    "linear_w8a8_requant": (
        "(Tensor x, Tensor weight, Tensor weight_scale, Tensor x_scale, Tensor? bias, Tensor out_scale) -> Tensor"
    ),
    # x float32 [..., I], weight int8 [O, I], weight_scale [O], bias [O] -> float32 [..., O]
    "linear_w8a16": "(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias) -> Tensor",
    # x int8 [..., I], weight uint8 [O, ceil(I / 2)] (two uint4 a byte, the first in the low half), scale float16 and
    # zero uint8 [O, ceil(I / group_size)], x_scale one value or [...], bias [O] -> float32 [..., O]
    "linear_w4a8": (
        "(Tensor x, Tensor weight, Tensor scale, Tensor zero, Tensor x_scale, Tensor? bias, int group_size) -> Tensor"
    ),
    # the same, quantized with out_scale [O] -> int8 [..., O]
    "linear_w4a8_requant": (
        "(Tensor x, Tensor weight, Tensor scale, Tensor zero, Tensor x_scale, Tensor? bias, int group_size, "
        "Tensor out_scale) -> Tensor"
    ),
    # the same weights on x float32 [..., I] -> float32 [..., O]
    "linear_w4a16": ("(Tensor x, Tensor weight, Tensor scale, Tensor zero, Tensor? bias, int group_size) -> Tensor"),
    # x float32 [B, L, D], weight [D, K], conv_state [B, D, K] newest last -> float32 [B, L, D]: convolution + SiLU
    "causal_conv1d": "(Tensor x, Tensor weight, Tensor? bias, Tensor(a!)? conv_state) -> Tensor",
    # the same on int8 x, weight and conv_state; scale [D] = input scale * weight scale -> int8 [B, L, D]
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
    # x [..., n], base [p, p] of +-1 -> float32 [..., n]: x @ kron(Sylvester(n / p), base) / sqrt(n)
    "hadamard": "(Tensor x, Tensor base) -> Tensor",
    # the same, quantized -> int8 [..., n]
    "hadamard_quant": "(Tensor x, Tensor base, Tensor scale) -> Tensor",
    # ids int64 [...], weight int8 [V, H], scale [V] -> float32 [..., H]
    "embedding_int8": "(Tensor ids, Tensor weight, Tensor scale) -> Tensor",
    # ids int64 [...], weight uint8 [V, ceil(H / 2)], scale float16 and zero uint8 [V, ceil(H / group_size)]
    # -> float32 [..., H]
    "embedding_int4": "(Tensor ids, Tensor weight, Tensor scale, Tensor zero, int hidden, int group_size) -> Tensor",
    # counts int64 [n], sums float64 [n] of |x| by bin (float32 bits of |x| >> (23 - mantissa_bits)) - first_bin
    "magnitude_histogram": ("(Tensor x, Tensor(a!) counts, Tensor(b!) sums, int first_bin, int mantissa_bits) -> ()"),
}


def _like(dtype):
    def fake(x: Tensor, *_args) -> Tensor:
        return empty_like(x, dtype=dtype, memory_format=contiguous_format)

    return fake


def _linear(dtype):
    def fake(x: Tensor, weight: Tensor, *_args) -> Tensor:
        return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)

    return fake


def _embedding(ids: Tensor, weight: Tensor, _scale: Tensor) -> Tensor:
    return ids.new_empty((*ids.shape, weight.shape[1]), dtype=float32)


def _per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    return empty_like(x, dtype=int8, memory_format=contiguous_format), x.new_empty(x.shape[:-1], dtype=float32)


def _embedding_int4(ids: Tensor, _weight: Tensor, _scale: Tensor, _zero: Tensor, hidden: int, _group: int) -> Tensor:
    return ids.new_empty((*ids.shape, hidden), dtype=float32)


def _nothing(*_args) -> None:
    return None


FAKES = {
    "quantize": _like(int8),
    "rms_norm_quant": _like(int8),
    "rms_norm": _like(float32),
    "quantize_per_token": _per_token,
    "linear_w8a8": _linear(float32),
    "linear_w8a8_requant": _linear(int8),
    "linear_w8a16": _linear(float32),
    "linear_w4a8": _linear(float32),
    "linear_w4a8_requant": _linear(int8),
    "linear_w4a16": _linear(float32),
    "causal_conv1d": _like(float32),
    "causal_conv1d_int8": _like(int8),
    "selective_scan": _like(float32),
    "selective_scan_int8": _like(float32),
    "hadamard": _like(float32),
    "hadamard_quant": _like(int8),
    "embedding_int8": _embedding,
    "embedding_int4": _embedding_int4,
    "magnitude_histogram": _nothing,
}
