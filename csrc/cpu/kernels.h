// The table of CPU kernels that each instruction set fills: raw pointers, one thread, a range of the work.
//
// Dims: B batch, L tokens, D channels (d_inner), N d_state, K conv width, H hidden, M rows, I in, O out.
#pragma once

#include <cstdint>

namespace quamba::cpu {

// One batch row of the causal convolution. Types: T is float or int8_t (input and output alike).
template <typename T>
struct ConvArgs {
  const T* x;           // [L, D], row stride x_stride
  int64_t x_stride;
  const T* weight;      // [D, K]
  const float* scale;   // [D] input scale * weight scale; unused for float
  const float* bias;    // [D] or null
  float out_scale;      // unused for float
  T* conv_state;        // [D, K] newest last, read and written; or null: zero context
  T* out;               // [L, D]
  T* scratch;           // [2K, D]
  int64_t tokens, channels, width;
};

// One batch row of the selective scan.
template <typename T>
struct ScanArgs {
  const T* x;           // [L, D], row stride x_stride
  int64_t x_stride;
  float x_scale;
  const float* dt;      // [L, D] before bias and softplus
  const float* dt_bias; // [D] or null
  const float* A;       // [D, N], negative
  const float* B;       // [L, N]
  const float* C;       // [L, N]
  const float* D;       // [D] or null
  const T* z;           // [L, D], row stride z_stride; or null
  int64_t z_stride;
  float z_scale;
  float* state;         // [D, N] read and written; or null: starts at zero and is dropped
  float* out;           // [L, D]
  float* scratch;       // [D rounded up to 16, 2, N]: A and the state, columns first
  int64_t tokens, channels, d_state;
};

// Where a linear layer's outputs go, and as what.
struct LinearOutput {
  const float* x_scale;    // of row m at m * x_scale_stride (0: one for all rows); null: 1
  int64_t x_scale_stride;
  const float* bias;       // [O] or null
  const float* out_scale;  // [O]: outputs are quantized to int8; null: they stay float
  void* to;                // float or int8 [M, O]
  int64_t stride;          // elements from row to row
};

// A linear layer on laid-out rows, with weights in tiles of 16 outputs: see linear_w8.h and linear_w4.h.
struct LinearArgs {
  const void* x;       // int8 or float [M, I rounded up to kInputPadding], zeros beyond I; linear_w8a8: prepare_w8a8
  int64_t x_stride;    // elements from row to row
  const float* x_sums; // [M, G] sum of the activations of each group; null with int8 weights
  int64_t rows;
  const void* weight;
  const void* scale;   // int8 weights: float [O]; uint4: float16 [O / 16, G, 16]
  const uint8_t* zero; // [O / 16, G, 16]; null: int8 weights
  int64_t in, group_size;
  void* scratch;       // kScratchBlocks blocks of 16 outputs, a byte an input, inputs rounded up to kInputPadding
  LinearOutput out;
};

inline int64_t group_count(const LinearArgs& args) { return (args.in + args.group_size - 1) / args.group_size; }

constexpr int64_t kOutputBlock = 16, kInputPadding = 64, kScratchBlocks = 2;
constexpr int64_t kMinGroup = 32;  // group sizes are this times a power of two
constexpr int64_t kMaxConvWidth = 16;
constexpr int64_t kMaxHadamardBase = 32;
constexpr int64_t kHadamardPadding = 32;

struct Kernels {
  const char* name;
  // q[i] = quantize(x[i] / scale)
  void (*quantize)(const float* x, float scale, int8_t* out, int64_t n);
  // [M, H] -> [M, H]: quantize(x / rms(x))
  void (*rms_norm_quant)(const float* x, int64_t rows, int64_t cols, float eps, float scale, int8_t* out);
  // one row [n]: x / rms(x)
  void (*rms_norm)(const float* x, int64_t n, float eps, float* out);
  // one row [n], quantized with a scale of its own, which is returned
  float (*quantize_per_token)(const float* x, int64_t n, int8_t* out);
  // a row [I] as linear_w8a8 reads it
  void (*prepare_w8a8)(const int8_t* x, int64_t in, int8_t* to);
  // the sums of a row's groups [G]
  void (*group_sums_int8)(const int8_t* x, int64_t in, int64_t group_size, float* sums);
  void (*group_sums_float)(const float* x, int64_t in, int64_t group_size, float* sums);
  // outputs [begin, end) of every row
  void (*linear_w8a8)(const LinearArgs& args, int64_t begin, int64_t end);
  void (*linear_w8a16)(const LinearArgs& args, int64_t begin, int64_t end);
  void (*linear_w4a8)(const LinearArgs& args, int64_t begin, int64_t end);
  void (*linear_w4a16)(const LinearArgs& args, int64_t begin, int64_t end);
  // the weights of a block of 16 outputs as floats [I, 16], rows `stride` apart
  void (*dequantize_w8)(const LinearArgs& args, int64_t block, float* to, int64_t stride);
  void (*dequantize_w4)(const LinearArgs& args, int64_t block, float* to, int64_t stride);
  // channels [begin, end) of one batch row
  void (*causal_conv1d_float)(const ConvArgs<float>& args, int64_t begin, int64_t end);
  void (*causal_conv1d_int8)(const ConvArgs<int8_t>& args, int64_t begin, int64_t end);
  void (*selective_scan_float)(const ScanArgs<float>& args, int64_t begin, int64_t end);
  void (*selective_scan_int8)(const ScanArgs<int8_t>& args, int64_t begin, int64_t end);
  // one row [n] times kron(Sylvester, base) / sqrt(n); base [p, p], p <= kMaxHadamardBase; out has room for n + 32
  void (*hadamard)(const float* x, int64_t n, const float* base, int64_t p, float* out);
};

const Kernels& kernels_portable();
#if defined(__x86_64__)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512_vnni();
const Kernels& kernels_avx512_amx();
#endif

// The kernels in use: the best that this machine runs, or what QUAMBA_CPU_CAPABILITY names.
const Kernels& kernels();

}  // namespace quamba::cpu
