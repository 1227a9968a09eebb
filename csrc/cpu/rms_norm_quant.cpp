// quantize and rms_norm_quant: checks and registration. Kernels: rms_norm_quant.h.

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

at::Tensor rms_norm_quant(const at::Tensor& x, double eps, const at::Tensor& scale) {
  const float s = scalar_of(scale, "scale");
  const at::Tensor input = x.to(at::kFloat).contiguous();
  at::Tensor out = at::empty(input.sizes(), input.options().dtype(at::kChar));
  const int64_t cols = input.size(-1);
  const float* from = input.const_data_ptr<float>();
  int8_t* to = out.mutable_data_ptr<int8_t>();
  parallel_over_channels(input.numel() / std::max<int64_t>(cols, 1), cols, 1, [&](int64_t begin, int64_t end) {
    kernels().rms_norm_quant(from + begin * cols, end - begin, cols, static_cast<float>(eps), s, to + begin * cols);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) {
  m.impl("quantize", &quantize);
  m.impl("rms_norm_quant", &rms_norm_quant);
}

}  // namespace quamba::cpu
