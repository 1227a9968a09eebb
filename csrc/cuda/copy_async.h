// Copies from global to shared memory that pass by the registers and end while the thread computes (cp.async).
//
//   copy_async16(to, from, valid) ...; copy_async_commit();   one group of copies
//   copy_async_wait<N>(); __syncthreads();                    all but this thread's N latest groups have arrived
//
// The emulation copies when waited for: what is read too early is poison.
#pragma once

#include "platform.h"

namespace quamba::cuda {

// 16 bytes, both ends aligned to 16; zeros where not `valid` (`from` is then not read).
__device__ __forceinline__ void copy_async16(void* shared, const void* global, bool valid = true) {
#if defined(QUAMBA_EMULATED)
  emulation::copy_later(shared, valid ? global : nullptr, 16);
#else
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0) : "memory");
#endif
}

__device__ __forceinline__ void copy_async_commit() {
#if defined(QUAMBA_EMULATED)
  emulation::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kLatest>
__device__ __forceinline__ void copy_async_wait() {
#if defined(QUAMBA_EMULATED)
  emulation::wait_for_copies(kLatest);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kLatest) : "memory");
#endif
}

}  // namespace quamba::cuda
