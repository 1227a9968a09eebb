// gated_rms_norm: checks, launch, registration.

#include "gated_rms_norm.cuh"

#include <algorithm>

#include "checks.h"

namespace quamba::cuda {
namespace {

constexpr int64_t kThreads = 256;

using OptionalTensor = std::optional<Tensor>;

// [rows, D], a view where rows are evenly apart, as in a slice of a projection's output.
Tensor rows_of(const Tensor& t, int64_t channels) {
  return with_contiguous_rows(torch::stable::reshape(t, std::vector<int64_t>{-1, channels}));
}

template <typename T>
void launch(const Tensor& y, const Tensor& z, const float* z_scale, float eps, int64_t groups, const Tensor& out) {
  const int64_t part = y.size(1) / groups;
  const bool in_shared = part * static_cast<int64_t>(sizeof(float)) <= kMaxShared - 256;  // less the sums of warps
  OnDevice(y).launch(gated_rms_norm_kernel<T>, static_cast<unsigned>(y.size(0) * groups),
                     static_cast<unsigned>(std::min(kThreads, ceil_div<int64_t>(part, kWarp) * kWarp)),
                     in_shared ? part * sizeof(float) : 0, const_pointer<float>(y), const_pointer<T>(z), z_scale,
                     pointer<float>(out), y.stride(0), z.stride(0), groups, part, eps, in_shared);
}

Tensor gated_rms_norm(const Tensor& y, const Tensor& z, const OptionalTensor& z_scale, double eps, int64_t groups) {
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
  const Tensor out = empty(y.sizes(), ScalarType::Float, y);
  if (y.numel() == 0) return out;
  const Tensor y_rows = rows_of(y, channels), z_rows = rows_of(z, channels);
  const auto as_float = static_cast<float>(eps);
  if (scale) launch<int8_t>(y_rows, z_rows, scale, as_float, groups, out);
  else launch<float>(y_rows, z_rows, scale, as_float, groups, out);
  return out;
}

}  // namespace

QUAMBA_LIBRARY(m) { m.impl("gated_rms_norm", TORCH_BOX(&gated_rms_norm)); }

}  // namespace quamba::cuda
