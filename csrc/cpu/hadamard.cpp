// hadamard, hadamard_quant, gated_hadamard_quant: checks and registration. Kernels: hadamard-inl.h, gated_rms_norm-inl.h.

#include <algorithm>
#include <vector>

#include <torch/library.h>

#include "gated_rows.h"

namespace quamba::cpu {
namespace {

struct Transform {
  at::Tensor base_copy, multiplier_copy;
  const float* base;
  const float* multiplier;  // [n] or null
  int64_t n, p;
};

// x [..., n], the rows to rotate.
Transform check(const at::Tensor& x, const at::Tensor& base, const std::optional<at::Tensor>& multiplier) {
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must be [..., n], got a scalar");
  Transform transform;
  transform.n = x.size(-1);
  transform.base = hadamard_base(base, transform.n, transform.base_copy);
  transform.p = base.size(0);
  transform.multiplier = floats(multiplier, {transform.n}, "multiplier", transform.multiplier_copy);
  return transform;
}

constexpr int64_t kCost = 8;  // of a value

// Rotates every row that read(row index, room for a row) points to, multiplies it, and hands it to
// finish(row index, rotated row). `cost` is that of a value.
template <typename Read, typename Finish>
void rotate_rows(int64_t rows, int64_t cost, const Transform& transform, const Read& read, const Finish& finish) {
  const int64_t n = transform.n;
  parallel_over_channels(rows, n * cost, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> rotated(n + kHadamardPadding), room;
    for (int64_t row = begin; row < end; ++row) {
      kernels().hadamard(read(row, room), n, transform.base, transform.p, rotated.data());
      multiply_row(rotated.data(), transform.multiplier, n);
      finish(row, rotated.data());
    }
  });
}

// The same of x's rows.
template <typename Finish>
void rotate_rows(const at::Tensor& x, const Transform& transform, const Finish& finish) {
  const at::Tensor input = x.to(at::kFloat).contiguous();
  const float* rows = input.const_data_ptr<float>();
  const auto read = [&](int64_t row, std::vector<float>&) { return rows + row * transform.n; };
  rotate_rows(input.numel() / transform.n, kCost, transform, read, finish);
}

at::Tensor hadamard(const at::Tensor& x, const at::Tensor& base, const std::optional<at::Tensor>& multiplier) {
  const Transform transform = check(x, base, multiplier);
  at::Tensor out = at::empty(x.sizes(), x.options().dtype(at::kFloat));
  float* to = out.mutable_data_ptr<float>();
  rotate_rows(x, transform, [&](int64_t row, const float* rotated) {
    std::copy_n(rotated, transform.n, to + row * transform.n);
  });
  return out;
}

at::Tensor hadamard_quant(const at::Tensor& x, const at::Tensor& base, const at::Tensor& scale,
                          const std::optional<at::Tensor>& multiplier) {
  const Transform transform = check(x, base, multiplier);
  const float s = scalar_of(scale, "scale");
  at::Tensor out = at::empty(x.sizes(), x.options().dtype(at::kChar));
  int8_t* to = out.mutable_data_ptr<int8_t>();
  rotate_rows(x, transform, [&](int64_t row, const float* rotated) {
    kernels().quantize(rotated, s, to + row * transform.n, transform.n);
  });
  return out;
}

at::Tensor gated_hadamard_quant(const at::Tensor& y, const at::Tensor& z, const std::optional<at::Tensor>& z_scale,
                                double eps, int64_t groups, const at::Tensor& base, const at::Tensor& scale,
                                const std::optional<at::Tensor>& multiplier) {
  const GatedRows rows(y, z, z_scale, eps, groups);
  const Transform transform = check(y, base, multiplier);
  const float s = scalar_of(scale, "scale");
  at::Tensor out = at::empty(y.sizes(), y.options().dtype(at::kChar));
  int8_t* to = out.mutable_data_ptr<int8_t>();
  const auto read = [&](int64_t row, std::vector<float>& normed) {
    normed.resize(transform.n);
    rows.normalize(row, normed.data());
    return static_cast<const float*>(normed.data());
  };
  rotate_rows(rows.count(), kCost + GatedRows::kCost, transform, read, [&](int64_t row, const float* rotated) {
    kernels().quantize(rotated, s, to + row * transform.n, transform.n);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) {
  m.impl("hadamard", &hadamard);
  m.impl("hadamard_quant", &hadamard_quant);
  m.impl("gated_hadamard_quant", &gated_hadamard_quant);
}

}  // namespace quamba::cpu
