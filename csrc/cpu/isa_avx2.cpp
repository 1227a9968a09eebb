#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define QUAMBA_AVX2 1
#define QUAMBA_ISA avx2
#define QUAMBA_ISA_NAME "avx2"
#include "../common/quantize.h"
#include "isa-inl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

const quamba::cpu::Kernels& quamba::cpu::kernels_avx2() { return avx2::table; }

#endif  // x86-64
