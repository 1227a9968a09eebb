// Products of up to 16 rows: decoding. Bound by reading the weights once, so a block owns 8, 16 or 32 outputs, its
// warps share the inputs, and weights go from global memory straight into the operands of tensor-core products of 16
// outputs by 8 rows: one row costs what eight do, and no lane adds what another has.
//
// Dims: M rows, I in, O out, G groups; T outputs of a lane, 8 T of a block. Lane l, g = l / 4, t = l % 4, reads
// outputs T g .. T g + T - 1 (4 T bytes a load, with the lanes of other g whole sectors) and has their sums for rows
// 2t, 2t + 1.
//
// Read for a token, Mamba 2.8b (H 2560, D 5120, R 160, N 16, 64 layers; V 50280; uint4 with its scales and zero
// points, groups of 128), and the time that takes at 4.8 TB/s:
//              outputs x inputs   int8 MB     us   uint4 MB     us
//   in_proj      10240 x 2560        26.2    5.5       13.7    2.9
//   x_proj         192 x 5120         1.0    0.2        0.5    0.1
//   dt_proj       5120 x 160          0.8    0.2        0.4    0.1
//   out_proj      2560 x 5120        13.1    2.7        6.9    1.4
//   64 layers                        2632    548       1378    287
//   lm_head      50280 x 2560       128.7     27       67.4     14
//
// Instructions of a warp for 512 bytes of weights, 16 a lane, with T = 4 and up to 8 rows (sm_90): int8 by int8 16,
// uint4 by int8 70, int8 by float 60, uint4 by float 120. At 4.8 TB/s 132 multiprocessors of 1.76 GHz have 100 slots
// for them.
#pragma once

#include "copy_async.h"
#include "linear_fragments.cuh"
#include "linear_output.cuh"

namespace quamba::cuda {

constexpr int kFewRowsThreads = 512;  // at most

// uint4 weights times int8 rows: integer sums of groups wait in shared memory until the block has all of them, and are
// then scaled and added in the groups' order. So the result does not depend on how warps share the inputs, and is bit
// for bit that of many rows and of the CPU. Otherwise each warp's sums wait there, and are added in the warps' order.
template <typename P>
constexpr bool kSumsOfGroups = P::kUint4 && !P::kFloat;

// The sums of a row end in a gap that spreads lanes over the banks of shared memory.
template <int T>
constexpr int kPaddedOutputs = 8 * T + 1;

// Bytes of shared memory.
template <typename P, int T>
size_t few_rows_shared(const LinearArgs& args, int warps) {
  const size_t sums = args.rows * kPaddedOutputs<T> * sizeof(float);
  return kSumsOfGroups<P> ? groups_of(args) * (sums + 8 * T * sizeof(Half)) : warps * sums;
}

// What a lane loads of a slice. kEights: eights of rows, column g of each.
template <typename P, int T, int kEights>
struct LoadedSlice {
  static constexpr int kXWords = P::kFloat ? 8 : 2;
  static constexpr int kRegisters = P::kWords * T + kEights * kXWords + (P::kUint4 ? P::kFloat ? 3 : 1 : 0);

  uint32_t words[P::kWords][T];
  uint32_t x[kEights][kXWords];
  uint32_t zeros;                // of uint4 weights: a byte of each output
  uint32_t scales[(T + 1) / 2];  // and, on float rows, a float16 of each
};

// Where a lane reads.
template <typename P, int T, int kEights>
class FewRowsLane {
 public:
  using Slice = LoadedSlice<P, T, kEights>;

  __device__ FewRowsLane(const LinearArgs& args, int first)
      : last_word_(ceil_div(args.in, kSlice / P::kSliceWords) - 1) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4, o = first + T * g;
    const int64_t tile = min(o / kTileOutputs, tiles_of(args) - 1);  // sums of outputs beyond the last are not stored
    weight_ = args.weight + (tile * (last_word_ + 1) * kTileOutputs + o % kTileOutputs) * 4;
    word_ = P::kWords * t;
#pragma unroll
    for (int h = 0; h < kEights; ++h) {
      x_bytes_[h] = g + 8 * h < args.rows ? args.x_bytes - kXBytes / 4 * t : 0;
      x_[h] = args.x + (g + 8 * h) * args.x_stride + kXBytes / 4 * t;
      in_register(x_bytes_[h]), in_register(x_[h]);
    }
    in_register(weight_), in_register(word_);
    if constexpr (P::kUint4) {
      log2_group_ = __ffs(args.group_size / kSlice) - 1;
      zero_ = args.zero + tile * groups_of(args) * kTileOutputs + o % kTileOutputs;
      scale_ = args.group_scale + tile * groups_of(args) * kTileOutputs + o % kTileOutputs;
      in_register(zero_), in_register(scale_);
    }
  }

  __device__ __forceinline__ int group_of(int slice) const { return slice >> log2_group_; }

