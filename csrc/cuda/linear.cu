// The linear ops, of int8 or uint4 weights and int8 or float inputs: checks, layout of rows, registration.
// Kernels: linear_few_rows.cuh, linear_many_rows.cuh; linear_library.cuh.

#include "linear.h"

#include "checks.h"
#include "linear_rows.cuh"

namespace quamba::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr int kThreads = 256;

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// The tensors of a call, which live until its kernels are launched.
class LinearCall {
 public:
  LinearArgs args{};

  Tensor keep(const Tensor& t) {
    kept_.push_back(t);
    return t;
  }

  // Where a contiguous tensor's values lie, a multiple of 16.
  template <typename T>
  const T* aligned(const Tensor& t) {
    return const_pointer<T>(keep(is_aligned(t.const_data_ptr()) ? t : torch::stable::clone(t)));
  }

  const float* floats(const OptionalTensor& t, const std::vector<int64_t>& shape, const Tensor& like,
                      const char* name) {
    OptionalTensor contiguous;
    return values<float>(t, shape, like, name, contiguous) ? const_pointer<float>(keep(*contiguous)) : nullptr;
  }

  // The tensors of a layer, checked; they are what quamba/ops/layout.py makes of a weight.
  void take_weights(const Tensor& x, const Tensor& weight, const Tensor& scale, const OptionalTensor& zero, int64_t out,
                    int64_t group_size) {
    constexpr int64_t kMost = 1 << 24;  // kernels number inputs and outputs by 32 bits
    const int64_t in = x.size(-1);
    check(in <= kMost && out >= 0 && out <= kMost, "a linear layer has at most ", kMost, " features, got ", in, " and ",
          out);
    const int64_t tiles = ceil_div<int64_t>(out, kTileOutputs);
    check_dtype(weight, zero ? ScalarType::Byte : ScalarType::Char, "weight");
    check_shape(weight, {tiles, ceil_div<int64_t>(in, zero ? 8 : 4), kTileOutputs, 4}, "weight");
    check_dtype(scale, zero ? ScalarType::Half : ScalarType::Float, zero ? "scale" : "weight_scale");
    if (zero) {
      const int64_t multiple = group_size / kSlice;
      check(group_size == multiple * kSlice && multiple > 0 && (multiple & (multiple - 1)) == 0,
            "group_size must be ", kSlice, " times a power of two, got ", group_size);
      check_shape(scale, {tiles, ceil_div(in, group_size), kTileOutputs}, "scale");
      check_dtype(*zero, ScalarType::Byte, "zero");
      check_shape(*zero, {tiles, ceil_div(in, group_size), kTileOutputs}, "zero");
      check(zero->is_contiguous(), "zero must be contiguous");
      check_device(*zero, x, "zero");
      args.zero = aligned<uint8_t>(*zero);
      args.group_scale = aligned<Half>(scale);
    } else {
      check_shape(scale, {out}, "weight_scale");
      args.scale = const_pointer<float>(scale);
    }
    check(weight.is_contiguous() && scale.is_contiguous(), "weight and its scale must be contiguous");
    check_device(weight, x, "weight");
    check_device(scale, x, zero ? "scale" : "weight_scale");
    args.weight = aligned<uint8_t>(weight);
    args.in = static_cast<int>(in), args.out = static_cast<int>(out);
    args.group_size = zero && group_size < kMost ? static_cast<int>(group_size) : kMost;
  }

  Tensor make_output(const Tensor& x, const OptionalTensor& x_scale, const OptionalTensor& bias,
                     const OptionalTensor& out_scale) {
    LinearOutput& output = args.output;
    const int64_t out = args.out;
    std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
    shape.back() = out;
    if (x_scale) {
      const bool per_row = x_scale->numel() != 1;
      if (per_row) check_shape(*x_scale, {shape.begin(), shape.end() - 1}, "x_scale");
      const std::vector<int64_t> sizes(x_scale->sizes().begin(), x_scale->sizes().end());
      output.x_scale = floats(x_scale, sizes, x, "x_scale");
      output.x_scale_stride = per_row ? 1 : 0;
    }
    output.bias = floats(bias, {out}, x, "bias");
    output.out_scale = floats(out_scale, {out}, x, "out_scale");
    const Tensor result = empty({shape.data(), shape.size()}, out_scale ? ScalarType::Char : ScalarType::Float, x);
    output.to = result.mutable_data_ptr();
    output.aligned = out % 4 == 0 && is_aligned(output.to) && is_aligned(output.bias) &&
                     is_aligned(output.out_scale) && is_aligned(args.scale);
    return result;
  }

 private:
  std::vector<Tensor> kept_;
};

// Values from row to row of x [..., I]; none where that differs, or values of a row do not lie side by side.
std::optional<int64_t> row_stride(const Tensor& x) {
  if (x.size(-1) > 1 && x.stride(-1) != 1) return std::nullopt;
  std::optional<int64_t> stride;
  int64_t expected = 0;
  for (int64_t d = x.dim() - 2; d >= 0; --d) {
    if (x.size(d) == 1) continue;
    if (!stride) stride = expected = x.stride(d);
    if (x.stride(d) != expected) return std::nullopt;
    expected *= x.size(d);
  }
  return stride ? stride : x.size(-1);
}

