// Weights of layout.py's tiles and activations as operands of tensor-core products: w is A (outputs by inputs), x is B
// (inputs by rows), sums are outputs by rows.
//
// A warp multiplies slices of 32 inputs. Lane l, g = l / 4 and t = l % 4, holds inputs 8t .. 8t + 7 of a slice: of w
// for pairs of outputs that rows g and g + 8 of A stand for, of x for the row that column g stands for. Which inputs a
// product calls k is free as long as both operands agree, so a slice is taken as it lies in memory:
//
//   x int8:  one mma_s8 (k 32). A lane's 8 bytes of x are b; two words of int8 weights, or the low and the high halves
//            of one word of uint4 weights, are an output's two registers of a. Sums are exact integers.
//   x float: two mma_bf16 (k 16) for each of the two terms, x = high + low, both bfloat16; weights (uint4 ones less
//            their zero point) are exact in bfloat16. Within 2^-17 of |x| |w|, where tf32 products, at the same cost,
//            keep 2^-11. An infinite x gives NaN.
//
// A word of weights holds 4 (int8) or 8 (uint4) neighbouring inputs of an output: byte pairs (0, 2), (1, 3) are masked
// out of it, or nibble pairs 0, 2 | 4, 6 | 1, 3 | 5, 7; `pair_input` is the order that results.
#pragma once

#include <type_traits>

#include "linear.h"
#include "mma.h"

namespace quamba::cuda {

template <bool kIsUint4, typename X_>
struct Product {
  using X = X_;
  static constexpr bool kUint4 = kIsUint4, kFloat = std::is_same_v<X, float>;
  using Sum = std::conditional_t<kFloat, float, int32_t>;
  static constexpr int kWords = kUint4 ? 1 : 2;        // of weights, that hold a lane's inputs of a slice
  static constexpr int kSliceWords = 4 * kWords;       // of an output
  static constexpr int kSteps = kFloat ? 2 : 1;        // products over a slice
  static constexpr int kXTerms = kFloat ? kTerms : 1;
  static constexpr int kXWords = 2 * kSteps;           // of a term, that hold a lane's inputs of a slice

  // Of the pairs that a lane holds of x, pair p is inputs pair_input(p) and 2 further on.
  static QUAMBA_HOST_DEVICE constexpr int pair_input(int p) { return kUint4 ? p % 2 * 4 + p / 2 : p / 2 * 4 + p % 2; }
};

__device__ __forceinline__ void multiply(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_s8(d, a, b);
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_bf16(d, a, b);
}

// What the weights of byte j of four zero points are lessened by.
template <typename P>
__device__ __forceinline__ uint32_t zero_operand(uint32_t zeros, int j) {
  if constexpr (P::kFloat) return __byte_perm(zeros, 0xc3c3c3c3u, 0x4040u + 0x0101u * j);  // -(128 + zero), twice
  else return __byte_perm(zeros, 0, 0x1111u * j);
}

// (x & mask) | bits, one instruction: left to itself nvcc makes two of two constants.
__device__ __forceinline__ uint32_t masked_or(uint32_t x, uint32_t mask, uint32_t bits) {
#if defined(QUAMBA_EMULATED)
  return (x & mask) | bits;
#else
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(x), "r"(mask), "r"(bits));
  return out;
#endif
}

// uint4 less zero of the low halves of four bytes, as int8.
__device__ __forceinline__ uint32_t signed_nibbles(uint32_t word, uint32_t zero) {
  return (masked_or(word, 0x0f0f0f0fu, 0x80808080u) - zero) ^ 0x80808080u;  // no byte borrows from the next
}

// An output's registers of a in `step`, the lower k first; `zero` is read for uint4 weights.
template <typename P>
__device__ __forceinline__ void weight_registers(uint32_t (&w)[2], const uint32_t (&words)[P::kWords], int step,
                                                 uint32_t zero) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if constexpr (!P::kFloat && !P::kUint4) {
      w[i] = words[i];
    } else if constexpr (!P::kFloat) {
      w[i] = signed_nibbles(words[0] >> 4 * i, zero);
    } else if constexpr (P::kUint4) {  // 0x4300 + n is the bfloat16 128 + n, up to n = 127
      w[i] = add_bf16(masked_or(words[0] >> (8 * step + 4 * i), 0x000f000fu, 0x43004300u), zero);
    } else {  // of a negative byte the seven low bits stand for 128 more: -256 instead of -128 is added
      const uint32_t bytes = words[step] >> 8 * i;
      w[i] = add_bf16(masked_or(bytes, 0x007f007fu, 0x43004300u), masked_or(bytes, 0x00800080u, 0xc300c300u));
    }
  }
}

// a of `step` for outputs j and j + 1 of those whose words and zero points the lane has.
template <typename P, int kOutputs>
__device__ __forceinline__ void weight_fragment(uint32_t (&a)[4], const uint32_t (&words)[P::kWords][kOutputs], int j,
                                                int step, uint32_t zeros) {
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int output = min(j + k, kOutputs - 1);
    uint32_t of_output[P::kWords], w[2];
#pragma unroll
    for (int i = 0; i < P::kWords; ++i) of_output[i] = words[i][output];
    weight_registers<P>(w, of_output, step, P::kUint4 ? zero_operand<P>(zeros, output) : 0);
    a[k] = w[0], a[2 + k] = w[1];
  }
}

// The two terms of a pair.
__device__ __forceinline__ void split_pair(float first, float second, uint32_t& high, uint32_t& low) {
  high = pack_bf16(first, second);
  low = pack_bf16(first - bf16_low(high), second - bf16_high(high));
}

// Two float16 of a word.
__device__ __forceinline__ void unpack_half2(uint32_t pair, float& low, float& high) {
  low = static_cast<float>(Half(static_cast<uint16_t>(pair), Half::from_bits()));
  high = static_cast<float>(Half(static_cast<uint16_t>(pair >> 16), Half::from_bits()));
}

// Has nvcc keep what it would otherwise find again from its parts, at every use of a loop.
template <typename T>
__device__ __forceinline__ void in_register(T& value) {
#if !defined(QUAMBA_EMULATED)
  if constexpr (sizeof(T) == 8) asm("" : "+l"(value));
  else asm("" : "+r"(value));
#endif
}

// kCount words from global memory that nothing writes; the address is a multiple of their size.
template <int kCount>
__device__ __forceinline__ void load_words(const void* from, uint32_t (&to)[kCount]) {
  if constexpr (kCount == 4) {
    const uint4 v = __ldg(static_cast<const uint4*>(from));
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  } else if constexpr (kCount == 2) {
    const uint2 v = __ldg(static_cast<const uint2*>(from));
    to[0] = v.x, to[1] = v.y;
  } else {
    static_assert(kCount == 1);
    to[0] = __ldg(static_cast<const uint32_t*>(from));
  }
}

// kBytes, up to 4, as the low bytes of a word.
template <int kBytes>
__device__ __forceinline__ uint32_t load_word(const void* from) {
  if constexpr (kBytes == 4) return __ldg(static_cast<const uint32_t*>(from));
  else if constexpr (kBytes == 2) return __ldg(static_cast<const uint16_t*>(from));
  else return __ldg(static_cast<const uint8_t*>(from));
}

}  // namespace quamba::cuda
