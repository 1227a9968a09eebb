// The outputs of a chunk from the states before it and from its own tokens. Dims: as in ssd.cuh.
//
// A block: 64 tokens t by 64 p, for some heads of a group one after the other; a warp: 32 by 16. The scores C_t B_s are
// computed once for all of these heads and stay in registers: a warp has 16 rows of every second column of 8.
#pragma once

#include "ssd.cuh"
#include "ssd_tiles.cuh"

namespace quamba::cuda {

constexpr int kScanP = 64, kScanN = 64;             // of a tile
constexpr int kScanWarpRows = 32, kScanWarpP = 16;  // of a warp
constexpr int kScanM = kScanWarpRows / 16, kScanNs = kScanWarpP / 8;
static_assert(kSsdRows / kScanWarpRows * (kScanP / kScanWarpP) == kSsdWarps);
constexpr int kScoreParts = kSsdRows / 16;  // columns of 8 that a warp has of the scores of two tiles of tokens

template <typename T, int kChunk>
struct ChunkScanTiles {
  static constexpr int kAlong = kScanN + kTilePad, kXStride = kScanP + kAcrossPad<T>, kMixingStride = kSsdRows + 8;
  alignas(16) T C[kSsdRows * kAlong];                  // [t][n]
  alignas(16) float h[kScanP * kAlong];                // [p][n], and before that B [s][n]
  alignas(16) T x[kSsdRows * kXStride];                // [s][p]
  alignas(16) float mixing[kSsdRows * kMixingStride];  // [t][s]: what x_s weighs in y_t
  float decays[3][kChunk];                             // log2 a_t as two floats, dt
};

struct ScoreRows {  // of a warp, within a tile
  int row, column;  // its first column; the next ones are 16 further on each
  __device__ __forceinline__ ScoreRows()
      : row(threadIdx.x / kWarp % 4 * 16), column(static_cast<int>(threadIdx.x / kWarp / 4 * 8)) {}
};

// Scores of 64 n more; columns of tokens from `end` on are not wanted.
__device__ __forceinline__ void add_scores(int32_t (&d)[kScoreParts][4], const int8_t* C, const int8_t* B, int stride,
                                           int columns_n, int end) {
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  const ScoreRows mine;
  const auto word = [&](const int8_t* tile, int row, int n) {
    return *reinterpret_cast<const uint32_t*>(tile + (row + g) * stride + n + 4 * t);
  };
#pragma unroll 1
  for (int n = 0; n < min(columns_n, kScanN); n += 32) {
    const uint32_t a[4] = {word(C, mine.row, n), word(C, mine.row + 8, n), word(C, mine.row, n + 16),
                           word(C, mine.row + 8, n + 16)};
#pragma unroll
    for (int i = 0; i < kScoreParts; ++i) {
      const int s = mine.column + 16 * i;
      if (s >= end) continue;
      const uint32_t b[2] = {word(B, s, n), word(B, s, n + 16)};
      mma_s8(d[i], a, b);
    }
  }
}

__device__ __forceinline__ void add_scores(float (&d)[kScoreParts][4], const float* C, const float* B, int stride,
                                           int columns_n, int end) {
  const ScoreRows mine;
#pragma unroll 1
  for (int n = 0; n < min(columns_n, kScanN); n += 16) {
    Operand<false, 4> a[2];
    load_a_along(C, stride, mine.row, n, a);
#pragma unroll
    for (int i = 0; i < kScoreParts; ++i) {
      const int s = mine.column + 16 * i;
      if (s >= end) continue;
      Operand<false, 2> b[2];
      load_b_along(B, stride, s, n, b);
      multiply(d[i], a[0], b[0]);
      multiply(d[i], a[1], b[1]);
    }
  }
}

// Of a block: where its tokens, and those that they see, begin.
struct ScanPlace {
  int b, group, chunk, tile;  // tile: of the chunk
  int64_t begin;              // of the chunk
  int rows;                   // tokens of the tile that there are

