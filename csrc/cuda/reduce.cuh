// Sums and maxima over a warp, some warps or a block: every thread gets the result, in a fixed order of additions.
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

constexpr int kReduceShared = kWarp * sizeof(float);  // bytes of shared memory that what follows takes

// Over `warps` warps from `first` on, the thread's among them. Every thread of a block of whole warps calls it; it
// starts and ends with no thread inside the other's call.
template <typename Combine>
__device__ __forceinline__ float warps_reduce(float value, Combine combine, int first, int warps) {
  __shared__ float of_warp[kWarp];
  const int lane = threadIdx.x % kWarp;
  value = warp_reduce(value, combine);
  if (lane == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = warp_reduce(lane < warps ? of_warp[first + lane] : Combine::kNeutral, combine);
  __syncthreads();
  return value;
}

template <typename Combine>
__device__ __forceinline__ float block_reduce(float value, Combine combine) {
  return warps_reduce(value, combine, 0, blockDim.x / kWarp);
}

__device__ __forceinline__ float warp_sum(float value) { return warp_reduce(value, Sum()); }
__device__ __forceinline__ float warps_sum(float value, int first, int warps) {
  return warps_reduce(value, Sum(), first, warps);
}
__device__ __forceinline__ float block_sum(float value) { return block_reduce(value, Sum()); }
__device__ __forceinline__ float warp_max(float value) { return warp_reduce(value, Maximum()); }
__device__ __forceinline__ float block_max(float value) { return block_reduce(value, Maximum()); }

}  // namespace quamba::cuda
