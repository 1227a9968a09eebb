// What mamba1_step and mamba2_step share: one token through all blocks, and the head where it is quantized, as one op.
// They call the kernels that the unfused ops call, on the same numbers in the same order, so that a token's result does
// not depend on which path computed it.
//
// Dims: B batch rows, H hidden, D d_inner. T: int8_t, or float at a_bits 16.
#pragma once

#include <omp.h>

#include "step_layers.h"
#include "step_threads.h"

namespace quamba::cpu {

// What a kernel needs of either activation type.
inline auto conv_kernel(int8_t) { return kernels().causal_conv1d_int8; }
inline auto conv_kernel(float) { return kernels().causal_conv1d_float; }

// The weights of the outputs in that range.
inline ReadAhead read_ahead(const LinearWeights& weights, Range range) {
  const int64_t block = range.begin / kOutputBlock, bytes = weights.block_bytes();
  return {static_cast<const char*>(weights.weight) + block * bytes, output_blocks(range.end - range.begin) * bytes};
}

// A thread of a step: its share of the work, and buffers of its own, since rows that every thread reads whole are laid
// out by each for itself.
template <typename T>
struct StepThread {
  const int index, count;
  StepBarrier& barrier;
  Range rows, hidden, words;     // batch rows, outputs of out_proj and of the head
  LinearRows<T> input;
  std::vector<uint8_t> scratch;  // of the kernels
  std::vector<float> row;        // a normalised or rotated row
  std::vector<T> quantized;
  ReadAhead next;                // what it reads after the next barrier

  Range outputs(int64_t n) const { return share(n, kOutputBlock, index, count); }
  void wait() { barrier.wait(count, next); }
  void wait_before(ReadAhead ahead) {
    next = ahead;
    wait();
  }
};

template <typename T>
class StepCore {
 public:
  static constexpr bool kFloat = std::is_same_v<T, float>;
  using Thread = StepThread<T>;

  // longest: inputs of the linear layer that has most.
  StepCore(const StepInput& in, int64_t batch, int64_t hidden, int64_t channels, int64_t longest)
      : in_(in), batch_(batch), hidden_size_(hidden), channels_(channels), longest_(longest),
        input_(batch, longest), input_scale_(batch), delta_(batch * hidden) {}

  // Runs body(thread) on every thread.
  template <typename Body>
  void run(const Body& body) const {
    const auto start = StepClock::now();
    int threads = step_crew().next(at::get_num_threads());
    StepBarrier barrier;
#pragma omp parallel num_threads(threads)
    {
      Thread own = make_thread(omp_get_thread_num(), omp_get_num_threads(), barrier);
      if (own.index == 0) threads = own.count;  // OpenMP may give fewer
      body(own);
    }
    step_crew().took(threads, StepClock::now() - start, barrier.slept());
  }

  // in_proj's input.
  void normalize(const StepLinear& in_proj, const float* scale, Thread& own) {
    for (int64_t r = own.rows.begin; r < own.rows.end; ++r) {
      kernels().rms_norm(in_.hidden + r * hidden_size_, hidden_size_, in_.eps, own.row.data());
      multiply_row(own.row.data(), in_proj.multiplier, hidden_size_);
      lay_out_row(in_proj.weights, scale, own.row.data(), r, own);
    }
  }

  // Outputs in `range` of a layer that reads what was laid out by `normalize`, `rotate` or here.
  void project(const LinearWeights& weights, const LinearOutput& out, Range range, Thread& own) const {
    multiply(input_, weights, out, range, own);
  }

  // What becomes of the outputs of those layers.
  LinearOutput output(const float* scale, const float* bias, void* to, int64_t stride) const {
    LinearOutput out{};
    if (!kFloat) out.x_scale = in_.dynamic ? input_scale_.data() : scale;
    out.x_scale_stride = in_.dynamic ? 1 : 0;
    out.bias = bias;
    out.to = to;
    out.stride = stride;
    return out;
  }

