// mamba1_step: one token through all Mamba blocks, and the head where it is quantized, as one op: see step_core.h.
//
// Dims: B batch rows, H hidden, D d_inner, N d_state, R dt_rank, K conv width. T: int8_t, or float at a_bits 16.
//
// A thread owns a range of channels: their rows of in_proj, convolution, dt_proj, scan. Six barriers a layer separate
// what needs all channels: norm | in_proj, conv | x_proj | dt_proj, scan, gate | Hadamard | out_proj. The RMSNorms of dt,
// B and C, where there are any, are too small for a barrier: every thread computes them for itself before its dt_proj.

#include <torch/library.h>

#include "mamba1_layers.h"
#include "step_core.h"

namespace quamba::cpu::mamba1 {
namespace {

inline auto scan_kernel(int8_t) { return kernels().selective_scan_int8; }
inline auto scan_kernel(float) { return kernels().selective_scan_float; }

template <typename T>
class Step {
 public:
  Step(const StepInput& input, std::vector<Layer> layers, const Shape& shape, std::optional<float> ssm_norm_eps)
      : s_(shape), ssm_norm_eps_(ssm_norm_eps),
        core_(input, s_.batch, s_.hidden, s_.channels, std::max({s_.hidden, s_.channels, s_.dt_rank})),
        layers_(std::move(layers)), xz_(s_.batch * 2 * s_.channels), x_(s_.batch * s_.channels),
        dt_B_C_(s_.batch * dt_B_C()), unnormed_(ssm_norm_eps ? s_.batch * dt_B_C() : 0),
        dt_(s_.batch * s_.channels), y_(s_.batch * s_.channels), conv_scratch_(2 * s_.width * s_.channels),
        scan_scratch_((s_.channels + 15) / 16 * 32 * s_.d_state) {}

  void run() {
    core_.run([this](Thread& own) { run_thread(own); });
  }

 private:
  using Thread = StepThread<T>;
  static constexpr bool kFloat = std::is_same_v<T, float>;

  int64_t dt_B_C() const { return s_.dt_rank + 2 * s_.d_state; }

  void run_thread(Thread& own) {
    std::vector<T> normed(ssm_norm_eps_ ? s_.batch * dt_B_C() : 0);
    std::vector<float> B_C(2 * s_.d_state);
    const Range channels = own.outputs(s_.channels), mixed = own.outputs(dt_B_C());
    own.next = read_ahead(layers_.front().in_proj.weights, channels);
    for (const Layer& layer : layers_) {
      core_.normalize(layer.in_proj, scale(layer, kIn), own);
      own.wait();
      project_and_convolve(layer, channels, own);
      own.wait_before(read_ahead(layer.x_proj.weights, mixed));
      mix(layer, mixed, own);
      own.wait_before(read_ahead(layer.dt_proj.weights, channels));
      if (ssm_norm_eps_) normalize_mixed(layer, normed.data());
      const T* mixed_rows = ssm_norm_eps_ ? normed.data() : dt_B_C_.data();
      project_dt(layer, mixed_rows, channels, own);
      scan(layer, mixed_rows, channels, B_C.data());
      own.wait_before(read_ahead(layer.out_proj.weights, own.hidden));
      for (int64_t r = own.rows.begin; r < own.rows.end; ++r)
        core_.rotate(layer.out_proj, scale(layer, kOut), y_.data(), r, own);
      own.wait();
      core_.add_output(layer.out_proj, scale(layer, kOut), own);
      if (&layer != &layers_.back()) own.wait_before(read_ahead((&layer + 1)->in_proj.weights, channels));
    }
    core_.predict(own);
  }

  const float* scale(const Layer& layer, Tap tap) const { return kFloat ? nullptr : layer.taps + tap; }

  void project_and_convolve(const Layer& layer, Range channels, Thread& own) {
    LinearOutput out = core_.output(scale(layer, kIn), layer.in_proj.bias, xz_.data(), 2 * s_.channels);
    out.out_scale = layer.in_proj_out_scale;
    core_.project(layer.in_proj.weights, out, channels, own);  // x
    core_.project(layer.in_proj.weights, out, {s_.channels + channels.begin, s_.channels + channels.end}, own);  // z
    for (int64_t r = 0; r < s_.batch; ++r) {
      ConvArgs<T> args{};
      args.x = xz_.data() + r * 2 * s_.channels;
      args.x_stride = 2 * s_.channels;
      args.weight = static_cast<const T*>(layer.conv_weight);
      args.scale = layer.conv_scale;
      args.bias = layer.conv_bias;
      args.out_scale = scale(layer, kX);
      args.conv_state = static_cast<T*>(layer.conv_state) + r * s_.channels * s_.width;
      args.out = x_.data() + r * s_.channels;
      args.scratch = conv_scratch_.data();
      args.tokens = 1;
      args.channels = s_.channels;
      args.width = s_.width;
      conv_kernel(T{})(args, channels.begin, channels.end);
    }
  }

  // x_proj: every output mixes all channels.
  void mix(const Layer& layer, Range range, Thread& own) {
    for (int64_t r = 0; r < s_.batch; ++r) core_.lay_out_whole(layer.x_proj, x_.data() + r * s_.channels, r, own);
    LinearOutput out{};
    out.x_scale = scale(layer, kX);
    out.bias = layer.x_proj.bias;
    out.out_scale = ssm_norm_eps_ ? nullptr : layer.x_proj_out_scale;
    out.to = ssm_norm_eps_ ? static_cast<void*>(unnormed_.data()) : dt_B_C_.data();
    out.stride = dt_B_C();
    core_.multiply(own.input, layer.x_proj.weights, out, range, own);
  }

