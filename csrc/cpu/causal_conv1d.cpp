// causal_conv1d and causal_conv1d_int8: checks and registration. Kernels: causal_conv1d-inl.h.

#include <torch/library.h>

#include "checks.h"

namespace quamba::cpu {
namespace {

template <typename T>
at::Tensor run(const at::Tensor& x, const at::Tensor& weight, const float* scale,
               const std::optional<at::Tensor>& bias, const at::Tensor& out_scale,
               const std::optional<at::Tensor>& conv_state,
               void (*kernel)(const ConvArgs<T>&, int64_t, int64_t)) {
  const auto dtype = c10::CppTypeToScalarType<T>::value;
  check_dtype(x, dtype, "x");
  TORCH_CHECK_VALUE(x.dim() == 3, "x must be [B, L, D], got ", x.sizes());
  const int64_t batch = x.size(0), tokens = x.size(1), channels = x.size(2), width = weight.size(-1);
  check_dtype(weight, dtype, "weight");
  check_shape(weight, {channels, width}, "weight");
  check_conv_width(width);
  if (conv_state.has_value()) {
    check_dtype(*conv_state, dtype, "conv_state");
    check_shape(*conv_state, {batch, channels, width}, "conv_state");
    TORCH_CHECK_VALUE(conv_state->is_contiguous(), "conv_state must be contiguous: it is updated in place");
  }
  at::Tensor bias_copy;
  const float* bias_data = floats(bias, {channels}, "bias", bias_copy);
  const at::Tensor input = with_contiguous_rows(x), taps = weight.contiguous();
  at::Tensor out = at::empty({batch, tokens, channels}, x.options());
  at::Tensor scratch = at::empty({2 * width, channels}, x.options());
  for (int64_t b = 0; b < batch; ++b) {
    ConvArgs<T> args{};
    args.x = input.const_data_ptr<T>() + b * input.stride(0);
    args.x_stride = input.stride(1);
    args.weight = taps.const_data_ptr<T>();
    args.scale = scale;
    args.bias = bias_data;
    if (out_scale.defined()) args.out_scale = out_scale.const_data_ptr<float>();
    args.out_scale_stride = out_scale.defined() && out_scale.numel() > 1 ? 1 : 0;
    args.conv_state = conv_state ? conv_state->mutable_data_ptr<T>() + b * channels * width : nullptr;
    args.out = out.mutable_data_ptr<T>() + b * tokens * channels;
    args.scratch = scratch.mutable_data_ptr<T>();
    args.tokens = tokens;
    args.channels = channels;
    args.width = width;
    parallel_over_channels(channels, tokens * width, 16,
                           [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }
  return out;
}

at::Tensor causal_conv1d(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const std::optional<at::Tensor>& conv_state) {
  return run<float>(x, weight, nullptr, bias, {}, conv_state, kernels().causal_conv1d_float);
}

at::Tensor causal_conv1d_int8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale,
                              const std::optional<at::Tensor>& bias, const at::Tensor& out_scale,
                              const std::optional<at::Tensor>& conv_state) {
  at::Tensor scale_copy;
  const float* scales = floats(scale, {x.size(-1)}, "scale", scale_copy);
  check_dtype(out_scale, at::kFloat, "out_scale");
  TORCH_CHECK_VALUE(out_scale.numel() == 1 || out_scale.sizes() == at::IntArrayRef{x.size(-1)},
                    "out_scale must hold one value or one for each of ", x.size(-1), " channels, got shape ",
                    out_scale.sizes());
  return run<int8_t>(x, weight, scales, bias, out_scale.contiguous(), conv_state, kernels().causal_conv1d_int8);
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) {
  m.impl("causal_conv1d", &causal_conv1d);
  m.impl("causal_conv1d_int8", &causal_conv1d_int8);
}

}  // namespace quamba::cpu
