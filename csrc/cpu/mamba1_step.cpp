// mamba1_step: one token through all Mamba blocks, and the head where it is quantized, as one op. It calls the kernels
// that the unfused ops call, on the same numbers in the same order, so that a token's result does not depend on which
// path computed it.
//
// Dims: B batch rows, H hidden, D d_inner, N d_state, R dt_rank, K conv width. T: int8_t, or float at a_bits 16.
//
// A thread owns a range of channels: their rows of in_proj, convolution, dt_proj, scan. Six barriers a layer separate
// what needs all channels: norm | in_proj, conv | x_proj | dt_proj, scan, gate | Hadamard | out_proj.

#include <memory>

#include <omp.h>

#include <torch/library.h>

#include "mamba1_layers.h"
#include "step_threads.h"

namespace quamba::cpu {
namespace {

using Slots = c10::List<std::optional<at::Tensor>>;

// What a kernel needs of either activation type.
inline auto conv_kernel(int8_t) { return kernels().causal_conv1d_int8; }
inline auto conv_kernel(float) { return kernels().causal_conv1d_float; }
inline auto scan_kernel(int8_t) { return kernels().selective_scan_int8; }
inline auto scan_kernel(float) { return kernels().selective_scan_float; }

template <typename T>
class Step {
 public:
  Step(float* hidden, std::vector<Layer> layers, const std::optional<Head>& head, const Shape& shape,
       const at::Tensor& base, float eps, bool dynamic)
      : s_(shape), hidden_(hidden), layers_(std::move(layers)), head_(head), base_(base.const_data_ptr<float>()),
        base_size_(base.size(0)), eps_(eps), dynamic_(dynamic), input_(make_rows()), input_scale_(s_.batch),
        xz_(s_.batch * 2 * s_.channels), x_(s_.batch * s_.channels), dt_B_C_(s_.batch * dt_B_C()),
        dt_(s_.batch * s_.channels), y_(s_.batch * s_.channels), delta_(s_.batch * s_.hidden),
        conv_scratch_(2 * s_.width * s_.channels), scan_scratch_((s_.channels + 15) / 16 * 32 * s_.d_state) {}

  void run() {
    const int wanted = at::get_num_threads();
    std::unique_ptr<SpinBarrier> barrier;
#pragma omp parallel num_threads(wanted)
    {
#pragma omp single
      barrier = std::make_unique<SpinBarrier>(omp_get_num_threads());
      run_thread(omp_get_thread_num(), omp_get_num_threads(), *barrier);
    }
  }

 private:
  static constexpr bool kFloat = std::is_same_v<T, float>;

  int64_t dt_B_C() const { return s_.dt_rank + 2 * s_.d_state; }

  // Buffers of a thread's own: rows that every thread reads whole are laid out by each for itself.
  struct Private {
    LinearRows<T> input;
    std::vector<uint8_t> scratch;  // of the kernels
    std::vector<float> row;   // a normalised or rotated row
    std::vector<T> quantized;
    std::vector<float> B, C;  // [N]
    ReadAhead next;           // the weights of its next product
  };

  int64_t longest() const { return std::max({s_.hidden, s_.channels, s_.dt_rank}); }

  LinearRows<T> make_rows() const { return LinearRows<T>(s_.batch, longest()); }

  void run_thread(int thread, int threads, SpinBarrier& barrier) {
    Private own{make_rows(), std::vector<uint8_t>(scratch_bytes(longest())),
                std::vector<float>(longest() + kHadamardPadding), std::vector<T>(longest()),
                std::vector<float>(s_.d_state), std::vector<float>(s_.d_state)};
    const auto outputs = [&](int64_t n) { return share(n, kOutputBlock, thread, threads); };
    const Range rows = share(s_.batch, 1, thread, threads), channels = outputs(s_.channels);
    const Range mixed = outputs(dt_B_C()), hidden = outputs(s_.hidden);
    const Range words = head_ ? outputs(head_->weights.out) : Range{};
    const auto wait_before = [&](const LinearWeights& weights, Range range) {
      own.next = read_ahead(weights, range);
      barrier.wait(own.next);
    };
    own.next = read_ahead(layers_.front().in_proj.weights, channels);
    for (const Layer& layer : layers_) {
      normalize(layer, rows, own);
      barrier.wait(own.next);
      project_and_convolve(layer, channels, own);
      wait_before(layer.x_proj.weights, mixed);
      mix(layer, mixed, own);
      wait_before(layer.dt_proj.weights, channels);
      scan(layer, channels, own);
      wait_before(layer.out_proj.weights, hidden);
      rotate(layer, rows, own);
      barrier.wait(own.next);
      add_output(layer, hidden, own);
      if (&layer != &layers_.back()) wait_before((&layer + 1)->in_proj.weights, channels);
      else if (head_) wait_before(head_->weights, words);
    }
    if (!head_) return;
    normalize_for_head(rows, own);
    barrier.wait(own.next);
    predict(words, own);
  }

