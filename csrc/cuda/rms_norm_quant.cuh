// RMSNorm without weight (fused into in_proj), and quantization of rows with a given scale or with one of their own.
//
// Dims: H hidden or any length of a row. A block is a row, but for `quantize`, where a thread is a few values.
#pragma once

#include "reduce.cuh"

namespace quamba::cuda {

template <typename T>
__global__ void quantize_kernel(const T* x, const float* scale, int8_t* out, int64_t n) {
  const float s = *scale;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step)
    out[i] = quantized(static_cast<float>(x[i]), s);
}

// float32 results: `scale` is not read.
template <typename T, typename Out>
__global__ void rms_norm_kernel(const T* x,               // [rows, H]
                                const float* multiplier,  // [H] or null
                                const float* scale,       // one value, for int8 results
                                Out* out,                 // [rows, H]
                                int64_t H, float eps) {
  x += blockIdx.x * H;
  out += blockIdx.x * H;
  float squares = 0.0f;
  for (int64_t i = threadIdx.x; i < H; i += blockDim.x) {
    const float value = static_cast<float>(x[i]);
    squares = fmaf(value, value, squares);
  }
  const float factor = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(H) + eps);
  for (int64_t i = threadIdx.x; i < H; i += blockDim.x) {
    float value = static_cast<float>(x[i]) * factor;
    if (multiplier) value *= multiplier[i];
    if constexpr (sizeof(Out) == 1) out[i] = quantized(value, *scale);
    else out[i] = value;
  }
}

template <typename T>
__global__ void quantize_per_token_kernel(const T* x,     // [rows, H]
                                          int8_t* out,    // [rows, H]
                                          float* scales,  // [rows]
                                          int64_t H) {
  x += blockIdx.x * H;
  out += blockIdx.x * H;
  float largest = 0.0f;
  for (int64_t i = threadIdx.x; i < H; i += blockDim.x) largest = fmaxf(largest, fabsf(static_cast<float>(x[i])));
  const float scale = symmetric_int8_scale(block_max(largest));
  for (int64_t i = threadIdx.x; i < H; i += blockDim.x) out[i] = quantized(static_cast<float>(x[i]), scale);
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
}

}  // namespace quamba::cuda
