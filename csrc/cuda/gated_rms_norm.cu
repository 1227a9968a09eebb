// gated_rms_norm: launch, registration.

#include "gated_rms_norm.cuh"

#include <algorithm>

#include "gated_rows.h"

namespace quamba::cuda {
namespace {

constexpr int64_t kThreads = 256;

template <typename T>
void launch(const GatedInput& in, const Tensor& out) {
  const int64_t part = in.channels / in.groups;
  const bool in_shared = part * static_cast<int64_t>(sizeof(float)) <= kMaxShared - kReduceShared;
  OnDevice(out).launch(gated_rms_norm_kernel<T>, static_cast<unsigned>(in.y.size(0) * in.groups),
                       static_cast<unsigned>(std::min(kThreads, ceil_div<int64_t>(part, kWarp) * kWarp)),
                       in_shared ? part * sizeof(float) : 0, const_pointer<float>(in.y), const_pointer<T>(in.z),
                       in.z_scale, pointer<float>(out), in.y.stride(0), in.z.stride(0), in.groups, part, in.eps,
                       in_shared);
}

Tensor gated_rms_norm(const Tensor& y, const Tensor& z, const std::optional<Tensor>& z_scale, double eps,
                      int64_t groups) {
  const GatedInput in = gated_input(y, z, z_scale, eps, groups);
  const Tensor out = empty(y.sizes(), ScalarType::Float, y);
  if (in.z_scale) launch<int8_t>(in, out);
  else launch<float>(in, out);
  return out;
}

}  // namespace

QUAMBA_LIBRARY(m) { m.impl("gated_rms_norm", TORCH_BOX(&gated_rms_norm)); }

}  // namespace quamba::cuda
