// magnitude_histogram: checks, launch, registration.

#include "magnitude_histogram.cuh"

#include <algorithm>

#include "checks.h"

namespace quamba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1024;  // several for every multiprocessor of any GPU

void magnitude_histogram(const Tensor& x, const Tensor& counts, const Tensor& sums, int64_t first_bin,
                         int64_t mantissa_bits) {
  check_dtype(counts, ScalarType::Long, "counts");
  check_dtype(sums, ScalarType::Double, "sums");
  check_shape(sums, std::vector<int64_t>(counts.sizes().begin(), counts.sizes().end()), "sums");
  check_device(counts, x, "counts");
  check_device(sums, x, "sums");
  check(counts.is_contiguous() && sums.is_contiguous(), "counts and sums must be contiguous");
  check(counts.numel() > 0, "counts and sums must have at least one bin");
  check(mantissa_bits >= 0 && mantissa_bits <= 23, "mantissa_bits must be 0..23, got ", mantissa_bits);
  constexpr int64_t kMostBins = int64_t{1} << 31;
  check(first_bin >= -kMostBins && first_bin <= kMostBins, "first_bin must lie within ", kMostBins, " of 0, got ",
        first_bin);
  const ScalarType dtype = x.scalar_type();
  const bool read_as_is = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  const Tensor input = read_as_is ? torch::stable::contiguous(x) : as_float(x);
  const int64_t n = input.numel(), bins = counts.numel();
  // a block's own table pays where it has some values for every bin
  const int64_t per_block = std::max<int64_t>(4 * bins, 16 * kThreads);
  const bool in_shared = histogram_shared_bytes(bins) <= kStaticShared && n >= 4 * bins;
  const auto blocks = static_cast<unsigned>(std::min(kMaxBlocks, ceil_div(n, per_block)));
  const OnDevice device(x);
  const auto with = [&](auto kernel, const auto* from) {
    device.launch(kernel, blocks, kThreads, in_shared ? histogram_shared_bytes(bins) : 0, from, n,
                  pointer<int64_t>(counts), pointer<double>(sums), bins, first_bin, 23 - mantissa_bits, in_shared);
  };
  if (dtype == ScalarType::Half) with(magnitude_histogram_kernel<Half>, const_pointer<Half>(input));
  else if (dtype == ScalarType::BFloat16) with(magnitude_histogram_kernel<BFloat16>, const_pointer<BFloat16>(input));
  else with(magnitude_histogram_kernel<float>, const_pointer<float>(input));
}

}  // namespace

QUAMBA_LIBRARY(m) { m.impl("magnitude_histogram", TORCH_BOX(&magnitude_histogram)); }

}  // namespace quamba::cuda
