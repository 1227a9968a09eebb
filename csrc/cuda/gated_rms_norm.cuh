// Mamba2's gated norm: RMSNorm without weight (fused into out_proj) of y * SiLU(z), over groups of channels.
//
// Dims: D channels in G groups of D / G. A block is one group's part of a row.
#pragma once

#include "elementwise.cuh"
#include "reduce.cuh"

namespace quamba::cuda {

// Block: whole warps. Grid: rows * groups. Shared: a float for each of the part's channels, or none: gated values then
// wait in `out`.
template <typename T>
__global__ void gated_rms_norm_kernel(const float* y,        // [rows, D], rows y_stride apart
                                      const T* z,            // [rows, D], rows z_stride apart
                                      const float* z_scale,  // one value; null for float z
                                      float* out,            // [rows, D]
                                      int64_t y_stride, int64_t z_stride, int groups, int part, float eps,
                                      bool in_shared) {
  const int64_t row = blockIdx.x / groups, first = static_cast<int64_t>(blockIdx.x % groups) * part;
  y += row * y_stride + first;
  z += row * z_stride + first;
  out += static_cast<int64_t>(blockIdx.x) * part;
  float* gated = in_shared ? dynamic_shared<float>() : out;
  const float scale = scale_at(z_scale);
  float squares = 0.0f;
  for (int i = threadIdx.x; i < part; i += blockDim.x) {
    const float value = y[i] * silu(dequantized(z[i], scale));
    squares = fmaf(value, value, squares);
    gated[i] = value;
  }
  const float factor = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(part) + eps);
  for (int i = threadIdx.x; i < part; i += blockDim.x) out[i] = gated[i] * factor;
}

}  // namespace quamba::cuda
