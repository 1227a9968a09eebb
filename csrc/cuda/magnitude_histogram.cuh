// Counts and sums of magnitudes in bins of constant relative width, read off the float's own bits.
#pragma once

#include "platform.h"

namespace quamba::cuda {

// Bytes of a block's own table.
QUAMBA_HOST_DEVICE constexpr int64_t histogram_shared_bytes(int64_t bins) {
  return bins * static_cast<int64_t>(sizeof(double) + sizeof(unsigned));
}

__device__ __forceinline__ void add_count(int64_t* to, uint64_t count) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(count));
}

// bin = (bits of |v| >> shift) - first_bin, clamped; NaN and infinities are skipped. Sums of float64 are added in no
// fixed order. With `in_shared` a block has a table of its own, of fewer than 2^32 values, and adds it up at the end.
template <typename T>
__global__ void magnitude_histogram_kernel(const T* x, int64_t n, int64_t* counts, double* sums, int64_t bins,
                                           int64_t first_bin, int shift, bool in_shared) {
  double* own_sums = dynamic_shared<double>();
  unsigned* own_counts = reinterpret_cast<unsigned*>(own_sums + bins);
  if (in_shared) {
    for (int64_t i = threadIdx.x; i < bins; i += blockDim.x) own_sums[i] = 0.0, own_counts[i] = 0;
    __syncthreads();
  }
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    const uint32_t bits = __float_as_uint(static_cast<float>(x[i])) & 0x7fffffffu;
    if (bits >= 0x7f800000u) continue;
    int64_t bin = static_cast<int64_t>(bits >> shift) - first_bin;
    bin = bin < 0 ? 0 : bin >= bins ? bins - 1 : bin;
    const double magnitude = __uint_as_float(bits);
    if (in_shared) {
      atomicAdd(own_counts + bin, 1u);
      atomicAdd(own_sums + bin, magnitude);
    } else {
      add_count(counts + bin, 1);
      atomicAdd(sums + bin, magnitude);
    }
  }
  if (!in_shared) return;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < bins; i += blockDim.x) {
    if (own_counts[i] == 0) continue;
    add_count(counts + i, own_counts[i]);
    atomicAdd(sums + i, own_sums[i]);
  }
}

}  // namespace quamba::cuda
