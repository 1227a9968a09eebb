// From what each chunk adds to the states before each chunk, and the caller's states moved on. Dims: as in ssd.cuh.
//
// A thread: four n of a row p of a head, all chunks in turn. A block: 256 of them, any rows of a batch row.
#pragma once

#include "ssd.cuh"
#include "ssd_states.cuh"

namespace quamba::cuda {

constexpr int kPassingThreads = 256;
constexpr int kPassingAhead = 4;  // chunks that are read before the first of them is needed

__device__ __forceinline__ float4 decayed_sum(float decay, float4 h, float4 added) {
  return make_float4(fmaf(decay, h.x, added.x), fmaf(decay, h.y, added.y), fmaf(decay, h.z, added.z),
                     fmaf(decay, h.w, added.w));
}

// Grid: x parts of S P rows of states, y batch. State: float or int8, the caller's (null: zeros).
template <typename State, int kChunk, typename T>
__global__ void __launch_bounds__(kPassingThreads) ssd_state_passing_kernel(SsdArgs<T> args) {
  const int quads = args.state_columns / 4, b = blockIdx.y;
  const int64_t rows = static_cast<int64_t>(args.heads) * args.head_dim;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPassingThreads + threadIdx.x;
  if (index >= rows * quads) return;
  const int64_t row = index / quads;
  const int n = static_cast<int>(index % quads) * 4, count = min(4, args.d_state - n);
  const int head = static_cast<int>(row / args.head_dim);
  State* caller = nullptr;
  float4 h = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  const float scale = args.state_scale ? args.state_scale[row] : 1.0f;
  if (args.state) {
    caller = static_cast<State*>(args.state) + (b * rows + row) * args.d_state + n;
    h = load_state(caller, scale, count, args.state_vectors);
  }
  const int added = args.state ? args.chunks : args.chunks - 1;  // chunks whose states are there
  const float* decays = args.decays + (static_cast<int64_t>(b) * args.chunks * args.heads + head) * 3 * kChunk;
  float* states = args.states + (b * args.chunks * rows + row) * args.state_columns + n;
  const int64_t step = rows * args.state_columns;  // of a chunk
  for (int chunk = 0; chunk < args.chunks; chunk += kPassingAhead) {
    float4 adds[kPassingAhead] = {};
    float totals[kPassingAhead] = {};
#pragma unroll
    for (int i = 0; i < kPassingAhead; ++i) {
      if (chunk + i >= added) continue;
      adds[i] = *reinterpret_cast<const float4*>(states + (chunk + i) * step);
      totals[i] = ssd_decay(decays[static_cast<int64_t>(chunk + i) * args.heads * 3 * kChunk + kChunk - 1]);
    }
#pragma unroll
    for (int i = 0; i < kPassingAhead; ++i) {
      if (chunk + i < args.chunks) *reinterpret_cast<float4*>(states + (chunk + i) * step) = h;
      if (chunk + i < added) h = decayed_sum(totals[i], h, adds[i]);
    }
  }
  if (args.state) store_state(caller, h, scale, count, args.state_vectors);
}

}  // namespace quamba::cuda
