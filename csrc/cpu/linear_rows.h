// A linear layer's tensors as kernels see them, and its input rows as kernels read them. T: int8_t, or float.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "checks.h"

namespace quamba::cpu {

inline int64_t padded_inputs(int64_t in) { return (in + kInputPadding - 1) / kInputPadding * kInputPadding; }

inline int64_t output_blocks(int64_t out) { return (out + kOutputBlock - 1) / kOutputBlock; }

// The weights of a linear layer, `in` to `out` features, int8 or (where there is a zero) group-wise uint4.
struct LinearWeights {
  const void* weight = nullptr;
  const void* scale = nullptr;
  const uint8_t* zero = nullptr;
  int64_t in = 0, out = 0, group_size = 0;

  bool int4() const { return zero != nullptr; }
  int64_t block_bytes() const { return (int4() ? (in + 7) / 8 : (in + 3) / 4) * kOutputBlock * 4; }
  int64_t groups() const { return int4() ? (in + group_size - 1) / group_size : 0; }
};

// Checks the tensors of a layer; they are what quamba/ops/layout.py makes of a weight.
inline LinearWeights linear_weights(const at::Tensor& weight, const at::Tensor& scale,
                                    const std::optional<at::Tensor>& zero, int64_t in, int64_t out, int64_t group_size,
                                    const char* name = "weight") {
  TORCH_CHECK_VALUE(in >= 0 && in <= kMaxFeatures && out >= 0 && out <= kMaxFeatures, name, " cannot have ", in,
                    " inputs and ", out, " outputs");
  const bool int4 = zero.has_value();
  LinearWeights weights;
  weights.in = in;
  weights.out = out;
  weights.group_size = group_size;
  check_dtype(weight, int4 ? at::kByte : at::kChar, name);
  check_shape(weight, {output_blocks(out), int4 ? (in + 7) / 8 : (in + 3) / 4, kOutputBlock, 4}, name);
  check_dtype(scale, int4 ? at::kHalf : at::kFloat, int4 ? "scale" : "weight_scale");
  if (int4) {
    const int64_t multiple = group_size / kMinGroup;
    TORCH_CHECK_VALUE(group_size == multiple * kMinGroup && multiple > 0 && (multiple & (multiple - 1)) == 0,
                      "group_size must be ", kMinGroup, " times a power of two, got ", group_size);
    check_shape(scale, {output_blocks(out), (in + group_size - 1) / group_size, kOutputBlock}, "scale");
    check_dtype(*zero, at::kByte, "zero");
    check_shape(*zero, scale.sizes(), "zero");
    TORCH_CHECK_VALUE(zero->is_contiguous(), "zero must be contiguous");
    weights.zero = zero->const_data_ptr<uint8_t>();
  } else {
    check_shape(scale, {out}, "weight_scale");
  }
  TORCH_CHECK_VALUE(weight.is_contiguous() && scale.is_contiguous(), name, " and its scale must be contiguous");
  weights.weight = weight.const_data_ptr();
  weights.scale = scale.const_data_ptr();
  return weights;
}

// Bytes of LinearArgs::scratch.
inline int64_t scratch_bytes(int64_t in) { return kScratchBlocks * kOutputBlock * padded_inputs(in); }

// Up to `rows` rows of up to `max_in` inputs, laid out for one layer after another.
template <typename T>
class LinearRows {
 public:
  LinearRows(int64_t rows, int64_t max_in)
      : values_(at::empty({rows, padded_inputs(max_in)}, c10::CppTypeToScalarType<T>::value)),
        sums_(at::empty({rows, (max_in + kMinGroup - 1) / kMinGroup}, at::kFloat)),
        data_(values_.template mutable_data_ptr<T>()), sums_data_(sums_.mutable_data_ptr<float>()) {}

  void lay_out(const LinearWeights& weights, const T* x, int64_t row) {
    const int64_t padded = padded_inputs(weights.in);
    T* to = data_ + row * padded;
    if constexpr (std::is_same_v<T, int8_t>) {
      if (weights.int4()) kernels().group_sums_int8(x, weights.in, weights.group_size, sums(weights, row));
      if (!weights.int4()) kernels().prepare_w8a8(x, weights.in, to);
      else std::copy_n(x, weights.in, to);
    } else {
      if (weights.int4()) kernels().group_sums_float(x, weights.in, weights.group_size, sums(weights, row));
      std::copy_n(x, weights.in, to);
    }
    std::fill(to + weights.in, to + padded, T{});
  }

  // The laid-out rows and the layer as a kernel takes them.
  LinearArgs args(const LinearWeights& weights, int64_t rows, const LinearOutput& out, void* scratch) const {
    return {data_, padded_inputs(weights.in), sums_data_, rows, weights.weight, weights.scale, weights.zero, weights.in,
            weights.group_size, scratch, out};
  }

 private:
  float* sums(const LinearWeights& weights, int64_t row) { return sums_data_ + row * weights.groups(); }

  at::Tensor values_, sums_;
  T* data_;
  float* sums_data_;
};

using LinearKernel = void (*)(const LinearArgs&, int64_t, int64_t);

template <typename T>
LinearKernel linear_kernel(const LinearWeights& weights) {
  if (std::is_same_v<T, float>) return weights.int4() ? kernels().linear_w4a16 : kernels().linear_w8a16;
  return weights.int4() ? kernels().linear_w4a8 : kernels().linear_w8a8;
}

}  // namespace quamba::cpu