  // The weights of the outputs in that range.
  static ReadAhead read_ahead(const LinearWeights& weights, Range range) {
    const int64_t block = range.begin / kOutputBlock, bytes = weights.block_bytes();
    return {static_cast<const char*>(weights.weight) + block * bytes, output_blocks(range.end - range.begin) * bytes};
  }

  void multiply(const LinearRows<T>& rows, const LinearWeights& weights, const LinearOutput& out, Range range,
                Private& own) const {
    const LinearArgs args = rows.args(weights, s_.batch, out, own.scratch.data());
    if (range.begin < range.end) linear_kernel<T>(weights)(args, range.begin, range.end);
  }

  // `row` as the input of in_proj, out_proj or the head: quantized with the static scale or one of its own, or float.
  void lay_out_row(const LinearWeights& weights, const float* scale, const float* row, int64_t r, Private& own) {
    if constexpr (kFloat) {
      input_.lay_out(weights, row, r);
    } else {
      if (dynamic_) input_scale_[r] = kernels().quantize_per_token(row, weights.in, own.quantized.data());
      else kernels().quantize(row, *scale, own.quantized.data(), weights.in);
      input_.lay_out(weights, own.quantized.data(), r);
    }
  }

  // A row that is quantized already, or float, as the thread's own input of a layer that reads all of it.
  void lay_out_whole(const StepLinear& linear, const T* x, int64_t r, Private& own) const {
    if constexpr (kFloat) {
      if (linear.multiplier) {
        std::copy_n(x, linear.weights.in, own.row.data());
        multiply_row(own.row.data(), linear.multiplier, linear.weights.in);
        x = own.row.data();
      }
    }
    own.input.lay_out(linear.weights, x, r);
  }

  // What becomes of the outputs for those rows.
  LinearOutput output(const float* scale, const float* bias, void* to, int64_t stride) const {
    LinearOutput out{};
    if (!kFloat) out.x_scale = dynamic_ ? input_scale_.data() : scale;
    out.x_scale_stride = dynamic_ ? 1 : 0;
    out.bias = bias;
    out.to = to;
    out.stride = stride;
    return out;
  }

  const float* scale(const Layer& layer, Tap tap) const { return kFloat ? nullptr : layer.taps + tap; }

  void normalize(const Layer& layer, Range rows, Private& own) {
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      kernels().rms_norm(hidden_ + r * s_.hidden, s_.hidden, eps_, own.row.data());
      multiply_row(own.row.data(), layer.in_proj.multiplier, s_.hidden);
      lay_out_row(layer.in_proj.weights, scale(layer, kIn), own.row.data(), r, own);
    }
  }

