// causal_conv1d and causal_conv1d_int8: checks, launches, registration.

#include "causal_conv1d.cuh"

#include <algorithm>

#include "checks.h"

namespace quamba::cuda {
namespace {

constexpr int kThreads = 128;

using OptionalTensor = std::optional<Tensor>;

bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

template <int kChannels, int kTaps, typename T>
void launch(const OnDevice& device, ConvArgs<T> args, int64_t batch) {
  args.runs = static_cast<unsigned>(ceil_div<int64_t>(args.tokens, conv_run(kTaps)));
  const int64_t threads = ceil_div<int64_t>(args.channels, kChannels);
  const int64_t block = std::min<int64_t>(kThreads, ceil_div<int64_t>(threads, kWarp) * kWarp);
  if (threads == 0) return;
  device.launch(causal_conv1d_kernel<T, kChannels, kTaps>,
                dim3(static_cast<unsigned>(batch * args.runs), static_cast<unsigned>(ceil_div(threads, block))),
                static_cast<unsigned>(block), 0, args);
}

template <typename T>
Tensor run(const Tensor& x, const Tensor& weight, const float* scale, const OptionalTensor& bias,
           const OptionalTensor& out_scale, const OptionalTensor& conv_state) {
  constexpr ScalarType kType = torch::headeronly::CppTypeToScalarType<T>::value;
  check_dtype(x, kType, "x");
  check(x.dim() == 3, "x must be [B, L, D], got ", text(x.sizes()));
  const int64_t batch = x.size(0), tokens = x.size(1), channels = x.size(2), width = weight.size(-1);
  OptionalTensor keep[2];
  ConvArgs<T> args{};
  args.weight = values<T>(weight, {channels, width}, x, "weight", keep[0]);
  check(width >= 1, "conv width ", width, " is under 1");
  check(width <= kMaxConvWidth, "conv width ", width, " is over ", kMaxConvWidth);
  if (conv_state.has_value()) {
    check_dtype(*conv_state, kType, "conv_state");
    check_shape(*conv_state, {batch, channels, width}, "conv_state");
    check_device(*conv_state, x, "conv_state");
    check(conv_state->is_contiguous(), "conv_state must be contiguous: it is updated in place");
    args.conv_state = pointer<T>(*conv_state);
  }
  args.scale = scale;
  args.bias = values<float>(bias, {channels}, x, "bias", keep[1]);
  args.out_scale = out_scale.has_value() ? const_pointer<float>(*out_scale) : nullptr;
  args.out_scale_stride = out_scale.has_value() && out_scale->numel() > 1 ? 1 : 0;
  const Tensor input = with_contiguous_rows(x), out = empty(x.sizes(), kType, x);
  args.x = const_pointer<T>(input);
  args.x_batch = input.stride(0), args.x_token = input.stride(1);
  args.out = pointer<T>(out);
  args.tokens = tokens, args.channels = channels, args.width = static_cast<int>(width);
  args.whole_taps = width == 4 && aligned(args.weight, 4 * sizeof(T)) && aligned(args.conv_state, 4 * sizeof(T));
  const bool whole_channels =
      (channels | args.x_batch | args.x_token) % 4 == 0 && aligned(args.x, 4 * sizeof(T));
  const OnDevice device(x);
  if (width > 4) launch<1, kMaxConvWidth>(device, args, batch);
  else if (whole_channels) launch<4, 4>(device, args, batch);
  else launch<1, 4>(device, args, batch);
  return out;
}

Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& conv_state) {
  return run<float>(x, weight, nullptr, bias, {}, conv_state);
}

Tensor causal_conv1d_int8(const Tensor& x, const Tensor& weight, const Tensor& scale, const OptionalTensor& bias,
                          const Tensor& out_scale, const OptionalTensor& conv_state) {
  OptionalTensor keep;
  const float* scales = values<float>(scale, {x.size(-1)}, x, "scale", keep);
  check_dtype(out_scale, ScalarType::Float, "out_scale");
  check_device(out_scale, x, "out_scale");
  check(out_scale.numel() == 1 || same_shape(out_scale.sizes(), std::vector<int64_t>{x.size(-1)}),
        "out_scale must hold one value or one for each of ", x.size(-1), " channels, got shape ",
        text(out_scale.sizes()));
  return run<int8_t>(x, weight, scales, bias, torch::stable::contiguous(out_scale), conv_state);
}

}  // namespace

QUAMBA_LIBRARY(m) {
  m.impl("causal_conv1d", TORCH_BOX(&causal_conv1d));
  m.impl("causal_conv1d_int8", TORCH_BOX(&causal_conv1d_int8));
}

}  // namespace quamba::cuda
