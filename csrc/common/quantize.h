// The second spelling of quamba/numerics.py, for kernels on host and device. One test pins the two to each other.
//
// Templates over F: `float`, or a vector of floats whose operators work lane by lane (GCC/Clang vector extensions).
#pragma once

#if defined(__CUDACC__)
#define QUAMBA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define QUAMBA_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace quamba {

constexpr float kInt8Min = -128.0f;
constexpr float kInt8Max = 127.0f;
constexpr float kAmaxEps = 1e-8f;  // an all-zero tensor still gets a positive scale
// 1.5 * 2^23: adding and subtracting it rounds a float of magnitude below 2^22 to an integer, ties to even.
constexpr float kRoundingMagic = 12582912.0f;

template <typename F>
QUAMBA_HOST_DEVICE F round_half_even(F x) {
  return (x + kRoundingMagic) - kRoundingMagic;
}

// Integral float in [-128, 127]: clamp(round_half_even(q)). NaN gives 0; clamping first changes nothing but keeps the
// rounding trick within its range.
template <typename F>
QUAMBA_HOST_DEVICE F to_int8(F q) {
  q = (q == q) ? q : F{};
  q = (q < kInt8Min) ? (F{} + kInt8Min) : q;
  q = (q > kInt8Max) ? (F{} + kInt8Max) : q;
  return round_half_even(q);
}

template <typename F>
QUAMBA_HOST_DEVICE F quantize_int8(F x, F scale) {
  return to_int8<F>(x / scale);
}

// The symmetric int8 scale under which `amax` maps to 127.
QUAMBA_HOST_DEVICE float symmetric_int8_scale(float amax) {
  return (amax > kAmaxEps ? amax : kAmaxEps) / kInt8Max;
}

}  // namespace quamba
