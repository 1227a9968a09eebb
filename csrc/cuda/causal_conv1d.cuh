// Depthwise causal convolution + SiLU of float32 or int8: one kernel serves prefill, continuation and a single token.
//
// Dims: B batch, L tokens, D channels, K width. A thread has kChannels neighbouring channels and a run of tokens; the
// kTaps >= K newest ones stay in its registers. conv_state is touched by the threads of a row's first run alone, which
// read it before they write it: blocks do not race for it.
#pragma once

#include "elementwise.cuh"

namespace quamba::cuda {

constexpr int kMaxConvWidth = 16;  // MAX_CONV_WIDTH of quamba/ops/schemas.py

template <typename T>
struct ConvArgs {
  const T* x;  // [B, L, D], a row's values contiguous
  int64_t x_batch, x_token;
  const T* weight;         // [D, K]
  const float* scale;      // [D] input scale * weight scale; null for float
  const float* bias;       // [D] or null
  const float* out_scale;  // [D], or one value with stride 0; null for float
  int64_t out_scale_stride;
  T* conv_state;  // [B, D, K] newest last, or null: zeros
  T* out;         // [B, L, D]
  int64_t tokens, channels;
  unsigned runs;  // of a row's tokens
  int width;
  bool whole_taps;  // K is 4, weight and conv_state are aligned: a channel's taps are one load
};

// Tokens of a thread: at least kTaps - 1, so that no run but the first looks back beyond the first token.
QUAMBA_HOST_DEVICE constexpr int conv_run(int taps) { return taps <= 4 ? 8 : 16; }

// The values of neighbouring channels at one token.
template <typename T, int kChannels>
struct ConvValues;

template <int kChannels>
struct ConvValues<float, kChannels> {
  float value[kChannels];

  __device__ __forceinline__ void load(const float* p) {
    if constexpr (kChannels == 4) {
      const float4 all = __ldg(reinterpret_cast<const float4*>(p));
      value[0] = all.x, value[1] = all.y, value[2] = all.z, value[3] = all.w;
    } else {
      value[0] = __ldg(p);
    }
  }
  __device__ __forceinline__ void store(float* p) const {
    if constexpr (kChannels == 4)
      *reinterpret_cast<float4*>(p) = make_float4(value[0], value[1], value[2], value[3]);
    else *p = value[0];
  }
  __device__ __forceinline__ void set(int c, float x) { value[c] = x; }
};

template <int kChannels>
struct ConvValues<int8_t, kChannels> {
  uint32_t bytes;

  __device__ __forceinline__ void load(const int8_t* p) {
    if constexpr (kChannels == 4) bytes = __ldg(reinterpret_cast<const uint32_t*>(p));
    else bytes = low_byte(__ldg(p));
  }
  __device__ __forceinline__ void store(int8_t* p) const {
    if constexpr (kChannels == 4) *reinterpret_cast<uint32_t*>(p) = bytes;
    else *p = static_cast<int8_t>(bytes);
  }
  __device__ __forceinline__ void set(int c, int8_t x) { bytes |= low_byte(x) << 8 * c; }
};

// The newest kTaps tokens of a channel, or its weights: newest last, zeros in front where K is less.
template <typename T, int kTaps>
struct ConvWindow;

template <int kTaps>
struct ConvWindow<float, kTaps> {
  float tap[kTaps];

  __device__ __forceinline__ void load(const float* p, int width, bool whole) {
    if (kTaps == 4 && whole) {
      const float4 all = *reinterpret_cast<const float4*>(p);
      tap[0] = all.x, tap[1] = all.y, tap[2] = all.z, tap[3] = all.w;
      return;
    }
#pragma unroll
    for (int i = 0; i < kTaps; ++i) tap[i] = i + width >= kTaps ? p[i + width - kTaps] : 0.0f;
  }
  __device__ __forceinline__ void store(float* p, int width, bool whole) const {
    if (kTaps == 4 && whole) {
      *reinterpret_cast<float4*>(p) = make_float4(tap[0], tap[1], tap[2], tap[3]);
      return;
    }
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
      if (i + width >= kTaps) p[i + width - kTaps] = tap[i];
  }
  template <int kChannels>
  __device__ __forceinline__ void push(const ConvValues<float, kChannels>& x, int c) {
#pragma unroll
    for (int i = 0; i + 1 < kTaps; ++i) tap[i] = tap[i + 1];
    tap[kTaps - 1] = x.value[c];
  }
  __device__ __forceinline__ float dot(const ConvWindow& weight, int width) const {
    float acc = 0.0f;
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
      if (i + width >= kTaps) acc = fmaf(tap[i], weight.tap[i], acc);
    return acc;
  }
};

template <int kTaps>
struct ConvWindow<int8_t, kTaps> {
  static constexpr int kWords = kTaps / 4;
  uint32_t word[kWords];  // a byte a tap, the newest on top of the last

