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

constexpr int64_t kMaxConvWidth = 16;
constexpr int64_t kMaxHadamardBase = 32;
constexpr int64_t kHadamardPadding = 32;

struct Kernels {
  const char* name;
  // q[i] = quantize(x[i] / scale)
  void (*quantize)(const float* x, float scale, int8_t* out, int64_t n);
  // [M, H] -> [M, H]: quantize(x / rms(x))
  void (*rms_norm_quant)(const float* x, int64_t rows, int64_t cols, float eps, float scale, int8_t* out);
  // acc[m, o] = sum_i x[m, i] * w[o, i] for o in [out_begin, out_end)
  void (*int8_dot)(const int8_t* x, int64_t rows, const int8_t* weight, int64_t in, int64_t out_begin,
                   int64_t out_end, int32_t* acc, int64_t acc_stride);
  // [M, O]: acc * scale + bias, as float or quantized with out_scale
  void (*dequantize)(const int32_t* acc, int64_t rows, int64_t cols, const float* scale, const float* bias,
                     float* out);
  void (*requantize)(const int32_t* acc, int64_t rows, int64_t cols, const float* scale, const float* bias,
                     const float* out_scale, int8_t* out);
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
#endif

// The kernels in use: the best that this machine runs, or what QUAMBA_CPU_CAPABILITY names.
const Kernels& kernels();

}  // namespace quamba::cpu
