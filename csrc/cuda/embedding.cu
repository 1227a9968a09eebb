// embedding_int8 and embedding_int4: checks, launches, registration.

#include "embedding.cuh"

#include <algorithm>

#include "checks.h"

namespace quamba::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr int64_t kMinGroup = 32;  // group sizes are this times a power of two

bool is_integer(ScalarType dtype) {
  return dtype == ScalarType::Byte || dtype == ScalarType::Char || dtype == ScalarType::Short ||
         dtype == ScalarType::Int || dtype == ScalarType::Long;
}

constexpr int64_t kMost = 1 << 30;  // kernels number values of a row by 32 bits

// Checks a table's words: `values` of a row in each. Raises what the CPU's op raises.
const uint32_t* words_of(const Tensor& weight, ScalarType dtype, int64_t vocab, int64_t hidden, int64_t values,
                         const Tensor& like) {
  check(hidden >= 0 && hidden <= kMost && vocab >= 0 && vocab <= kMost, "weight cannot have ", hidden, " inputs and ",
        vocab, " outputs");
  check_dtype(weight, dtype, "weight");
  check_shape(weight, {ceil_div<int64_t>(vocab, kTileRows), ceil_div(hidden, values), kTileRows, kTileBytes}, "weight");
  check_device(weight, like, "weight");
  const void* words = weight.const_data_ptr();
  check(weight.is_contiguous() && reinterpret_cast<uintptr_t>(words) % sizeof(uint32_t) == 0,
        "weight must be contiguous and aligned to 4 bytes");
  return static_cast<const uint32_t*>(words);
}

// Launches kernel(ids, ..., where a row of floats for each of them goes, vocab, hidden, rest...).
template <typename Launch>
Tensor gather(const Tensor& ids, int64_t hidden, int64_t words, const Launch& launch) {
  check(is_integer(ids.scalar_type()), "ids must be integers, got ", ids.scalar_type());
  const Tensor index = torch::stable::contiguous(torch::stable::to(ids, ScalarType::Long));
  std::vector<int64_t> shape(ids.sizes().begin(), ids.sizes().end());
  shape.push_back(hidden);
  const Tensor out = empty(shape, ScalarType::Float, index);
  const int64_t threads = std::clamp<int64_t>(ceil_div<int64_t>(words, kWarp) * kWarp, kWarp, kMaxThreads);
  launch(dim3(static_cast<unsigned>(index.numel())), dim3(static_cast<unsigned>(threads)),
         const_pointer<int64_t>(index), pointer<float>(out));
  return out;
}

Tensor embedding_int8(const Tensor& ids, const Tensor& weight, const Tensor& scale, int64_t hidden) {
  const int64_t vocab = scale.numel();
  const uint32_t* words = words_of(weight, ScalarType::Char, vocab, hidden, kTileBytes, ids);
  std::optional<Tensor> keep;
  const float* scales = values<float>(scale, {vocab}, ids, "weight_scale", keep);
  const OnDevice device(ids);
  return gather(ids, hidden, ceil_div<int64_t>(hidden, kTileBytes),
                [&](dim3 grid, dim3 block, const int64_t* index, float* out) {
                  device.launch(embedding_int8_kernel, grid, block, 0, index, words, scales, out, vocab, hidden);
                });
}

Tensor embedding_int4(const Tensor& ids, const Tensor& weight, const Tensor& scale, const Tensor& zero, int64_t hidden,
                      int64_t vocab, int64_t group_size) {
  const uint32_t* words = words_of(weight, ScalarType::Byte, vocab, hidden, 2 * kTileBytes, ids);
  check_dtype(scale, ScalarType::Half, "scale");
  const int64_t multiple = group_size / kMinGroup;
  check(group_size == multiple * kMinGroup && multiple > 0 && (multiple & (multiple - 1)) == 0, "group_size must be ",
        kMinGroup, " times a power of two, got ", group_size);
  const std::vector<int64_t> groups = {ceil_div<int64_t>(vocab, kTileRows), ceil_div(hidden, group_size), kTileRows};
  std::optional<Tensor> keep[2];
  const Half* scales = values<Half>(scale, groups, ids, "scale", keep[0]);
  const uint8_t* zeros = values<uint8_t>(zero, groups, ids, "zero", keep[1]);
  const OnDevice device(ids);
  return gather(ids, hidden, ceil_div<int64_t>(hidden, 2 * kTileBytes),
                [&](dim3 grid, dim3 block, const int64_t* index, float* out) {
                  device.launch(embedding_int4_kernel, grid, block, 0, index, words, scales, zeros, out, vocab, hidden,
                                static_cast<int>(std::min(group_size, kMost)));
                });
}

}  // namespace

QUAMBA_LIBRARY(m) {
  m.impl("embedding_int8", TORCH_BOX(&embedding_int8));
  m.impl("embedding_int4", TORCH_BOX(&embedding_int4));
}

}  // namespace quamba::cuda
