// What kernels do to single values beyond quantize.h, as accurate as the CPU's (about 1 ulp) and without fast-math.
#pragma once

#include <type_traits>

#include "platform.h"

namespace quamba::cuda {

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

// log(1 + e^x), with full relative accuracy for the small steps that a very negative x stands for.
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

// 2^x to about 2 ulp; 0 below the normal numbers, on which exp2f spends most of its instructions.
__device__ __forceinline__ float exp2_or_zero(float x) {
#if defined(QUAMBA_EMULATED)
  return x < -126.0f ? 0.0f : exp2f(x);
#else
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#endif
}

// What a stored value stands for; floats stand for themselves, and their `scale` is not read.
__device__ __forceinline__ float dequantized(float x, float) { return x; }
__device__ __forceinline__ float dequantized(int8_t x, float scale) { return static_cast<float>(x) * scale; }
__device__ __forceinline__ float4 dequantized(float4 x, float) { return x; }
__device__ __forceinline__ float4 dequantized(char4 x, float scale) {
  return make_float4(static_cast<float>(x.x) * scale, static_cast<float>(x.y) * scale,
                     static_cast<float>(x.z) * scale, static_cast<float>(x.w) * scale);
}

// Four values side by side.
template <typename T>
using VectorOf4 = std::conditional_t<std::is_same_v<T, float>, float4, char4>;

// The value behind `scale`, 1 where there is none.
__device__ __forceinline__ float scale_at(const float* scale) { return scale ? *scale : 1.0f; }

// To be put among other bytes.
__device__ __forceinline__ uint32_t low_byte(int8_t x) { return static_cast<uint8_t>(x); }

}  // namespace quamba::cuda
