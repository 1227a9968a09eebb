// Selective scan (Mamba, arXiv 2312.00752, Algorithm 2), gated: parallel over the tokens of a chunk, chunk after chunk.
//
// Dims: B batch, L tokens, D channels, N d_state. A warp has a channel, a lane kItems neighbouring tokens of the chunk;
// a state moves over a run of tokens as h <- decay h + sum, and two runs in a row compose to one of the same form:
// lanes compose theirs by shuffles, then go over their tokens once more from the state that they start at. A block has
// kScanChannels channels, because rows of memory are tokens: it stages tiles of them through shared memory.
#pragma once

#include "elementwise.cuh"

namespace quamba::cuda {

constexpr float kLog2E = 1.44269504088896341f;

// [B, L, columns], a row's values contiguous.
template <typename T>
struct ScanRows {
  const T* data;
  int64_t batch, token;

  __device__ __forceinline__ const T* at(int64_t b, int64_t t) const { return data + b * batch + t * token; }
};

template <typename T>
struct ScanArgs {
  ScanRows<T> x;          // D columns
  ScanRows<float> dt;     // D columns, before bias and softplus
  ScanRows<T> B, C;       // N columns
  ScanRows<T> z;          // D columns; or null
  const float* dt_bias;   // [D] or null
  const float* A;         // [D, N], negative
  const float* D;         // [D] or null
  float* state;           // [B, D, N] read and written; or null: starts at zero and is dropped
  float* out;             // [B, L, D]
  const float *x_scale, *B_scale, *C_scale, *z_scale;  // one value each; null for float
  int64_t batch, tokens, channels;
  int d_state;
};

// ---- chunks of tokens

constexpr int kScanChannels = 8;  // of a block, and states whose B and C are staged together
constexpr int kScanThreads = kScanChannels * kWarp;

// Where token i of a row of a tile lies: four floats of nothing behind every 32, so that lanes 4 or 8 tokens
// apart read float4s from different banks. Multiples of 4 stay multiples of 4.
QUAMBA_HOST_DEVICE constexpr int padded(int i) { return i + i / 32 * 4; }

// Floats from row to row of a tile [kScanChannels, 32 kItems tokens]: a warp that holds a few tokens of every row meets
// each bank once.
QUAMBA_HOST_DEVICE constexpr int scan_row(int items) {
  const int row = padded(kWarp * items);
  return row + (kWarp + kWarp / kScanChannels - row % kWarp) % kWarp;
}

// Tiles of dt, x (later y), B and C, then A and the state of the block's channels.
QUAMBA_HOST_DEVICE constexpr int64_t scan_shared_floats(int items, int64_t d_state) {
  return kScanChannels * (4 * scan_row(items) + 2 * d_state);
}

// What a thread stages of a tile: column c of tokens t, t + 32, ...
template <typename T, int kItems>
struct ScanStage {
  T values[kItems];

  static __device__ __forceinline__ int column() { return threadIdx.x % kScanChannels; }
  static __device__ __forceinline__ int token(int i) { return threadIdx.x / kScanChannels + kWarp * i; }

  // `rows` points at the tile's first token and column; what lies beyond `tokens` or `columns` is zero
  __device__ __forceinline__ void load(const T* rows, int64_t stride, int tokens, int64_t columns) {
    const T* from = rows + token(0) * stride + column();
    const int end = column() < columns ? tokens : 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i, from += kWarp * stride) values[i] = token(i) < end ? __ldg(from) : T{};
  }
  // tile[column][token] = of(value, token)
  template <typename Of>
  __device__ __forceinline__ void store(float* tile, const Of& of) const {
    float* to = tile + column() * scan_row(kItems) + token(0);
#pragma unroll
    for (int i = 0; i < kItems; ++i) to[padded(kWarp * i)] = of(values[i], token(i));
  }
};

// The lane's own tokens of a row of a tile.
template <int kItems>
__device__ __forceinline__ void load_items(float (&to)[kItems], const float* row) {
  const float* from = row + padded(threadIdx.x % kWarp * kItems);
  if constexpr (kItems % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kItems; i += 4) {
      const float4 part = *reinterpret_cast<const float4*>(from + i);
      to[i] = part.x, to[i + 1] = part.y, to[i + 2] = part.z, to[i + 3] = part.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kItems; ++i) to[i] = from[i];
  }
}

template <int kItems>
struct ScanLane {
  float dt[kItems], dt_x[kItems], y[kItems];
  float dt_sum;

