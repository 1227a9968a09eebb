// The one header that knows which of two things a .cu file is being compiled into:
//
// - by nvcc: kernels of the dispatch key CUDA, for a GPU (quamba._C_cuda);
// - by the C++ compiler with QUAMBA_EMULATED defined: the same kernels, the threads of a block run in turn on one core
//   (quamba._C_emulated, namespace `quamba_emulated`), so that their arithmetic, their barriers and their argument
//   checks are tested where there is no GPU. See emulation.h.
//
// torch is reached through its stable ABI alone: no CUDA headers of torch's, and it loads where torch has no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(QUAMBA_EMULATED)
#include "emulation.h"
// QUAMBA_LIBRARY(m) { m.impl("quantize", TORCH_BOX(&quantize)); } registers the ops of a file.
#define QUAMBA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(quamba_emulated, CPU, m)
#define QUAMBA_PROBE_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(quamba_probe, CPU, m)
#else
#include <cuda_runtime.h>
#define QUAMBA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(quamba, CUDA, m)
#define QUAMBA_PROBE_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(quamba_probe, CUDA, m)
#endif

#include "../common/quantize.h"

// Versions that torch's header does not name yet count as 0 in #if.
#if defined(TORCH_VERSION_2_13_0) && TORCH_FEATURE_VERSION >= TORCH_VERSION_2_13_0
#define QUAMBA_HAS_NATIVE_STREAM 1
#else
#define QUAMBA_HAS_NATIVE_STREAM 0
#endif

#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)  // nor does torch 2.11 name this
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

#if !defined(QUAMBA_EMULATED) && !QUAMBA_HAS_NATIVE_STREAM
// Of libtorch_cuda, and so not in a torch without CUDA, where nothing calls it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace quamba::cuda {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kWarp = 32;                    // lanes
constexpr unsigned kAllLanes = 0xffffffffu;  // the mask of a whole warp
constexpr int kStaticShared = 48 * 1024;     // bytes of shared memory that need not be asked for
constexpr int kMaxShared = 99 * 1024;        // bytes a block may have on every GPU supported (8.6 and 8.9 have least)

template <typename T>
QUAMBA_HOST_DEVICE constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// x as an integer of `scale`: common/quantize.h's numerics.
__device__ __forceinline__ int8_t quantized(float x, float scale) {
  return static_cast<int8_t>(quantize_int8(x, scale));
}

// The bytes of shared memory that a launch asked for, 16-byte aligned.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
#if defined(QUAMBA_EMULATED)
  return reinterpret_cast<T*>(emulation::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char quamba_dynamic_shared[];
  return reinterpret_cast<T*>(quamba_dynamic_shared);
#endif
}

// Makes the device of `like` current while it lives; kernels go to the stream that is current there.
class OnDevice {
 public:
  // kernel<<<grid, block, shared_bytes>>>(args...), nothing where the grid is empty. Raises std::runtime_error.
  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Arguments... arguments) const {
    if (!grid.x || !grid.y || !grid.z) return;
#if defined(QUAMBA_EMULATED)
    const std::tuple<Parameters...> converted(static_cast<Parameters>(arguments)...);
    emulation::run(grid, block, shared_bytes, [&] { std::apply(kernel, converted); });
#else
    if (shared_bytes > kStaticShared)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    kernel<<<grid, block, shared_bytes, stream_>>>(static_cast<Parameters>(arguments)...);
    check(cudaGetLastError());
#endif
  }

  // 9 of compute capability 9.0; 0 in the emulation.
  int compute_capability_major() const {
    int major = 0;
#if !defined(QUAMBA_EMULATED)
    int device = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
#endif
    return major;
  }

#if defined(QUAMBA_EMULATED)
  explicit OnDevice(const Tensor&) {}
#else
  explicit OnDevice(const Tensor& like) : guard_(like.get_device_index()), stream_(current(like.get_device_index())) {}

 private:
  static void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }

  static cudaStream_t current(int32_t device) {
#if QUAMBA_HAS_NATIVE_STREAM
    return static_cast<cudaStream_t>(torch::stable::accelerator::getCurrentStream(device).nativeHandle());
#else
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    return static_cast<cudaStream_t>(stream);
#endif
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
#endif
};

}  // namespace quamba::cuda
