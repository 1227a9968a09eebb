// magnitude_histogram: counts and sums of |x| in bins of constant relative width, read off the float's own bits.

#include <cstring>
#include <vector>

#include <torch/library.h>

#include "checks.h"

namespace quamba::cpu {
namespace {

// bin = (bits of |v| >> shift) - first_bin, clamped; NaN and infinities are skipped.
void accumulate(const float* x, int64_t n, int64_t* counts, double* sums, int64_t bins, int64_t first_bin,
                int shift) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    bits &= 0x7fffffffu;
    if (bits >= 0x7f800000u) continue;
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(bits));
    const int64_t bin = std::clamp<int64_t>(static_cast<int64_t>(bits >> shift) - first_bin, 0, bins - 1);
    counts[bin] += 1;
    sums[bin] += magnitude;
  }
}

void magnitude_histogram(const at::Tensor& x, const at::Tensor& counts, const at::Tensor& sums, int64_t first_bin,
                         int64_t mantissa_bits) {
  check_dtype(counts, at::kLong, "counts");
  check_dtype(sums, at::kDouble, "sums");
  check_shape(sums, counts.sizes(), "sums");
  TORCH_CHECK_VALUE(counts.is_contiguous() && sums.is_contiguous(), "counts and sums must be contiguous");
  TORCH_CHECK_VALUE(counts.numel() > 0, "counts and sums must have at least one bin");
  TORCH_CHECK_VALUE(mantissa_bits >= 0 && mantissa_bits <= 23, "mantissa_bits must be 0..23, got ", mantissa_bits);
  constexpr int64_t kMostBins = int64_t{1} << 31;
  TORCH_CHECK_VALUE(first_bin >= -kMostBins && first_bin <= kMostBins, "first_bin must lie within ", kMostBins,
                    " of 0, got ", first_bin);
  const at::Tensor input = x.to(at::kFloat).contiguous();
  const float* from = input.const_data_ptr<float>();
  const int64_t n = input.numel(), bins = counts.numel();
  const int shift = 23 - static_cast<int>(mantissa_bits);
  int64_t* total_counts = counts.mutable_data_ptr<int64_t>();
  double* total_sums = sums.mutable_data_ptr<double>();
  if (n < 8 * bins) {  // private tables would cost more than they save
    accumulate(from, n, total_counts, total_sums, bins, first_bin, shift);
    return;
  }
  // Private tables are added in the order of the slices: the sums are the same from run to run.
  const int64_t slices = at::get_num_threads(), slice = (n + slices - 1) / slices;
  std::vector<std::vector<int64_t>> own_counts(slices, std::vector<int64_t>(bins));
  std::vector<std::vector<double>> own_sums(slices, std::vector<double>(bins));
  at::parallel_for(0, slices, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = std::min(n, i * slice), end = std::min(n, begin + slice);
      accumulate(from + begin, end - begin, own_counts[i].data(), own_sums[i].data(), bins, first_bin, shift);
    }
  });
  for (int64_t i = 0; i < slices; ++i)
    for (int64_t bin = 0; bin < bins; ++bin) {
      total_counts[bin] += own_counts[i][bin];
      total_sums[bin] += own_sums[i][bin];
    }
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) { m.impl("magnitude_histogram", &magnitude_histogram); }

}  // namespace quamba::cpu
