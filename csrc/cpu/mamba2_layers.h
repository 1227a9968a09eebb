// The layers of mamba2_step: what its tensors hold (MAMBA2_STEP_TENSORS of quamba/ops/schemas.py), checked, as raw pointers.
//
// Dims: B batch rows, H hidden, S heads, P head_dim, D = S * P d_inner, G SSD groups, N d_state, K conv width,
// X = D + 2 G N channels of the convolution (x | B | C).
#pragma once

#include "step_layers.h"

namespace quamba::cpu::mamba2 {

enum Slot { kInProj = 0, kDtProj = 5, kOutProj = 10, kConvWeight = 15, kConvScale, kConvBias, kA, kD, kDtBias,
            kTapScales, kInProjOutScale, kConvOutScale, kStateScale, kTensors };
// in tap_scales: of in_proj's input, the gate, out_proj's input, then of B and of C for each group
enum Tap { kIn, kZ, kOut, kB };

struct Shape {
  int64_t batch, hidden, heads, head_dim, groups, d_state, width;

  int64_t channels() const { return heads * head_dim; }
  int64_t conv_channels() const { return channels() + 2 * groups * d_state; }
  int64_t projected() const { return channels() + conv_channels(); }  // z | x | B | C
};

struct Layer {
  StepLinear in_proj, dt_proj, out_proj;
  const void* conv_weight;
  const float* conv_scale;
  const float* conv_bias;
  const float* A;
  const float* D;
  const float* dt_bias;
  const float* taps;  // [3 + 2G]; null: float activations
  const float* in_proj_out_scale;
  const float* conv_out_scale;
  const float* state_scale;  // [S, P] of int8 states; null: they are float
  void* conv_state;
  char* ssm_state;
};

inline Shape shape_of(const at::Tensor& hidden, const StepTensor* tensors, const at::Tensor& ssm_state, int64_t groups) {
  TORCH_CHECK_VALUE(ssm_state.dim() == 4, "ssm_state must be [B, S, P, N], got ", ssm_state.sizes());
  TORCH_CHECK_VALUE(tensors[kConvWeight].has_value() && tensors[kConvWeight]->dim() == 2,
                    "a layer's conv_weight must be [X, K]");
  const Shape s{hidden.size(0), hidden.size(1),    ssm_state.size(1),           ssm_state.size(2),
                groups,         ssm_state.size(3), tensors[kConvWeight]->size(1)};
  check_conv_width(s.width);
  TORCH_CHECK_VALUE(groups > 0 && s.heads > 0 && s.heads % groups == 0, s.heads, " heads do not split into ", groups,
                    " groups");
  return s;
}

// One weight of in_proj's rows and dt_proj's, which read the same input as it was laid out for in_proj.
inline void read_linears(const StepTensor* tensors, const Shape& s, int64_t group_size, Layer& layer) {
  layer.in_proj = step_linear(tensors + kInProj, s.hidden, s.projected(), group_size, "in_proj");
  layer.dt_proj = step_linear(tensors + kDtProj, s.hidden, s.heads, group_size, "dt_proj");
  layer.out_proj = step_linear(tensors + kOutProj, s.channels(), s.hidden, group_size, "out_proj");
  TORCH_CHECK_VALUE(layer.in_proj.weights.int4() == layer.dt_proj.weights.int4(),
                    "in_proj and dt_proj read the same input: both have a zero, or neither");
  TORCH_CHECK_VALUE(!layer.dt_proj.multiplier, "dt_proj reads in_proj's input: it has no multiplier of its own");
}

inline Layer read_layer(const StepTensor* tensors, const Shape& s, const at::Tensor& conv_state,
                        const at::Tensor& ssm_state, int64_t group_size, bool float_activations) {
  const auto dtype = float_activations ? at::kFloat : at::kChar;
  Layer layer{};
  read_linears(tensors, s, group_size, layer);
  layer.conv_weight = step_conv_weight(tensors[kConvWeight], dtype, s.conv_channels(), s.width);
  layer.conv_scale = floats_of(tensors[kConvScale], {s.conv_channels()}, "conv_scale");
  layer.conv_bias = floats_of(tensors[kConvBias], {s.conv_channels()}, "conv_bias");
  layer.A = floats_of(tensors[kA], {s.heads}, "A");
  layer.D = floats_of(tensors[kD], {s.heads}, "D");
  layer.dt_bias = floats_of(tensors[kDtBias], {s.heads}, "dt_bias");
  TORCH_CHECK_VALUE(layer.A && layer.D && layer.dt_bias, "a layer lacks A, D or dt_bias");
  layer.taps = floats_of(tensors[kTapScales], {kB + 2 * s.groups}, "tap_scales");
  layer.in_proj_out_scale = floats_of(tensors[kInProjOutScale], {s.projected()}, "in_proj_out_scale");
  layer.conv_out_scale = floats_of(tensors[kConvOutScale], {s.conv_channels()}, "conv_out_scale");
  layer.state_scale = floats_of(tensors[kStateScale], {s.heads, s.head_dim}, "state_scale");
  const bool all = layer.taps && layer.conv_scale && layer.in_proj_out_scale && layer.conv_out_scale;
  const bool none = !layer.taps && !layer.in_proj_out_scale && !layer.state_scale;
  TORCH_CHECK_VALUE(float_activations ? none : all, "every layer needs its scales, or none has them");
  layer.conv_state = state_data(conv_state, dtype, {s.batch, s.conv_channels(), s.width}, "conv_state");
  layer.ssm_state = static_cast<char*>(state_data(ssm_state, layer.state_scale ? at::kChar : at::kFloat,
                                                  {s.batch, s.heads, s.head_dim, s.d_state}, "ssm_state"));
  return layer;
}

}  // namespace quamba::cpu::mamba2