  __device__ __forceinline__ void load(const int8_t* p, int width, bool whole) {
    if (kTaps == 4 && whole) {
      word[0] = *reinterpret_cast<const uint32_t*>(p);
      return;
    }
#pragma unroll
    for (int i = 0; i < kWords; ++i) word[i] = 0;
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
      if (i + width >= kTaps) word[i / 4] |= low_byte(p[i + width - kTaps]) << i % 4 * 8;
  }
  __device__ __forceinline__ void store(int8_t* p, int width, bool whole) const {
    if (kTaps == 4 && whole) {
      *reinterpret_cast<uint32_t*>(p) = word[0];
      return;
    }
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
      if (i + width >= kTaps) p[i + width - kTaps] = static_cast<int8_t>(word[i / 4] >> i % 4 * 8);
  }
  template <int kChannels>
  __device__ __forceinline__ void push(const ConvValues<int8_t, kChannels>& x, int c) {
#pragma unroll
    for (int i = 0; i + 1 < kWords; ++i) word[i] = __byte_perm(word[i], word[i + 1], 0x4321);
    word[kWords - 1] = __byte_perm(word[kWords - 1], x.bytes, (4 + c) << 12 | 0x321);
  }
  __device__ __forceinline__ int dot(const ConvWindow& weight, int) const {
    int acc = 0;
#pragma unroll
    for (int i = 0; i < kWords; ++i) acc = __dp4a(static_cast<int>(word[i]), static_cast<int>(weight.word[i]), acc);
    return acc;
  }
};

__device__ __forceinline__ float conv_output(float acc, float, float bias, float) { return silu(acc + bias); }
__device__ __forceinline__ int8_t conv_output(int acc, float scale, float bias, float out_scale) {
  return quantized(silu(static_cast<float>(acc) * scale + bias), out_scale);
}

// Pushes kTokens tokens from x on.
template <int kTokens, typename T, int kChannels, int kTaps>
__device__ __forceinline__ void push_tokens(ConvWindow<T, kTaps> (&taps)[kChannels], const T* x, int64_t x_token) {
#pragma unroll
  for (int i = 0; i < kTokens; ++i, x += x_token) {
    ConvValues<T, kChannels> values;
    values.load(x);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) taps[c].push(values, c);
  }
}

// Block: any number of threads. Grid: B * runs, then blocks of channels. kChannels 4 needs D, x and its strides to be
// multiples of 4 values.
template <typename T, int kChannels, int kTaps>
__global__ void causal_conv1d_kernel(ConvArgs<T> args) {
  constexpr int kRun = conv_run(kTaps);
  const int64_t d = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kChannels;
  if (d >= args.channels) return;
  const int64_t batch = blockIdx.x / args.runs, first = static_cast<int64_t>(blockIdx.x % args.runs) * kRun;
  const int count = static_cast<int>(args.tokens - first < kRun ? args.tokens - first : kRun);
  const T* x = args.x + batch * args.x_batch + d;
  T* state = args.conv_state ? args.conv_state + (batch * args.channels + d) * args.width : nullptr;
  T* out = args.out + (batch * args.tokens + first) * args.channels + d;

  ConvValues<T, kChannels> run[kRun];
  const T* token = x + first * args.x_token;
#pragma unroll
  for (int i = 0; i < kRun; ++i, token += args.x_token)
    if (i < count) run[i].load(token);
  ConvWindow<T, kTaps> weight[kChannels], taps[kChannels] = {};
  float scale[kChannels], bias[kChannels], out_scale[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    weight[c].load(args.weight + (d + c) * args.width, args.width, args.whole_taps);
    scale[c] = args.scale ? args.scale[d + c] : 1.0f;
    bias[c] = args.bias ? args.bias[d + c] : 0.0f;
    out_scale[c] = args.out_scale ? args.out_scale[(d + c) * args.out_scale_stride] : 1.0f;
    if (first == 0 && state) taps[c].load(state + c * args.width, args.width, args.whole_taps);
  }
  if (first > 0) push_tokens<kTaps - 1>(taps, x + (first - (kTaps - 1)) * args.x_token, args.x_token);
#pragma unroll
  for (int i = 0; i < kRun; ++i, out += args.channels) {
    if (i >= count) break;
    ConvValues<T, kChannels> result{};
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      taps[c].push(run[i], c);
      result.set(c, conv_output(taps[c].dot(weight[c], args.width), scale[c], bias[c], out_scale[c]));
    }
    result.store(out);
  }
  if (first > 0 || !state) return;
  if (args.runs > 1) push_tokens<kTaps>(taps, x + (args.tokens - kTaps) * args.x_token, args.x_token);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) taps[c].store(state + c * args.width, args.width, args.whole_taps);
}

}  // namespace quamba::cuda