  // x_proj's outputs -> `to` [B, R + 2N]: the RMSNorm of each of dt, B and C, with its scale where it is quantized.
  void normalize_mixed(const Layer& layer, T* to) const {
    const int64_t R = s_.dt_rank, N = s_.d_state;
    for (int64_t r = 0; r < s_.batch; ++r) {
      const int64_t dt = r * dt_B_C(), B = dt + R, C = B + N;
      normalize(unnormed_.data() + dt, R, scale(layer, kDtRank), to + dt);
      normalize(unnormed_.data() + B, N, scale(layer, kB), to + B);
      normalize(unnormed_.data() + C, N, scale(layer, kC), to + C);
    }
  }

  void normalize(const float* x, int64_t n, const float* scale, T* to) const {
    if constexpr (kFloat) kernels().rms_norm(x, n, *ssm_norm_eps_, to);
    else kernels().rms_norm_quant(x, 1, n, *ssm_norm_eps_, *scale, to);
  }

  // mixed [B, R + 2N]: dt | B | C as dt_proj reads dt and the scan B and C.
  void project_dt(const Layer& layer, const T* mixed, Range channels, Thread& own) {
    for (int64_t r = 0; r < s_.batch; ++r) core_.lay_out_whole(layer.dt_proj, mixed + r * dt_B_C(), r, own);
    LinearOutput out{};
    out.x_scale = scale(layer, kDtRank);
    out.bias = layer.dt_proj.bias;
    out.to = dt_.data();
    out.stride = s_.channels;
    core_.multiply(own.input, layer.dt_proj.weights, out, channels, own);
  }

  // B_C [2N] is the thread's own.
  void scan(const Layer& layer, const T* mixed, Range channels, float* B_C) {
    for (int64_t r = 0; r < s_.batch; ++r) {
      const T* B = mixed + r * dt_B_C() + s_.dt_rank;
      for (int64_t n = 0; n < s_.d_state; ++n) {
        B_C[n] = static_cast<float>(B[n]) * (kFloat ? 1.0f : layer.taps[kB]);
        B_C[s_.d_state + n] = static_cast<float>(B[s_.d_state + n]) * (kFloat ? 1.0f : layer.taps[kC]);
      }
      ScanArgs<T> args{};
      args.x = x_.data() + r * s_.channels;
      args.x_scale = kFloat ? 1.0f : layer.taps[kX];
      args.dt = dt_.data() + r * s_.channels;
      args.A = layer.A;
      args.B = B_C;
      args.C = B_C + s_.d_state;
      args.D = layer.D;
      args.z = xz_.data() + (2 * r + 1) * s_.channels;
      args.z_scale = kFloat ? 1.0f : layer.taps[kZ];
      args.state = layer.ssm_state + r * s_.channels * s_.d_state;
      args.out = y_.data() + r * s_.channels;
      args.scratch = scan_scratch_.data();
      args.tokens = 1;
      args.channels = s_.channels;
      args.d_state = s_.d_state;
      scan_kernel(T{})(args, channels.begin, channels.end);
    }
  }

  const Shape s_;
  const std::optional<float> ssm_norm_eps_;  // none: dt, B and C are not normalised
  StepCore<T> core_;
  const std::vector<Layer> layers_;
  std::vector<T> xz_, x_, dt_B_C_;  // [B, 2D], [B, D], [B, R + 2N]
  std::vector<float> unnormed_;     // [B, R + 2N]: x_proj's outputs where dt, B and C are normalised
  std::vector<float> dt_, y_;       // [B, D], [B, D]
  std::vector<T> conv_scratch_;
  std::vector<float> scan_scratch_;
};

void mamba1_step(at::Tensor& hidden, const StepSlots& layers, at::TensorList conv_states, at::TensorList ssm_states,
                 const at::Tensor& base, int64_t dt_rank, double eps, std::optional<double> ssm_norm_eps,
                 at::IntArrayRef group_sizes, bool dynamic, const StepTensor& norm_weight, const StepSlots& head,
                 StepTensor logits) {
  const StepArguments arguments{hidden,      layers,  conv_states, ssm_states, base,  eps,
                                group_sizes, dynamic, norm_weight, head,       logits};
  const std::vector<StepTensor> tensors = layer_tensors(arguments, kTensors);
  const Shape shape = shape_of(hidden, tensors.data(), dt_rank);
  const bool float_activations = !tensors[kTapScales].has_value();
  const StepInput input = step_input(arguments, shape.channels, float_activations);
  std::vector<Layer> views;
  for (size_t i = 0; i < conv_states.size(); ++i)
    views.push_back(read_layer(tensors.data() + i * kTensors, shape, conv_states[i], ssm_states[i], group_sizes[i],
                               float_activations));
  const auto norm_eps = ssm_norm_eps ? std::optional(static_cast<float>(*ssm_norm_eps)) : std::nullopt;
  if (float_activations) Step<float>(input, std::move(views), shape, norm_eps).run();
  else Step<int8_t>(input, std::move(views), shape, norm_eps).run();
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) { m.impl("mamba1_step", &mamba1_step); }

}  // namespace quamba::cpu::mamba1