  // Words beyond the last are the last again: x is 0 there.
  __device__ __forceinline__ void load(Slice& to, int slice) const {
#pragma unroll
    for (int i = 0; i < P::kWords; ++i) {
      const int word = min(slice * P::kSliceWords + word_ + i, last_word_);
      load_words(weight_ + static_cast<int64_t>(word) * (kTileOutputs * 4), to.words[i]);
    }
#pragma unroll
    for (int h = 0; h < kEights; ++h) load_x(to.x[h], x_[h] + slice * kXBytes, x_bytes_[h] - slice * kXBytes);
    if constexpr (P::kUint4) {
      const int at = group_of(slice) * kTileOutputs;
      to.zeros = load_word<T>(zero_ + at);
      if constexpr (P::kFloat && T == 4) load_words(scale_ + at, to.scales);
      else if constexpr (P::kFloat) to.scales[0] = load_word<2 * T>(scale_ + at);
    }
  }

 private:
  static constexpr int kXBytes = kSlice * sizeof(typename P::X);  // of a row in a slice

  // A lane's inputs of a row, zeros beyond the `left` bytes; those are whole 16 for float, 8 for int8.
  static __device__ __forceinline__ void load_x(uint32_t (&to)[2], const uint8_t* from, int left) {
    to[0] = to[1] = 0;
    if (left > 0) load_words(from, to);
  }
  static __device__ __forceinline__ void load_x(uint32_t (&to)[8], const uint8_t* from, int left) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      uint32_t four[4] = {};
      if (left > 4 * i) load_words(from + 4 * i, four);
#pragma unroll
      for (int k = 0; k < 4; ++k) to[i + k] = four[k];
    }
  }

  const uint8_t *weight_, *x_[kEights], *zero_ = nullptr;
  const Half* scale_ = nullptr;
  int last_word_, word_, x_bytes_[kEights], log2_group_ = 0;
};

// A lane's sums of an eight of rows: of output j and row 2t + r, [j / 2][2 (j % 2) + r].
template <typename Value, int T>
using LaneSums = Value[(T + 1) / 2][4];

template <int T, typename Value>
__device__ __forceinline__ void clear(Value (&sums)[(T + 1) / 2][4]) {
#pragma unroll
  for (int k = 0; k < (T + 1) / 2 * 4; ++k) sums[k / 4][k % 4] = 0;
}

// b of every term and step, from what was loaded of a row.
template <typename P>
__device__ __forceinline__ void activation_fragments(uint32_t (&b)[P::kXTerms][P::kSteps][2], const uint32_t (&x)[2]) {
  b[0][0][0] = x[0], b[0][0][1] = x[1];
}
template <typename P>
__device__ __forceinline__ void activation_fragments(uint32_t (&b)[P::kXTerms][P::kSteps][2], const uint32_t (&x)[8]) {
#pragma unroll
  for (int p = 0; p < 4; ++p)
    split_pair(__uint_as_float(x[P::pair_input(p)]), __uint_as_float(x[P::pair_input(p) + 2]), b[0][p / 2][p % 2],
               b[1][p / 2][p % 2]);
}

// sums += w x over a slice.
template <typename P, int T, int kEights>
__device__ __forceinline__ void multiply_slice(LaneSums<typename P::Sum, T> (&sums)[kEights],
                                               const LoadedSlice<P, T, kEights>& slice) {
  uint32_t b[kEights][P::kXTerms][P::kSteps][2];
#pragma unroll
  for (int h = 0; h < kEights; ++h) activation_fragments<P>(b[h], slice.x[h]);
#pragma unroll
  for (int step = 0; step < P::kSteps; ++step)
#pragma unroll
    for (int j = 0; j < T; j += 2) {
      uint32_t a[4];
      weight_fragment<P, T>(a, slice.words, j, step, slice.zeros);
#pragma unroll
      for (int h = 0; h < kEights; ++h)
#pragma unroll
        for (int term = 0; term < P::kXTerms; ++term) multiply(sums[h][j / 2], a, b[h][term][step]);
    }
}

// Calls body(offset in shared memory, sum) for the lane's sums of an eight of rows.
template <int T, typename Sums, typename Body>
__device__ __forceinline__ void for_sums(const Sums& sums, int eight, int rows, const Body& body) {
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4, row = 8 * eight + 2 * t;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (row + r >= rows) continue;
#pragma unroll
    for (int j = 0; j < T; ++j) body((row + r) * kPaddedOutputs<T> + T * g + j, sums[j / 2][2 * (j % 2) + r]);
  }
}

// What becomes of a group's sums: y += scale * sums on float rows, more of the sums in shared memory on int8 rows.
template <typename P, int T, int kEights>
__device__ __forceinline__ void end_group(LaneSums<typename P::Sum, T> (&sums)[kEights],
                                          LaneSums<float, T> (&y)[kEights], const uint32_t (&scales)[(T + 1) / 2],
                                          int rows, typename P::Sum* of_group) {
#pragma unroll
  for (int h = 0; h < kEights; ++h) {
    if constexpr (P::kFloat) {
#pragma unroll
      for (int m = 0; m < (T + 1) / 2; ++m) {
        float scale[2];
        unpack_half2(scales[m], scale[0], scale[1]);
#pragma unroll
        for (int k = 0; k < 4; ++k) y[h][m][k] = fmaf(scale[k / 2], sums[h][m][k], y[h][m][k]);
      }
    } else {
      for_sums<T>(sums[h], h, rows, [&](int at, int sum) { atomicAdd(of_group + at, sum); });
    }
    clear<T>(sums[h]);
  }
}

