// hadamard and hadamard_quant: checks and registration. Kernels: hadamard.h.

#include <torch/library.h>

#include "checks.h"

namespace quamba::cpu {
namespace {

struct Transform {
  at::Tensor base_copy;
  const float* base;
  int64_t n, p;
};

Transform check(const at::Tensor& x, const at::Tensor& base) {
  Transform transform;
  transform.n = x.size(-1);
  transform.p = base.size(0);
  transform.base = floats(base, {transform.p, transform.p}, "base", transform.base_copy);
  const int64_t s = transform.n / transform.p;
  TORCH_CHECK_VALUE(transform.p <= 64 && s * transform.p == transform.n && s > 0 && (s & (s - 1)) == 0,
                    "no Hadamard matrix of size ", transform.n, " over a base of ", transform.p);
  return transform;
}

at::Tensor hadamard(const at::Tensor& x, const at::Tensor& base) {
  const Transform transform = check(x, base);
  at::Tensor out = x.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true).contiguous();
  float* rows = out.mutable_data_ptr<float>();
  parallel_over_channels(out.numel() / transform.n, transform.n * 8, 1, [&](int64_t begin, int64_t end) {
    kernels().hadamard(rows + begin * transform.n, end - begin, transform.n, transform.base, transform.p);
  });
  return out;
}

at::Tensor hadamard_quant(const at::Tensor& x, const at::Tensor& base, const at::Tensor& scale) {
  const Transform transform = check(x, base);
  const float s = scalar_of(scale, "scale");
  const at::Tensor input = x.to(at::kFloat).contiguous();
  at::Tensor out = at::empty(input.sizes(), input.options().dtype(at::kChar));
  const int64_t n = transform.n;
  const float* from = input.const_data_ptr<float>();
  int8_t* to = out.mutable_data_ptr<int8_t>();
  parallel_over_channels(input.numel() / n, n * 8, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> row(n);
    for (int64_t i = begin; i < end; ++i) {
      std::copy_n(from + i * n, n, row.data());
      kernels().hadamard(row.data(), 1, n, transform.base, transform.p);
      kernels().quantize(row.data(), s, to + i * n, n);
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) {
  m.impl("hadamard", &hadamard);
  m.impl("hadamard_quant", &hadamard_quant);
}

}  // namespace quamba::cpu
