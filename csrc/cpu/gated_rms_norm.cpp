// gated_rms_norm: checks and registration. Kernel: gated_rms_norm.h.

#include <torch/library.h>

#include "checks.h"

namespace quamba::cpu {
namespace {

template <typename T>
using Kernel = void (*)(const float*, const T*, float, int64_t, float, float*);

// y, z [M, D], rows of either may be strided -> out [M, D]
template <typename T>
void run(const at::Tensor& y, const at::Tensor& z, float z_scale, float eps, int64_t groups, at::Tensor& out,
         Kernel<T> kernel) {
  const int64_t channels = y.size(1), part = channels / groups;
  const float* y_data = y.const_data_ptr<float>();
  const T* z_data = z.const_data_ptr<T>();
  float* to = out.mutable_data_ptr<float>();
  constexpr int64_t kCost = 8;  // of a channel, SiLU above all
  parallel_over_channels(y.size(0), kCost * channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t first = 0; first < channels; first += part)
        kernel(y_data + row * y.stride(0) + first, z_data + row * z.stride(0) + first, z_scale, part, eps,
               to + row * channels + first);
  });
}

at::Tensor gated_rms_norm(const at::Tensor& y, const at::Tensor& z, const std::optional<at::Tensor>& z_scale,
                          double eps, int64_t groups) {
  check_dtype(y, at::kFloat, "y");
  TORCH_CHECK_VALUE(y.dim() >= 1, "y must be [..., D], got a scalar");
  check_shape(z, y.sizes(), "z");
  check_dtype(z, z_scale.has_value() ? at::kChar : at::kFloat, z_scale.has_value() ? "z" : "z without a z_scale");
  const int64_t channels = y.size(-1);
  TORCH_CHECK_VALUE(groups > 0 && channels > 0 && channels % groups == 0, channels, " channels do not split into ",
                    groups, " groups");
  const float scale = z_scale.has_value() ? scalar_of(*z_scale, "z_scale") : 1.0f;
  at::Tensor out = at::empty(y.sizes(), y.options());
  // views where rows are evenly apart, as in a slice of a projection's output
  const at::Tensor y_rows = with_contiguous_rows(y.reshape({-1, channels}));
  const at::Tensor z_rows = with_contiguous_rows(z.reshape({-1, channels}));
  const auto eps_float = static_cast<float>(eps);
  if (z_scale.has_value())
    run<int8_t>(y_rows, z_rows, scale, eps_float, groups, out, kernels().gated_rms_norm_int8);
  else run<float>(y_rows, z_rows, scale, eps_float, groups, out, kernels().gated_rms_norm_float);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) { m.impl("gated_rms_norm", &gated_rms_norm); }

}  // namespace quamba::cpu
