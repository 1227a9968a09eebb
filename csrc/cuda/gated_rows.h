// y and z of Mamba2's gated norm, checked, for the ops that read their rows.
//
// Dims: M rows, D channels.
#pragma once

#include "checks.h"

namespace quamba::cuda {

struct GatedInput {
  Tensor y, z;           // [M, D], rows of either may be strided
  const float* z_scale;  // null: z is float
  float eps;
  int64_t channels, groups;
};

// [M, D], a view where rows are evenly apart, as in a slice of a projection's output.
inline Tensor rows_of(const Tensor& t, int64_t channels) {
  return with_contiguous_rows(torch::stable::reshape(t, std::vector<int64_t>{-1, channels}));
}

// y float [..., D], z float or, with z_scale, int8 of that shape.
inline GatedInput gated_input(const Tensor& y, const Tensor& z, const std::optional<Tensor>& z_scale, double eps,
                              int64_t groups) {
  check_dtype(y, ScalarType::Float, "y");
  check(y.dim() >= 1, "y must be [..., D], got a scalar");
  check_shape(z, std::vector<int64_t>(y.sizes().begin(), y.sizes().end()), "z");
  check_device(z, y, "z");
  check_dtype(z, z_scale.has_value() ? ScalarType::Char : ScalarType::Float,
              z_scale.has_value() ? "z" : "z without a z_scale");
  const int64_t channels = y.size(-1);
  check(groups > 0 && channels > 0 && channels % groups == 0, channels, " channels do not split into ", groups,
        " groups");
  const float* scale = z_scale.has_value() ? scalar(*z_scale, y, "z_scale") : nullptr;
  return {rows_of(y, channels), rows_of(z, channels), scale, static_cast<float>(eps), channels, groups};
}

}  // namespace quamba::cuda
