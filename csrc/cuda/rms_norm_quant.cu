// quantize, quantize_per_token, rms_norm and rms_norm_quant: checks, launches, registration.

#include "rms_norm_quant.cuh"

#include "checks.h"

namespace quamba::cuda {
namespace {

constexpr int kThreads = 256;

// Whole warps, as many as a row keeps busy.
unsigned threads_of(int64_t row) {
  return static_cast<unsigned>(row >= kThreads ? kThreads : ceil_div<int64_t>(row > 0 ? row : 1, kWarp) * kWarp);
}

unsigned rows_of(const Tensor& x) {
  const int64_t columns = x.size(-1);
  return static_cast<unsigned>(columns ? x.numel() / columns : 0);
}

// Calls body(x as const float*, Half* or BFloat16*).
template <typename Body>
void with_values_of(const Tensor& x, const Body& body) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return body(const_pointer<float>(x));
    case ScalarType::Half: return body(const_pointer<Half>(x));
    case ScalarType::BFloat16: return body(const_pointer<BFloat16>(x));
    default: check(false, "x must be float32, float16 or bfloat16, got ", x.scalar_type());
  }
}

Tensor quantize(const Tensor& x, const Tensor& scale) {
  const float* s = scalar(scale, x, "scale");
  const Tensor input = torch::stable::contiguous(x);
  const Tensor out = empty(input.sizes(), ScalarType::Char, input);
  const int64_t n = input.numel(), blocks = ceil_div<int64_t>(n, 4 * kThreads);
  const OnDevice device(input);
  with_values_of(input, [&](const auto* from) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
    device.launch(quantize_kernel<T>, static_cast<unsigned>(blocks), kThreads, 0, from, s, pointer<int8_t>(out), n);
  });
  return out;
}

// Results of type Out; `scale` is null for float32.
template <typename Out>
Tensor norm(const Tensor& x, double eps, const float* scale, const std::optional<Tensor>& multiplier,
            ScalarType dtype) {
  check(x.dim() >= 1, "x must be [..., H], got a scalar");
  const int64_t H = x.size(-1);
  std::optional<Tensor> keep;
  const float* factors = values<float>(multiplier, {H}, x, "multiplier", keep);
  const Tensor input = torch::stable::contiguous(x);
  const Tensor out = empty(input.sizes(), dtype, input);
  const OnDevice device(input);
  with_values_of(input, [&](const auto* from) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
    device.launch(rms_norm_kernel<T, Out>, rows_of(input), threads_of(H), 0, from, factors, scale, pointer<Out>(out), H,
                  eps);
  });
  return out;
}

Tensor rms_norm(const Tensor& x, double eps, const std::optional<Tensor>& multiplier) {
  return norm<float>(x, eps, nullptr, multiplier, ScalarType::Float);
}

Tensor rms_norm_quant(const Tensor& x, double eps, const Tensor& scale, const std::optional<Tensor>& multiplier) {
  return norm<int8_t>(x, eps, scalar(scale, x, "scale"), multiplier, ScalarType::Char);
}

std::tuple<Tensor, Tensor> quantize_per_token(const Tensor& x) {
  check(x.dim() >= 1, "x must be [..., n], got a scalar");
  const Tensor input = torch::stable::contiguous(x);
  const Tensor out = empty(input.sizes(), ScalarType::Char, input);
  const Tensor scale = empty(input.sizes().slice(0, input.dim() - 1), ScalarType::Float, input);
  const OnDevice device(input);
  with_values_of(input, [&](const auto* from) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
    device.launch(quantize_per_token_kernel<T>, rows_of(input), threads_of(input.size(-1)), 0, from,
                  pointer<int8_t>(out), pointer<float>(scale), input.size(-1));
  });
  return {out, scale};
}

}  // namespace

QUAMBA_LIBRARY(m) {
  m.impl("quantize", TORCH_BOX(&quantize));
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("rms_norm_quant", TORCH_BOX(&rms_norm_quant));
  m.impl("quantize_per_token", TORCH_BOX(&quantize_per_token));
}

}  // namespace quamba::cuda
