// hadamard and hadamard_quant: checks, launches, registration.

#include "hadamard.cuh"

#include <algorithm>
#include <numeric>

#include "checks.h"

namespace quamba::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;

// n = p * 2^(first + passes * further): the levels of butterflies of the first pass and of each further one.
struct Passes {
  int first, further;
};

// As few passes as can be; of those with as few, the one that uses what it loads of the base most often.
Passes passes_of(int levels) {
  if (levels <= 4) return {levels, 4};
  const auto with = [&](int further) { return Passes{levels - ceil_div(levels - 4, further) * further, further}; };
  const Passes wide = with(4), narrow = with(3);
  const bool as_few = (levels - narrow.first) / 3 == (levels - wide.first) / 4;
  return as_few && narrow.first > wide.first ? narrow : wide;
}

// A multiple of p, and of a warp where that is not too many: about a thread for every kMaxFirst values.
unsigned threads_of(int64_t n, int64_t p) {
  const int64_t whole_warps = std::lcm<int64_t>(p, kWarp), unit = whole_warps <= kHadamardThreads ? whole_warps : p;
  const int64_t units = std::min(ceil_div(ceil_div<int64_t>(n, kMaxFirst), unit), kHadamardThreads / unit);
  return static_cast<unsigned>(unit * units);
}

int levels_of(int64_t s) {
  int levels = 0;
  while (int64_t{1} << levels < s) ++levels;
  return levels;
}

template <typename Out>
Tensor run(const Tensor& x, const Tensor& base, const float* scale, const OptionalTensor& multiplier) {
  check(x.dim() >= 1 && base.dim() == 2 && base.size(0) >= 1, "x must be [..., n] and base [p, p], got ",
        text(x.sizes()), " and ", text(base.sizes()));
  const int64_t n = x.size(-1), p = base.size(0), s = n / p;
  OptionalTensor keep[2];
  const float* of_base = values<float>(base, {p, p}, x, "base", keep[0]);
  const float* factors = values<float>(multiplier, {n}, x, "multiplier", keep[1]);
  check(p <= kMaxHadamardBase && s * p == n && s > 0 && (s & (s - 1)) == 0, "no Hadamard matrix of size ", n,
        " over a base of ", p);
  const Passes passes = passes_of(levels_of(s));
  const int64_t shared = hadamard_shared_floats(n, static_cast<int>(p), 1 << passes.first) * sizeof(float);
  check(shared <= kMaxShared, "a row of ", n, " values takes ", shared, " bytes of a GPU's shared memory, more than ",
        kMaxShared);
  const Tensor input = as_float(x);
  const Tensor out = empty(x.sizes(), torch::headeronly::CppTypeToScalarType<Out>::value, x);
  const float* from = const_pointer<float>(input);
  const bool whole = n % 4 == 0 && reinterpret_cast<uintptr_t>(from) % sizeof(float4) == 0;
  const OnDevice device(x);
  const auto with = [&](auto kernel) {
    device.launch(kernel, static_cast<unsigned>(x.numel() / n), threads_of(n, p), shared, from, of_base, factors, scale,
                  pointer<Out>(out), n, p, 1 << passes.further, whole);
  };
  switch (passes.first) {
    case 0: with(hadamard_kernel<1, Out>); break;
    case 1: with(hadamard_kernel<2, Out>); break;
    case 2: with(hadamard_kernel<4, Out>); break;
    case 3: with(hadamard_kernel<8, Out>); break;
    default: with(hadamard_kernel<kMaxFirst, Out>);
  }
  return out;
}

Tensor hadamard(const Tensor& x, const Tensor& base, const OptionalTensor& multiplier) {
  return run<float>(x, base, nullptr, multiplier);
}

Tensor hadamard_quant(const Tensor& x, const Tensor& base, const Tensor& scale, const OptionalTensor& multiplier) {
  return run<int8_t>(x, base, scalar(scale, x, "scale"), multiplier);
}

}  // namespace

QUAMBA_LIBRARY(m) {
  m.impl("hadamard", TORCH_BOX(&hadamard));
  m.impl("hadamard_quant", TORCH_BOX(&hadamard_quant));
}

}  // namespace quamba::cuda
