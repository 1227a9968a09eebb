// Sums and maxima over a warp or a block: every thread gets the result, and the order of the additions is fixed.
#pragma once

#include "platform.h"

namespace quamba::cuda {

struct Sum {
  static constexpr float kNeutral = 0.0f;
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

struct Maximum {  // of magnitudes; a NaN is passed over
  static constexpr float kNeutral = 0.0f;
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

template <typename Combine>
__device__ __forceinline__ float warp_reduce(float value, Combine combine) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}

// Every thread of a block of whole warps calls it; it starts and ends with no thread inside the other's call.
template <typename Combine>
__device__ __forceinline__ float block_reduce(float value, Combine combine) {
  __shared__ float of_warp[kWarp];
  const int lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  value = warp_reduce(value, combine);
  if (lane == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = warp_reduce(lane < warps ? of_warp[lane] : Combine::kNeutral, combine);
  __syncthreads();
  return value;
}

__device__ __forceinline__ float warp_sum(float value) { return warp_reduce(value, Sum()); }
__device__ __forceinline__ float block_sum(float value) { return block_reduce(value, Sum()); }
__device__ __forceinline__ float warp_max(float value) { return warp_reduce(value, Maximum()); }
__device__ __forceinline__ float block_max(float value) { return block_reduce(value, Maximum()); }

}  // namespace quamba::cuda
