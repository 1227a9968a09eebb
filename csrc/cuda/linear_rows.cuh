// Rows of x laid out for the linear kernels, where they cannot be read as they lie.
//
// Dims: M rows, I inputs. A thread writes a few neighbouring values.
#pragma once

#include "linear_fragments.cuh"

namespace quamba::cuda {

// x [M, I], rows `stride` apart -> [M, padded], zeros beyond I.
template <typename X>
__global__ void pad_rows_kernel(const X* x, X* out, int64_t stride, int64_t rows, int in, int padded) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, row = at / padded;
  const int i = static_cast<int>(at % padded);
  if (row < rows) out[at] = i < in ? x[row * stride + i] : X{};
}

// x float32 [M, I] -> two planes of bfloat16 [M, padded] whose sum it is, zeros beyond I; within a slice (64 bytes)
// the 8 bytes of step s and lane t are pairs 2 s and 2 s + 1 of inputs 8 t .. 8 t + 7.
template <typename P>
__global__ void split_rows_kernel(const float* x, uint2* out, int64_t stride, int64_t rows, int in, int padded) {
  const int eights = padded / 4;  // pieces of 8 bytes in a row of a plane
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, row = at / eights;
  if (row >= rows) return;
  const int piece = static_cast<int>(at % eights), step = piece / 4 % 2, t = piece % 4;
  const int first = piece / 8 * kSlice + 8 * t;
  float value[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int i = first + P::pair_input(2 * step + k / 2) + k % 2 * 2;
    value[k] = i < in ? x[row * stride + i] : 0.0f;
  }
  uint2 high, low;
  split_pair(value[0], value[1], high.x, low.x);
  split_pair(value[2], value[3], high.y, low.y);
  out[at] = high;
  out[rows * eights + at] = low;
}

}  // namespace quamba::cuda
