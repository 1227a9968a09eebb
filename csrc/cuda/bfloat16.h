// Pairs of bfloat16 in a 32-bit register, the first value in its low half.
//
// bfloat16 has float32's range and 8 bits of mantissa: it holds every int8 and every difference of uint4 values
// exactly, and a float32 as the sum of two of them to within 2^-17 of its magnitude.
#pragma once

#include "platform.h"

namespace quamba::cuda {

// Both nearest.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#if defined(QUAMBA_EMULATED)
  return BFloat16(low).x | static_cast<uint32_t>(BFloat16(high).x) << 16;
#else
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

__device__ __forceinline__ float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ uint32_t add_bf16(uint32_t a, uint32_t b) {
#if defined(QUAMBA_EMULATED)
  return pack_bf16(bf16_low(a) + bf16_low(b), bf16_high(a) + bf16_high(b));
#else
  uint32_t sum;  // a plain addition needs compute capability 9.0
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
  return sum;
#endif
}

}  // namespace quamba::cuda
