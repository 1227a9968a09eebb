// y and z of Mamba2's gated norm, checked, for the ops that read its rows.
//
// Dims: M rows, D channels in groups of as many.
#pragma once

#include "checks.h"

namespace quamba::cpu {

class GatedRows {
 public:
  static constexpr int64_t kCost = 8;  // of a channel, SiLU above all

  // y float [..., D], z float or, with z_scale, int8 of that shape; rows of either may be strided. Raises ValueError.
  GatedRows(const at::Tensor& y, const at::Tensor& z, const std::optional<at::Tensor>& z_scale, double eps,
            int64_t groups)
      : eps_(static_cast<float>(eps)) {
    check_dtype(y, at::kFloat, "y");
    TORCH_CHECK_VALUE(y.dim() >= 1, "y must be [..., D], got a scalar");
    check_shape(z, y.sizes(), "z");
    check_dtype(z, z_scale.has_value() ? at::kChar : at::kFloat, z_scale.has_value() ? "z" : "z without a z_scale");
    channels_ = y.size(-1);
    TORCH_CHECK_VALUE(groups > 0 && channels_ > 0 && channels_ % groups == 0, channels_,
                      " channels do not split into ", groups, " groups");
    part_ = channels_ / groups;
    if (z_scale.has_value()) z_scale_ = scalar_of(*z_scale, "z_scale");
    // views where rows are evenly apart, as in a slice of a projection's output
    y_ = with_contiguous_rows(y.reshape({-1, channels_}));
    z_ = with_contiguous_rows(z.reshape({-1, channels_}));
  }

  int64_t count() const { return y_.size(0); }
  int64_t channels() const { return channels_; }

  // One row [D].
  void normalize(int64_t row, float* out) const {
    if (z_.scalar_type() == at::kChar) normalize<int8_t>(row, kernels().gated_rms_norm_int8, out);
    else normalize<float>(row, kernels().gated_rms_norm_float, out);
  }

 private:
  template <typename T>
  using Kernel = void (*)(const float*, const T*, float, int64_t, float, float*);

  template <typename T>
  void normalize(int64_t row, Kernel<T> kernel, float* out) const {
    const float* y = y_.const_data_ptr<float>() + row * y_.stride(0);
    const T* z = z_.const_data_ptr<T>() + row * z_.stride(0);
    for (int64_t first = 0; first < channels_; first += part_)
      kernel(y + first, z + first, z_scale_, part_, eps_, out + first);
  }

  at::Tensor y_, z_;  // [M, D]
  float z_scale_ = 1.0f, eps_;
  int64_t channels_, part_;
};

}  // namespace quamba::cpu