  // y starts as D x
  __device__ __forceinline__ void load(const float* dt_row, const float* x_row, float skip) {
    load_items(dt, dt_row);
    load_items(dt_x, x_row);
    dt_sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      y[i] = skip * dt_x[i];
      dt_x[i] *= dt[i];
      dt_sum += dt[i];
    }
  }

  // One of the channel's states over the chunk, its C h added to y. A comes times log2(e).
  __device__ __forceinline__ void advance(float A, float* state, const float* B_row, const float* C_row) {
    const int lane = threadIdx.x % kWarp;
    float decays[kItems], input[kItems], C[kItems];
    load_items(input, B_row);
    float sum = 0.0f;  // of the lane's tokens, from a state of zero
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      decays[i] = exp2_or_zero(dt[i] * A);
      input[i] *= dt_x[i];
      sum = fmaf(decays[i], sum, input[i]);
    }
    float decay = exp2_or_zero(dt_sum * A);
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {  // of all tokens up to the lane's last
      const float decay_before = __shfl_up_sync(kAllLanes, decay, distance);
      const float sum_before = __shfl_up_sync(kAllLanes, sum, distance);
      if (lane < distance) continue;
      sum = fmaf(decay, sum_before, sum);
      decay *= decay_before;
    }
    decay = __shfl_up_sync(kAllLanes, decay, 1);
    sum = __shfl_up_sync(kAllLanes, sum, 1);
    const float start = *state;
    float h = lane ? fmaf(decay, start, sum) : start;
    load_items(C, C_row);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      h = fmaf(decays[i], h, input[i]);
      y[i] = fmaf(h, C[i], y[i]);
    }
    __syncwarp();  // every lane has read where the chunk starts
    if (lane == kWarp - 1) *state = h;
  }

  __device__ __forceinline__ void store(float* y_row) const {
    float* to = y_row + padded(threadIdx.x % kWarp * kItems);
#pragma unroll
    for (int i = 0; i < kItems; ++i) to[i] = y[i];
  }
};

// Block: kScanThreads. Grid: B * blocks of kScanChannels channels. Shared: scan_shared_floats.
template <typename T, int kItems>
__global__ void __launch_bounds__(kScanThreads, 2) selective_scan_kernel(ScanArgs<T> args) {
  constexpr int kChunk = kWarp * kItems, kRow = scan_row(kItems), kTile = kScanChannels * kRow;
  float* dt_tile = dynamic_shared<float>();
  float *x_tile = dt_tile + kTile, *B_tile = x_tile + kTile, *C_tile = B_tile + kTile;
  float *A = C_tile + kTile, *state = A + kScanChannels * args.d_state;

  const unsigned blocks = static_cast<unsigned>(ceil_div<int64_t>(args.channels, kScanChannels));
  const int64_t b = blockIdx.x / blocks, d = static_cast<int64_t>(blockIdx.x % blocks) * kScanChannels;
  const int64_t columns = args.channels - d;  // of which the block has up to kScanChannels
  const int N = args.d_state, states = static_cast<int>(columns < kScanChannels ? columns : kScanChannels) * N;
  for (int i = threadIdx.x; i < kScanChannels * N; i += kScanThreads) {
    A[i] = i < states ? args.A[d * N + i] * kLog2E : 0.0f;
    state[i] = i < states && args.state ? args.state[(b * args.channels + d) * N + i] : 0.0f;
  }

  using Floats = ScanStage<float, kItems>;
  using Values = ScanStage<T, kItems>;
  const int warp = threadIdx.x / kWarp, column = Floats::column();
  const float x_scale = scale_at(args.x_scale), B_scale = scale_at(args.B_scale), C_scale = scale_at(args.C_scale);
  const float z_scale = scale_at(args.z_scale);
  const float bias = args.dt_bias && column < columns ? args.dt_bias[d + column] : 0.0f;
  const float skip = args.D && warp < columns ? args.D[d + warp] : 0.0f;

  for (int64_t first = 0; first < args.tokens; first += kChunk) {
    const int tokens = static_cast<int>(args.tokens - first < kChunk ? args.tokens - first : kChunk);
    Floats dt;
    Values x, of_B, of_C, z{};
    dt.load(args.dt.at(b, first) + d, args.dt.token, tokens, columns);
    x.load(args.x.at(b, first) + d, args.x.token, tokens, columns);
    dt.store(dt_tile, [&](float v, int t) { return t < tokens ? softplus(v + bias) : 0.0f; });
    x.store(x_tile, [&](T v, int) { return dequantized(v, x_scale); });
    ScanLane<kItems> lane;
    for (int n = 0; n == 0 || n < N; n += kScanChannels) {  // as many states as a tile has rows
      of_B.load(args.B.at(b, first) + n, args.B.token, tokens, N - n);
      of_C.load(args.C.at(b, first) + n, args.C.token, tokens, N - n);
      if (n > 0) __syncthreads();
      of_B.store(B_tile, [&](T v, int) { return dequantized(v, B_scale); });
      of_C.store(C_tile, [&](T v, int) { return dequantized(v, C_scale); });
      __syncthreads();
      if (n == 0) lane.load(dt_tile + warp * kRow, x_tile + warp * kRow, skip);
      for (int i = 0; i < kScanChannels && n + i < N; ++i)
        lane.advance(A[warp * N + n + i], state + warp * N + n + i, B_tile + i * kRow, C_tile + i * kRow);
    }
    lane.store(x_tile + warp * kRow);  // of which this warp alone has read the row
    if (args.z.data) z.load(args.z.at(b, first) + d, args.z.token, tokens, columns);
    __syncthreads();
    const float* y_row = x_tile + column * kRow + Values::token(0);
    float* out = args.out + (b * args.tokens + first + Values::token(0)) * args.channels + d + column;
#pragma unroll
    for (int i = 0; i < kItems; ++i, out += kWarp * args.channels) {
      if (Values::token(i) >= tokens || column >= columns) break;
      const float y = y_row[padded(kWarp * i)];
      *out = args.z.data ? y * silu(dequantized(z.values[i], z_scale)) : y;
    }
    // no barrier: what the next chunk overwrites, this thread has read, or others before the one above
  }
  if (!args.state) return;
  for (int i = threadIdx.x; i < states; i += kScanThreads) args.state[(b * args.channels + d) * N + i] = state[i];
}

