// How linear_many_rows.cuh passes over the inputs: a ring of stages in shared memory, copied ahead of their use.
//
// A stage is 64 bytes of every row of a block's tile, of each term: 64 inputs of int8 x, 32 of float x (bfloat16), and
// the weights of the tile's outputs for those inputs. In it a step is 32 bytes of x. It is written and read without
// bank conflicts: 16-byte pieces of a row of x change places with those two further in every other pair of rows,
// pieces of a tile of weights according to the pair of words they are of.
#pragma once

#include "copy_async.h"
#include "linear_fragments.cuh"

namespace quamba::cuda {

constexpr int kRowBytes = 64;  // of a row and a term in a stage

// Rows by outputs of a block's tile and of a warp's part of it.
template <int kRows_, int kOutputs_, int kWarpRows_, int kWarpOutputs_, int kStages_>
struct TileShape {
  static constexpr int kRows = kRows_, kOutputs = kOutputs_, kWarpRows = kWarpRows_, kWarpOutputs = kWarpOutputs_;
  static constexpr int kStages = kStages_, kWarpColumns = kOutputs / kWarpOutputs;
  static constexpr int kThreads = kRows / kWarpRows * kWarpColumns * kWarp;
};

// Where the parts of a stage begin, in bytes.
template <typename P, typename Shape>
struct StageLayout {
  static constexpr int kSlices = P::kFloat ? 1 : 2;
  static constexpr int kWords = kSlices * P::kSliceWords;  // of an output
  static constexpr int kTileBytes = kWords * kTileOutputs * 4;
  static constexpr int kTiles = Shape::kOutputs / kTileOutputs;
  static constexpr int kTermBytes = Shape::kRows * kRowBytes;
  static constexpr int kWeights = P::kXTerms * kTermBytes;
  // zero points [slices, outputs] and scales of them, float16
  static constexpr int kZeros = kWeights + kTiles * kTileBytes;
  static constexpr int kScales = kZeros + (P::kUint4 ? kSlices * Shape::kOutputs : 0);
  static constexpr int kBytes = kScales + (P::kUint4 ? 2 * kSlices * Shape::kOutputs : 0);

  static __device__ __forceinline__ int row_piece(int row, int piece) {
    return row * kRowBytes + (piece ^ (row >> 1 & 1) * 2) * 16;
  }
  // Four outputs' words.
  static __device__ __forceinline__ int word_piece(int tile, int word, int four) {
    return kWeights + tile * kTileBytes + ((word * 4 + four) ^ (word >> 1 & 3) * 2) * 16;
  }
};

// The pieces of every stage that a thread copies. What it finds once: of stage 0 where they lie, and where they go.
template <typename P, typename Shape>
class StageCopies {
 public:
  // Rows and outputs beyond the last are the last again; their results are not stored.
  __device__ StageCopies(const LinearArgs& args, int64_t first_row, int first_tile) : plane_(args.x_plane) {
    const int row = threadIdx.x / kPieces, piece = threadIdx.x % kPieces;
    row_to_ = Layout::row_piece(row, piece);
    left_in_row_ = args.x_bytes - piece * 16;
#pragma unroll
    for (int k = 0; k < kRowCopies; ++k)
      row_[k] = args.x + min(first_row + row + k * kRowStep, args.rows - 1) * args.x_stride + piece * 16;
    const int tile = threadIdx.x / kTilePieces, of_tile = threadIdx.x % kTilePieces, last = tiles_of(args) - 1;
    const int words = ceil_div(args.in, kSlice / P::kSliceWords);
    word_to_ = Layout::word_piece(tile, of_tile / 4, of_tile % 4);
    left_words_ = words - of_tile / 4;
#pragma unroll
    for (int k = 0; k < kTileCopies; ++k) {
      const int64_t from = min(first_tile + tile + k * kTileStep, last);
      words_[k] = args.weight + from * words * kWordBytes + of_tile * 16;
    }
    if constexpr (P::kUint4) find_groups(args, first_tile);
  }