  void multiply(const LinearRows<T>& rows, const LinearWeights& weights, const LinearOutput& out, Range range,
                Thread& own) const {
    const LinearArgs args = rows.args(weights, batch_, out, own.scratch.data());
    if (range.begin < range.end) linear_kernel<T>(weights)(args, range.begin, range.end);
  }

  // A row that is quantized already, or float, as the thread's own input of a layer that reads all of it.
  void lay_out_whole(const StepLinear& linear, const T* x, int64_t r, Thread& own) const {
    if constexpr (kFloat) {
      if (linear.multiplier) {
        std::copy_n(x, linear.weights.in, own.row.data());
        multiply_row(own.row.data(), linear.multiplier, linear.weights.in);
        x = own.row.data();
      }
    }
    own.input.lay_out(linear.weights, x, r);
  }

  // out_proj's input: row r of y [B, D], rotated.
  void rotate(const StepLinear& out_proj, const float* scale, const float* y, int64_t r, Thread& own) {
    kernels().hadamard(y + r * channels_, channels_, in_.base, in_.base_size, own.row.data());
    multiply_row(own.row.data(), out_proj.multiplier, channels_);
    lay_out_row(out_proj.weights, scale, own.row.data(), r, own);
  }

  void add_output(const StepLinear& out_proj, const float* scale, Thread& own) {
    const LinearOutput out = output(scale, out_proj.bias, delta_.data(), hidden_size_);
    project(out_proj.weights, out, own.hidden, own);
    for (int64_t r = 0; r < batch_; ++r)
      for (int64_t o = own.hidden.begin; o < own.hidden.end; ++o)
        in_.hidden[r * hidden_size_ + o] += delta_[r * hidden_size_ + o];
  }

  // The logits, after the last layer's output.
  void predict(Thread& own) {
    if (!in_.head) return;
    const Head& head = *in_.head;
    own.wait_before(read_ahead(head.weights, own.words));
    for (int64_t r = own.rows.begin; r < own.rows.end; ++r) {
      kernels().rms_norm(in_.hidden + r * hidden_size_, hidden_size_, in_.eps, own.row.data());
      for (int64_t i = 0; i < hidden_size_; ++i) own.row[i] *= head.norm_weight[i];
      lay_out_row(head.weights, head.in_scale, own.row.data(), r, own);
    }
    own.wait();
    project(head.weights, output(head.in_scale, nullptr, head.logits, head.weights.out), own.words, own);
  }

 private:
  Thread make_thread(int index, int count, StepBarrier& barrier) const {
    Thread own{index, count, barrier, share(batch_, 1, index, count), {}, {}, LinearRows<T>(batch_, longest_),
               std::vector<uint8_t>(scratch_bytes(longest_)), std::vector<float>(longest_ + kHadamardPadding),
               std::vector<T>(longest_), {}};
    own.hidden = own.outputs(hidden_size_);
    if (in_.head) own.words = own.outputs(in_.head->weights.out);
    return own;
  }

  // `row` as the input of in_proj, out_proj or the head: quantized with the static scale or one of its own, or float.
  void lay_out_row(const LinearWeights& weights, const float* scale, const float* row, int64_t r, Thread& own) {
    if constexpr (kFloat) {
      input_.lay_out(weights, row, r);
    } else {
      if (in_.dynamic) input_scale_[r] = kernels().quantize_per_token(row, weights.in, own.quantized.data());
      else kernels().quantize(row, *scale, own.quantized.data(), weights.in);
      input_.lay_out(weights, own.quantized.data(), r);
    }
  }

  const StepInput in_;
  const int64_t batch_, hidden_size_, channels_, longest_;
  LinearRows<T> input_;             // of in_proj, of out_proj, of the head
  std::vector<float> input_scale_;  // [B], of its rows where scales are dynamic
  std::vector<float> delta_;        // [B, H]
};

}  // namespace quamba::cpu