// ---- one token

constexpr int kTokenLanes = 4;     // of a channel; each has four states in a row, and those 16 further on
constexpr int kTokenThreads = 128;

// p[0 .. 4), zeros from `count` on; `whole`: aligned, and none is missing.
template <typename T>
__device__ __forceinline__ void load_four(float (&to)[4], const T* p, float scale, int count) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = i < count ? dequantized(p[i], scale) : 0.0f;
}
__device__ __forceinline__ void load_four(float (&to)[4], const float* p, int count, bool whole) {
  if (!whole) return load_four(to, p, 1.0f, count);
  const float4 all = *reinterpret_cast<const float4*>(p);
  to[0] = all.x, to[1] = all.y, to[2] = all.z, to[3] = all.w;
}
__device__ __forceinline__ void store_four(float* p, const float (&from)[4], int count, bool whole) {
  if (whole) {
    *reinterpret_cast<float4*>(p) = make_float4(from[0], from[1], from[2], from[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < count) p[i] = from[i];
}

// Block: kTokenThreads. Grid: all channels of all rows. `whole`: N is a multiple of 4, A and state are aligned.
template <typename T>
__global__ void selective_scan_token_kernel(ScanArgs<T> args, bool whole) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kTokenThreads / kTokenLanes) + threadIdx.x / kTokenLanes;
  if (row >= args.batch * args.channels) return;
  const int64_t b = row / args.channels, d = row % args.channels;
  const int N = args.d_state, lane = threadIdx.x % kTokenLanes;
  const float x = dequantized(args.x.at(b, 0)[d], scale_at(args.x_scale));
  const float dt = softplus(args.dt.at(b, 0)[d] + (args.dt_bias ? args.dt_bias[d] : 0.0f)), dt_x = dt * x;
  const float B_scale = scale_at(args.B_scale), C_scale = scale_at(args.C_scale);
  float y = 0.0f;
  for (int n = 4 * lane; n < N; n += 4 * kTokenLanes) {
    float A[4], h[4] = {}, B[4], C[4];
    load_four(A, args.A + d * N + n, N - n, whole);
    if (args.state) load_four(h, args.state + row * N + n, N - n, whole);
    load_four(B, args.B.at(b, 0) + n, B_scale, N - n);
    load_four(C, args.C.at(b, 0) + n, C_scale, N - n);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      h[i] = fmaf(exp2_or_zero(dt * (A[i] * kLog2E)), h[i], dt_x * B[i]);
      y = fmaf(h[i], C[i], y);
    }
    if (args.state) store_four(args.state + row * N + n, h, N - n, whole);
  }
#pragma unroll
  for (int distance = kTokenLanes / 2; distance > 0; distance /= 2) y += __shfl_xor_sync(kAllLanes, y, distance);
  if (lane > 0) return;
  y += args.D ? args.D[d] * x : 0.0f;
  if (args.z.data) y *= silu(dequantized(args.z.at(b, 0)[d], scale_at(args.z_scale)));
  args.out[row] = y;
}

}  // namespace quamba::cuda
