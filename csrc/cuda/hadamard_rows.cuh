// What a Hadamard transform's rows are, and where their values lie in shared memory.
//
// Dims: n values of a row, base [p, p]. A block is a row, of whole warps.
#pragma once

#include "elementwise.cuh"
#include "reduce.cuh"

namespace quamba::cuda {

// In shared memory a row is groups of kFirst * p values, what p threads of the first pass read. So many floats of
// nothing follow each: neighbouring groups then lie in different banks, and stay aligned.
QUAMBA_HOST_DEVICE constexpr int hadamard_padding(int first, int p) {
  return first * p <= 4 ? 0 : p % 4 == 0 ? p : 4;
}

// Where value i of a row lies, for i = first, first + step, ...
class HadamardWalk {
 public:
  __device__ __forceinline__ HadamardWalk(int first, int step, int group, int padding)
      : position(first + first / group * padding), offset_(first % group), group_(group), padding_(padding),
        step_(step + step / group * padding), step_offset_(step % group) {}

  __device__ __forceinline__ void next() {
    position += step_, offset_ += step_offset_;
    if (offset_ >= group_) offset_ -= group_, position += padding_;
  }

  int position;

 private:
  int offset_, group_, padding_, step_, step_offset_;
};

__device__ __forceinline__ float4 load_float4(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ __forceinline__ void store_float4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }

// Rows as they are.
struct PlainRows {
  const float* x;  // [rows, n]
  bool whole;      // n is a multiple of 4 and x is aligned

  // The block's row, into shared memory.
  __device__ __forceinline__ void load(float* row, int n, int group, int padding) const {
    const float* from = x + blockIdx.x * static_cast<int64_t>(n);
    const int values = whole ? 4 : 1, first = threadIdx.x * values, step = static_cast<int>(blockDim.x) * values;
    HadamardWalk at(first, step, group, padding);
    for (int i = first; i < n; i += step, at.next()) {
      if (whole) store_float4(row + at.position, __ldg(reinterpret_cast<const float4*>(from + i)));
      else row[at.position] = __ldg(from + i);
    }
  }
};

// Rows of y * SiLU(z), each of `parts` parts divided by its root mean square: Mamba2's gated norm.
template <typename T>
struct GatedRows {
  const float* y;        // [rows, n], rows y_stride apart
  const T* z;            // [rows, n], rows z_stride apart
  const float* z_scale;  // one value; null for float z
  int64_t y_stride, z_stride;
  int parts;
  float eps;
  bool whole;            // parts are multiples of 4, and rows of y and z start at a vector's address

  // The block's row, into shared memory. Warps split into teams, which take parts in turn; a thread comes back to the
  // values that it wrote itself.
  __device__ __forceinline__ void load(float* row, int n, int group, int padding) const {
    const int warps = blockDim.x / kWarp, teams = min(parts, warps), warp = threadIdx.x / kWarp;
    const int team = min(warp / (warps / teams), teams - 1), first_warp = team * (warps / teams);
    const int team_warps = team == teams - 1 ? warps - first_warp : warps / teams;
    const int values = whole ? 4 : 1, step = team_warps * kWarp * values, part = n / parts;
    const int offset = (static_cast<int>(threadIdx.x) - first_warp * kWarp) * values;
    for (int begin = 0; begin < n; begin += teams * part) {
      const int first = begin + team * part + offset, end = min(n, begin + (team + 1) * part);
      const HadamardWalk start(first, step, group, padding);
      const float squares = warps_sum(gate(row, start, first, end, step), first_warp, team_warps);
      const float factor = 1.0f / sqrtf(squares / static_cast<float>(part) + eps);
      HadamardWalk at = start;
      for (int i = first; i < end; i += step, at.next()) {
        float* const value = row + at.position;
        if (whole) store_float4(value, times(load_float4(value), factor));
        else *value *= factor;
      }
    }
  }

 private:
  // Values first, first + step, ... below `end`, gated; the sum of their squares.
  __device__ __forceinline__ float gate(float* row, HadamardWalk at, int first, int end, int step) const {
    const float* y_row = y + blockIdx.x * y_stride;
    const T* z_row = z + blockIdx.x * z_stride;
    const float scale = scale_at(z_scale);
    float squares = 0.0f;
    for (int i = first; i < end; i += step, at.next()) {
      if (whole) {
        const float4 of_y = __ldg(reinterpret_cast<const float4*>(y_row + i));
        const float4 of_z = dequantized(__ldg(reinterpret_cast<const VectorOf4<T>*>(z_row + i)), scale);
        const float4 v = make_float4(of_y.x * silu(of_z.x), of_y.y * silu(of_z.y), of_y.z * silu(of_z.z),
                                     of_y.w * silu(of_z.w));
        squares = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, squares))));
        store_float4(row + at.position, v);
      } else {
        const float v = __ldg(y_row + i) * silu(dequantized(__ldg(z_row + i), scale));
        squares = fmaf(v, v, squares);
        row[at.position] = v;
      }
    }
    return squares;
  }

  static __device__ __forceinline__ float4 times(float4 v, float factor) {
    return make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
  }
};

}  // namespace quamba::cuda
