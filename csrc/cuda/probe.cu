// Ops of the namespace `quamba_probe`, for tests alone: one instruction each, so that what the emulation does with it
// can be compared with what is documented, and on a GPU with what that does. Schemas: PROBES of quamba/ops/emulated.py.

#include "checks.h"
#include "copy_async.h"
#include "mma.h"
#include "reduce.cuh"

namespace quamba::cuda {
namespace {

// Dims: M 16 rows, N 8 columns, K of the instruction.

__device__ __forceinline__ void fetch(uint32_t& to, const int8_t* k) {
  to = 0;
  for (int i = 0; i < 4; ++i) to |= static_cast<uint32_t>(static_cast<uint8_t>(k[i])) << 8 * i;
}
__device__ __forceinline__ void fetch(uint32_t& to, const BFloat16* k) { to = pack_bf16(k[0], k[1]); }
__device__ __forceinline__ void fetch(uint32_t& to, const float* k) { to = to_tf32(*k); }

__device__ __forceinline__ void multiply(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int8_t) {
  mma_s8(d, a, b);
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BFloat16) {
  mma_bf16(d, a, b);
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float) {
  mma_tf32(d, a, b);
}

// One warp: c [16, 8] += a [16, K] times b [8, K] transposed.
template <typename T, typename Out>
__global__ void mma_kernel(const T* a, const T* b, Out* c) {
  constexpr int K = 32 / sizeof(T);
  const int g = threadIdx.x / 4, t = threadIdx.x % 4, k = K / 8 * t;
  uint32_t of_a[4], of_b[2];
  for (int i = 0; i < 4; ++i) fetch(of_a[i], a + (g + 8 * (i % 2)) * K + k + K / 2 * (i / 2));
  for (int i = 0; i < 2; ++i) fetch(of_b[i], b + g * K + k + K / 2 * i);
  Out d[4];
  for (int i = 0; i < 4; ++i) d[i] = c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
  multiply(d, of_a, of_b, T());
  for (int i = 0; i < 4; ++i) c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = d[i];
}

template <typename T, typename Out>
void mma(const Tensor& a, const Tensor& b, const Tensor& c) {
  constexpr int K = 32 / sizeof(T);
  std::optional<Tensor> keep[2];
  const T* of_a = values<T>(a, {16, K}, a, "a", keep[0]);
  const T* of_b = values<T>(b, {8, K}, a, "b", keep[1]);
  check_shape(c, {16, 8}, "c");
  OnDevice(a).launch(mma_kernel<T, Out>, 1, kWarp, 0, of_a, of_b, pointer<Out>(c));
}

void mma_s8_probe(const Tensor& a, const Tensor& b, const Tensor& c) { mma<int8_t, int32_t>(a, b, c); }
void mma_bf16_probe(const Tensor& a, const Tensor& b, const Tensor& c) { mma<BFloat16, float>(a, b, c); }
void mma_tf32_probe(const Tensor& a, const Tensor& b, const Tensor& c) { mma<float, float>(a, b, c); }

// Rows of `out`: x of the lane that each of four shuffles names, the vote x > 0, and the sum and maximum of a warp.
__global__ void warp_kernel(const float* x, float* out, int argument, int width) {
  const int lane = threadIdx.x;
  const float value = x[lane];
  const float results[] = {__shfl_sync(kAllLanes, value, argument, width),
                           __shfl_xor_sync(kAllLanes, value, argument, width),
                           __shfl_up_sync(kAllLanes, value, argument, width),
                           __shfl_down_sync(kAllLanes, value, argument, width),
                           static_cast<float>(__ballot_sync(kAllLanes, value > 0) >> 8),
                           warp_sum(value),
                           warp_max(value)};
  for (int i = 0; i < 7; ++i) out[i * kWarp + lane] = results[i];
}

Tensor warp_probe(const Tensor& x, int64_t argument, int64_t width) {
  std::optional<Tensor> keep;
  const float* from = values<float>(x, {kWarp}, x, "x", keep);
  const int64_t shape[] = {7, kWarp};
  const Tensor out = empty({shape, 2}, ScalarType::Float, x);
  OnDevice(x).launch(warp_kernel, 1, kWarp, 0, from, pointer<float>(out), argument, width);
  return out;
}

// Reverses the values of each block through shared memory, static or dynamic: right only if the barrier is one.
__global__ void reverse_kernel(const float* x, float* out, bool dynamic) {
  __shared__ float fixed[1024];
  float* shared = dynamic ? dynamic_shared<float>() : fixed;
  x += blockIdx.x * blockDim.x, out += blockIdx.x * blockDim.x;
  shared[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// x [blocks, threads]
Tensor reverse_probe(const Tensor& x, bool dynamic) {
  check(x.dim() == 2, "x must be [blocks, threads], got shape ", text(x.sizes()));
  std::optional<Tensor> keep;
  const float* from = values<float>(x, {x.size(0), x.size(1)}, x, "x", keep);
  const Tensor out = empty(x.sizes(), ScalarType::Float, x);
  OnDevice(x).launch(reverse_kernel, static_cast<unsigned>(x.size(0)), static_cast<unsigned>(x.size(1)),
                     dynamic ? x.size(1) * sizeof(float) : 0, from, pointer<float>(out), dynamic);
  return out;
}

// Columns of 4 floats pass through two buffers of shared memory, the next on its way while one is read; `early` reads
// the one on its way. Of x [n, 4] the first `valid` rows, zeros behind them.
__global__ void copy_kernel(const float4* x, float4* out, int n, int valid, bool early) {
  __shared__ float4 buffer[2];
  if (threadIdx.x == 0) copy_async16(&buffer[0], x, valid > 0);
  copy_async_commit();
  for (int i = 0; i < n; ++i) {
    const int next = i + 1;
    if (threadIdx.x == 0 && next < n) copy_async16(&buffer[next % 2], x + next, next < valid);
    copy_async_commit();
    if (!early) copy_async_wait<1>();
    __syncthreads();
    if (threadIdx.x == 1) out[i] = buffer[i % 2];
    __syncthreads();
  }
  copy_async_wait<0>();
}

Tensor copy_probe(const Tensor& x, int64_t valid, bool early) {
  std::optional<Tensor> keep;
  const float* from = values<float>(x, {x.size(0), 4}, x, "x", keep);
  const Tensor out = empty(x.sizes(), ScalarType::Float, x);
  OnDevice(x).launch(copy_kernel, 1, kWarp, 0, reinterpret_cast<const float4*>(from),
                     reinterpret_cast<float4*>(pointer<float>(out)), x.size(0), valid, early);
  return out;
}

#if defined(QUAMBA_EMULATED)
// What must not pass unnoticed, by number; see tests/cuda/test_emulation.py.
__global__ void fault_kernel(int64_t fault, float* out) {
  __shared__ float shared[64];
  const unsigned i = threadIdx.x;
  shared[i % 2] = 1.0f;
  dynamic_shared<float>()[fault == 5 ? 16 : 0] = 1.0f;
  if (fault == 0) out[i] = shared[2 + i % 32];  // never written
  if (fault == 1 && i < 32) __syncthreads();    // the other warp waits for this one elsewhere
  if (fault == 1 && i >= 32) out[i] = __shfl_sync(kAllLanes, 1.0f, i == 40 ? (__syncthreads(), 0) : 1);
  if (fault == 2 && i % 2) out[i] = __shfl_sync(kAllLanes, 1.0f, 0);  // the even lanes never come
  if (fault == 2 && i % 2 == 0) __syncthreads();
  if (fault == 3) out[i] = __shfl_sync(0xffffu, 1.0f, 0);  // lane 16 is not in its mask
  if (fault == 4) {                                        // no barrier between write and read
    shared[i] = static_cast<float>(i);
    out[i] = shared[63 - i];
  }
  if (fault == 6) {  // legal: some threads end, the others meet without them
    if (i % 2) return;
    __syncthreads();
    out[i] = __shfl_sync(kAllLanes, static_cast<float>(i), 2);
  }
  // vectors of which a GPU can read and write none but those at multiples of their size
  if (fault == 8) out[i] = __ldg(reinterpret_cast<const float2*>(out + 1)).y;
  if (fault == 9) *reinterpret_cast<float4*>(out + 2) = make_float4(0.0f, 1.0f, 2.0f, 3.0f);
  if (fault == 10) *reinterpret_cast<uint2*>(out) = *reinterpret_cast<const uint2*>(dynamic_shared<float>() + 1);
}

Tensor fault_probe(const Tensor& like, int64_t fault, int64_t threads) {
  const int64_t shape[] = {threads};
  const Tensor out = empty({shape, 1}, ScalarType::Float, like);
  OnDevice(like).launch(fault_kernel, 1, static_cast<unsigned>(threads), fault == 7 ? 1 << 20 : 64, fault,
                        pointer<float>(out));
  return out;
}
#endif

}  // namespace

QUAMBA_PROBE_LIBRARY(m) {
  m.impl("mma_s8", TORCH_BOX(&mma_s8_probe));
  m.impl("mma_bf16", TORCH_BOX(&mma_bf16_probe));
  m.impl("mma_tf32", TORCH_BOX(&mma_tf32_probe));
  m.impl("warp", TORCH_BOX(&warp_probe));
  m.impl("copy", TORCH_BOX(&copy_probe));
  m.impl("reverse", TORCH_BOX(&reverse_probe));
#if defined(QUAMBA_EMULATED)
  m.impl("fault", TORCH_BOX(&fault_probe));
#endif
}

}  // namespace quamba::cuda
