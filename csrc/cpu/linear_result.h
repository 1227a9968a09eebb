// The output tensor of a linear op and the kernels' view of it, with the checks of what decides it.
#pragma once

#include <vector>

#include "checks.h"

namespace quamba::cpu {

// Holds the tensors that `args` points into.
struct LinearResult {
  at::Tensor tensor;  // [..., O] float32, or int8 with an out_scale
  LinearOutput args{};

  // x_scale: one value or one per row of x; none where x is float.
  LinearResult(const at::Tensor& x, int64_t out_features, const std::optional<at::Tensor>& x_scale,
               const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& out_scale) {
    std::vector<int64_t> shape = x.sizes().vec();
    shape.back() = out_features;
    tensor = at::empty(shape, x.options().dtype(out_scale.has_value() ? at::kChar : at::kFloat));
    if (x_scale.has_value()) {
      const bool per_row = x_scale->numel() != 1;
      if (per_row) check_shape(*x_scale, x.sizes().slice(0, x.dim() - 1), "x_scale");
      args.x_scale = floats(*x_scale, x_scale->sizes(), "x_scale", x_scale_);
      args.x_scale_stride = per_row ? 1 : 0;
    }
    args.bias = floats(bias, {out_features}, "bias", bias_);
    args.out_scale = floats(out_scale, {out_features}, "out_scale", out_scale_);
    args.to = tensor.mutable_data_ptr();
    args.stride = out_features;
  }

 private:
  at::Tensor x_scale_, bias_, out_scale_;
};

}  // namespace quamba::cpu
