#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8,amx-bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8,amx-bf16,prefer-vector-width=512")
#endif

#define QUAMBA_AVX512_VNNI 1
#include "../common/quantize.h"

namespace quamba::cpu::avx512_amx {

#include "vec-inl.h"

#include "linear_output-inl.h"
#include "linear_w8-inl.h"
#include "linear_w4-inl.h"
#include "linear_amx-inl.h"
#include "ssd_token-inl.h"
#include "float_tiles-inl.h"
#include "ssd_scan-inl.h"
#include "amx_pairs-inl.h"
#include "linear_amx_float-inl.h"
#include "ssd_scan_amx-inl.h"

}  // namespace quamba::cpu::avx512_amx

#if defined(__clang__)
#pragma clang attribute pop
#endif

// Everything but the products of many rows, and the scan of int8 inputs, is AVX-512 VNNI's.
const quamba::cpu::Kernels& quamba::cpu::kernels_avx512_amx(bool bf16) {
  static const Kernels table = [bf16] {
    Kernels kernels = kernels_avx512_vnni();
    kernels.name = "avx512_amx";
    kernels.linear_w8a8 = avx512_amx::amx_linear_w8a8;
    kernels.linear_w4a8 = avx512_amx::amx_linear_w4a8;
    if (!bf16) return kernels;
    kernels.linear_w8a16_tiles = avx512_amx::amx_linear_float<false>;
    kernels.linear_w4a16_tiles = avx512_amx::amx_linear_float<true>;
    kernels.split_rows = avx512_amx::amx_split_rows;
    kernels.ssd_scan_int8 = avx512_amx::amx_ssd_scan;
    return kernels;
  }();
  return table;
}

#endif  // x86-64
