// Tiles of matrices in shared memory, and operands of tensor-core products from them (layouts: mma.h).
//
// Products are mma_tf32, m16n8k8, whose inputs have 11 bits of mantissa. int8 values are exact so; another float is the
// sum of two such terms, what is left after them is below 2^-22 of it. A product of two floats leaves out the product
// of their second terms. Of lane l let g = l / 4 and t = l % 4. The order of k is free where both operands have the
// same one:
//   along   a row's k lie side by side: two products at a time over 16 k, a lane's four being 4t .. 4t + 3
//   across  a column's k lie below each other: one product over 8 k, a lane's two being 2t and 2t + 1
#pragma once

#include "copy_async.h"
#include "mma.h"

namespace quamba::cuda {

// Row strides for which lanes do not meet in a bank. int8 tiles serve both ways.
constexpr int kTilePad = 16;  // values behind a row read along
template <typename T>
constexpr int kAcrossPad = sizeof(T) == 1 ? 16 : 4;

// An operand of kRegisters: exact ones have one term.
template <bool kExact, int kRegisters>
struct Operand {
  uint32_t high[kRegisters], low[kExact ? 1 : kRegisters];

  __device__ __forceinline__ void set(int i, float value) {
    if constexpr (kExact) {
      high[i] = __float_as_uint(value);
    } else {
      high[i] = to_tf32(value);
      low[i] = to_tf32(value - __uint_as_float(high[i]));
    }
  }
};

template <bool kExactA, bool kExactB>
__device__ __forceinline__ void multiply(float (&d)[4], const Operand<kExactA, 4>& a, const Operand<kExactB, 2>& b) {
  if constexpr (!kExactA) mma_tf32(d, a.low, b.high);
  if constexpr (!kExactB) mma_tf32(d, a.high, b.low);
  mma_tf32(d, a.high, b.high);
}

__device__ __forceinline__ void load_four(const float* from, float (&to)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

// A byte plus 128 as the last bits of 2^23 makes a float without a conversion.
__device__ __forceinline__ void load_four(const int8_t* from, float (&to)[4]) {
  const uint32_t bytes = *reinterpret_cast<const uint32_t*>(from) ^ 0x80808080u;
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7550u + i)) - 8388736.0f;
}

// Rows row .. row + 15 of the tile, k from `column` on.
template <typename T, bool kExact>
__device__ __forceinline__ void load_a_along(const T* tile, int stride, int row, int column,
                                             Operand<kExact, 4> (&a)[2]) {
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  float upper[4], lower[4];
  load_four(tile + (row + g) * stride + column + 4 * t, upper);
  load_four(tile + (row + 8 + g) * stride + column + 4 * t, lower);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    a[i].set(0, upper[2 * i]);
    a[i].set(1, lower[2 * i]);
    a[i].set(2, upper[2 * i + 1]);
    a[i].set(3, lower[2 * i + 1]);
  }
}

// Rows row .. row + 7 of the tile, the columns of the product.
template <typename T, bool kExact>
__device__ __forceinline__ void load_b_along(const T* tile, int stride, int row, int column,
                                             Operand<kExact, 2> (&b)[2]) {
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  float values[4];
  load_four(tile + (row + g) * stride + column + 4 * t, values);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    b[i].set(0, values[2 * i]);
    b[i].set(1, values[2 * i + 1]);
  }
}

// Columns column .. column + 15 of the tile are the rows of the product, k from `row` on, times a weight [k] each.
template <typename T>
__device__ __forceinline__ void load_a_across(const T* tile, int stride, int row, int column, const float* weights,
                                              Operand<false, 4>& a) {
  const int g = threadIdx.x % kWarp / 4, k = row + threadIdx.x % 4 * 2;
  const T *first = tile + k * stride + column + g, *second = first + stride;
  a.set(0, static_cast<float>(first[0]) * weights[k]);
  a.set(1, static_cast<float>(first[8]) * weights[k]);
  a.set(2, static_cast<float>(second[0]) * weights[k + 1]);
  a.set(3, static_cast<float>(second[8]) * weights[k + 1]);
}

// Columns column .. column + 7 of the tile, k from `row` on.
template <typename T, bool kExact>
__device__ __forceinline__ void load_b_across(const T* tile, int stride, int row, int column, Operand<kExact, 2>& b) {
  const T* first = tile + (row + threadIdx.x % 4 * 2) * stride + column + threadIdx.x % kWarp / 4;
  b.set(0, static_cast<float>(first[0]));
  b.set(1, static_cast<float>(first[stride]));
}

// Rows row .. row + 15 of a float tile whose k lie side by side, in the order of operands read across: k from `column`.
__device__ __forceinline__ void load_a_pairs(const float* tile, int stride, int row, int column, Operand<false, 4>& a) {
  const float* upper = tile + (row + threadIdx.x % kWarp / 4) * stride + column + threadIdx.x % 4 * 2;
  const float2 first = *reinterpret_cast<const float2*>(upper);
  const float2 second = *reinterpret_cast<const float2*>(upper + 8 * stride);
  a.set(0, first.x);
  a.set(1, second.x);
  a.set(2, first.y);
  a.set(3, second.y);
}

// A tile of kRows x kColumns from rows of global memory, zeros beyond `rows` and `columns`; all threads of the block.
// `vectors`: the rows start at multiples of 16 bytes and `columns` is whole ones; the copies are then asynchronous.
template <int kRows, int kColumns, typename T>
__device__ __forceinline__ void load_tile(T* tile, int stride, const T* from, int64_t row_stride, int rows, int columns,
                                          bool vectors) {
  if (vectors) {
    constexpr int kVector = 16 / sizeof(T), kRowVectors = kColumns / kVector;
    for (int i = threadIdx.x; i < kRows * kRowVectors; i += blockDim.x) {
      const int row = i / kRowVectors, column = i % kRowVectors * kVector;
      copy_async16(tile + row * stride + column, from + row * row_stride + column, row < rows && column < columns);
    }
  } else {
    for (int i = threadIdx.x; i < kRows * kColumns; i += blockDim.x) {
      const int row = i / kColumns, column = i % kColumns;
      tile[row * stride + column] = row < rows && column < columns ? from[row * row_stride + column] : T(0);
    }
  }
}

}  // namespace quamba::cuda
