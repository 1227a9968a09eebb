// The linear ops, of int8 or uint4 weights and int8 or float inputs: checks and registration. Kernels: linear_w8-inl.h,
// linear_w4-inl.h, linear_amx-inl.h, linear_amx_float-inl.h.

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include "linear_result.h"
#include "linear_rows.h"

namespace quamba::cpu {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// From this many rows on float products are those of tiles of bfloat16, or, on a CPU without them, go through a panel
// of dequantized weights and the library's float32 product.
constexpr int64_t kManyRows = 16;
constexpr int64_t kPanelOutputs = 512;

// x [M, I] times the dequantized weights, a panel of outputs after another: memory stays bounded.
void multiply_dequantized(const at::Tensor& x, const LinearArgs& args, bool int4, int64_t out_features,
                          const OptionalTensor& bias, at::Tensor& out) {
  const auto dequantize = int4 ? kernels().dequantize_w4 : kernels().dequantize_w8;
  for (int64_t first = 0; first < out_features; first += kPanelOutputs) {
    const int64_t count = std::min(kPanelOutputs, out_features - first), blocks = output_blocks(count);
    at::Tensor panel = at::empty({args.in, blocks * kOutputBlock}, x.options());
    float* to = panel.mutable_data_ptr<float>();
    at::parallel_for(0, blocks, 4, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        dequantize(args, first / kOutputBlock + b, to + b * kOutputBlock, blocks * kOutputBlock);
    });
    at::Tensor columns = out.narrow(1, first, count), weights = panel.narrow(1, 0, count);
    if (bias.has_value()) columns.copy_(at::addmm(bias->narrow(0, first, count), x, weights));
    else columns.copy_(at::mm(x, weights));
  }
}

// x [M, I] times the weights in tiles of bfloat16, so many rows at a time that what they are split into stays cached.
void multiply_in_tiles(const at::Tensor& x, const LinearWeights& weights, LinearOutput out, LinearKernel kernel) {
  constexpr int64_t kCached = 1 << 20, kRows = 16;  // bytes; rows of a tile, which come in pairs
  const int64_t in = weights.in, steps = (in + kMinGroup - 1) / kMinGroup;
  const int64_t most_tiles = std::max<int64_t>(4, kCached / (steps * kSplitWords * 4) / 2 * 2);
  const int64_t all_tiles = (x.size(0) + 2 * kRows - 1) / (2 * kRows) * 2;
  at::Tensor split = at::empty({std::min(most_tiles, all_tiles), steps * kSplitWords}, at::kInt);
  int32_t* tiles = split.mutable_data_ptr<int32_t>();
  for (int64_t first = 0; first < x.size(0); first += most_tiles * kRows) {
    const int64_t count = std::min(most_tiles * kRows, x.size(0) - first);
    const float* from = x.const_data_ptr<float>() + first * in;
    parallel_over_channels((count + 2 * kRows - 1) / (2 * kRows) * 2, kRows * in, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        kernels().split_rows(from + t * kRows * in, std::clamp<int64_t>(count - t * kRows, 0, kRows), in,
                             tiles + t * steps * kSplitWords);
    });
    parallel_over_channels(weights.out, count * in / 2, kScratchBlocks * kOutputBlock, [&](int64_t begin, int64_t end) {
      at::Tensor panel = at::empty({steps * kPanelWords}, at::kInt);
      kernel({tiles, 0, nullptr, count, weights.weight, weights.scale, weights.zero, in, weights.group_size,
              panel.mutable_data_ptr(), out},
             begin, end);
    });
    out.to = static_cast<float*>(out.to) + count * out.stride;
  }
}

template <typename T>
at::Tensor run(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale, const OptionalTensor& zero,
               const OptionalTensor& x_scale, const OptionalTensor& bias, const OptionalTensor& out_scale,
               int64_t out_features, int64_t group_size) {
  check_dtype(x, c10::CppTypeToScalarType<T>::value, "x");
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) > 0, "x must be [..., I], got ", x.sizes());
  const int64_t in = x.size(-1);
  const LinearWeights weights = linear_weights(weight, scale, zero, in, out_features, group_size);
  LinearResult result(x, out_features, x_scale, bias, out_scale);
  const at::Tensor rows = x.contiguous().view({-1, in});
  const int64_t count = rows.size(0);
  if (std::is_same_v<T, float> && count >= kManyRows) {
    const LinearKernel in_tiles = weights.int4() ? kernels().linear_w4a16_tiles : kernels().linear_w8a16_tiles;
    if (in_tiles) {
      multiply_in_tiles(rows, weights, result.args, in_tiles);
      return result.tensor;
    }
    LinearArgs args = LinearRows<float>(0, in).args(weights, 0, result.args, nullptr);
    at::Tensor out = result.tensor.view({-1, out_features});
    multiply_dequantized(rows, args, weights.int4(), out_features, bias, out);
    return result.tensor;
  }
  LinearRows<T> laid_out(count, in);
  const T* data = rows.const_data_ptr<T>();
  parallel_over_channels(count, in, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) laid_out.lay_out(weights, data + row * in, row);
  });
  const LinearKernel kernel = linear_kernel<T>(weights);
  parallel_over_channels(out_features, count * in / 8, kScratchBlocks * kOutputBlock, [&](int64_t begin, int64_t end) {
    at::Tensor scratch = at::empty({count < kManyRows ? 0 : scratch_bytes(in)}, at::kByte);
    kernel(laid_out.args(weights, count, result.args, scratch.mutable_data_ptr()), begin, end);
  });
  return result.tensor;
}

at::Tensor linear_w8a8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                       const at::Tensor& x_scale, const OptionalTensor& bias) {
  return run<int8_t>(x, weight, weight_scale, {}, x_scale, bias, {}, weight_scale.numel(), 0);
}

at::Tensor linear_w8a8_requant(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                               const at::Tensor& x_scale, const OptionalTensor& bias, const at::Tensor& out_scale) {
  return run<int8_t>(x, weight, weight_scale, {}, x_scale, bias, out_scale, weight_scale.numel(), 0);
}

at::Tensor linear_w8a16(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                        const OptionalTensor& bias) {
  return run<float>(x, weight, weight_scale, {}, {}, bias, {}, weight_scale.numel(), 0);
}

at::Tensor linear_w4a8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& zero,
                       const at::Tensor& x_scale, const OptionalTensor& bias, int64_t out_features,
                       int64_t group_size) {
  return run<int8_t>(x, weight, scale, zero, x_scale, bias, {}, out_features, group_size);
}

at::Tensor linear_w4a8_requant(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale,
                               const at::Tensor& zero, const at::Tensor& x_scale, const OptionalTensor& bias,
                               int64_t out_features, int64_t group_size, const at::Tensor& out_scale) {
  return run<int8_t>(x, weight, scale, zero, x_scale, bias, out_scale, out_features, group_size);
}

at::Tensor linear_w4a16(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& zero,
                        const OptionalTensor& bias, int64_t out_features, int64_t group_size) {
  return run<float>(x, weight, scale, zero, {}, bias, {}, out_features, group_size);
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) {
  m.impl("linear_w8a8", &linear_w8a8);
  m.impl("linear_w8a8_requant", &linear_w8a8_requant);
  m.impl("linear_w8a16", &linear_w8a16);
  m.impl("linear_w4a8", &linear_w4a8);
  m.impl("linear_w4a8_requant", &linear_w4a8_requant);
  m.impl("linear_w4a16", &linear_w4a16);
}

}  // namespace quamba::cpu
