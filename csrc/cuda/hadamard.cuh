// Rows times kron(Sylvester(s), base) / sqrt(n), alone or quantized: a fast Walsh-Hadamard transform in shared memory.
//
// Dims: n = s * p values of a row, base [p, p]. A block is a row, which stays in shared memory (hadamard_rows.cuh). The
// first pass multiplies blocks of p by the base, kFirst blocks to a thread, and does their log2(kFirst) levels of
// butterflies; every further pass does three or four levels at once in registers (radix 8 or 16).
#pragma once

#include "hadamard_rows.cuh"

namespace quamba::cuda {

constexpr int kMaxHadamardBase = 64;
constexpr int kMaxFirst = 16;
constexpr int kHadamardThreads = 512;  // the most of a block

// Floats of shared memory of the base, a multiple of 4, and of it and the row behind it.
QUAMBA_HOST_DEVICE constexpr int hadamard_base_floats(int p) { return (p * p + 3) / 4 * 4; }
QUAMBA_HOST_DEVICE constexpr int64_t hadamard_shared_floats(int64_t n, int p, int first) {
  return hadamard_base_floats(p) + n + n / (first * p) * hadamard_padding(first, p);
}

// All levels of kRadix values.
template <int kRadix>
__device__ __forceinline__ void butterflies(float (&v)[kRadix]) {
#pragma unroll
  for (int run = 1; run < kRadix; run *= 2) {
#pragma unroll
    for (int i = 0; i < kRadix; ++i) {
      if (i & run) continue;
      const float low = v[i], high = v[i + run];
      v[i] = low + high;
      v[i + run] = low - high;
    }
  }
}

// v[first + r] = block r of `blocks` [kBlocks, p] times the column of the base [p, p] that starts at `base`.
template <int kBlocks, int kFirst>
__device__ __forceinline__ void multiply(float (&v)[kFirst], int first, const float* blocks, const float* base, int p) {
  float sum[kBlocks] = {};
  int i = 0;
#pragma unroll 1
  for (; p % 4 == 0 && i < p; i += 4, base += 4 * p) {
    const float of_base[4] = {base[0], base[p], base[2 * p], base[3 * p]};
    const float* block = blocks + i;
#pragma unroll
    for (int r = 0; r < kBlocks; ++r, block += p) {
      const float4 x = load_float4(block);
      sum[r] = fmaf(x.x, of_base[0], sum[r]);
      sum[r] = fmaf(x.y, of_base[1], sum[r]);
      sum[r] = fmaf(x.z, of_base[2], sum[r]);
      sum[r] = fmaf(x.w, of_base[3], sum[r]);
    }
  }
#pragma unroll 1
  for (; i < p; ++i, base += p) {
    const float* block = blocks + i;
#pragma unroll
    for (int r = 0; r < kBlocks; ++r, block += p) sum[r] = fmaf(*block, *base, sum[r]);
  }
#pragma unroll
  for (int r = 0; r < kBlocks; ++r) v[first + r] = sum[r];
}

// A base of one value: kFirst values in a row, a multiple of 4.
template <int kFirst>
__device__ __forceinline__ void load_run(float (&v)[kFirst], const float* row, float base) {
#pragma unroll
  for (int r = 0; r < kFirst; r += 4) {
    const float4 x = load_float4(row + r);
    v[r] = x.x * base, v[r + 1] = x.y * base, v[r + 2] = x.z * base, v[r + 3] = x.w * base;
  }
}
template <int kFirst>
__device__ __forceinline__ void store_run(const float (&v)[kFirst], float* row) {
#pragma unroll
  for (int r = 0; r < kFirst; r += 4)
    store_float4(row + r, make_float4(v[r], v[r + 1], v[r + 2], v[r + 3]));
}

// The first pass, in place, by a multiple of p threads: those that read the same group do so before any writes it.
template <int kFirst>
__device__ __forceinline__ void first_pass(float* row, const float* base, int n, int p) {
  constexpr int kAtOnce = kFirst < 8 ? kFirst : 8;  // blocks whose values and sums the registers hold
  const unsigned items = static_cast<unsigned>(n / kFirst), threads = blockDim.x - blockDim.x % p;
  const bool runs = kFirst % 4 == 0 && p == 1;
  for (unsigned start = 0; start < items; start += threads) {
    const unsigned item = threadIdx.x < threads ? start + threadIdx.x : items, group = item / p, column = item % p;
    float* blocks = row + group * (kFirst * p + hadamard_padding(kFirst, p));
    float v[kFirst];
    if (item < items) {
      if constexpr (kFirst % 4 == 0) {
        if (runs) load_run(v, blocks, *base);
      }
      if (!runs) {
#pragma unroll
        for (int r = 0; r < kFirst; r += kAtOnce) multiply<kAtOnce>(v, r, blocks + r * p, base + column, p);
      }
      butterflies(v);
    }
    __syncthreads();
    if (item >= items) continue;
    if constexpr (kFirst % 4 == 0) {
      if (runs) store_run(v, blocks);
    }
    if (runs) continue;
    blocks += column;
#pragma unroll
    for (int r = 0; r < kFirst; ++r, blocks += p) *blocks = v[r];
  }
}

// Levels of runs of `run`, 2 run, ..., kRadix / 2 run values, in place: a thread reads what it writes. `run` is a
// multiple of `group`.
template <int kRadix>
__device__ __forceinline__ void further_pass(float* row, int n, unsigned run, unsigned group, unsigned padding) {
  const unsigned padded_run = run + run / group * padding;
  for (unsigned item = threadIdx.x; item < static_cast<unsigned>(n / kRadix); item += blockDim.x) {
    const unsigned outer = item / run, inner = item % run;
    float* first = row + outer * kRadix * padded_run + inner + inner / group * padding;
    float v[kRadix];
    float* at = first;
#pragma unroll
    for (int r = 0; r < kRadix; ++r, at += padded_run) v[r] = *at;
    butterflies(v);
    at = first;
#pragma unroll
    for (int r = 0; r < kRadix; ++r, at += padded_run) *at = v[r];
  }
}

__device__ __forceinline__ float rotated(float x, float norm, const float* multiplier, int i) {
  x *= norm;
  return multiplier ? x * multiplier[i] : x;
}

__device__ __forceinline__ void write(float* out, float x, float) { *out = x; }
__device__ __forceinline__ void write(int8_t* out, float x, float scale) { *out = quantized(x, scale); }
__device__ __forceinline__ void write_four(float* out, const float (&x)[4], float) {
  store_float4(out, make_float4(x[0], x[1], x[2], x[3]));
}
__device__ __forceinline__ void write_four(int8_t* out, const float (&x)[4], float scale) {
  uint32_t bytes = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) bytes |= low_byte(quantized(x[i], scale)) << 8 * i;
  *reinterpret_cast<uint32_t*>(out) = bytes;
}

