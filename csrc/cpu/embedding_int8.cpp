// embedding_int8: rows of a quantized table, dequantized. Bound by memory: one spelling serves every instruction set.

#include <torch/library.h>

#include "checks.h"

namespace quamba::cpu {
namespace {

at::Tensor embedding_int8(const at::Tensor& ids, const at::Tensor& weight, const at::Tensor& scale) {
  check_dtype(weight, at::kChar, "weight");
  TORCH_CHECK_VALUE(at::isIntegralType(ids.scalar_type(), /*includeBool=*/false), "ids must be integers, got ",
                    ids.scalar_type());
  const int64_t vocab = weight.size(0), hidden = weight.size(1);
  at::Tensor scale_copy;
  const float* scales = floats(scale, {vocab}, "scale", scale_copy);
  const at::Tensor index = ids.to(at::kLong).contiguous(), table = weight.contiguous();
  std::vector<int64_t> shape = ids.sizes().vec();
  shape.push_back(hidden);
  at::Tensor out = at::empty(shape, weight.options().dtype(at::kFloat));
  const int64_t* id = index.const_data_ptr<int64_t>();
  const int8_t* rows = table.const_data_ptr<int8_t>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < index.numel(); ++i) {
    TORCH_CHECK_INDEX(id[i] >= 0 && id[i] < vocab, "token id ", id[i], " is outside the vocabulary of ", vocab);
    for (int64_t h = 0; h < hidden; ++h) to[i * hidden + h] = rows[id[i] * hidden + h] * scales[id[i]];
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) { m.impl("embedding_int8", &embedding_int8); }

}  // namespace quamba::cpu
