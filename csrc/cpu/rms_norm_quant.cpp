// quantize, quantize_per_token, rms_norm and rms_norm_quant: checks and registration. Kernels: rms_norm_quant-inl.h.

#include <vector>

#include <torch/library.h>

#include "checks.h"

namespace quamba::cpu {
namespace {

at::Tensor quantize(const at::Tensor& x, const at::Tensor& scale) {
  const float s = scalar_of(scale, "scale");
  const at::Tensor input = x.to(at::kFloat).contiguous();
  at::Tensor out = at::empty(input.sizes(), input.options().dtype(at::kChar));
  const float* from = input.const_data_ptr<float>();
  int8_t* to = out.mutable_data_ptr<int8_t>();
  parallel_over_channels(input.numel(), 1, 16, [&](int64_t begin, int64_t end) {
    kernels().quantize(from + begin, s, to + begin, end - begin);
  });
  return out;
}

at::Tensor rms_norm_quant(const at::Tensor& x, double eps, const at::Tensor& scale,
                          const std::optional<at::Tensor>& multiplier) {
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must be [..., H], got a scalar");
  const float s = scalar_of(scale, "scale");
  at::Tensor keep;
  const float* factors = floats(multiplier, {x.size(-1)}, "multiplier", keep);
  const at::Tensor input = x.to(at::kFloat).contiguous();
  at::Tensor out = at::empty(input.sizes(), input.options().dtype(at::kChar));
  const int64_t cols = input.size(-1);
  const float* from = input.const_data_ptr<float>();
  int8_t* to = out.mutable_data_ptr<int8_t>();
  parallel_over_channels(input.numel() / std::max<int64_t>(cols, 1), cols, 1, [&](int64_t begin, int64_t end) {
    if (!factors)
      return kernels().rms_norm_quant(from + begin * cols, end - begin, cols, static_cast<float>(eps), s,
                                      to + begin * cols);
    std::vector<float> normalized(cols);
    for (int64_t row = begin; row < end; ++row) {
      kernels().rms_norm(from + row * cols, cols, static_cast<float>(eps), normalized.data());
      multiply_row(normalized.data(), factors, cols);
      kernels().quantize(normalized.data(), s, to + row * cols, cols);
    }
  });
  return out;
}

at::Tensor rms_norm(const at::Tensor& x, double eps, const std::optional<at::Tensor>& multiplier) {
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must be [..., H], got a scalar");
  at::Tensor keep;
  const float* factors = floats(multiplier, {x.size(-1)}, "multiplier", keep);
  const at::Tensor input = x.to(at::kFloat).contiguous();
  at::Tensor out = at::empty(input.sizes(), input.options());
  const int64_t cols = input.size(-1);
  const float* from = input.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  parallel_over_channels(input.numel() / std::max<int64_t>(cols, 1), cols, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernels().rms_norm(from + row * cols, cols, static_cast<float>(eps), to + row * cols);
      multiply_row(to + row * cols, factors, cols);
    }
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> quantize_per_token(const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must be [..., n], got a scalar");
  const at::Tensor input = x.to(at::kFloat).contiguous();
  at::Tensor out = at::empty(input.sizes(), input.options().dtype(at::kChar));
  at::Tensor scale = at::empty(input.sizes().slice(0, input.dim() - 1), input.options());
  const int64_t cols = input.size(-1);
  const float* from = input.const_data_ptr<float>();
  int8_t* to = out.mutable_data_ptr<int8_t>();
  float* scales = scale.mutable_data_ptr<float>();
  parallel_over_channels(scale.numel(), cols, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      scales[row] = kernels().quantize_per_token(from + row * cols, cols, to + row * cols);
  });
  return {out, scale};
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) {
  m.impl("quantize", &quantize);
  m.impl("rms_norm_quant", &rms_norm_quant);
  m.impl("rms_norm", &rms_norm);
  m.impl("quantize_per_token", &quantize_per_token);
}

}  // namespace quamba::cpu