// Block: whole warps, at least p threads. Grid: rows. Shared: hadamard_shared_floats. radix is 8 or 16, and
// n = p * kFirst * a power of radix. Rows: PlainRows or GatedRows.
template <int kFirst, typename Rows, typename Out>
__global__ void __launch_bounds__(kHadamardThreads)
    hadamard_kernel(Rows rows,                // [rows, n]
                    const float* base,        // [p, p]
                    const float* multiplier,  // [n] or null
                    const float* scale,       // one value, for int8 results
                    Out* out,                 // [rows, n]
                    int n, int p, int radix) {
  const int group = kFirst * p, padding = hadamard_padding(kFirst, p);
  float *of_base = dynamic_shared<float>(), *row = of_base + hadamard_base_floats(p);
  rows.load(row, n, group, padding);
  for (int i = threadIdx.x; i < p * p; i += blockDim.x) of_base[i] = base[i];
  __syncthreads();
  first_pass<kFirst>(row, of_base, n, p);
  __syncthreads();
  for (int run = group; run < n; run *= radix) {
    if (radix == 16) further_pass<16>(row, n, run, group, padding);
    else further_pass<8>(row, n, run, group, padding);
    __syncthreads();
  }
  const float norm = 1.0f / sqrtf(static_cast<float>(n)), s = scale_at(scale);
  const bool whole = n % 4 == 0;
  const int values = whole ? 4 : 1, start = threadIdx.x * values, step = static_cast<int>(blockDim.x) * values;
  out += blockIdx.x * static_cast<int64_t>(n);
  HadamardWalk at(start, step, group, padding);
  for (int i = start; i < n; i += step, at.next()) {
    if (whole) {
      const float4 v = load_float4(row + at.position);
      const float result[4] = {rotated(v.x, norm, multiplier, i), rotated(v.y, norm, multiplier, i + 1),
                               rotated(v.z, norm, multiplier, i + 2), rotated(v.w, norm, multiplier, i + 3)};
      write_four(out + i, result, s);
    } else {
      write(out + i, rotated(row[at.position], norm, multiplier, i), s);
    }
  }
}

}  // namespace quamba::cuda
