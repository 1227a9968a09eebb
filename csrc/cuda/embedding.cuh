// Rows of a quantized table, dequantized.
//
// Dims: V vocabulary, H hidden, G groups of a row. The table lies in the tiles of quamba/ops/layout.py: 4 bytes of a
// token are neighbours, those of the next token stand behind them, 16 tokens to a tile. A block is a token, a thread
// 4 bytes at a time.
#pragma once

#include "platform.h"

#include <cstdio>

namespace quamba::cuda {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 4;  // of a row

// Ends the launch: nothing but the device knows the ids, and a wrong row would go unnoticed.
__device__ __forceinline__ void check_token(int64_t id, int64_t vocab) {
  if (id >= 0 && id < vocab) return;
#if defined(QUAMBA_EMULATED)
  char message[96];
  std::snprintf(message, sizeof(message), "token id %lld is outside the vocabulary of %lld", static_cast<long long>(id),
                static_cast<long long>(vocab));
  emulation::fail(message);
#else
  if (threadIdx.x == 0)
    printf("quamba: token id %lld is outside the vocabulary of %lld\n", static_cast<long long>(id),
           static_cast<long long>(vocab));
  __trap();
#endif
}

// 4 bytes of a token: their values go to out[0 .. kValues), of which `count` exist.
template <int kValues>
__device__ __forceinline__ void write_values(float* out, const float (&values)[kValues], int count, bool whole) {
  if (whole) {
#pragma unroll
    for (int i = 0; i < kValues; i += 4)
      *reinterpret_cast<float4*>(out + i) = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kValues; ++i)
    if (i < count) out[i] = values[i];
}

// Grid: tokens.
__global__ void embedding_int8_kernel(const int64_t* ids,
                                      const uint32_t* weight,  // [V / 16, H / 4, 16] words of 4 bytes
                                      const float* scale,      // [V]
                                      float* out,              // [tokens, H]
                                      int64_t vocab, int hidden) {
  const int64_t id = ids[blockIdx.x];
  check_token(id, vocab);
  const int words = ceil_div(hidden, kTileBytes);
  weight += id / kTileRows * words * kTileRows + id % kTileRows;
  out += static_cast<int64_t>(blockIdx.x) * hidden;
  const float of_row = scale[id];
  for (int word = threadIdx.x; word < words; word += blockDim.x) {
    const uint32_t bytes = weight[word * kTileRows];
    float values[kTileBytes];
#pragma unroll
    for (int i = 0; i < kTileBytes; ++i) values[i] = static_cast<float>(static_cast<int8_t>(bytes >> 8 * i)) * of_row;
    write_values(out + kTileBytes * word, values, hidden - kTileBytes * word, hidden % kTileBytes == 0);
  }
}

// Byte j of a word holds inputs j and 4 + j, see tile_uint4. Grid: tokens.
__global__ void embedding_int4_kernel(const int64_t* ids,
                                      const uint32_t* weight,  // [V / 16, H / 8, 16] words of 4 bytes
                                      const Half* scale,       // [V / 16, G, 16]
                                      const uint8_t* zero,     // [V / 16, G, 16]
                                      float* out,              // [tokens, H]
                                      int64_t vocab, int hidden, int group_size) {
  constexpr int kValues = 2 * kTileBytes;
  const int64_t id = ids[blockIdx.x];
  check_token(id, vocab);
  const int words = ceil_div(hidden, kValues), groups = ceil_div(hidden, group_size);
  const int64_t tile = id / kTileRows, row = id % kTileRows;
  weight += tile * words * kTileRows + row;
  scale += tile * groups * kTileRows + row;
  zero += tile * groups * kTileRows + row;
  out += static_cast<int64_t>(blockIdx.x) * hidden;
  for (int word = threadIdx.x; word < words; word += blockDim.x) {
    const uint32_t bytes = weight[word * kTileRows];
    const int group = word * kValues / group_size * kTileRows;
    const int of_group = zero[group];
    const float factor = static_cast<float>(scale[group]);
    float values[kValues];
#pragma unroll
    for (int i = 0; i < kTileBytes; ++i) {
      const int byte = static_cast<int>(bytes >> 8 * i & 0xff);
      values[i] = static_cast<float>((byte & 0xf) - of_group) * factor;
      values[kTileBytes + i] = static_cast<float>((byte >> 4) - of_group) * factor;
    }
    write_values(out + kValues * word, values, hidden - kValues * word, hidden % kValues == 0);
  }
}

}  // namespace quamba::cuda
