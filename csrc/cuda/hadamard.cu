// hadamard, hadamard_quant, gated_hadamard_quant: checks, launches, registration.

#include "hadamard.cuh"

#include <algorithm>
#include <numeric>

#include "gated_rows.h"

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

// Whole warps, at least p threads, and a multiple of p where that is not too many: about a thread for every kMaxFirst
// values.
unsigned threads_of(int64_t n, int64_t p) {
  const int64_t multiple = std::lcm<int64_t>(p, kWarp), unit = multiple <= kHadamardThreads ? multiple : kWarp;
  const int64_t wanted = std::max(ceil_div<int64_t>(n, kMaxFirst), p);
  const int64_t units = std::min(ceil_div(wanted, unit), kHadamardThreads / unit);
  return static_cast<unsigned>(unit * units);
}

int levels_of(int64_t s) {
  int levels = 0;
  while (int64_t{1} << levels < s) ++levels;
  return levels;
}

// The arguments that say what rows are multiplied by.
struct Rotation {
  OptionalTensor keep[2];
  const float* base;        // [p, p]
  const float* multiplier;  // [n] or null
  int64_t n, p;
  Passes passes;
  int64_t shared;  // bytes
};

// x [..., n], the rows to rotate.
Rotation rotation(const Tensor& x, const Tensor& base, const OptionalTensor& multiplier) {
  check(x.dim() >= 1 && base.dim() == 2 && base.size(0) >= 1, "x must be [..., n] and base [p, p], got ",
        text(x.sizes()), " and ", text(base.sizes()));
  Rotation r{};
  const int64_t n = r.n = x.size(-1), p = r.p = base.size(0), s = n / p;
  r.base = values<float>(base, {p, p}, x, "base", r.keep[0]);
  r.multiplier = values<float>(multiplier, {n}, x, "multiplier", r.keep[1]);
  check(p <= kMaxHadamardBase && s * p == n && s > 0 && (s & (s - 1)) == 0, "no Hadamard matrix of size ", n,
        " over a base of ", p);
  r.passes = passes_of(levels_of(s));
  r.shared = hadamard_shared_floats(n, static_cast<int>(p), 1 << r.passes.first) * sizeof(float);
  constexpr int kMost = kMaxShared - kReduceShared;
  check(r.shared <= kMost, "a row of ", n, " values takes ", r.shared, " bytes of a GPU's shared memory, more than ",
        kMost);
  return r;
}

template <typename Rows, typename Out>
void launch(const Rotation& r, const Rows& rows, const float* scale, const Tensor& out, Out* to) {
  const OnDevice device(out);
  const auto with = [&](auto kernel) {
    device.launch(kernel, static_cast<unsigned>(out.numel() / r.n), threads_of(r.n, r.p), r.shared, rows, r.base,
                  r.multiplier, scale, to, r.n, r.p, 1 << r.passes.further);
  };
  switch (r.passes.first) {
    case 0: with(hadamard_kernel<1, Rows, Out>); break;
    case 1: with(hadamard_kernel<2, Rows, Out>); break;
    case 2: with(hadamard_kernel<4, Rows, Out>); break;
    case 3: with(hadamard_kernel<8, Rows, Out>); break;
    default: with(hadamard_kernel<kMaxFirst, Rows, Out>);
  }
}

// Whether vectors of four may be read at `p` and at whole fours of values behind it.
template <typename T>
bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(VectorOf4<T>) == 0;
}

template <typename Out>
Tensor rotated_rows(const Tensor& x, const Tensor& base, const float* scale, const OptionalTensor& multiplier) {
  const Rotation r = rotation(x, base, multiplier);
  const Tensor input = as_float(x);
  const Tensor out = empty(x.sizes(), torch::headeronly::CppTypeToScalarType<Out>::value, x);
  const float* from = const_pointer<float>(input);
  launch(r, PlainRows{from, r.n % 4 == 0 && aligned(from)}, scale, out, pointer<Out>(out));
  return out;
}

Tensor hadamard(const Tensor& x, const Tensor& base, const OptionalTensor& multiplier) {
  return rotated_rows<float>(x, base, nullptr, multiplier);
}

Tensor hadamard_quant(const Tensor& x, const Tensor& base, const Tensor& scale, const OptionalTensor& multiplier) {
  return rotated_rows<int8_t>(x, base, scalar(scale, x, "scale"), multiplier);
}

template <typename T>
GatedRows<T> gated_rows(const GatedInput& in) {
  const float* y = const_pointer<float>(in.y);
  const T* z = const_pointer<T>(in.z);
  const int64_t y_stride = in.y.stride(0), z_stride = in.z.stride(0), part = in.channels / in.groups;
  const bool whole = part % 4 == 0 && y_stride % 4 == 0 && z_stride % 4 == 0 && aligned(y) && aligned(z);
  return {y, z, in.z_scale, y_stride, z_stride, static_cast<int>(in.groups), in.eps, whole};
}

Tensor gated_hadamard_quant(const Tensor& y, const Tensor& z, const OptionalTensor& z_scale, double eps, int64_t groups,
                            const Tensor& base, const Tensor& scale, const OptionalTensor& multiplier) {
  const GatedInput in = gated_input(y, z, z_scale, eps, groups);
  const Rotation r = rotation(y, base, multiplier);
  const float* s = scalar(scale, y, "scale");
  const Tensor out = empty(y.sizes(), ScalarType::Char, y);
  if (in.z_scale) launch(r, gated_rows<int8_t>(in), s, out, pointer<int8_t>(out));
  else launch(r, gated_rows<float>(in), s, out, pointer<int8_t>(out));
  return out;
}

}  // namespace

QUAMBA_LIBRARY(m) {
  m.impl("hadamard", TORCH_BOX(&hadamard));
  m.impl("hadamard_quant", TORCH_BOX(&hadamard_quant));
  m.impl("gated_hadamard_quant", TORCH_BOX(&gated_hadamard_quant));
}

}  // namespace quamba::cuda
