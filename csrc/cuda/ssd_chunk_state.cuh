// What a chunk alone adds to the states, and the decays of its tokens. Dims: as in ssd.cuh.
//
// A block: 64 p by 128 n of a chunk, for some heads of a group, which share B in shared memory; a warp: 32 by 32.
#pragma once

#include "ssd.cuh"
#include "ssd_tiles.cuh"

namespace quamba::cuda {

constexpr int kStateP = 64, kStateN = 128;         // of a block
constexpr int kStateWarpP = 32, kStateWarpN = 32;  // of a warp
constexpr int kStateM = kStateWarpP / 16, kStateNs = kStateWarpN / 8;
static_assert(kStateP / kStateWarpP * (kStateN / kStateWarpN) == kSsdWarps);

template <typename T, int kChunk>
struct ChunkStateTiles {
  static constexpr int kBStride = kStateN + kAcrossPad<T>, kXStride = kStateP + kAcrossPad<T>;
  alignas(16) T B[kSsdRows * kBStride];
  alignas(16) T x[kSsdRows * kXStride];
  float weights[kSsdMaxHeads][kChunk];  // dt_s a_Q / a_s
};

// One warp: the decays of a chunk of one head. Sums are doubles, and gone once they are two floats: a sum of large
// decays keeps what tells its tokens apart. Beyond the end of the sequence steps are 0.
template <typename T, int kChunk>
__device__ __forceinline__ void find_decays(const SsdArgs<T>& args, int b, int first, int head, float* decays,
                                            float* weights) {
  constexpr int kTokens = kChunk / kWarp;  // of a lane
  constexpr double kLeast = -1e4;          // a step that decays everything, and whose sums are finite
  const int lane = threadIdx.x % kWarp;
  const float bias = args.dt_bias ? args.dt_bias[head] : 0.0f;
  const double log2_decay = static_cast<double>(args.A[head]) * 1.4426950408889634;
  float steps[kTokens];
  double sums[kTokens], sum = 0.0;
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const int token = first + lane * kTokens + i;
    steps[i] = 0.0f;
    if (token < args.tokens) {
      const float dt = args.dt[b * args.dt_at.batch + token * args.dt_at.token + head];
      steps[i] = ssd_step_size(dt + bias, args.dt_min, args.dt_max);
    }
    const double step = steps[i] * log2_decay;
    sum += token >= args.tokens ? 0.0 : step < kLeast ? kLeast : step;
    sums[i] = sum;
  }
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const double before = __shfl_up_sync(kAllLanes, sum, distance);
    if (lane >= distance) sum += before;
  }
  const double last = __shfl_sync(kAllLanes, sum, kWarp - 1), before = sum - sums[kTokens - 1];
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const int s = lane * kTokens + i;
    const double log2_a = before + sums[i];
    const float high = static_cast<float>(log2_a);
    weights[s] = ssd_decay(static_cast<float>(last - log2_a)) * steps[i];
    if (!decays) continue;
    decays[s] = high;
    decays[kChunk + s] = static_cast<float>(log2_a - high);
    decays[2 * kChunk + s] = steps[i];
  }
}

// d += (x weights)^T B over the tokens of a tile, for the warp's part of the block's states. `columns`: of p and n.
template <typename T, int kChunk>
__device__ __forceinline__ void add_tile(float (&d)[kStateM][kStateNs][4], const ChunkStateTiles<T, kChunk>& tiles,
                                         const float* weights, int tokens, int p, int n, int columns_p, int columns_n) {
  constexpr bool kExact = sizeof(T) == 1;
  for (int s = 0; s < tokens; s += 8) {
    Operand<false, 4> a[kStateM];
#pragma unroll
    for (int i = 0; i < kStateM; ++i)
      if (p + 16 * i < columns_p) load_a_across(tiles.x, tiles.kXStride, s, p + 16 * i, weights, a[i]);
#pragma unroll
    for (int j = 0; j < kStateNs; ++j) {
      if (n + 8 * j >= columns_n) continue;
      Operand<kExact, 2> b;
      load_b_across(tiles.B, tiles.kBStride, s, n + 8 * j, b);
#pragma unroll
      for (int i = 0; i < kStateM; ++i)
        if (p + 16 * i < columns_p) multiply(d[i][j], a[i], b);
    }
  }
}