// Prepares shared memory for the sums of groups: zeros, and the groups' scales on their way.
template <int T>
__device__ __forceinline__ void stage_groups(const LinearArgs& args, int first, Half* scales, int32_t* sums) {
  const int groups = groups_of(args), last = tiles_of(args) - 1;
  for (int i = threadIdx.x; i < groups * T; i += blockDim.x) {  // 8 outputs each
    const int group = i / T, o = first + i % T * 8;
    const int64_t tile = min(o / kTileOutputs, last);
    copy_async16(scales + 8 * i, args.group_scale + (tile * groups + group) * kTileOutputs + o % kTileOutputs);
  }
  copy_async_commit();
  const int count = groups * static_cast<int>(args.rows) * kPaddedOutputs<T>;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sums[i] = 0;
  __syncthreads();
}

// The share of the inputs that a warp multiplies, a few slices' loads ahead; its sums go to shared memory.
template <typename P, int T, int kEights, int kAhead>
__device__ __forceinline__ void multiply_share(const LinearArgs& args, int first, typename P::Sum* shared) {
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, slices = slices_of(args);
  const int rows = static_cast<int>(args.rows), end = slices * (warp + 1) / warps;
  const FewRowsLane<P, T, kEights> lane(args, first);
  LaneSums<typename P::Sum, T> sums[kEights] = {};
  [[maybe_unused]] LaneSums<float, T> y[kEights] = {};
  for (int slice = slices * warp / warps; slice < end; slice += kAhead) {
    LoadedSlice<P, T, kEights> loaded[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u)
      if (slice + u < end) lane.load(loaded[u], slice + u);
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (slice + u >= end) break;
      multiply_slice<P, T, kEights>(sums, loaded[u]);
      if constexpr (P::kUint4) {
        const int group = lane.group_of(slice + u);
        if (slice + u + 1 == end || lane.group_of(slice + u + 1) != group)
          end_group<P, T, kEights>(sums, y, loaded[u].scales, rows, shared + group * rows * kPaddedOutputs<T>);
      }
    }
  }
  if constexpr (!kSumsOfGroups<P>) {
    const auto store = [&](int at, typename P::Sum sum) { shared[warp * rows * kPaddedOutputs<T> + at] = sum; };
#pragma unroll
    for (int h = 0; h < kEights; ++h) {
      if constexpr (P::kUint4) for_sums<T>(y[h], h, rows, store);
      else for_sums<T>(sums[h], h, rows, store);
    }
  }
}

// The sum of what warps or groups left in shared memory `apart` from each other; `scales` of groups are [G, outputs].
template <typename P, int T>
__device__ __forceinline__ auto sum_parts(const typename P::Sum* sums, int apart, int parts, const Half* scales) {
  std::conditional_t<P::kUint4, float, typename P::Sum> total = 0;
#pragma unroll 4
  for (int part = 0; part < parts; ++part) {
    const typename P::Sum sum = sums[part * apart];
    if constexpr (kSumsOfGroups<P>)
      total = fmaf(static_cast<float>(scales[part * 8 * T]), static_cast<float>(sum), total);
    else total += sum;
  }
  return total;
}

template <typename P, int T, int kEights, int kAhead>
__global__ void __launch_bounds__(kFewRowsThreads, 1) linear_few_rows_kernel(LinearArgs args) {
  constexpr int kOutputs = 8 * T;
  const int first = blockIdx.x * kOutputs, rows = static_cast<int>(args.rows);
  const int groups = kSumsOfGroups<P> ? groups_of(args) : 0;
  const int parts = kSumsOfGroups<P> ? groups : blockDim.x / kWarp, apart = rows * kPaddedOutputs<T>;
  Half* scales = dynamic_shared<Half>();  // of groups, then the sums
  auto* sums = reinterpret_cast<typename P::Sum*>(scales + groups * kOutputs);
  // on their way while the block multiplies
  OutputScales output = load_scales<P>(args, threadIdx.x / kOutputs, first + threadIdx.x % kOutputs);
  if constexpr (kSumsOfGroups<P>) stage_groups<T>(args, first, scales, sums);
  multiply_share<P, T, kEights, kAhead>(args, first, sums);
  copy_async_wait<0>();
  __syncthreads();
  for (int i = threadIdx.x; i < rows * kOutputs; i += blockDim.x) {
    const int row = i / kOutputs, o = i % kOutputs;
    if (i != static_cast<int>(threadIdx.x)) output = load_scales<P>(args, row, first + o);
    const auto total = sum_parts<P, T>(sums + row * kPaddedOutputs<T> + o, apart, parts, scales + o);
    if (first + o < args.out) store_output<P>(args, output, total, row, first + o);
  }
}

}  // namespace quamba::cuda