  __device__ __forceinline__ int64_t token(int of_tile) const { return begin + of_tile * kSsdRows; }
  // the tokens of a tile up to this one that rows up to `last_row` see
  __device__ __forceinline__ int seen(int of_tile, int last_row) const {
    return min(of_tile == tile ? last_row + 1 : kSsdRows, of_tile == tile ? rows : kSsdRows);
  }
};

template <typename T, int kChunk>
__device__ __forceinline__ void load_C(const SsdArgs<T>& args, ChunkScanTiles<T, kChunk>& tiles, const ScanPlace& at,
                                       int n) {
  const int64_t first = at.b * args.C_at.batch + at.token(at.tile) * args.C_at.token + at.group * args.C_group + n;
  load_tile<kSsdRows, kScanN>(tiles.C, tiles.kAlong, args.C + first, args.C_at.token, at.rows, args.d_state - n,
                              args.C_vectors);
}

// C_t B_s of the warp's part, of the tile's tokens t and those of every tile s up to it.
template <typename T, int kChunk>
__device__ __forceinline__ void find_scores(const SsdArgs<T>& args, ChunkScanTiles<T, kChunk>& tiles,
                                            const ScanPlace& at, float (&scores)[kChunk / kSsdRows][kScoreParts][4]) {
  using Sum = std::conditional_t<sizeof(T) == 1, int32_t, float>;
  T* B = reinterpret_cast<T*>(tiles.h);
  const float scale = args.B_scale ? args.B_scale[at.group] * args.C_scale[at.group] : 1.0f;
#pragma unroll
  for (int s = 0; s < kChunk / kSsdRows; ++s) {
    if (s > at.tile) continue;
    Sum d[kScoreParts][4] = {};
    const int tokens = s == at.tile ? at.rows : kSsdRows;
    for (int n = 0; n < args.d_state; n += kScanN) {
      __syncthreads();
      load_C(args, tiles, at, n);
      const int64_t first = at.b * args.B_at.batch + at.token(s) * args.B_at.token + at.group * args.B_group + n;
      load_tile<kSsdRows, kScanN>(B, tiles.kAlong, args.B + first, args.B_at.token, tokens, args.d_state - n,
                                  args.B_vectors);
      copy_async_commit();
      copy_async_wait<0>();
      __syncthreads();
      if (ScoreRows().row < at.rows)
        add_scores(d, tiles.C, B, tiles.kAlong, args.d_state - n, at.seen(s, ScoreRows().row + 15));
    }
#pragma unroll
    for (int i = 0; i < kScoreParts; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[s][i][j] = static_cast<float>(d[i][j]) * scale;
  }
}

// The warp's part of tiles.mixing: scores dt_s a_t / a_s for s <= t, with D for the skip connection where s = t.
template <typename T, int kChunk>
__device__ __forceinline__ void find_mixing(ChunkScanTiles<T, kChunk>& tiles, const ScanPlace& at, int tile, float D,
                                            const float (&scores)[kScoreParts][4]) {
  const int g = threadIdx.x % kWarp / 4, lane_column = threadIdx.x % 4 * 2;
  const ScoreRows mine;
  const int end = at.seen(tile, mine.row + 15);
  if (mine.row >= at.rows) return;
#pragma unroll
  for (int i = 0; i < kScoreParts; ++i) {
    if (mine.column + 16 * i >= end) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = mine.row + 8 * half + g, column = mine.column + 16 * i + lane_column;
      const int t = at.tile * kSsdRows + row;
      float weights[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int s = tile * kSsdRows + column + j;
        const float log2 = (tiles.decays[0][t] - tiles.decays[0][s]) + (tiles.decays[1][t] - tiles.decays[1][s]);
        const float weight = ssd_decay(log2) * (scores[i][2 * half + j] * tiles.decays[2][s]);
        weights[j] = s > t ? 0.0f : s == t ? weight + D : weight;
      }
      *reinterpret_cast<float2*>(tiles.mixing + row * tiles.kMixingStride + column) =
          make_float2(weights[0], weights[1]);
    }
  }
}

using ScanSums = float[kScanM][kScanNs][4];

// d += mixing x over the tokens of a tile, for the warp's rows and columns.
template <typename T, int kChunk>
__device__ __forceinline__ void add_tokens(ScanSums& d, const ChunkScanTiles<T, kChunk>& tiles, const ScanPlace& at,
                                           int tile, int row, int p, int columns_p) {
#pragma unroll 1
  for (int s = 0; s < at.seen(tile, row + kScanWarpRows - 1); s += 8) {
    Operand<false, 4> a[kScanM];
    Operand<sizeof(T) == 1, 2> b[kScanNs];
#pragma unroll
    for (int j = 0; j < kScanNs; ++j)
      if (p + 8 * j < columns_p) load_b_across(tiles.x, tiles.kXStride, s, p + 8 * j, b[j]);
#pragma unroll
    for (int i = 0; i < kScanM; ++i) {
      const int first = row + 16 * i;
      if (first >= at.rows || s >= at.seen(tile, first + 15)) continue;
      load_a_pairs(tiles.mixing, tiles.kMixingStride, first, s, a[i]);
#pragma unroll
      for (int j = 0; j < kScanNs; ++j)
        if (p + 8 * j < columns_p) multiply(d[i][j], a[i], b[j]);
    }
  }
}

// d += C h of 64 n more.
template <typename T, int kChunk>
__device__ __forceinline__ void add_states(ScanSums& d, const ChunkScanTiles<T, kChunk>& tiles, const ScanPlace& at,
                                           int row, int p, int columns_p, int columns_n) {
#pragma unroll 1
  for (int n = 0; n < min(columns_n, kScanN); n += 16) {
    Operand<false, 2> b[kScanNs][2];
#pragma unroll
    for (int j = 0; j < kScanNs; ++j)
      if (p + 8 * j < columns_p) load_b_along(tiles.h, tiles.kAlong, p + 8 * j, n, b[j]);
#pragma unroll
    for (int i = 0; i < kScanM; ++i) {
      if (row + 16 * i >= at.rows) continue;
      Operand<sizeof(T) == 1, 4> a[2];
      load_a_along(tiles.C, tiles.kAlong, row + 16 * i, n, a);
#pragma unroll
      for (int j = 0; j < kScanNs; ++j) {
        if (p + 8 * j >= columns_p) continue;
        multiply(d[i][j], a[0], b[j][0]);
        multiply(d[i][j], a[1], b[j][1]);
      }
    }
  }
}

// y_t = a_t C_scale (C h) + x_scale (mixing x). `out`, `x_scale`: of the tile's first token and its first channel.
template <typename T, int kChunk>
__device__ __forceinline__ void store_outputs(const SsdArgs<T>& args, const ChunkScanTiles<T, kChunk>& tiles,
                                              const ScanPlace& at, const ScanSums& of_states, const ScanSums& of_tokens,
                                              float* out, const float* x_scale, int row, int p, int columns_p) {
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  const int64_t channels = static_cast<int64_t>(args.heads) * args.head_dim;
  const float C_scale = args.C_scale ? args.C_scale[at.group] : 1.0f;
#pragma unroll
  for (int i = 0; i < 2 * kScanM; ++i) {
    const int token = row + 8 * i + g;
    if (token >= at.rows) continue;
    const float decay = ssd_decay(tiles.decays[0][at.tile * kSsdRows + token]) * C_scale;
#pragma unroll
    for (int j = 0; j < 2 * kScanNs; ++j) {
      const int column = p + j / 2 * 8 + 2 * t + j % 2, of_lane = i % 2 * 2 + j % 2;
      if (column >= columns_p) continue;
      const float mixed = of_tokens[i / 2][j / 2][of_lane] * (x_scale ? x_scale[column] : 1.0f);
      out[token * channels + column] = fmaf(of_states[i / 2][j / 2][of_lane], decay, mixed);
    }
  }
}

// Grid: x slice of heads, part of p; y tile of tokens; z batch.
template <typename T, int kChunk>
__global__ void __launch_bounds__(kSsdThreads, 2) ssd_chunk_scan_kernel(SsdArgs<T> args) {
  constexpr int kTiles = kChunk / kSsdRows;
  using Tiles = ChunkScanTiles<T, kChunk>;
  Tiles& tiles = *dynamic_shared<Tiles>();
  const int p_parts = ceil_div(args.head_dim, kScanP), p0 = blockIdx.x % p_parts * kScanP;
  const SsdHeads heads = ssd_heads(args, blockIdx.x / p_parts);
  const int b = blockIdx.z, chunk = blockIdx.y / kTiles, tile = blockIdx.y % kTiles, first = blockIdx.y * kSsdRows;
  const ScanPlace at{b, heads.group, chunk, tile, static_cast<int64_t>(chunk) * kChunk,
                     min(kSsdRows, args.tokens - first)};
  const int warp = threadIdx.x / kWarp, row = warp % 2 * kScanWarpRows, p = warp / 2 * kScanWarpP;
  const int columns_p = args.head_dim - p0;
  const bool mine = row < at.rows && p < columns_p, from_zero = !args.state && chunk == 0;
  float scores[kTiles][kScoreParts][4] = {};
  find_scores(args, tiles, at, scores);
  for (int head = heads.first; head < heads.end; ++head) {
    const int64_t channel = static_cast<int64_t>(head) * args.head_dim + p0;
    const int64_t chunk_head = (static_cast<int64_t>(b) * args.chunks + chunk) * args.heads + head;
    const float* states = args.states + (chunk_head * args.head_dim + p0) * args.state_columns;
    const auto load_states = [&](int n) {
      load_C(args, tiles, at, n);
      load_tile<kScanP, kScanN>(tiles.h, Tiles::kAlong, states + n, args.state_columns, columns_p,
                                args.state_columns - n, true);
      copy_async_commit();
    };
    ScanSums of_tokens = {}, of_states = {};
#pragma unroll
    for (int s = 0; s < kTiles; ++s) {
      if (s > tile) continue;
      __syncthreads();  // those before have read the tiles
      load_tile<kSsdRows, kScanP>(tiles.x, Tiles::kXStride,
                                  args.x + b * args.x_at.batch + at.token(s) * args.x_at.token + channel,
                                  args.x_at.token, s == tile ? at.rows : kSsdRows, columns_p, args.x_vectors);
      copy_async_commit();
      if (s == 0) {
        for (int i = threadIdx.x; i < 3 * kChunk; i += kSsdThreads)
          tiles.decays[i / kChunk][i % kChunk] = args.decays[chunk_head * 3 * kChunk + i];
        if (!from_zero) load_states(0);  // on their way while tokens are mixed
        __syncthreads();
      }
      find_mixing(tiles, at, s, args.D ? args.D[head] : 0.0f, scores[s]);
      if (s == 0 && !from_zero) copy_async_wait<1>();
      else copy_async_wait<0>();
      __syncthreads();
      if (mine) add_tokens(of_tokens, tiles, at, s, row, p, columns_p);
    }
    for (int n = 0; !from_zero && n < args.d_state; n += kScanN) {
      if (n > 0) {
        __syncthreads();
        load_states(n);
      }
      copy_async_wait<0>();
      __syncthreads();
      if (mine) add_states(of_states, tiles, at, row, p, columns_p, args.d_state - n);
    }
    const int64_t out = (static_cast<int64_t>(b) * args.tokens + first) * args.heads * args.head_dim + channel;
    store_outputs(args, tiles, at, of_states, of_tokens, args.out + out,
                  args.x_scale ? args.x_scale + channel : nullptr, row, p, columns_p);
  }
}

}  // namespace quamba::cuda