// The warp's part to states [P, state_columns] of a head; x_scale of its channels.
template <typename T>
__device__ __forceinline__ void store_states(const SsdArgs<T>& args, const float (&d)[kStateM][kStateNs][4],
                                             float* states, const float* x_scale, float B_scale, int p, int n) {
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 2 * kStateM; ++i) {
    const int row = p + 8 * i + g;
    if (row >= args.head_dim) continue;
    const float scale = x_scale ? x_scale[row] * B_scale : 1.0f;
#pragma unroll
    for (int j = 0; j < kStateNs; ++j) {
      const int column = n + 8 * j + 2 * t;
      const float* values = d[i / 2][j] + i % 2 * 2;
      if (column < args.state_columns)
        *reinterpret_cast<float2*>(states + static_cast<int64_t>(row) * args.state_columns + column) =
            make_float2(values[0] * scale, values[1] * scale);
    }
  }
}

// Grid: x slice of heads, part of p, part of n; y chunk; z batch. The first `needed` chunks get states, all decays.
template <typename T, int kChunk>
__global__ void __launch_bounds__(kSsdThreads)
    ssd_chunk_state_kernel(SsdArgs<T> args, int needed) {
  using Tiles = ChunkStateTiles<T, kChunk>;
  Tiles& tiles = *dynamic_shared<Tiles>();
  const int n_parts = max(1, ceil_div(args.d_state, kStateN)), p_parts = ceil_div(args.head_dim, kStateP);
  const int part = blockIdx.x % (n_parts * p_parts), n0 = part % n_parts * kStateN, p0 = part / n_parts * kStateP;
  const SsdHeads heads = ssd_heads(args, blockIdx.x / (n_parts * p_parts));
  const int chunk = blockIdx.y, b = blockIdx.z, first = chunk * kChunk, warp = threadIdx.x / kWarp;
  const int64_t chunk_head = (static_cast<int64_t>(b) * args.chunks + chunk) * args.heads;  // of head 0
  if (heads.first + warp < heads.end) {
    const int head = heads.first + warp;
    float* decays = part == 0 ? args.decays + (chunk_head + head) * 3 * kChunk : nullptr;
    find_decays<T, kChunk>(args, b, first, head, decays, tiles.weights[warp]);
  }
  if (chunk >= needed) return;
  const int tokens = min(kChunk, args.tokens - first);
  const int p = warp % (kStateP / kStateWarpP) * kStateWarpP, n = warp / (kStateP / kStateWarpP) * kStateWarpN;
  const int columns_p = args.head_dim - p0, columns_n = args.d_state - n0;
  for (int head = heads.first; head < heads.end; ++head) {
    float d[kStateM][kStateNs][4] = {};
    for (int tile = 0; tile < tokens; tile += kSsdRows) {
      const int64_t token = first + tile;
      const int rows = min(kSsdRows, tokens - tile);
      __syncthreads();  // those before have read the tiles; the weights are there
      const T* B = args.B + b * args.B_at.batch + token * args.B_at.token + heads.group * args.B_group + n0;
      const T* x = args.x + b * args.x_at.batch + token * args.x_at.token + static_cast<int64_t>(head) * args.head_dim;
      if (kChunk > kSsdRows || head == heads.first)
        load_tile<kSsdRows, kStateN>(tiles.B, Tiles::kBStride, B, args.B_at.token, rows, columns_n, args.B_vectors);
      load_tile<kSsdRows, kStateP>(tiles.x, Tiles::kXStride, x + p0, args.x_at.token, rows, columns_p, args.x_vectors);
      copy_async_commit();
      copy_async_wait<0>();
      __syncthreads();
      add_tile(d, tiles, tiles.weights[head - heads.first] + tile, rows, p, n, columns_p, columns_n);
    }
    const float* x_scale = args.x_scale ? args.x_scale + static_cast<int64_t>(head) * args.head_dim : nullptr;
    store_states(args, d, args.states + (chunk_head + head) * args.head_dim * args.state_columns, x_scale,
                 args.B_scale ? args.B_scale[heads.group] : 1.0f, p0 + p, n0 + n);
  }
}

}  // namespace quamba::cuda
