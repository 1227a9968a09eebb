// What every op of this folder checks of its arguments, and how it splits work over threads.
#pragma once

// not <ATen/ATen.h>: the declarations of every operator double the time that a file takes to compile
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "kernels.h"

namespace quamba::cpu {

inline void check_dtype(const at::Tensor& t, at::ScalarType dtype, const char* name) {
  TORCH_CHECK_VALUE(t.scalar_type() == dtype, name, " must be ", dtype, ", got ", t.scalar_type());
}

inline void check_shape(const at::Tensor& t, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK_VALUE(t.sizes() == shape, name, " must have shape ", shape, ", got ", t.sizes());
}

inline float scalar_of(const at::Tensor& t, const char* name) {
  check_dtype(t, at::kFloat, name);
  TORCH_CHECK_VALUE(t.numel() == 1, name, " must hold one value, got shape ", t.sizes());
  return *t.const_data_ptr<float>();
}

// A contiguous float32 tensor of that shape; `keep` holds a copy where one had to be made.
inline const float* floats(const at::Tensor& t, at::IntArrayRef shape, const char* name, at::Tensor& keep) {
  check_dtype(t, at::kFloat, name);
  check_shape(t, shape, name);
  keep = t.contiguous();
  return keep.const_data_ptr<float>();
}

inline const float* floats(const std::optional<at::Tensor>& t, at::IntArrayRef shape, const char* name,
                           at::Tensor& keep) {
  return t.has_value() ? floats(*t, shape, name, keep) : nullptr;
}

// The values of a base [p, p] that a Hadamard transform of size n can be over: n = p * 2^k, k >= 0.
inline const float* hadamard_base(const at::Tensor& base, int64_t n, at::Tensor& keep) {
  TORCH_CHECK_VALUE(base.dim() == 2 && base.size(0) >= 1, "base must be [p, p], got ", base.sizes());
  const int64_t p = base.size(0), s = n / p;
  const float* values = floats(base, {p, p}, "base", keep);
  TORCH_CHECK_VALUE(p <= kMaxHadamardBase && s * p == n && s > 0 && (s & (s - 1)) == 0, "no Hadamard matrix of size ",
                    n, " over a base of ", p);
  return values;
}

inline void check_conv_width(int64_t width) {
  TORCH_CHECK_VALUE(width >= 1, "conv width ", width, " is under 1");
  TORCH_CHECK_VALUE(width <= kMaxConvWidth, "conv width ", width, " is over ", kMaxConvWidth);
}

// row[i] *= multiplier[i]; nothing without one.
inline void multiply_row(float* row, const float* multiplier, int64_t n) {
  if (multiplier)
    for (int64_t i = 0; i < n; ++i) row[i] *= multiplier[i];
}

// Rows may be strided (a slice of a projection's output); values within a row may not.
inline at::Tensor with_contiguous_rows(const at::Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous();
}

// Runs body(begin, end) over channels in blocks of `block`, on one thread where the work is small.
template <typename Body>
void parallel_over_channels(int64_t channels, int64_t cost_per_channel, int64_t block, const Body& body) {
  constexpr int64_t kMinCostPerThread = 1 << 15;
  const int64_t blocks = (channels + block - 1) / block;
  const int64_t grain = std::max<int64_t>(1, kMinCostPerThread / std::max<int64_t>(1, cost_per_channel * block));
  at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    body(begin * block, std::min(channels, end * block));
  });
}

}  // namespace quamba::cpu
