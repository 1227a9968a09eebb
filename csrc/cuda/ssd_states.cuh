// The caller's states, [B, S, P, N] float or int8 with a scale for every row: four n of a row at a time.
#pragma once

#include "elementwise.cuh"

namespace quamba::cuda {

// `count` of the four are there, the others are 0. `vectors`: all are, and the first one's address is a vector's.
__device__ __forceinline__ float4 load_state(const float* from, float, int count, bool vectors) {
  if (vectors) return *reinterpret_cast<const float4*>(from);
  return make_float4(count > 0 ? from[0] : 0.0f, count > 1 ? from[1] : 0.0f, count > 2 ? from[2] : 0.0f,
                     count > 3 ? from[3] : 0.0f);
}

__device__ __forceinline__ float4 load_state(const int8_t* from, float scale, int count, bool vectors) {
  char4 bytes = make_char4(0, 0, 0, 0);
  if (vectors) {
    bytes = *reinterpret_cast<const char4*>(from);
  } else {
    if (count > 0) bytes.x = from[0];
    if (count > 1) bytes.y = from[1];
    if (count > 2) bytes.z = from[2];
    if (count > 3) bytes.w = from[3];
  }
  return dequantized(bytes, scale);
}

__device__ __forceinline__ void store_state(float* to, float4 h, float, int count, bool vectors) {
  if (vectors) {
    *reinterpret_cast<float4*>(to) = h;
    return;
  }
  if (count > 0) to[0] = h.x;
  if (count > 1) to[1] = h.y;
  if (count > 2) to[2] = h.z;
  if (count > 3) to[3] = h.w;
}

__device__ __forceinline__ void store_state(int8_t* to, float4 h, float scale, int count, bool vectors) {
  if (vectors) {
    *reinterpret_cast<char4*>(to) =
        make_char4(quantized(h.x, scale), quantized(h.y, scale), quantized(h.z, scale), quantized(h.w, scale));
    return;
  }
  if (count > 0) to[0] = quantized(h.x, scale);
  if (count > 1) to[1] = quantized(h.y, scale);
  if (count > 2) to[2] = quantized(h.z, scale);
  if (count > 3) to[3] = quantized(h.w, scale);
}

}  // namespace quamba::cuda
