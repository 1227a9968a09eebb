// linear_w8a8 and linear_w8a8_requant: checks, the choice of integer product, registration. Kernels: linear_w8a8.h.

#include <cstring>

#include <torch/library.h>

#include "linear_result.h"

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

at::Tensor run(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
               const at::Tensor& x_scale, const std::optional<at::Tensor>& bias,
               const std::optional<at::Tensor>& out_scale) {
  check_dtype(x, at::kChar, "x");
  check_dtype(weight, at::kChar, "weight");
  TORCH_CHECK_VALUE(weight.dim() == 2 && x.dim() >= 1 && x.size(-1) == weight.size(1), "x ", x.sizes(),
                    " does not fit weight ", weight.sizes());
  const int64_t in = weight.size(1), out_features = weight.size(0);
  const at::Tensor rows = x.contiguous().view({-1, in}), weights = weight.contiguous();
  at::Tensor scale_copy;
  LinearResult result(x, out_features, x_scale, bias, out_scale);
  Int8LinearArgs args{rows.const_data_ptr<int8_t>(), rows.size(0), weights.const_data_ptr<int8_t>(),
                      floats(weight_scale, {out_features}, "weight_scale", scale_copy), in, result.args};
  if (use_onednn(args.rows)) {
    const at::Tensor acc = at::_int_mm(rows, weights.t());  // [M, O]
    const int32_t* sums = acc.const_data_ptr<int32_t>();
    parallel_over_channels(args.rows, out_features, 1, [&](int64_t begin, int64_t end) {
      kernels().finish_w8a8(args, sums, out_features, begin, end);
    });
  } else {
    parallel_over_channels(out_features, args.rows * in / 8, kLinearBlock,
                           [&](int64_t begin, int64_t end) { kernels().linear_w8a8(args, begin, end); });
  }
  return result.tensor;
}

at::Tensor linear_w8a8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                       const at::Tensor& x_scale, const std::optional<at::Tensor>& bias) {
  return run(x, weight, weight_scale, x_scale, bias, std::nullopt);
}

at::Tensor linear_w8a8_requant(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                               const at::Tensor& x_scale, const std::optional<at::Tensor>& bias,
                               const at::Tensor& out_scale) {
  return run(x, weight, weight_scale, x_scale, bias, out_scale);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(quamba, m) { m.def("onednn_rows() -> int", &onednn_rows); }

TORCH_LIBRARY_IMPL(quamba, CPU, m) {
  m.impl("linear_w8a8", &linear_w8a8);
  m.impl("linear_w8a8_requant", &linear_w8a8_requant);
}

}  // namespace quamba::cpu
