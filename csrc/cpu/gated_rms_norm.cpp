// gated_rms_norm: registration. Kernel: gated_rms_norm-inl.h.

#include <torch/library.h>

#include "gated_rows.h"

namespace quamba::cpu {
namespace {

at::Tensor gated_rms_norm(const at::Tensor& y, const at::Tensor& z, const std::optional<at::Tensor>& z_scale,
                          double eps, int64_t groups) {
  const GatedRows rows(y, z, z_scale, eps, groups);
  at::Tensor out = at::empty(y.sizes(), y.options());
  float* to = out.mutable_data_ptr<float>();
  parallel_over_channels(rows.count(), GatedRows::kCost * rows.channels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) rows.normalize(row, to + row * rows.channels());
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) { m.impl("gated_rms_norm", &gated_rms_norm); }

}  // namespace quamba::cpu