  void project_and_convolve(const Layer& layer, Range channels, Private& own) {
    LinearOutput out = output(scale(layer, kIn), layer.in_proj.bias, xz_.data(), 2 * s_.channels);
    out.out_scale = layer.in_proj_out_scale;
    multiply(input_, layer.in_proj.weights, out, channels, own);  // x
    multiply(input_, layer.in_proj.weights, out, {s_.channels + channels.begin, s_.channels + channels.end}, own);  // z
    for (int64_t r = 0; r < s_.batch; ++r) {
      ConvArgs<T> args{};
      args.x = xz_.data() + r * 2 * s_.channels;
      args.x_stride = 2 * s_.channels;
      args.weight = static_cast<const T*>(layer.conv_weight);
      args.scale = layer.conv_scale;
      args.bias = layer.conv_bias;
      args.out_scale = kFloat ? 1.0f : layer.taps[kX];
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
  void mix(const Layer& layer, Range range, Private& own) {
    for (int64_t r = 0; r < s_.batch; ++r) lay_out_whole(layer.x_proj, x_.data() + r * s_.channels, r, own);
    LinearOutput out{};
    out.x_scale = kFloat ? nullptr : layer.taps + kX;
    out.bias = layer.x_proj.bias;
    out.out_scale = layer.x_proj_out_scale;
    out.to = dt_B_C_.data();
    out.stride = dt_B_C();
    multiply(own.input, layer.x_proj.weights, out, range, own);
  }

  void scan(const Layer& layer, Range channels, Private& own) {
    for (int64_t r = 0; r < s_.batch; ++r) lay_out_whole(layer.dt_proj, dt_B_C_.data() + r * dt_B_C(), r, own);
    LinearOutput out{};
    out.x_scale = kFloat ? nullptr : layer.taps + kDtRank;
    out.bias = layer.dt_proj.bias;
    out.to = dt_.data();
    out.stride = s_.channels;
    multiply(own.input, layer.dt_proj.weights, out, channels, own);
    for (int64_t r = 0; r < s_.batch; ++r) {
      const T* B = dt_B_C_.data() + r * dt_B_C() + s_.dt_rank;
      for (int64_t n = 0; n < s_.d_state; ++n) {
        own.B[n] = static_cast<float>(B[n]) * (kFloat ? 1.0f : layer.taps[kB]);
        own.C[n] = static_cast<float>(B[s_.d_state + n]) * (kFloat ? 1.0f : layer.taps[kC]);
      }
      ScanArgs<T> args{};
      args.x = x_.data() + r * s_.channels;
      args.x_scale = kFloat ? 1.0f : layer.taps[kX];
      args.dt = dt_.data() + r * s_.channels;
      args.A = layer.A;
      args.B = own.B.data();
      args.C = own.C.data();
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

  void rotate(const Layer& layer, Range rows, Private& own) {
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      kernels().hadamard(y_.data() + r * s_.channels, s_.channels, base_, base_size_, own.row.data());
      multiply_row(own.row.data(), layer.out_proj.multiplier, s_.channels);
      lay_out_row(layer.out_proj.weights, scale(layer, kOut), own.row.data(), r, own);
    }
  }

  void add_output(const Layer& layer, Range range, Private& own) {
    const LinearOutput out = output(scale(layer, kOut), layer.out_proj.bias, delta_.data(), s_.hidden);
    multiply(input_, layer.out_proj.weights, out, range, own);
    for (int64_t r = 0; r < s_.batch; ++r)
      for (int64_t o = range.begin; o < range.end; ++o) hidden_[r * s_.hidden + o] += delta_[r * s_.hidden + o];
  }

  void normalize_for_head(Range rows, Private& own) {
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      kernels().rms_norm(hidden_ + r * s_.hidden, s_.hidden, eps_, own.row.data());
      for (int64_t i = 0; i < s_.hidden; ++i) own.row[i] *= head_->norm_weight[i];
      lay_out_row(head_->weights, head_->in_scale, own.row.data(), r, own);
    }
  }

  void predict(Range range, Private& own) {
    const LinearOutput out = output(head_->in_scale, nullptr, head_->logits, head_->weights.out);
    multiply(input_, head_->weights, out, range, own);
  }

  const Shape s_;
  float* const hidden_;  // [B, H]
  const std::vector<Layer> layers_;
  const std::optional<Head> head_;
  const float* const base_;
  const int64_t base_size_;
  const float eps_;
  const bool dynamic_;
  LinearRows<T> input_;              // of in_proj, then of out_proj
  std::vector<float> input_scale_;   // [B], of its rows where scales are dynamic
  std::vector<T> xz_, x_, dt_B_C_;          // [B, 2D], [B, D], [B, R + 2N]
  std::vector<float> dt_, y_, delta_;       // [B, D], [B, D], [B, H]
  std::vector<T> conv_scratch_;
  std::vector<float> scan_scratch_;
};

void mamba1_step(at::Tensor& hidden, const Slots& layers, at::TensorList conv_states, at::TensorList ssm_states,
                 const at::Tensor& base, int64_t dt_rank, double eps, int64_t group_size, bool dynamic,
                 const std::optional<at::Tensor>& norm_weight, const Slots& head, std::optional<at::Tensor> logits) {
  const size_t count = conv_states.size();
  TORCH_CHECK_VALUE(count > 0 && ssm_states.size() == count && layers.size() == count * kSlots, "layers must be ",
                    int(kSlots), " slots for each of the ", count, " conv_states and ssm_states, got ", layers.size());
  const std::vector<std::optional<at::Tensor>> slots = layers.vec();
  const Shape shape = shape_of(hidden, slots.data(), dt_rank);
  const bool float_activations = !slots[kTapScales].has_value();
  check_dtype(base, at::kFloat, "base");
  TORCH_CHECK_VALUE(base.dim() == 2 && base.is_contiguous() && base.size(0) <= kMaxHadamardBase &&
                        shape.channels % base.size(0) == 0, "base ", base.sizes(), " does not fit ", shape.channels,
                    " channels");
  std::vector<Layer> views;
  views.reserve(count);
  for (size_t i = 0; i < count; ++i)
    views.push_back(read_layer(slots.data() + i * kSlots, shape, conv_states[i], ssm_states[i], group_size,
                               float_activations));
  std::optional<Head> last;
  if (logits.has_value()) {
    TORCH_CHECK_VALUE(norm_weight.has_value(), "logits need norm_weight");
    last = read_head(head.vec(), *norm_weight, *logits, shape, group_size);
    TORCH_CHECK_VALUE(float_activations || dynamic || last->in_scale, "static scales need the head's input scale");
  }
  float* data = hidden.mutable_data_ptr<float>();
  if (float_activations) Step<float>(data, std::move(views), last, shape, base, eps, dynamic).run();
  else Step<int8_t>(data, std::move(views), last, shape, base, eps, dynamic).run();
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) { m.impl("mamba1_step", &mamba1_step); }

}  // namespace quamba::cpu
