// embedding_int8 and embedding_int4: rows of a quantized table, dequantized. Bound by memory: one spelling serves every
// instruction set.

#include <c10/util/Half.h>
#include <torch/library.h>

#include "linear_rows.h"

namespace quamba::cpu {
namespace {

// Calls row(token id, where its [H] goes) for every id.
template <typename Row>
at::Tensor gather(const at::Tensor& ids, int64_t vocab, int64_t hidden, const Row& row) {
  TORCH_CHECK_VALUE(at::isIntegralType(ids.scalar_type(), /*includeBool=*/false), "ids must be integers, got ",
                    ids.scalar_type());
  const at::Tensor index = ids.to(at::kLong).contiguous();
  std::vector<int64_t> shape = ids.sizes().vec();
  shape.push_back(hidden);
  at::Tensor out = at::empty(shape, index.options().dtype(at::kFloat));
  const int64_t* id = index.const_data_ptr<int64_t>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < index.numel(); ++i) {
    TORCH_CHECK_INDEX(id[i] >= 0 && id[i] < vocab, "token id ", id[i], " is outside the vocabulary of ", vocab);
    row(id[i], to + i * hidden);
  }
  return out;
}

at::Tensor embedding_int8(const at::Tensor& ids, const at::Tensor& weight, const at::Tensor& scale, int64_t hidden) {
  const int64_t vocab = scale.numel();
  const LinearWeights table = linear_weights(weight, scale, {}, hidden, vocab, 0);
  const int8_t* w = static_cast<const int8_t*>(table.weight);
  const float* scales = static_cast<const float*>(table.scale);
  const int64_t quads = (hidden + 3) / 4;
  return gather(ids, vocab, hidden, [&](int64_t id, float* to) {
    const int8_t* lane = w + (id / kOutputBlock * quads * kOutputBlock + id % kOutputBlock) * 4;
    for (int64_t h = 0; h < hidden; ++h) to[h] = lane[h / 4 * kOutputBlock * 4 + h % 4] * scales[id];
  });
}

at::Tensor embedding_int4(const at::Tensor& ids, const at::Tensor& weight, const at::Tensor& scale,
                          const at::Tensor& zero, int64_t hidden, int64_t vocab, int64_t group_size) {
  const LinearWeights table = linear_weights(weight, scale, zero, hidden, vocab, group_size);
  const uint8_t* w = static_cast<const uint8_t*>(table.weight);
  const c10::Half* scales = static_cast<const c10::Half*>(table.scale);
  const int64_t eights = (hidden + 7) / 8, groups = table.groups();
  return gather(ids, vocab, hidden, [&](int64_t id, float* to) {
    const int64_t block = id / kOutputBlock, lane = id % kOutputBlock;
    const uint8_t* row = w + (block * eights * kOutputBlock + lane) * 4;
    for (int64_t h = 0; h < hidden; ++h) {
      const int byte = row[h / 8 * kOutputBlock * 4 + h % 4], q = h % 8 < 4 ? byte & 0xF : byte >> 4;
      const int64_t group = (block * groups + h / group_size) * kOutputBlock + lane;
      to[h] = static_cast<float>(q - table.zero[group]) * static_cast<float>(scales[group]);
    }
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) {
  m.impl("embedding_int8", &embedding_int8);
  m.impl("embedding_int4", &embedding_int4);
}

}  // namespace quamba::cpu
