#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,prefer-vector-width=512")
#endif

#define QUAMBA_AVX512_VNNI 1
#define QUAMBA_ISA avx512_vnni
#define QUAMBA_ISA_NAME "avx512_vnni"
#include "../common/quantize.h"
#include "isa-inl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

const quamba::cpu::Kernels& quamba::cpu::kernels_avx512_vnni() { return avx512_vnni::table; }

#endif  // x86-64