  // Copies stage after stage, from the first; of those beyond the last nothing, but the group of copies is counted.
  __device__ __forceinline__ void copy_next(unsigned char* to, bool within) {
    if (within) {
#pragma unroll
      for (int k = 0; k < kRowCopies; ++k)
#pragma unroll
        for (int term = 0; term < P::kXTerms; ++term)
          copy_async16(to + row_to_ + term * Layout::kTermBytes + k * kRowStep * kRowBytes, row_[k] + term * plane_,
                       left_in_row_ > 0);
#pragma unroll
      for (int k = 0; k < kTileCopies; ++k)
        if (kTiles % kTileStep == 0 || threadIdx.x / kTilePieces + k * kTileStep < kTiles)
          copy_async16(to + word_to_ + k * kTileStep * Layout::kTileBytes, words_[k], left_words_ > 0);
      if constexpr (P::kUint4) copy_groups(to);
      advance();
    }
    copy_async_commit();
  }

 private:
  using Layout = StageLayout<P, Shape>;
  static constexpr int kTiles = Layout::kTiles, kWordBytes = kTileOutputs * 4;
  // pieces of a row, of a tile; rows and tiles that all threads copy at once; how often they do
  static constexpr int kPieces = kRowBytes / 16, kTilePieces = Layout::kWords * 4;
  static constexpr int kRowStep = Shape::kThreads / kPieces, kTileStep = Shape::kThreads / kTilePieces;
  static constexpr int kRowCopies = Shape::kRows / kRowStep, kTileCopies = ceil_div(kTiles, kTileStep);
  static constexpr int kGroupPieces = 3;  // of a tile and slice: zero points and two of scales
  static_assert(Shape::kRows % kRowStep == 0 && kRowStep % 4 == 0);  // the pieces of every fourth row lie alike
  static_assert(kTiles * Layout::kSlices * kGroupPieces <= Shape::kThreads);

  __device__ __forceinline__ void advance() {
#pragma unroll
    for (int k = 0; k < kRowCopies; ++k) row_[k] += kRowBytes;
#pragma unroll
    for (int k = 0; k < kTileCopies; ++k) words_[k] += Layout::kWords * kWordBytes;
    left_in_row_ -= kRowBytes;
    left_words_ -= Layout::kWords;
    slice_ += Layout::kSlices;
  }

  // A thread copies a piece of one slice and tile.
  __device__ void find_groups(const LinearArgs& args, int first_tile) {
    const int piece = threadIdx.x % kGroupPieces, tile = threadIdx.x / kGroupPieces % kTiles;
    const int64_t from = min(first_tile + tile, tiles_of(args) - 1), at = from * groups_of(args) * kTileOutputs;
    slice_ = threadIdx.x / kGroupPieces / kTiles;
    has_groups_ = slice_ < Layout::kSlices;
    last_group_ = groups_of(args) - 1;
    log2_group_ = __ffs(args.group_size / kSlice) - 1;
    const int output = slice_ * Shape::kOutputs + tile * kTileOutputs;
    scales_ = piece > 0;
    group_ = scales_ ? reinterpret_cast<const uint8_t*>(args.group_scale + at) + (piece - 1) * 16 : args.zero + at;
    group_to_ = scales_ ? Layout::kScales + output * 2 + (piece - 1) * 16 : Layout::kZeros + output;
  }

  __device__ __forceinline__ void copy_groups(unsigned char* to) const {
    if (!has_groups_) return;
    const int group = min(slice_ >> log2_group_, last_group_);
    copy_async16(to + group_to_, group_ + (scales_ ? 2 : 1) * group * kTileOutputs);
  }

  const uint8_t *row_[kRowCopies], *words_[kTileCopies], *group_ = nullptr;
  int64_t plane_;
  int row_to_, word_to_, group_to_ = 0, left_in_row_, left_words_;
  int slice_ = 0, last_group_ = 0, log2_group_ = 0;
  bool has_groups_ = false, scales_ = false;
};

}  // namespace quamba::cuda
