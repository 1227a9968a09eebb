// The part of CUDA C++ that the kernels of this folder use, for the C++ compiler: the threads of a block are fibres on
// one core, which give way at barriers and wherever the lanes of a warp meet. Included by platform.h alone.
//
// What it finds that a GPU would not: reads of shared memory or results that nothing has written (they are NaN, see
// kPoison), a barrier or a warp that some threads never reach (an error that says who waits where), writes beyond the
// dynamic shared memory asked for, blocks and grids that no GPU takes, and, since warps run one after the other from
// barrier to barrier, a missing barrier. Vectors that do not lie at a multiple of their size are errors, as on a GPU,
// that say where (-fsanitize=alignment). What it cannot find: bank conflicts, speed, races between blocks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __constant__ static
// One block at a time; thread_local puts it all into one place, which is poisoned before every block.
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

#define QUAMBA_VECTOR2(type, scalar, alignment)      \
  struct alignas(alignment) type {                   \
    scalar x, y;                                     \
  };                                                 \
  inline type make_##type(scalar x, scalar y) { return {x, y}; }
#define QUAMBA_VECTOR4(type, scalar, alignment)      \
  struct alignas(alignment) type {                   \
    scalar x, y, z, w;                               \
  };                                                 \
  inline type make_##type(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
QUAMBA_VECTOR2(int2, int, 8)
QUAMBA_VECTOR2(uint2, unsigned, 8)
QUAMBA_VECTOR2(float2, float, 8)
QUAMBA_VECTOR4(char4, signed char, 4)
QUAMBA_VECTOR4(uchar4, unsigned char, 4)
QUAMBA_VECTOR4(int4, int, 16)
QUAMBA_VECTOR4(uint4, unsigned, 16)
QUAMBA_VECTOR4(float4, float, 16)
#undef QUAMBA_VECTOR2
#undef QUAMBA_VECTOR4

namespace quamba::emulation {

constexpr int kWarp = 32;
// Repeated over what nothing has written yet: a float32 and a float16 NaN, int8 -51 and 127.
constexpr uint32_t kPoison = 0x7fcdcdcdu;
void poison(void* begin, size_t bytes);

// Runs `thread` for every thread of every block. Raises std::runtime_error: what went wrong, and in which thread.
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

void* dynamic_shared();
void block_barrier();
unsigned lane();

// Lanes of a warp meet: the last of those that `mask` names and that have not ended calls resolve(what each brought,
// the lanes that came), then all go on. All must come with the same `resolve` and mask. `name` is for errors.
using Resolve = void (*)(void* const (&brought)[kWarp], unsigned came);
void meet(unsigned mask, const char* name, void* mine, Resolve resolve);

// cp.async, see copy_async.h: zeros without `from`.
void copy_later(void* to, const void* from, size_t bytes);
void commit_copies();
void wait_for_copies(int latest);

// Ends the launch with this error. Callable from kernels.
[[noreturn]] void fail(const char* message);

template <typename T>
struct Shuffled {
  T value, result;
  int source;
};

template <typename T>
T shuffle(unsigned mask, const char* name, T value, int source) {
  Shuffled<T> mine{value, value, source};
  meet(mask, name, &mine, [](void* const(&brought)[kWarp], unsigned came) {
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!(came >> lane & 1)) continue;
      Shuffled<T>& to = *static_cast<Shuffled<T>*>(brought[lane]);
      if (came >> to.source & 1) to.result = static_cast<Shuffled<T>*>(brought[to.source])->value;
      else poison(&to.result, sizeof(T));
    }
  });
  return mine.result;
}

struct Voted {
  bool predicate;
  unsigned result;
};
unsigned ballot(unsigned mask, const char* name, bool predicate);

template <typename To, typename From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace quamba::emulation

inline void __syncthreads() { quamba::emulation::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  quamba::emulation::meet(mask, "__syncwarp", nullptr, [](void* const(&)[quamba::emulation::kWarp], unsigned) {});
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// `width` lanes, a power of two, are a group with lane numbers of its own; a source outside of it is one's own lane.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = static_cast<int>(quamba::emulation::lane()) & ~(width - 1);
  return quamba::emulation::shuffle(mask, "__shfl_sync", value, first + (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flipped, int width = 32) {
  const int lane = static_cast<int>(quamba::emulation::lane()), source = lane ^ flipped;
  const bool inside = source < (lane & ~(width - 1)) + width;
  return quamba::emulation::shuffle(mask, "__shfl_xor_sync", value, inside ? source : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int lane = static_cast<int>(quamba::emulation::lane()), source = lane - static_cast<int>(distance);
  return quamba::emulation::shuffle(mask, "__shfl_up_sync", value, source < (lane & ~(width - 1)) ? lane : source);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int lane = static_cast<int>(quamba::emulation::lane()), source = lane + static_cast<int>(distance);
  const bool inside = source < (lane & ~(width - 1)) + width;
  return quamba::emulation::shuffle(mask, "__shfl_down_sync", value, inside ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return quamba::emulation::ballot(mask, "__ballot_sync", predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) {
  return quamba::emulation::ballot(mask, "__any_sync", predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return quamba::emulation::ballot(mask, "__all_sync", predicate == 0) == 0;
}

template <typename T, typename V>
T atomicAdd(T* to, V value) {
  const T before = *to;
  *to = before + static_cast<T>(value);
  return before;
}
template <typename T, typename V>
T atomicMax(T* to, V value) {
  const T before = *to;
  if (before < static_cast<T>(value)) *to = static_cast<T>(value);
  return before;
}

// c + the sum of four products of signed bytes.
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  return c;
}
// Four of the eight bytes b:a; each nibble of `selector` names one (its sign-replicating high bit is not used here).
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<unsigned>(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return out;
}
template <typename T>
T __ldg(const T* p) {
  return *p;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __float_as_int(float x) { return quamba::emulation::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return quamba::emulation::bits<unsigned>(x); }
inline float __int_as_float(int x) { return quamba::emulation::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return quamba::emulation::bits<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyintf(x)); }

template <typename T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
