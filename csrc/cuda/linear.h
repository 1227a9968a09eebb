// What the linear kernels are given by linear.cu, and how linear_few_rows.cu, linear_many_rows.cu and linear_library.cu
// launch them.
#pragma once

#include "platform.h"

namespace quamba::cuda {

// Results of M rows by O outputs.
struct LinearOutput {
  void* to;                // [M, O] float32, or int8 with an out_scale
  const float* x_scale;    // one value, or [M]; null where x is float
  int64_t x_scale_stride;  // 0 for one value
  const float* bias;       // [O] or null
  const float* out_scale;  // [O] or null
  bool aligned;            // O is a multiple of 4 and every pointer a multiple of 16: vectors may be read and written
};

// Dims: M rows, I in, O out features, G groups of a row. Pointers to x, uint4 scales and what has less than 4 bytes
// are multiples of 16, and so are the sizes of rows of x.
struct LinearArgs {
  const uint8_t* x;           // [M, I] int8 or float32; many float rows: two planes that split_rows_kernel makes
  int64_t x_stride, x_plane;  // bytes from row to row, from plane to plane
  int x_bytes;                // of a row; beyond them x counts as 0
  const uint8_t* weight;      // tiles of quamba/ops/layout.py: int8 [O/16, I/4, 16, 4] or uint4 [O/16, I/8, 16, 4]
  const float* scale;         // [O], of int8 weights
  const Half* group_scale;    // [O/16, G, 16], of uint4 weights
  const uint8_t* zero;        // [O/16, G, 16] 0 .. 15, of uint4 weights
  int64_t rows;
  int in, out, group_size;
  LinearOutput output;
};

constexpr int kSlice = 32;  // inputs that kernels multiply at a time; a group of uint4 weights is whole slices
constexpr int kTileOutputs = 16;
constexpr int kFewRows = 16;
constexpr int kTerms = 2;  // bfloat16 numbers that a float activation is split into

QUAMBA_HOST_DEVICE int slices_of(const LinearArgs& args) { return ceil_div(args.in, kSlice); }
QUAMBA_HOST_DEVICE int tiles_of(const LinearArgs& args) { return ceil_div(args.out, kTileOutputs); }
QUAMBA_HOST_DEVICE int groups_of(const LinearArgs& args) { return ceil_div(args.in, args.group_size); }

// Whether it could: up to kFewRows rows, of not too many groups. X: int8_t or float.
template <typename X>
bool linear_few_rows(const OnDevice& device, const LinearArgs& args);

template <typename X>
void linear_many_rows(const OnDevice& device, const LinearArgs& args);

// Whether linear_library is to multiply, not one of the kernels above: args of int8 x and weights. Raises
// std::invalid_argument where QUAMBA_CUDA_INT8_PRODUCT is no choice.
bool library_multiplies(const OnDevice& device, const LinearArgs& args);

// x int8 [..., K], contiguous: its rows laid out, K = 16 ceil(I / 16).
void linear_library(const OnDevice& device, const LinearArgs& args, const Tensor& x);

}  // namespace quamba::cuda
