// Tensor-core products of a warp, d += a b, in the fragment layouts of the PTX ISA ("Matrix Fragments for mma").
//
// Dims: m16, n8, k. Of lane l let g = l / 4 and t = l % 4; a register is 32 bits, values in it from its low bits up.
//   d[0], d[1]  row g,     columns 2t, 2t + 1        d[2], d[3]  row g + 8, the same columns      (every product)
//   mma_s8  (k 32, 4 int8 a register):    a[0] row g, k 4t ..; a[1] row g + 8; a[2], a[3] the same rows, k 16 + 4t ..
//                                         b[0] column g, k 4t ..; b[1] k 16 + 4t ..
//   mma_bf16 (k 16, 2 bfloat16):          a[0] row g, k 2t ..; a[1] row g + 8; a[2], a[3] the same rows, k 8 + 2t ..
//                                         b[0] column g, k 2t ..; b[1] k 8 + 2t ..
//   mma_tf32 (k 8, 1 float of to_tf32):   a[0] row g, k t; a[1] row g + 8; a[2], a[3] the same rows, k 4 + t
//                                         b[0] column g, k t; b[1] k 4 + t
// In all three a register holds the k from (k / 8) t, of which a[2], a[3] and b[1] hold those k / 2 further on.
// The emulation sums exactly and rounds once; a GPU rounds in between, differently from chip to chip.
#pragma once

#include "bfloat16.h"

namespace quamba::cuda {

#if defined(QUAMBA_EMULATED)
namespace emulated_mma {

template <typename Value>
struct Fragments {
  Value* d;
  const uint32_t *a, *b;
};

// Values of a register: how many, and their sum type.
struct Int8 {
  static constexpr int kCount = 4;
  using Product = int64_t;
  static Product at(uint32_t bits, int i) { return static_cast<int8_t>(bits >> 8 * i); }
};
struct Bf16 {
  static constexpr int kCount = 2;
  using Product = double;
  static Product at(uint32_t bits, int i) { return i ? bf16_high(bits) : bf16_low(bits); }
};
struct Tf32 {
  static constexpr int kCount = 1;
  using Product = double;
  static Product at(uint32_t bits, int) { return __uint_as_float(bits & 0xffffe000u); }  // 13 bits are not read
};

template <typename Type, typename Value>
void multiply(void* const (&brought)[emulation::kWarp], unsigned came) {
  const auto of = [&](int lane) { return static_cast<const Fragments<Value>*>(brought[lane]); };
  if (came != kAllLanes) return;  // mma() below reports it
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      Value& d = of(row % 8 * 4 + column / 2)->d[row / 8 * 2 + column % 2];
      typename Type::Product sum = 0;
      for (int half = 0; half < 2; ++half)  // of k
        for (int t = 0; t < 4; ++t)
          for (int i = 0; i < Type::kCount; ++i)
            sum += Type::at(of(row % 8 * 4 + t)->a[row / 8 + 2 * half], i) * Type::at(of(column * 4 + t)->b[half], i);
      d = static_cast<Value>(d + sum);
    }
}

template <typename Type, typename Value>
void mma(const char* name, Value (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments<Value> mine{d, a, b};
  if (__ballot_sync(kAllLanes, 1) != kAllLanes) emulation::fail("mma: lanes of the warp have ended");
  emulation::meet(kAllLanes, name, &mine, &multiply<Type, Value>);
}

}  // namespace emulated_mma
#endif

// int8 by int8, k 32. int32 sums wrap, they do not saturate.
__device__ __forceinline__ void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(QUAMBA_EMULATED)
  emulated_mma::mma<emulated_mma::Int8>("mma_s8", d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// bfloat16 by bfloat16 into float32, k 16.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(QUAMBA_EMULATED)
  emulated_mma::mma<emulated_mma::Bf16>("mma_bf16", d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// A register of mma_tf32: 10 bits of mantissa, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#if defined(QUAMBA_EMULATED)
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#endif
}

// tf32 by tf32 into float32, k 8.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(QUAMBA_EMULATED)
  emulated_mma::mma<emulated_mma::Tf32>("mma_tf32", d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace quamba::cuda
