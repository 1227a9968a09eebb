// What surrounds a product of the library (cuBLASLt, through torch): weights as the rows that it wants, and what
// becomes of its sums.
//
// Dims: M rows, I in, O out features, N 16 ceil(O / 16), K 16 ceil(I / 16); pieces are the 16 bytes that lanes read
// and write.
#pragma once

#include "linear_output.cuh"

namespace quamba::cuda {

constexpr int kPiece = 16;  // inputs
constexpr int kUntileThreads = 256;

// Tiles int8 [O/16, I/4, 16, 4] -> rows [N, K], zeros beyond I. A block has a tile, a thread a piece of four of its
// outputs: neighbouring threads read the four fours of 64 bytes, and write pieces of the same rows.
__global__ void __launch_bounds__(kUntileThreads)
    untile_kernel(const uint8_t* tiles, uint4* rows, int words, int pieces) {
  const int at = blockIdx.y * blockDim.x + threadIdx.x, piece = at / 4, four = at % 4;
  if (piece >= pieces) return;
  const int64_t tile = blockIdx.x;
  uint32_t in[4][4] = {};  // [word][output]
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int word = 4 * piece + i;
    if (word < words) load_words(tiles + ((tile * words + word) * 4 + four) * kPiece, in[i]);
  }
#pragma unroll
  for (int j = 0; j < 4; ++j)
    rows[(tile * kTileOutputs + 4 * four + j) * pieces + piece] = make_uint4(in[0][j], in[1][j], in[2][j], in[3][j]);
}

constexpr int kStoreWarps = 8, kStoreRows = 4;  // of a block; of a lane, all loaded before the first is stored
constexpr int kStoreOutputs = 4 * kWarp;        // of a warp and of a block

// Sums int32 [M, N] -> results [M, O].
__global__ void __launch_bounds__(kStoreWarps * kWarp)
    store_sums_kernel(const int32_t* sums, LinearArgs args) {
  const int o = blockIdx.y * kStoreOutputs + threadIdx.x % kWarp * 4;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kStoreWarps * kStoreRows) + threadIdx.x / kWarp;
  if (o >= args.out) return;
  const int64_t columns = tiles_of(args) * kTileOutputs;
  uint32_t loaded[kStoreRows][4];
#pragma unroll
  for (int k = 0; k < kStoreRows; ++k)
    load_words(sums + min(first + k * kStoreWarps, args.rows - 1) * columns + o, loaded[k]);
  const FourOutputs<Product<false, int8_t>> outputs(args, o);
#pragma unroll
  for (int k = 0; k < kStoreRows; ++k) {
    int32_t of_row[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) of_row[j] = static_cast<int32_t>(loaded[k][j]);
    outputs.store(args, of_row, first + k * kStoreWarps);
  }
}

}  // namespace quamba::cuda