// x [M, I] as kernels of few rows and of int8 read it, rows and their lengths whole 16 bytes; `dense`: without gaps.
template <typename X>
Tensor lay_out_rows(const OnDevice& device, LinearCall& call, const Tensor& x, int64_t stride, bool dense) {
  LinearArgs& args = call.args;
  const int in = args.in, padded = ceil_div<int>(in * sizeof(X), 16) * 16 / sizeof(X);
  Tensor laid_out = x;
  if (in != padded || stride * sizeof(X) % 16 != 0 || !is_aligned(x.const_data_ptr()) || (dense && stride != padded)) {
    const int64_t shape[] = {args.rows, padded};
    laid_out = call.keep(empty({shape, 2}, x.scalar_type(), x));
    device.launch(pad_rows_kernel<X>, static_cast<unsigned>(ceil_div<int64_t>(laid_out.numel(), kThreads)), kThreads, 0,
                  const_pointer<X>(x), pointer<X>(laid_out), stride, args.rows, in, padded);
    stride = padded;
  }
  args.x = const_pointer<uint8_t>(laid_out);
  args.x_stride = stride * sizeof(X);
  args.x_bytes = padded * sizeof(X);
  return laid_out;
}

// x float32 [M, I] as the kernel of many rows reads it.
void split_rows(const OnDevice& device, LinearCall& call, const Tensor& x, int64_t stride) {
  LinearArgs& args = call.args;
  const int padded = slices_of(args) * kSlice;
  const int64_t shape[] = {kTerms, args.rows, padded};
  const Tensor to = call.keep(empty({shape, 3}, ScalarType::BFloat16, x));
  const auto kernel = args.zero ? split_rows_kernel<Product<true, float>> : split_rows_kernel<Product<false, float>>;
  device.launch(kernel, static_cast<unsigned>(ceil_div<int64_t>(args.rows * padded / 4, kThreads)), kThreads, 0,
                const_pointer<float>(x), pointer<uint2>(to), stride, args.rows, args.in, padded);
  args.x = const_pointer<uint8_t>(to);
  args.x_stride = args.x_bytes = padded * 2;
  args.x_plane = args.rows * args.x_stride;
}

template <typename X>
Tensor run(const Tensor& x, const Tensor& weight, const Tensor& scale, const OptionalTensor& zero,
           const OptionalTensor& x_scale, const OptionalTensor& bias, const OptionalTensor& out_scale, int64_t out,
           int64_t group_size) {
  check_dtype(x, torch::headeronly::CppTypeToScalarType<X>::value, "x");
  check(x.dim() >= 1 && x.size(-1) > 0, "x must be [..., I], got ", text(x.sizes()));
  LinearCall call;
  call.take_weights(x, weight, scale, zero, out, group_size);
  const Tensor result = call.make_output(x, x_scale, bias, out_scale);
  call.args.rows = x.numel() / x.size(-1);
  if (result.numel() == 0) return result;
  const Tensor rows = call.keep(row_stride(x) ? x : torch::stable::contiguous(x));
  const OnDevice device(x);
  const bool by_library = std::is_same_v<X, int8_t> && !zero && library_multiplies(device, call.args);
  if (std::is_same_v<X, float> && call.args.rows > kFewRows) {
    split_rows(device, call, rows, *row_stride(rows));
  } else {
    const Tensor laid_out = lay_out_rows<X>(device, call, rows, *row_stride(rows), by_library);
    if (by_library) {
      linear_library(device, call.args, laid_out);
      return result;
    }
  }
  if (!linear_few_rows<X>(device, call.args)) linear_many_rows<X>(device, call.args);
  return result;
}

Tensor linear_w8a8(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const Tensor& x_scale,
                   const OptionalTensor& bias) {
  return run<int8_t>(x, weight, weight_scale, {}, x_scale, bias, {}, weight_scale.numel(), 0);
}

Tensor linear_w8a8_requant(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const Tensor& x_scale,
                           const OptionalTensor& bias, const Tensor& out_scale) {
  return run<int8_t>(x, weight, weight_scale, {}, x_scale, bias, out_scale, weight_scale.numel(), 0);
}

Tensor linear_w8a16(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const OptionalTensor& bias) {
  return run<float>(x, weight, weight_scale, {}, {}, bias, {}, weight_scale.numel(), 0);
}

Tensor linear_w4a8(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& zero,
                   const Tensor& x_scale, const OptionalTensor& bias, int64_t out_features, int64_t group_size) {
  return run<int8_t>(x, weight, scale, zero, x_scale, bias, {}, out_features, group_size);
}

Tensor linear_w4a8_requant(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& zero,
                           const Tensor& x_scale, const OptionalTensor& bias, int64_t out_features, int64_t group_size,
                           const Tensor& out_scale) {
  return run<int8_t>(x, weight, scale, zero, x_scale, bias, out_scale, out_features, group_size);
}

Tensor linear_w4a16(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& zero,
                    const OptionalTensor& bias, int64_t out_features, int64_t group_size) {
  return run<float>(x, weight, scale, zero, {}, bias, {}, out_features, group_size);
}

}  // namespace

QUAMBA_LIBRARY(m) {
  m.impl("linear_w8a8", TORCH_BOX(&linear_w8a8));
  m.impl("linear_w8a8_requant", TORCH_BOX(&linear_w8a8_requant));
  m.impl("linear_w8a16", TORCH_BOX(&linear_w8a16));
  m.impl("linear_w4a8", TORCH_BOX(&linear_w4a8));
  m.impl("linear_w4a8_requant", TORCH_BOX(&linear_w4a8_requant));
  m.impl("linear_w4a16", TORCH_BOX(&linear_w4a16));
}

}  // namespace quamba::cuda
