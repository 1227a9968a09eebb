// linear_w8a8 and linear_w8a8_requant: checks, the choice of integer product, registration. Kernels: linear_w8a8.h.

#include <cstring>

#include <torch/library.h>

#include "checks.h"

namespace quamba::cpu {
namespace {

// From this many rows on oneDNN's blocked product wins over dot products that read each weight once per four rows.
constexpr int64_t kOneDnnRows = 16;

// Without VNNI, or with ONEDNN_MAX_CPU_ISA below it, oneDNN's int8 product saturates in 16 bits: ask it once.
bool onednn_is_exact() {
  static const bool exact = [] {
    const at::Tensor x = at::full({32, 64}, -128, at::kChar), w = at::full({64, 32}, 127, at::kChar);
    return at::_int_mm(x, w).eq(-128 * 127 * 64).all().item<bool>() &&
           at::_int_mm(w.t(), w).eq(127 * 127 * 64).all().item<bool>();
  }();
  return exact;
}

// The number of rows from which oneDNN computes the product, 0 where it never does.
int64_t onednn_rows() {
  return std::strcmp(kernels().name, "avx512_vnni") == 0 && onednn_is_exact() ? kOneDnnRows : 0;
}

bool use_onednn(int64_t rows) { return rows >= kOneDnnRows && onednn_rows() > 0; }

// x [M, I], weight [O, I] -> int32 [M, O]; exact on every path.
at::Tensor int8_product(const at::Tensor& x, const at::Tensor& weight) {
  const int64_t rows = x.size(0), in = x.size(1), out = weight.size(0);
  if (use_onednn(rows)) return at::_int_mm(x, weight.t());
  at::Tensor acc = at::empty({rows, out}, x.options().dtype(at::kInt));
  const int8_t* activations = x.const_data_ptr<int8_t>();
  const int8_t* weights = weight.const_data_ptr<int8_t>();
  int32_t* result = acc.mutable_data_ptr<int32_t>();
  parallel_over_channels(out, rows * in / 8, 1, [&](int64_t begin, int64_t end) {
    kernels().int8_dot(activations, rows, weights, in, begin, end, result, out);
  });
  return acc;
}

struct Linear {
  at::Tensor acc, scale, bias, out_scale;  // acc [M, O]
  const float* scale_data;
  const float* bias_data;
  std::vector<int64_t> out_shape;
};

Linear accumulate(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale,
                  const std::optional<at::Tensor>& bias) {
  check_dtype(x, at::kChar, "x");
  check_dtype(weight, at::kChar, "weight");
  TORCH_CHECK_VALUE(weight.dim() == 2 && x.size(-1) == weight.size(1), "x ", x.sizes(), " does not fit weight ",
                    weight.sizes());
  Linear linear;
  const int64_t out = weight.size(0);
  linear.scale_data = floats(scale, {out}, "scale", linear.scale);
  linear.bias_data = floats(bias, {out}, "bias", linear.bias);
  linear.out_shape = x.sizes().vec();
  linear.out_shape.back() = out;
  linear.acc = int8_product(x.contiguous().view({-1, x.size(-1)}), weight.contiguous());
  return linear;
}

at::Tensor linear_w8a8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale,
                       const std::optional<at::Tensor>& bias) {
  const Linear linear = accumulate(x, weight, scale, bias);
  at::Tensor out = at::empty(linear.out_shape, x.options().dtype(at::kFloat));
  const int64_t cols = weight.size(0);
  const int32_t* acc = linear.acc.const_data_ptr<int32_t>();
  float* to = out.mutable_data_ptr<float>();
  parallel_over_channels(linear.acc.size(0), cols, 1, [&](int64_t begin, int64_t end) {
    kernels().dequantize(acc + begin * cols, end - begin, cols, linear.scale_data, linear.bias_data,
                         to + begin * cols);
  });
  return out;
}

at::Tensor linear_w8a8_requant(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale,
                               const std::optional<at::Tensor>& bias, const at::Tensor& out_scale) {
  Linear linear = accumulate(x, weight, scale, bias);
  const int64_t cols = weight.size(0);
  const float* out_scales = floats(out_scale, {cols}, "out_scale", linear.out_scale);
  at::Tensor out = at::empty(linear.out_shape, x.options());
  const int32_t* acc = linear.acc.const_data_ptr<int32_t>();
  int8_t* to = out.mutable_data_ptr<int8_t>();
  parallel_over_channels(linear.acc.size(0), cols, 1, [&](int64_t begin, int64_t end) {
    kernels().requantize(acc + begin * cols, end - begin, cols, linear.scale_data, linear.bias_data, out_scales,
                         to + begin * cols);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(quamba, m) { m.def("onednn_rows() -> int", &onednn_rows); }

TORCH_LIBRARY_IMPL(quamba, CPU, m) {
  m.impl("linear_w8a8", &linear_w8a8);
  m.impl("linear_w8a8_requant", &linear_w8a8_requant);
}

}  // namespace quamba::cpu
