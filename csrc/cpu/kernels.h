// The table of CPU kernels that each instruction set fills: raw pointers, one thread, a range of the work.
//
// Dims: B batch, L tokens, D channels (d_inner), N d_state, K conv width, H hidden, M rows, I in, O out.
// Mamba2: S heads, P head_dim, D = S * P, G SSD groups (of S / G heads each).
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
  const float* out_scale;  // [D], or one value with stride 0; unused for float
  int64_t out_scale_stride;
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

// One batch row of Mamba2's scan. T is float or int8_t (x, B and C alike); strides are in elements.
template <typename T>
struct SsdArgs {
  const T* x;            // [L, D], row stride x_stride
  int64_t x_stride;
  const T* B;            // [L, G, N], strides of tokens and of groups
  int64_t B_stride, B_group_stride;
  const T* C;            // as B
  int64_t C_stride, C_group_stride;
  const float* x_scale;  // [D]; unused for float, as the next two
  const float* B_scale;  // [G]
  const float* C_scale;  // [G]
  const float* dt;       // [L, S] before bias and softplus, row stride dt_stride
  int64_t dt_stride;
  const float* dt_bias;  // [S] or null
  float dt_min, dt_max;  // limits of a step
  const float* A;        // [S], negative
  const float* D;        // [S] or null
  void* state;           // [S, P, N] float, or int8 with a state_scale; read and written; or null: starts at zero and
                         // is dropped
  const float* state_scale;  // [S, P] or null
  float* out;                // [L, D]
  float* scratch;            // ssd_scratch_floats(...), of the calling thread alone
  int64_t tokens, heads, groups, head_dim, d_state;
};

constexpr int64_t kSsdChunk = 48;  // tokens, an odd multiple of 16, see ssd_row_stride

// How far apart rows of that many floats stand: an odd multiple of 16, or else what a product reads down a column would
// share a few sets of the cache.
inline int64_t ssd_row_stride(int64_t columns) { return ((columns + 15) / 16 | 1) * 16; }

constexpr int64_t kSsdAmxChunk = 96;  // with AMX: a multiple of 32, the fastest of 32 to 128

inline int64_t ssd_amx_padded(int64_t size) { return (size + 31) / 32 * 32; }

// Floats of scratch of the scan with AMX over that many heads, see ssd_scan_amx-inl.h.
inline int64_t ssd_amx_scratch_floats(int64_t heads, int64_t head_dim, int64_t d_state) {
  const int64_t P = ssd_amx_padded(head_dim), N = ssd_amx_padded(d_state);
  return kSsdAmxChunk * (3 * N / 2 + 2 * kSsdAmxChunk + 3 * 32 / 2) + N * 32 + heads * N * P;
}

// Floats of scratch for a scan over that many heads: B and C of a token; or those of a chunk with its scores, a head's
// mixing matrix and x, and every head's state. Enough for any instruction set.
inline int64_t ssd_scratch_floats(int64_t tokens, int64_t heads, int64_t head_dim, int64_t d_state) {
  const int64_t P = ssd_row_stride(head_dim), N = ssd_row_stride(d_state);
  if (tokens == 1) return 2 * N;
  const int64_t floats = kSsdChunk * (2 * N + 2 * kSsdChunk + P) + heads * N * P;
  const int64_t amx_floats = ssd_amx_scratch_floats(heads, head_dim, d_state);
  return floats > amx_floats ? floats : amx_floats;
}

// Where a linear layer's outputs go, and as what.
struct LinearOutput {
  const float* x_scale;    // of row m at m * x_scale_stride (0: one for all rows); null: 1
  int64_t x_scale_stride;
  const float* bias;       // [O] or null
  const float* out_scale;  // [O]: outputs are quantized to int8; null: they stay float
  void* to;                // float or int8 [M, O]
  int64_t stride;          // elements from row to row
};

