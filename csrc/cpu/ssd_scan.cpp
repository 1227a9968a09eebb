// ssd_scan and ssd_scan_int8: checks and registration. Kernels: ssd_scan-inl.h, ssd_token-inl.h.

#include <torch/library.h>

#include "checks.h"

namespace quamba::cpu {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

struct Inputs {  // of the float and the int8 scan alike
  const at::Tensor& x;
  const at::Tensor& dt;
  const at::Tensor& A;
  const at::Tensor& B;
  const at::Tensor& C;
  const OptionalTensor& D;
  const OptionalTensor& dt_bias;
  double dt_min, dt_max;
  const OptionalTensor& state;
};

struct Scales {
  OptionalTensor x, B, C, state;
};

struct Sizes {
  int64_t batch, tokens, heads, head_dim, groups, d_state;
};

Sizes sizes_of(const Inputs& in) {
  TORCH_CHECK_VALUE(in.x.dim() == 3, "x must be [B, L, D], got ", in.x.sizes());
  TORCH_CHECK_VALUE(in.A.dim() == 1, "A must be [S], got ", in.A.sizes());
  TORCH_CHECK_VALUE(in.B.dim() == 4, "B must be [B, L, G, N], got ", in.B.sizes());
  const int64_t channels = in.x.size(2), heads = in.A.size(0), groups = in.B.size(2);
  TORCH_CHECK_VALUE(heads > 0 && channels % heads == 0, channels, " channels of x do not split into the ", heads,
                    " heads of A");
  TORCH_CHECK_VALUE(groups > 0 && heads % groups == 0, heads, " heads do not split into the ", groups, " groups of B");
  return {in.x.size(0), in.x.size(1), heads, channels / heads, groups, in.B.size(3)};
}

void check(const Inputs& in, const Sizes& s, at::ScalarType dtype, const OptionalTensor& state_scale) {
  check_dtype(in.x, dtype, "x");
  check_dtype(in.B, dtype, "B");
  check_shape(in.B, {s.batch, s.tokens, s.groups, s.d_state}, "B");
  check_dtype(in.C, dtype, "C");
  check_shape(in.C, in.B.sizes(), "C");
  check_dtype(in.dt, at::kFloat, "dt");
  check_shape(in.dt, {s.batch, s.tokens, s.heads}, "dt");
  TORCH_CHECK_VALUE(in.dt_min <= in.dt_max, "dt_min ", in.dt_min, " is over dt_max ", in.dt_max);
  TORCH_CHECK_VALUE(in.state.has_value() || !state_scale.has_value(), "state_scale is given without a state");
  if (!in.state.has_value()) return;
  if (state_scale.has_value()) check_dtype(*in.state, at::kChar, "state with a state_scale");
  else check_dtype(*in.state, at::kFloat, "state without a state_scale");
  check_shape(*in.state, {s.batch, s.heads, s.head_dim, s.d_state}, "state");
  TORCH_CHECK_VALUE(in.state->is_contiguous(), "state must be contiguous: it is updated in place");
}

template <typename T>
at::Tensor run(const Inputs& in, const Scales& scales, void (*kernel)(const SsdArgs<T>&, int64_t, int64_t)) {
  const Sizes s = sizes_of(in);
  check(in, s, c10::CppTypeToScalarType<T>::value, scales.state);
  const at::Tensor x = with_contiguous_rows(in.x), dt = with_contiguous_rows(in.dt);
  const at::Tensor B = with_contiguous_rows(in.B), C = with_contiguous_rows(in.C);
  const int64_t channels = s.heads * s.head_dim;
  at::Tensor keep[7], out = at::empty({s.batch, s.tokens, channels}, x.options().dtype(at::kFloat));
  SsdArgs<T> args{};
  args.x_stride = x.stride(1);
  args.B_stride = B.stride(1);
  args.B_group_stride = B.stride(2);
  args.C_stride = C.stride(1);
  args.C_group_stride = C.stride(2);
  args.x_scale = floats(scales.x, {channels}, "x_scale", keep[0]);
  args.B_scale = floats(scales.B, {s.groups}, "B_scale", keep[1]);
  args.C_scale = floats(scales.C, {s.groups}, "C_scale", keep[2]);
  args.dt_stride = dt.stride(1);
  args.dt_bias = floats(in.dt_bias, {s.heads}, "dt_bias", keep[3]);
  args.dt_min = static_cast<float>(in.dt_min);
  args.dt_max = static_cast<float>(in.dt_max);
  args.A = floats(in.A, {s.heads}, "A", keep[4]);
  args.D = floats(in.D, {s.heads}, "D", keep[5]);
  args.state_scale = floats(scales.state, {s.heads, s.head_dim}, "state_scale", keep[6]);
  args.tokens = s.tokens;
  args.heads = s.heads;
  args.groups = s.groups;
  args.head_dim = s.head_dim;
  args.d_state = s.d_state;
  char* state = in.state ? static_cast<char*>(in.state->mutable_data_ptr()) : nullptr;
  const int64_t state_bytes = in.state ? channels * s.d_state * in.state->element_size() : 0;  // of a batch row
  // threads share the heads of all batch rows
  parallel_over_channels(s.batch * s.heads, s.tokens * s.head_dim * s.d_state, 1, [&](int64_t begin, int64_t end) {
    const int64_t most = std::min(s.heads, end - begin);
    at::Tensor scratch = at::empty({ssd_scratch_floats(s.tokens, most, s.head_dim, s.d_state)}, out.options());
    SsdArgs<T> row = args;
    row.scratch = scratch.mutable_data_ptr<float>();
    while (begin < end) {
      const int64_t b = begin / s.heads, first = begin % s.heads, last = std::min(s.heads, first + end - begin);
      row.x = x.const_data_ptr<T>() + b * x.stride(0);
      row.B = B.const_data_ptr<T>() + b * B.stride(0);
      row.C = C.const_data_ptr<T>() + b * C.stride(0);
      row.dt = dt.const_data_ptr<float>() + b * dt.stride(0);
      row.state = state ? state + b * state_bytes : nullptr;
      row.out = out.mutable_data_ptr<float>() + b * s.tokens * channels;
      kernel(row, first, last);
      begin += last - first;
    }
  });
  return out;
}

at::Tensor ssd_scan(const at::Tensor& x, const at::Tensor& dt, const at::Tensor& A, const at::Tensor& B,
                    const at::Tensor& C, const OptionalTensor& D, const OptionalTensor& dt_bias, double dt_min,
                    double dt_max, const OptionalTensor& state) {
  return run<float>({x, dt, A, B, C, D, dt_bias, dt_min, dt_max, state}, {}, kernels().ssd_scan_float);
}

at::Tensor ssd_scan_int8(const at::Tensor& x, const at::Tensor& dt, const at::Tensor& A, const at::Tensor& B,
                         const at::Tensor& C, const OptionalTensor& D, const OptionalTensor& dt_bias, double dt_min,
                         double dt_max, const OptionalTensor& state, const at::Tensor& x_scale,
                         const at::Tensor& B_scale, const at::Tensor& C_scale, const OptionalTensor& state_scale) {
  return run<int8_t>({x, dt, A, B, C, D, dt_bias, dt_min, dt_max, state}, {x_scale, B_scale, C_scale, state_scale},
                     kernels().ssd_scan_int8);
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) {
  m.impl("ssd_scan", &ssd_scan);
  m.impl("ssd_scan_int8", &ssd_scan_int8);
}

}  // namespace quamba::cpu
