// Products of many rows: prefill. A block's tile of results passes over the inputs in stages (linear_stages.cuh), a
// warp has a part of the tile and multiplies fragments of 16 outputs by 8 rows (linear_fragments.cuh).
//
// Dims: M rows, I in, O out, G groups. Lane l, g = l / 4, t = l % 4, reads of 32 outputs, a line, the words of 4g ..
// 4g + 3 in 16 bytes, of 8 rows that of column g; it has the sums of those four outputs for rows 2t, 2t + 1.
#pragma once

#include "linear_output.cuh"
#include "linear_stages.cuh"

namespace quamba::cuda {

constexpr int kLineOutputs = 32;

// A lane's sums, and for uint4 weights the scaled groups that are complete: of eights of rows and lines of outputs,
// [pair of outputs][2 (output of the pair) + row].
//
// Integer sums of a group start at the bits of 1.5 * 2^23 as a float: while a sum is below 2^22 those bits plus the
// sum are those of the float plus the sum, and a subtraction converts it.
template <typename P, typename Shape>
struct WarpSums {
  static constexpr int kEights = Shape::kWarpRows / 8, kLines = Shape::kWarpOutputs / kLineOutputs;
  static constexpr int32_t kStart = P::kUint4 && !P::kFloat ? 0x4b400000 : 0;
  static constexpr int kMostConverted = 2048;  // inputs of a group: 2048 * 15 * 128 < 2^22
  using Total = std::conditional_t<P::kUint4, float, typename P::Sum>;

  typename P::Sum of[kEights][kLines][2][4];
  float scaled[P::kUint4 ? kEights : 1][kLines][2][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int h = 0; h < kEights; ++h)
#pragma unroll
      for (int n = 0; n < kLines; ++n)
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          of[h][n][k / 4][k % 4] = kStart;
          if constexpr (P::kUint4) scaled[h][n][k / 4][k % 4] = 0.0f;
        }
  }

  static __device__ __forceinline__ float converted(int32_t sum, bool small) {
    return small ? __int_as_float(sum) - kRoundingMagic : static_cast<float>(sum - kStart);
  }
  static __device__ __forceinline__ float converted(float sum, bool) { return sum; }

  // scaled += scale * of, of = 0. `scales`: of the warp's outputs; `small`: groups have up to kMostConverted inputs.
  __device__ __forceinline__ void add_group(const unsigned char* scales, bool small) {
    const int g = threadIdx.x % kWarp / 4;
#pragma unroll
    for (int n = 0; n < kLines; ++n) {
      const uint2 packed = *reinterpret_cast<const uint2*>(scales + (n * kLineOutputs + 4 * g) * 2);
      float scale[4];
      unpack_half2(packed.x, scale[0], scale[1]);
      unpack_half2(packed.y, scale[2], scale[3]);
#pragma unroll
      for (int h = 0; h < kEights; ++h)
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          const int m = k / 4, i = k % 4;
          scaled[h][n][m][i] = fmaf(scale[k / 2], converted(of[h][n][m][i], small), scaled[h][n][m][i]);
          of[h][n][m][i] = kStart;
        }
    }
  }

  // Of the four outputs of a line and row 2t + r.
  __device__ __forceinline__ void totals(Total (&to)[4], int h, int n, int r) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (P::kUint4) to[j] = scaled[h][n][j / 2][j % 2 * 2 + r];
      else to[j] = of[h][n][j / 2][j % 2 * 2 + r];
    }
  }
};

// What a lane reads of a step of x: row g of each eight.
template <typename P, typename Shape>
__device__ __forceinline__ void read_rows(uint32_t (&b)[P::kXTerms][Shape::kWarpRows / 8][2],
                                          const unsigned char* stage, int first_row, int step) {
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  using Layout = StageLayout<P, Shape>;
  const unsigned char* from = stage + Layout::row_piece(first_row + g, 2 * step + t / 2) + t % 2 * 8;
#pragma unroll
  for (int term = 0; term < P::kXTerms; ++term)
#pragma unroll
    for (int h = 0; h < Shape::kWarpRows / 8; ++h) {
      const uint2 v = *reinterpret_cast<const uint2*>(from + term * Layout::kTermBytes + 8 * h * kRowBytes);
      b[term][h][0] = v.x, b[term][h][1] = v.y;
    }
}

