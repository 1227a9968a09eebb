// mamba2_step: one token through all Mamba2 blocks, and the head where it is quantized, as one op: see step_core.h.
//
// Dims: B batch rows, H hidden, S heads, P head_dim, D = S * P d_inner, G SSD groups, N d_state, K conv width,
// X = D + 2 G N channels of the convolution (x | B | C). T: int8_t, or float at a_bits 16.
//
// A thread owns a range of the gate's rows of in_proj, one of the convolution's channels, and some heads. Five barriers
// a layer separate what needs all of them: norm | in_proj, dt_proj, conv | scan | gated norm, Hadamard | out_proj.

#include <torch/library.h>

#include "mamba2_layers.h"
#include "step_core.h"

namespace quamba::cpu::mamba2 {
namespace {

inline auto scan_kernel(int8_t) { return kernels().ssd_scan_int8; }
inline auto scan_kernel(float) { return kernels().ssd_scan_float; }
inline auto norm_kernel(int8_t) { return kernels().gated_rms_norm_int8; }
inline auto norm_kernel(float) { return kernels().gated_rms_norm_float; }

struct Limits {
  float dt_min, dt_max;
};

template <typename T>
class Step {
 public:
  Step(const StepInput& input, std::vector<Layer> layers, const Shape& shape, Limits limits)
      : s_(shape), limits_(limits), eps_(input.eps),
        core_(input, s_.batch, s_.hidden, s_.channels(), std::max(s_.hidden, s_.channels())),
        layers_(std::move(layers)), zxBC_(s_.batch * s_.projected()), xBC_(s_.batch * s_.conv_channels()),
        dt_(s_.batch * s_.heads), y_(s_.batch * s_.channels()), conv_scratch_(2 * s_.width * s_.conv_channels()) {}

  void run() {
    core_.run([this](Thread& own) { run_thread(own); });
  }

 private:
  using Thread = StepThread<T>;
  static constexpr bool kFloat = std::is_same_v<T, float>;

  void run_thread(Thread& own) {
    std::vector<float> scratch(ssd_scratch_floats(1, s_.heads, s_.head_dim, s_.d_state));
    const Range gate = own.outputs(s_.channels()), conv = own.outputs(s_.conv_channels());
    const Range heads = share(s_.batch * s_.heads, 1, own.index, own.count);  // of all batch rows
    own.next = read_ahead(layers_.front().in_proj.weights, gate);
    for (const Layer& layer : layers_) {
      core_.normalize(layer.in_proj, scale(layer, kIn), own);
      own.wait();
      project(layer, gate, conv, own);
      convolve(layer, conv);
      own.wait_before(states(layer, heads));
      scan(layer, heads, scratch.data());
      own.wait_before(read_ahead(layer.out_proj.weights, own.hidden));
      gate_and_rotate(layer, own);
      own.wait();
      core_.add_output(layer.out_proj, scale(layer, kOut), own);
      if (&layer != &layers_.back()) own.wait_before(read_ahead((&layer + 1)->in_proj.weights, gate));
    }
    core_.predict(own);
  }

  const float* scale(const Layer& layer, int tap) const { return kFloat ? nullptr : layer.taps + tap; }

  // Bytes of a head's state.
  int64_t state_bytes(const Layer& layer) const {
    return s_.head_dim * s_.d_state * static_cast<int64_t>(layer.state_scale ? sizeof(int8_t) : sizeof(float));
  }

  ReadAhead states(const Layer& layer, Range heads) const {
    const int64_t bytes = state_bytes(layer);
    return {layer.ssm_state + heads.begin * bytes, (heads.end - heads.begin) * bytes};
  }

  // z | x | B | C and dt. Ranges begin where they fall: a block of outputs may be computed by two threads.
  void project(const Layer& layer, Range gate, Range conv, Thread& own) {
    LinearOutput out = core_.output(scale(layer, kIn), layer.in_proj.bias, zxBC_.data(), s_.projected());
    out.out_scale = layer.in_proj_out_scale;
    core_.project(layer.in_proj.weights, out, gate, own);
    core_.project(layer.in_proj.weights, out, {s_.channels() + conv.begin, s_.channels() + conv.end}, own);
    const LinearOutput dt = core_.output(scale(layer, kIn), layer.dt_proj.bias, dt_.data(), s_.heads);
    core_.project(layer.dt_proj.weights, dt, own.outputs(s_.heads), own);
  }

