// The kernels of one instruction set. The including file has set the compiler's target, QUAMBA_ISA (a namespace) and
// QUAMBA_ISA_NAME; system headers come before that, so that no shared inline function is compiled for it.

namespace quamba::cpu::QUAMBA_ISA {

#include "vec-inl.h"

#include "rms_norm_quant-inl.h"
#include "linear_output-inl.h"
#include "linear_w8-inl.h"
#include "linear_w4-inl.h"
#include "causal_conv1d-inl.h"
#include "selective_scan-inl.h"
#include "ssd_token-inl.h"
#include "float_tiles-inl.h"
#include "ssd_scan-inl.h"
#include "gated_rms_norm-inl.h"
#include "hadamard-inl.h"

// What is not named is null: this instruction set has none.
const Kernels table = {
    .name = QUAMBA_ISA_NAME,
    .quantize = quantize_row,
    .rms_norm_quant = rms_norm_quant,
    .rms_norm = rms_norm,
    .quantize_per_token = quantize_per_token,
    .prepare_w8a8 = prepare_w8a8,
    .group_sums_int8 = group_sums<int8_t>,
    .group_sums_float = group_sums<float>,
    .linear_w8a8 = linear_w8a8,
    .linear_w8a16 = linear_w8a16,
    .linear_w4a8 = linear_w4a8,
    .linear_w4a16 = linear_w4a16,
    .dequantize_w8 = dequantize_w8,
    .dequantize_w4 = dequantize_w4,
    .causal_conv1d_float = causal_conv1d<float>,
    .causal_conv1d_int8 = causal_conv1d<int8_t>,
    .selective_scan_float = selective_scan<float>,
    .selective_scan_int8 = selective_scan<int8_t>,
    .ssd_scan_float = ssd_scan<float>,
    .ssd_scan_int8 = ssd_scan<int8_t>,
    .gated_rms_norm_float = gated_rms_norm<float>,
    .gated_rms_norm_int8 = gated_rms_norm<int8_t>,
    .hadamard = hadamard,
};

}  // namespace quamba::cpu::QUAMBA_ISA
