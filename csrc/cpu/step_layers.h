// What mamba1_step and mamba2_step both take, checked, as raw pointers: linear layers, states, the head.
//
// Dims: B batch rows, H hidden, D d_inner, I in, O out features, V vocabulary.
#pragma once

#include <optional>
#include <vector>

#include "linear_rows.h"

namespace quamba::cpu {

using StepTensor = std::optional<at::Tensor>;
using StepSlots = c10::List<StepTensor>;

struct StepLinear {
  LinearWeights weights;
  const float* bias;
  const float* multiplier;  // [I] of the input, or null
};

// The final norm and the head, and where the logits go.
struct Head {
  LinearWeights weights;
  const float* norm_weight;  // [H]
  const float* in_scale;     // one value; null: dynamic scales or float activations
  float* logits;             // [B, V]
};

// The arguments of either op but the sizes of its recurrence.
struct StepArguments {
  at::Tensor& hidden;
  const StepSlots& layers;
  at::TensorList conv_states, ssm_states;
  const at::Tensor& base;
  double eps;
  at::IntArrayRef group_sizes;
  bool dynamic;
  const StepTensor& norm_weight;
  const StepSlots& head;
  const StepTensor& logits;
};

// What a step knows beside its layers.
struct StepInput {
  float* hidden;      // [B, H]
  at::Tensor base_copy;
  const float* base;  // [p, p] of the rotation
  int64_t base_size;
  float eps;
  bool dynamic;  // int8 activations with a scale for each row
  std::optional<Head> head;
};

inline const float* floats_of(const StepTensor& t, at::IntArrayRef shape, const char* name) {
  if (!t.has_value()) return nullptr;
  check_dtype(*t, at::kFloat, name);
  check_shape(*t, shape, name);
  TORCH_CHECK_VALUE(t->is_contiguous(), name, " must be contiguous");
  return t->const_data_ptr<float>();
}

// The tensors weight, scale, zero, bias, multiplier of a layer from `in` to `out` features.
inline StepLinear step_linear(const StepTensor* tensors, int64_t in, int64_t out, int64_t group_size, const char* name) {
  TORCH_CHECK_VALUE(tensors[0].has_value() && tensors[1].has_value(), name, " lacks its weight or its scale");
  const LinearWeights weights = linear_weights(*tensors[0], *tensors[1], tensors[2], in, out, group_size, name);
  return {weights, floats_of(tensors[3], {out}, name), floats_of(tensors[4], {in}, name)};
}

// conv_weight [channels, width] of that dtype.
inline const void* step_conv_weight(const StepTensor& conv, at::ScalarType dtype, int64_t channels, int64_t width) {
  TORCH_CHECK_VALUE(conv.has_value(), "a layer lacks its conv_weight");
  check_dtype(*conv, dtype, "conv_weight");
  check_shape(*conv, {channels, width}, "conv_weight");
  TORCH_CHECK_VALUE(conv->is_contiguous(), "conv_weight must be contiguous");
  return conv->const_data_ptr();
}

inline void* state_data(const at::Tensor& state, at::ScalarType dtype, at::IntArrayRef shape, const char* name) {
  check_dtype(state, dtype, name);
  check_shape(state, shape, name);
  TORCH_CHECK_VALUE(state.is_contiguous(), name, " must be contiguous: it is updated in place");
  return state.mutable_data_ptr();
}

// The tensors of every layer, `count` of each.
inline std::vector<StepTensor> layer_tensors(const StepArguments& in, int count) {
  const size_t layers = in.conv_states.size();
  TORCH_CHECK_VALUE(layers > 0 && in.ssm_states.size() == layers && in.layers.size() == layers * count,
                    "layers must be ", count, " tensors for each of the ", layers, " conv_states and ssm_states, got ",
                    in.layers.size());
  const size_t sizes = layers + (in.logits.has_value() ? 1 : 0);
  TORCH_CHECK_VALUE(in.group_sizes.size() == sizes, "group_sizes must be one of each layer and of the head: ", sizes,
                    ", got ", in.group_sizes.size());
  TORCH_CHECK_VALUE(in.hidden.dim() == 2 && in.hidden.is_contiguous(), "hidden must be [B, H] and contiguous, got ",
                    in.hidden.sizes());
  check_dtype(in.hidden, at::kFloat, "hidden");
  return in.layers.vec();
}

// head: weight, scale, zero, scale of head_in; logits float32 [B, V].
inline Head read_head(const StepArguments& in) {
  const std::vector<StepTensor> tensors = in.head.vec();
  const at::Tensor& logits = *in.logits;
  TORCH_CHECK_VALUE(in.norm_weight.has_value(), "logits need norm_weight");
  TORCH_CHECK_VALUE(tensors.size() == 4 && tensors[0].has_value() && tensors[1].has_value(),
                    "head must be weight, scale, zero and the scale of head_in");
  check_dtype(logits, at::kFloat, "logits");
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(0) == in.hidden.size(0) && logits.is_contiguous(),
                    "logits must be [B, V] and contiguous, got ", logits.sizes());
  const int64_t hidden = in.hidden.size(1);
  Head head{};
  head.weights = linear_weights(*tensors[0], *tensors[1], tensors[2], hidden, logits.size(1), in.group_sizes.back(), "head");
  head.norm_weight = floats_of(in.norm_weight, {hidden}, "norm_weight");
  head.in_scale = floats_of(tensors[3], {}, "scale of head_in");
  head.logits = logits.mutable_data_ptr<float>();
  return head;
}

// Everything but the layers, of a model with that many channels D.
inline StepInput step_input(const StepArguments& in, int64_t channels, bool float_activations) {
  StepInput input{};
  input.hidden = in.hidden.mutable_data_ptr<float>();
  input.base = hadamard_base(in.base, channels, input.base_copy);
  input.base_size = in.base.size(0);
  input.eps = static_cast<float>(in.eps);
  input.dynamic = in.dynamic;
  if (in.logits.has_value()) {
    input.head = read_head(in);
    TORCH_CHECK_VALUE(float_activations || in.dynamic || input.head->in_scale,
                      "static scales need the scale of head_in");
  }
  return input;
}

}  // namespace quamba::cpu
