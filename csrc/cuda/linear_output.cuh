// What every linear kernel does with its sums: scale of the row, bias, quantization. The operations and their order
// are those of csrc/cpu/linear_output-inl.h.
#pragma once

#include "linear_fragments.cuh"

namespace quamba::cuda {

__device__ __forceinline__ float row_scale(const LinearOutput& output, int64_t row) {
  return output.x_scale ? output.x_scale[row * output.x_scale_stride] : 1.0f;
}

// A sum under every scale but that of its bias: of int8 weights that over all inputs, of uint4 ones that of scaled
// groups.
template <typename P, typename Value>
__device__ __forceinline__ float scaled(Value sum, float of_output, float of_row) {
  if constexpr (P::kUint4) return sum * of_row;
  else return static_cast<float>(sum) * (of_output * of_row);
}

// What an output of a row is scaled by and added to.
struct OutputScales {
  float of_output = 1.0f, of_row = 1.0f, bias = 0.0f, out_scale = 1.0f;
};

template <typename P>
__device__ __forceinline__ OutputScales load_scales(const LinearArgs& args, int64_t row, int o) {
  OutputScales scales;
  if (row >= args.rows || o >= args.out) return scales;
  scales.of_row = row_scale(args.output, row);
  if constexpr (!P::kUint4) scales.of_output = args.scale[o];
  if (args.output.bias) scales.bias = args.output.bias[o];
  if (args.output.out_scale) scales.out_scale = args.output.out_scale[o];
  return scales;
}

template <typename P, typename Value>
__device__ __forceinline__ void store_output(const LinearArgs& args, const OutputScales& scales, Value sum, int64_t row,
                                             int o) {
  const LinearOutput& output = args.output;
  const int64_t at = row * args.out + o;
  float y = scaled<P>(sum, scales.of_output, scales.of_row);
  if (output.bias) y += scales.bias;
  if (output.out_scale) static_cast<int8_t*>(output.to)[at] = quantized(y, scales.out_scale);
  else static_cast<float*>(output.to)[at] = y;
}

// Outputs first .. first + 3 of many rows, `first` a multiple of 4.
template <typename P>
class FourOutputs {
 public:
  __device__ FourOutputs(const LinearArgs& args, int first)
      : first_(first), vectors_(args.output.aligned && first < args.out) {
    if (!vectors_) return;
    if constexpr (!P::kUint4) scale_ = load(args.scale);
    if (args.output.bias) bias_ = load(args.output.bias);
    if (args.output.out_scale) out_scale_ = load(args.output.out_scale);
  }

  template <typename Value>
  __device__ __forceinline__ void store(const LinearArgs& args, const Value (&sums)[4], int64_t row) const {
    if (row >= args.rows) return;
    if (vectors_) return store_vector(args, sums, row);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (first_ + j < args.out)
        store_output<P>(args, load_scales<P>(args, row, first_ + j), sums[j], row, first_ + j);
  }

 private:
  __device__ __forceinline__ float4 load(const float* values) const {
    return __ldg(reinterpret_cast<const float4*>(values + first_));
  }

  template <typename Value>
  __device__ __forceinline__ void store_vector(const LinearArgs& args, const Value (&sums)[4], int64_t row) const {
    const LinearOutput& output = args.output;
    const int64_t at = row * args.out + first_;
    const float s = row_scale(output, row);
    float4 y = make_float4(scaled<P>(sums[0], scale_.x, s), scaled<P>(sums[1], scale_.y, s),
                           scaled<P>(sums[2], scale_.z, s), scaled<P>(sums[3], scale_.w, s));
    if (output.bias) y = make_float4(y.x + bias_.x, y.y + bias_.y, y.z + bias_.z, y.w + bias_.w);
    if (output.out_scale)
      *reinterpret_cast<char4*>(static_cast<int8_t*>(output.to) + at) =
          make_char4(quantized(y.x, out_scale_.x), quantized(y.y, out_scale_.y), quantized(y.z, out_scale_.z),
                     quantized(y.w, out_scale_.w));
    else *reinterpret_cast<float4*>(static_cast<float*>(output.to) + at) = y;
  }

  int first_;
  bool vectors_;
  float4 scale_{}, bias_{}, out_scale_{};
};

}  // namespace quamba::cuda
