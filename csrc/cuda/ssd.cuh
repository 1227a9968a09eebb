// Mamba2's recurrence (state-space duality, arXiv 2405.21060, section 6): what its kernels are given and share.
//
// Dims: B batch, L tokens, S heads, P head_dim, D = S P, G groups (S / G heads each share B and C), N d_state,
// Q tokens of a chunk, K chunks. Of a head, with a_t = exp(sum_{i <= t} dt_i A) over a chunk and h [P, N] the state
// before it:
//   y_t = a_t h C_t + sum_{s <= t} (C_t B_s) (a_t / a_s) dt_s x_s + D x_t         ssd_chunk_scan.cuh
//   h <- a_Q h + sum_s (a_Q / a_s) dt_s x_s B_s        the sum: ssd_chunk_state.cuh, the rest: ssd_state_passing.cuh
// One token is a pass over the states: ssd_token.cuh.
#pragma once

#include "elementwise.cuh"

namespace quamba::cuda {

constexpr int kSsdRows = 64;      // tokens of a tile; Q is a multiple
constexpr int kSsdThreads = 256;  // of the kernels that multiply matrices
constexpr int kSsdWarps = kSsdThreads / kWarp;
constexpr int kSsdMaxHeads = kSsdWarps;  // of a block, one after the other: what they share is read or computed once

// Values of batch row b, token t and column i lie at b * batch + t * token + i.
struct SsdStrides {
  int64_t batch, token;
};

// T: float, or int8 with scales.
template <typename T>
struct SsdArgs {
  const T *x, *B, *C;  // [B, L, D], [B, L, G, N]
  const float* dt;     // [B, L, S]
  SsdStrides x_at, B_at, C_at, dt_at;
  int64_t B_group, C_group;                  // strides
  const float *A, *D, *dt_bias;              // [S]; the last two may be null
  const float *x_scale, *B_scale, *C_scale;  // [D], [G], [G]; null for floats
  float dt_min, dt_max;
  void* state;               // [B, S, P, N] float, or int8 with state_scale; null: zeros that nobody wants to have
  const float* state_scale;  // [S, P]
  bool state_vectors;        // rows of the states start and end at multiples of four values
  float* out;                // [B, L, D]
  int tokens, heads, groups, head_dim, d_state;
  // of more than one token
  bool x_vectors, B_vectors, C_vectors;  // a head's or a group's row starts and ends at multiples of 16 bytes
  int chunks, state_columns;             // K; N rounded up to a multiple of 4
  int block_heads, slices;               // heads of a block at most, and how many blocks share those of a group
  float* decays;                         // [B, K, S, 3, Q]: log2 a_t as a sum of two floats, dt
  float* states;                         // [B, K, S, P, state_columns]: what a chunk adds, then the state before it
};

// 2^x, but 0 for what is lost beside any other term: denormal numbers lose accuracy in products.
__device__ __forceinline__ float ssd_decay(float x) { return x < -100.0f ? 0.0f : exp2f(x); }

// A NaN stays one.
__device__ __forceinline__ float ssd_step_size(float dt, float dt_min, float dt_max) {
  const float step = softplus(dt);
  const float limited = step < dt_min ? dt_min : step;
  return limited > dt_max ? dt_max : limited;
}

// The heads that a block computes: `slice` counts those of all groups.
struct SsdHeads {
  int group, first, end;
};

template <typename T>
__device__ __forceinline__ SsdHeads ssd_heads(const SsdArgs<T>& args, int slice) {
  const int group_heads = args.heads / args.groups, group = slice / args.slices;
  const int first = group * group_heads + slice % args.slices * args.block_heads, last = (group + 1) * group_heads;
  return {group, first, min(first + args.block_heads, last)};
}

}  // namespace quamba::cuda
