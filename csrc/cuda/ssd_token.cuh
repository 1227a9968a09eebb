// One token: a pass over the states, nothing else of a size worth mention. It takes as long as moving them does:
// 2 B S P N values, of 4 bytes, or of 1 where they are int8. Dims: as in ssd.cuh.
//
// A row of N states is 4 values each of 1 to 32 lanes, so that a warp has one row or several side by side; of each, a
// lane has kTokenRows under way at a time. A block: 4 warps of one head.
#pragma once

#include "ssd.cuh"
#include "ssd_states.cuh"

namespace quamba::cuda {

constexpr int kTokenThreads = 128, kTokenRows = 4;

template <typename T>
__device__ __forceinline__ float4 load_scaled(const T* from, float scale, int count) {
  return make_float4(count > 0 ? dequantized(from[0], scale) : 0.0f, count > 1 ? dequantized(from[1], scale) : 0.0f,
                     count > 2 ? dequantized(from[2], scale) : 0.0f, count > 3 ? dequantized(from[3], scale) : 0.0f);
}

// h <- decay h + dt_x B in place; `y` plus h C.
__device__ __forceinline__ float move_on(float4& h, float decay, float dt_x, float4 B, float4 C, float y) {
  h.x = fmaf(decay, h.x, dt_x * B.x);
  h.y = fmaf(decay, h.y, dt_x * B.y);
  h.z = fmaf(decay, h.z, dt_x * B.z);
  h.w = fmaf(decay, h.w, dt_x * B.w);
  return fmaf(h.w, C.w, fmaf(h.z, C.z, fmaf(h.y, C.y, fmaf(h.x, C.x, y))));
}

// Grid: x parts of P, y head, z batch. `width`: lanes of a row, a power of two. State: float or int8, the caller's.
template <typename State, typename T>
__global__ void __launch_bounds__(kTokenThreads) ssd_token_kernel(SsdArgs<T> args, int width) {
  const int head = blockIdx.y, b = blockIdx.z, group = head / (args.heads / args.groups);
  const int P = args.head_dim, N = args.d_state, lane = threadIdx.x % kWarp, side_by_side = kWarp / width;
  const int warp = blockIdx.x * (kTokenThreads / kWarp) + threadIdx.x / kWarp;
  const int first = warp * kTokenRows * side_by_side + lane / width;
  if (first - lane / width >= P) return;  // the warp has no row
  const float bias = args.dt_bias ? args.dt_bias[head] : 0.0f;
  const float dt = ssd_step_size(args.dt[b * args.dt_at.batch + head] + bias, args.dt_min, args.dt_max);
  const float decay = ssd_decay(dt * (args.A[head] * 1.44269504f)), D = args.D ? args.D[head] : 0.0f;
  const T* x = args.x + b * args.x_at.batch + static_cast<int64_t>(head) * P;
  const T* B = args.B + b * args.B_at.batch + group * args.B_group;
  const T* C = args.C + b * args.C_at.batch + group * args.C_group;
  const float B_scale = args.B_scale ? args.B_scale[group] : 1.0f, C_scale = args.C_scale ? args.C_scale[group] : 1.0f;
  const int64_t rows = static_cast<int64_t>(args.heads) * P, head_row = static_cast<int64_t>(head) * P;
  State* states = static_cast<State*>(args.state) + (args.state ? (b * rows + head_row) * N : 0);
  float values[kTokenRows], scales[kTokenRows], y[kTokenRows];
#pragma unroll
  for (int i = 0; i < kTokenRows; ++i) {
    const int p = first + i * side_by_side;
    values[i] = p < P ? dequantized(x[p], args.x_scale ? args.x_scale[head_row + p] : 1.0f) : 0.0f;
    scales[i] = p < P && args.state_scale ? args.state_scale[head_row + p] : 1.0f;
    y[i] = 0.0f;
  }
  for (int n = lane % width * 4; n < N; n += width * 4) {
    const int count = min(4, N - n);
    float4 h[kTokenRows];
#pragma unroll
    for (int i = 0; i < kTokenRows; ++i) {
      const int p = first + i * side_by_side;
      h[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (args.state && p < P)
        h[i] = load_state(states + static_cast<int64_t>(p) * N + n, scales[i], count, args.state_vectors);
    }
    const float4 of_B = load_scaled(B + n, B_scale, count), of_C = load_scaled(C + n, C_scale, count);
#pragma unroll
    for (int i = 0; i < kTokenRows; ++i) {
      const int p = first + i * side_by_side;
      y[i] = move_on(h[i], decay, dt * values[i], of_B, of_C, y[i]);
      if (args.state && p < P)
        store_state(states + static_cast<int64_t>(p) * N + n, h[i], scales[i], count, args.state_vectors);
    }
  }
#pragma unroll
  for (int i = 0; i < kTokenRows; ++i) {
    const int p = first + i * side_by_side;
    for (int distance = width / 2; distance > 0; distance /= 2) y[i] += __shfl_xor_sync(kAllLanes, y[i], distance);
    if (lane % width == 0 && p < P) args.out[b * rows + head_row + p] = fmaf(values[i], D, y[i]);
  }
}

}  // namespace quamba::cuda