// A linear layer on laid-out rows, with weights in tiles of 16 outputs: see linear_w8-inl.h and linear_w4-inl.h.
struct LinearArgs {
  const void* x;       // int8 or float [M, I rounded up to kInputPadding], zeros beyond I; linear_w8a8: prepare_w8a8;
                       // float rows in tiles: split_rows
  int64_t x_stride;    // elements from row to row
  const float* x_sums; // [M, G] sum of the activations of each group; null with int8 weights
  int64_t rows;
  const void* weight;
  const void* scale;   // int8 weights: float [O]; uint4: float16 [O / 16, G, 16]
  const uint8_t* zero; // [O / 16, G, 16]; null: int8 weights
  int64_t in, group_size;
  void* scratch;       // kScratchBlocks blocks of 16 outputs, a byte an input, inputs rounded up to kInputPadding;
                       // float rows in tiles: kPanelWords for 32 inputs
  LinearOutput out;
};

inline int64_t group_count(const LinearArgs& args) { return (args.in + args.group_size - 1) / args.group_size; }

constexpr int64_t kOutputBlock = 16, kInputPadding = 64, kScratchBlocks = 2;
constexpr int64_t kSplitWords = 3 * 256, kPanelWords = 2 * 256;  // of 16 float rows and of 32 outputs, for 32 inputs
constexpr int64_t kMinGroup = 32;  // group sizes are this times a power of two
constexpr int64_t kMaxFeatures = int64_t{1} << 40;  // of a layer: sizes computed from them do not overflow
constexpr int64_t kMaxConvWidth = 16;
constexpr int64_t kMaxHadamardBase = 64;
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
  // the same for many float rows in tiles of bfloat16, see linear_amx_float-inl.h; null without them
  void (*linear_w8a16_tiles)(const LinearArgs& args, int64_t begin, int64_t end);
  void (*linear_w4a16_tiles)(const LinearArgs& args, int64_t begin, int64_t end);
  // up to 16 rows [rows, I] as those read them
  void (*split_rows)(const float* x, int64_t rows, int64_t in, int32_t* to);
  // the weights of a block of 16 outputs as floats [I, 16], rows `stride` apart
  void (*dequantize_w8)(const LinearArgs& args, int64_t block, float* to, int64_t stride);
  void (*dequantize_w4)(const LinearArgs& args, int64_t block, float* to, int64_t stride);
  // channels [begin, end) of one batch row
  void (*causal_conv1d_float)(const ConvArgs<float>& args, int64_t begin, int64_t end);
  void (*causal_conv1d_int8)(const ConvArgs<int8_t>& args, int64_t begin, int64_t end);
  void (*selective_scan_float)(const ScanArgs<float>& args, int64_t begin, int64_t end);
  void (*selective_scan_int8)(const ScanArgs<int8_t>& args, int64_t begin, int64_t end);
  // heads [begin, end) of one batch row: chunks of tokens, or a single token in one pass over the state
  void (*ssd_scan_float)(const SsdArgs<float>& args, int64_t begin, int64_t end);
  void (*ssd_scan_int8)(const SsdArgs<int8_t>& args, int64_t begin, int64_t end);
  // one group's part [n] of a row: y * silu(z * z_scale) / its rms
  void (*gated_rms_norm_float)(const float* y, const float* z, float z_scale, int64_t n, float eps, float* out);
  void (*gated_rms_norm_int8)(const float* y, const int8_t* z, float z_scale, int64_t n, float eps, float* out);
  // one row [n] times kron(Sylvester, base) / sqrt(n); base [p, p], p <= kMaxHadamardBase; out has room for n + 32
  void (*hadamard)(const float* x, int64_t n, const float* base, int64_t p, float* out);
};

const Kernels& kernels_portable();
#if defined(__x86_64__)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512_vnni();
const Kernels& kernels_avx512_amx(bool bf16);  // whether the CPU also has AMX for bfloat16
#endif

// The kernels in use: the best that this machine runs, or what QUAMBA_CPU_CAPABILITY names.
const Kernels& kernels();

}  // namespace quamba::cpu
