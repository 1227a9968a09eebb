// Pairs of bfloat16 in a 32-bit register, the first value in its low half, and tensor-core products of them.
//
// bfloat16 has float32's range and 8 bits of mantissa: it holds every int8 and every difference of uint4 values
// exactly, and a float32 as the sum of two of them to within 2^-17 of its magnitude.
#pragma once

#include "mma.h"

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

#if defined(QUAMBA_EMULATED)
namespace emulated_mma {
struct Bf16 {
  static constexpr int kCount = 2;
  using Product = double;
  static Product at(uint32_t bits, int i) { return i ? bf16_high(bits) : bf16_low(bits); }
};
}  // namespace emulated_mma
#endif

// bfloat16 by bfloat16 into float32, k 16; the layout is that of mma_f16.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(QUAMBA_EMULATED)
  emulated_mma::mma<emulated_mma::Bf16>("mma_bf16", d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace quamba::cuda