  void convolve(const Layer& layer, Range channels) {
    for (int64_t r = 0; r < s_.batch; ++r) {
      ConvArgs<T> args{};
      args.x = zxBC_.data() + r * s_.projected() + s_.channels();
      args.x_stride = s_.projected();
      args.weight = static_cast<const T*>(layer.conv_weight);
      args.scale = layer.conv_scale;
      args.bias = layer.conv_bias;
      args.out_scale = layer.conv_out_scale;
      args.out_scale_stride = 1;
      args.conv_state = static_cast<T*>(layer.conv_state) + r * s_.conv_channels() * s_.width;
      args.out = xBC_.data() + r * s_.conv_channels();
      args.scratch = conv_scratch_.data();
      args.tokens = 1;
      args.channels = s_.conv_channels();
      args.width = s_.width;
      conv_kernel(T{})(args, channels.begin, channels.end);
    }
  }

  // The recurrence of one batch row's token, but for its scratch.
  SsdArgs<T> scan_args(const Layer& layer, int64_t r) {
    SsdArgs<T> args{};
    args.x = xBC_.data() + r * s_.conv_channels();
    args.B = args.x + s_.channels();
    args.C = args.B + s_.groups * s_.d_state;
    args.B_group_stride = args.C_group_stride = s_.d_state;
    args.x_scale = layer.conv_out_scale;
    args.B_scale = scale(layer, kB);
    args.C_scale = scale(layer, static_cast<int>(kB + s_.groups));
    args.dt = dt_.data() + r * s_.heads;
    args.dt_bias = layer.dt_bias;
    args.dt_min = limits_.dt_min;
    args.dt_max = limits_.dt_max;
    args.A = layer.A;
    args.D = layer.D;
    args.state = layer.ssm_state + r * s_.heads * state_bytes(layer);
    args.state_scale = layer.state_scale;
    args.out = y_.data() + r * s_.channels();
    args.tokens = 1;
    args.heads = s_.heads;
    args.groups = s_.groups;
    args.head_dim = s_.head_dim;
    args.d_state = s_.d_state;
    return args;
  }

  // heads: of all batch rows, one row's after another's.
  void scan(const Layer& layer, Range heads, float* scratch) {
    while (heads.begin < heads.end) {
      const int64_t r = heads.begin / s_.heads, first = heads.begin % s_.heads;
      const int64_t last = std::min(s_.heads, first + heads.end - heads.begin);
      SsdArgs<T> args = scan_args(layer, r);
      args.scratch = scratch;
      scan_kernel(T{})(args, first, last);
      heads.begin += last - first;
    }
  }

  void gate_and_rotate(const Layer& layer, Thread& own) {
    const int64_t part = s_.channels() / s_.groups;
    const float z_scale = kFloat ? 1.0f : layer.taps[kZ];
    for (int64_t r = own.rows.begin; r < own.rows.end; ++r) {
      float* y = y_.data() + r * s_.channels();
      const T* z = zxBC_.data() + r * s_.projected();
      for (int64_t first = 0; first < s_.channels(); first += part)
        norm_kernel(T{})(y + first, z + first, z_scale, part, eps_, y + first);
      core_.rotate(layer.out_proj, scale(layer, kOut), y_.data(), r, own);
    }
  }

  const Shape s_;
  const Limits limits_;
  const float eps_;
  StepCore<T> core_;
  const std::vector<Layer> layers_;
  std::vector<T> zxBC_, xBC_;  // [B, D + X], [B, X]
  std::vector<float> dt_, y_;  // [B, S], [B, D]
  std::vector<T> conv_scratch_;
};

void mamba2_step(at::Tensor& hidden, const StepSlots& layers, at::TensorList conv_states, at::TensorList ssm_states,
                 const at::Tensor& base, int64_t groups, double eps, double dt_min, double dt_max,
                 at::IntArrayRef group_sizes, bool dynamic, const StepTensor& norm_weight, const StepSlots& head,
                 StepTensor logits) {
  const StepArguments arguments{hidden,      layers,  conv_states, ssm_states, base,  eps,
                                group_sizes, dynamic, norm_weight, head,       logits};
  const std::vector<StepTensor> tensors = layer_tensors(arguments, kTensors);
  const Shape shape = shape_of(hidden, tensors.data(), ssm_states[0], groups);
  TORCH_CHECK_VALUE(dt_min <= dt_max, "dt_min ", dt_min, " is over dt_max ", dt_max);
  const Limits limits{static_cast<float>(dt_min), static_cast<float>(dt_max)};
  const bool float_activations = !tensors[kTapScales].has_value();
  const StepInput input = step_input(arguments, shape.channels(), float_activations);
  std::vector<Layer> views;
  for (size_t i = 0; i < conv_states.size(); ++i)
    views.push_back(read_layer(tensors.data() + i * kTensors, shape, conv_states[i], ssm_states[i], group_sizes[i],
                               float_activations));
  if (float_activations) Step<float>(input, std::move(views), shape, limits).run();
  else Step<int8_t>(input, std::move(views), shape, limits).run();
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) { m.impl("mamba2_step", &mamba2_step); }

}  // namespace quamba::cpu::mamba2
