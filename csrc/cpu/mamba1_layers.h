// The layers of mamba1_step: what its slots hold (STEP_SLOTS of quamba/ops/schemas.py), checked, as raw pointers.
//
// Dims: B batch rows, H hidden, D d_inner, N d_state, R dt_rank, K conv width.
#pragma once

#include "linear_rows.h"

namespace quamba::cpu {

enum Tap { kIn, kConvIn, kZ, kX, kDtRank, kB, kC, kOut, kTaps };
enum Slot { kInProj = 0, kXProj = 5, kDtProj = 10, kOutProj = 15, kConvWeight = 20, kConvScale, kConvBias, kA, kD,
            kTapScales, kInProjOutScale, kXProjOutScale, kSlots };

struct Shape {
  int64_t batch, hidden, channels, d_state, dt_rank, width;
};

struct StepLinear {
  LinearWeights weights;
  const float* bias;
  const float* multiplier;  // [I] of the input, or null
};

struct Layer {
  StepLinear in_proj, x_proj, dt_proj, out_proj;
  const void* conv_weight;
  const float* conv_scale;
  const float* conv_bias;
  const float* A;
  const float* D;
  const float* taps;  // [8]; null: float activations
  const float* in_proj_out_scale;
  const float* x_proj_out_scale;
  void* conv_state;
  float* ssm_state;
};

// The final norm and the head, and where the logits go.
struct Head {
  LinearWeights weights;
  const float* norm_weight;  // [H]
  const float* in_scale;     // one value; null: dynamic scales or float activations
  float* logits;             // [B, V]
};

inline const float* slot_floats(const std::optional<at::Tensor>& t, at::IntArrayRef shape, const char* name) {
  if (!t.has_value()) return nullptr;
  check_dtype(*t, at::kFloat, name);
  check_shape(*t, shape, name);
  TORCH_CHECK_VALUE(t->is_contiguous(), name, " must be contiguous");
  return t->const_data_ptr<float>();
}

// The slots weight, scale, zero, bias, multiplier of a layer from `in` to `out` features.
inline StepLinear step_linear(const std::optional<at::Tensor>* slots, int64_t in, int64_t out, int64_t group_size,
                              const char* name) {
  TORCH_CHECK_VALUE(slots[0].has_value() && slots[1].has_value(), name, " lacks its weight or its scale");
  const LinearWeights weights = linear_weights(*slots[0], *slots[1], slots[2], in, out, group_size, name);
  return {weights, slot_floats(slots[3], {out}, name), slot_floats(slots[4], {in}, name)};
}

inline void* state_data(const at::Tensor& state, at::ScalarType dtype, at::IntArrayRef shape, const char* name) {
  check_dtype(state, dtype, name);
  check_shape(state, shape, name);
  TORCH_CHECK_VALUE(state.is_contiguous(), name, " must be contiguous: it is updated in place");
  return state.mutable_data_ptr();
}

// What every layer has, whatever its scheme.
inline void check_present(const std::optional<at::Tensor>* slots) {
  TORCH_CHECK_VALUE(slots[kA].has_value() && slots[kD].has_value(), "a layer lacks A or D");
  TORCH_CHECK_VALUE(slots[kConvWeight].has_value(), "a layer lacks its conv_weight");
}

inline Shape shape_of(const at::Tensor& hidden, const std::optional<at::Tensor>* slots, int64_t dt_rank) {
  TORCH_CHECK_VALUE(hidden.dim() == 2 && hidden.is_contiguous(), "hidden must be [B, H] and contiguous, got ",
                    hidden.sizes());
  check_dtype(hidden, at::kFloat, "hidden");
  check_present(slots);
  const at::Tensor &A = *slots[kA], &conv = *slots[kConvWeight];
  TORCH_CHECK_VALUE(A.dim() == 2 && conv.dim() == 2, "A must be [D, N] and conv_weight [D, K], got ", A.sizes(),
                    " and ", conv.sizes());
  TORCH_CHECK_VALUE(dt_rank > 0, "dt_rank must be positive, got ", dt_rank);
  TORCH_CHECK_VALUE(conv.size(1) <= kMaxConvWidth, "conv width ", conv.size(1), " is over ", kMaxConvWidth);
  return {hidden.size(0), hidden.size(1), A.size(0), A.size(1), dt_rank, conv.size(1)};
}

inline Layer read_layer(const std::optional<at::Tensor>* slots, const Shape& s, const at::Tensor& conv_state,
                        const at::Tensor& ssm_state, int64_t group_size, bool float_activations) {
  check_present(slots);
  const auto dtype = float_activations ? at::kFloat : at::kChar;
  Layer layer{};
  layer.in_proj = step_linear(slots + kInProj, s.hidden, 2 * s.channels, group_size, "in_proj");
  layer.x_proj = step_linear(slots + kXProj, s.channels, s.dt_rank + 2 * s.d_state, group_size, "x_proj");
  layer.dt_proj = step_linear(slots + kDtProj, s.dt_rank, s.channels, group_size, "dt_proj");
  layer.out_proj = step_linear(slots + kOutProj, s.channels, s.hidden, group_size, "out_proj");
  TORCH_CHECK_VALUE(float_activations || (!layer.x_proj.multiplier && !layer.dt_proj.multiplier),
                    "int8 inputs of x_proj and dt_proj cannot be multiplied");
  const at::Tensor& conv = *slots[kConvWeight];
  check_dtype(conv, dtype, "conv_weight");
  check_shape(conv, {s.channels, s.width}, "conv_weight");
  TORCH_CHECK_VALUE(conv.is_contiguous(), "conv_weight must be contiguous");
  layer.conv_weight = conv.const_data_ptr();
  layer.conv_scale = slot_floats(slots[kConvScale], {s.channels}, "conv_scale");
  layer.conv_bias = slot_floats(slots[kConvBias], {s.channels}, "conv_bias");
  layer.A = slot_floats(slots[kA], {s.channels, s.d_state}, "A");
  layer.D = slot_floats(slots[kD], {s.channels}, "D");
  layer.taps = slot_floats(slots[kTapScales], {kTaps}, "tap_scales");
  layer.in_proj_out_scale = slot_floats(slots[kInProjOutScale], {2 * s.channels}, "in_proj_out_scale");
  layer.x_proj_out_scale = slot_floats(slots[kXProjOutScale], {s.dt_rank + 2 * s.d_state}, "x_proj_out_scale");
  const bool scales = layer.taps && layer.conv_scale && layer.in_proj_out_scale && layer.x_proj_out_scale;
  TORCH_CHECK_VALUE(float_activations ? !layer.taps : scales, "every layer needs its scales, or none has them");
  layer.conv_state = state_data(conv_state, dtype, {s.batch, s.channels, s.width}, "conv_state");
  layer.ssm_state = static_cast<float*>(
      state_data(ssm_state, at::kFloat, {s.batch, s.channels, s.d_state}, "ssm_state"));
  return layer;
}

// head: weight, scale, zero, input scale; logits float32 [B, V].
inline Head read_head(const std::vector<std::optional<at::Tensor>>& slots, const at::Tensor& norm_weight,
                      const at::Tensor& logits, const Shape& s, int64_t group_size) {
  TORCH_CHECK_VALUE(slots.size() == 4 && slots[0].has_value() && slots[1].has_value(),
                    "head must be weight, scale, zero and input scale");
  check_dtype(logits, at::kFloat, "logits");
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(0) == s.batch && logits.is_contiguous(),
                    "logits must be [B, V] and contiguous, got ", logits.sizes());
  Head head{};
  head.weights = linear_weights(*slots[0], *slots[1], slots[2], s.hidden, logits.size(1), group_size, "head");
  head.norm_weight = slot_floats(norm_weight, {s.hidden}, "norm_weight");
  head.in_scale = slot_floats(slots[3], {}, "head's input scale");
  head.logits = logits.mutable_data_ptr<float>();
  return head;
}

}  // namespace quamba::cpu
