// The layers of mamba1_step: what its tensors hold (MAMBA1_STEP_TENSORS of quamba/ops/schemas.py), checked, as raw pointers.
//
// Dims: B batch rows, H hidden, D d_inner, N d_state, R dt_rank, K conv width.
#pragma once

#include "step_layers.h"

namespace quamba::cpu::mamba1 {

enum Tap { kIn, kConvIn, kZ, kX, kDtRank, kB, kC, kOut, kTaps };
enum Slot { kInProj = 0, kXProj = 5, kDtProj = 10, kOutProj = 15, kConvWeight = 20, kConvScale, kConvBias, kA, kD,
            kTapScales, kInProjOutScale, kXProjOutScale, kTensors };

struct Shape {
  int64_t batch, hidden, channels, d_state, dt_rank, width;
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

// What every layer has, whatever its scheme.
inline void check_present(const StepTensor* tensors) {
  TORCH_CHECK_VALUE(tensors[kA].has_value() && tensors[kD].has_value(), "a layer lacks A or D");
  TORCH_CHECK_VALUE(tensors[kConvWeight].has_value(), "a layer lacks its conv_weight");
}

inline Shape shape_of(const at::Tensor& hidden, const StepTensor* tensors, int64_t dt_rank) {
  check_present(tensors);
  const at::Tensor &A = *tensors[kA], &conv = *tensors[kConvWeight];
  TORCH_CHECK_VALUE(A.dim() == 2 && conv.dim() == 2, "A must be [D, N] and conv_weight [D, K], got ", A.sizes(),
                    " and ", conv.sizes());
  TORCH_CHECK_VALUE(dt_rank > 0 && dt_rank <= kMaxFeatures, "dt_rank must be positive, and no more than ",
                    kMaxFeatures, ", got ", dt_rank);
  check_conv_width(conv.size(1));
  return {hidden.size(0), hidden.size(1), A.size(0), A.size(1), dt_rank, conv.size(1)};
}

inline Layer read_layer(const StepTensor* tensors, const Shape& s, const at::Tensor& conv_state,
                        const at::Tensor& ssm_state, int64_t group_size, bool float_activations) {
  check_present(tensors);
  const auto dtype = float_activations ? at::kFloat : at::kChar;
  Layer layer{};
  layer.in_proj = step_linear(tensors + kInProj, s.hidden, 2 * s.channels, group_size, "in_proj");
  layer.x_proj = step_linear(tensors + kXProj, s.channels, s.dt_rank + 2 * s.d_state, group_size, "x_proj");
  layer.dt_proj = step_linear(tensors + kDtProj, s.dt_rank, s.channels, group_size, "dt_proj");
  layer.out_proj = step_linear(tensors + kOutProj, s.channels, s.hidden, group_size, "out_proj");
  TORCH_CHECK_VALUE(float_activations || (!layer.x_proj.multiplier && !layer.dt_proj.multiplier),
                    "int8 inputs of x_proj and dt_proj cannot be multiplied");
  layer.conv_weight = step_conv_weight(tensors[kConvWeight], dtype, s.channels, s.width);
  layer.conv_scale = floats_of(tensors[kConvScale], {s.channels}, "conv_scale");
  layer.conv_bias = floats_of(tensors[kConvBias], {s.channels}, "conv_bias");
  layer.A = floats_of(tensors[kA], {s.channels, s.d_state}, "A");
  layer.D = floats_of(tensors[kD], {s.channels}, "D");
  layer.taps = floats_of(tensors[kTapScales], {kTaps}, "tap_scales");
  layer.in_proj_out_scale = floats_of(tensors[kInProjOutScale], {2 * s.channels}, "in_proj_out_scale");
  layer.x_proj_out_scale = floats_of(tensors[kXProjOutScale], {s.dt_rank + 2 * s.d_state}, "x_proj_out_scale");
  const bool scales = layer.taps && layer.conv_scale && layer.in_proj_out_scale && layer.x_proj_out_scale;
  TORCH_CHECK_VALUE(float_activations ? !layer.taps : scales, "every layer needs its scales, or none has them");
  layer.conv_state = state_data(conv_state, dtype, {s.batch, s.channels, s.width}, "conv_state");
  layer.ssm_state = static_cast<float*>(
      state_data(ssm_state, at::kFloat, {s.batch, s.channels, s.d_state}, "ssm_state"));
  return layer;
}

}  // namespace quamba::cpu::mamba1