// sums += w x over a slice of a stage.
template <typename P, typename Shape>
__device__ __forceinline__ void multiply_slice(WarpSums<P, Shape>& sums, const unsigned char* stage, int first_row,
                                               int first_output, int slice) {
  using Layout = StageLayout<P, Shape>;
  constexpr int kLines = WarpSums<P, Shape>::kLines, kEights = WarpSums<P, Shape>::kEights;
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  uint32_t words[kLines][P::kWords][4], zeros[kLines];
#pragma unroll
  for (int n = 0; n < kLines; ++n) {
    const int output = first_output + n * kLineOutputs + 4 * g;
#pragma unroll
    for (int i = 0; i < P::kWords; ++i) {
      const int word = slice * P::kSliceWords + P::kWords * t + i;
      const uint4 v = *reinterpret_cast<const uint4*>(stage + Layout::word_piece(output / 16, word, g % 4));
      words[n][i][0] = v.x, words[n][i][1] = v.y, words[n][i][2] = v.z, words[n][i][3] = v.w;
    }
    zeros[n] = 0;
    if constexpr (P::kUint4)
      zeros[n] = *reinterpret_cast<const uint32_t*>(stage + Layout::kZeros + slice * Shape::kOutputs + output);
  }
#pragma unroll
  for (int step = 0; step < P::kSteps; ++step) {
    uint32_t b[P::kXTerms][kEights][2];
    read_rows<P, Shape>(b, stage, first_row, slice * P::kSteps + step);
#pragma unroll
    for (int n = 0; n < kLines; ++n)
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        uint32_t a[4];
        weight_fragment<P, 4>(a, words[n], 2 * m, step, zeros[n]);
#pragma unroll
        for (int term = 0; term < P::kXTerms; ++term)
#pragma unroll
          for (int h = 0; h < kEights; ++h) multiply(sums.of[h][n][m], a, b[term][h]);
      }
  }
}

template <typename P, typename Shape>
__device__ __forceinline__ void store_sums(const LinearArgs& args, const WarpSums<P, Shape>& sums, int64_t row,
                                           int output) {
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < WarpSums<P, Shape>::kLines; ++n) {
    const FourOutputs<P> outputs(args, output + n * kLineOutputs + 4 * g);
#pragma unroll
    for (int h = 0; h < WarpSums<P, Shape>::kEights; ++h)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        typename WarpSums<P, Shape>::Total of_row[4];
        sums.totals(of_row, h, n, r);
        outputs.store(args, of_row, row + 8 * h + 2 * t + r);
      }
  }
}

template <typename P, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1) linear_many_rows_kernel(LinearArgs args) {
  using Layout = StageLayout<P, Shape>;
  unsigned char* shared = dynamic_shared<unsigned char>();
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * Shape::kRows;
  const int warp = threadIdx.x / kWarp, first_tile = blockIdx.y * Layout::kTiles;
  const int row = warp / Shape::kWarpColumns * Shape::kWarpRows, o = warp % Shape::kWarpColumns * Shape::kWarpOutputs;
  const int slices = slices_of(args), stages = ceil_div(slices, Layout::kSlices);
  const int in_group = args.group_size / kSlice - 1;  // of a slice's number, the bits that count within its group
  StageCopies<P, Shape> copies(args, first_row, first_tile);
  for (int stage = 0; stage < Shape::kStages - 1; ++stage)
    copies.copy_next(shared + stage * Layout::kBytes, stage < stages);
  WarpSums<P, Shape> sums;
  sums.clear();
  for (int stage = 0; stage < stages; ++stage) {
    copy_async_wait<Shape::kStages - 2>();
    __syncthreads();  // the stage has arrived, and nobody reads the one that the next copies replace
    const int ahead = stage + Shape::kStages - 1;
    copies.copy_next(shared + ahead % Shape::kStages * Layout::kBytes, ahead < stages);
    const unsigned char* at = shared + stage % Shape::kStages * Layout::kBytes;
#pragma unroll
    for (int s = 0; s < Layout::kSlices; ++s) {
      multiply_slice<P, Shape>(sums, at, row, o, s);
      if constexpr (P::kUint4) {
        const int next = stage * Layout::kSlices + s + 1;
        if ((next & in_group) == 0 || next == slices)
          sums.add_group(at + Layout::kScales + (s * Shape::kOutputs + o) * 2,
                         args.group_size <= WarpSums<P, Shape>::kMostConverted);
      }
    }
  }
  copy_async_wait<0>();
  store_sums<P, Shape>(args, sums, first_row + row, first_tile * kTileOutputs + o);
}

}  // namespace quamba::cuda
