// selective_scan and selective_scan_int8: checks and registration. Kernels: selective_scan-inl.h.

#include <torch/library.h>

#include "checks.h"

namespace quamba::cpu {
namespace {

struct Inputs {  // what the float and the int8 scan share
  const at::Tensor& x;
  const at::Tensor& dt;
  const at::Tensor& A;
  const std::optional<at::Tensor>& D;
  const std::optional<at::Tensor>& z;
  const std::optional<at::Tensor>& dt_bias;
  const std::optional<at::Tensor>& state;
};

template <typename T>
at::Tensor run(const Inputs& in, const at::Tensor& B, const at::Tensor& C, float x_scale, float z_scale,
               void (*kernel)(const ScanArgs<T>&, int64_t, int64_t)) {
  const auto dtype = c10::CppTypeToScalarType<T>::value;
  check_dtype(in.x, dtype, "x");
  TORCH_CHECK_VALUE(in.x.dim() == 3, "x must be [B, L, D], got ", in.x.sizes());
  TORCH_CHECK_VALUE(in.A.dim() == 2, "A must be [D, N], got ", in.A.sizes());
  const int64_t batch = in.x.size(0), tokens = in.x.size(1), channels = in.x.size(2), N = in.A.size(1);
  at::Tensor dt_copy, A_copy, B_copy, C_copy, D_copy, bias_copy;
  const float* dt = floats(in.dt, in.x.sizes(), "dt", dt_copy);
  const float* A = floats(in.A, {channels, N}, "A", A_copy);
  const float* B_data = floats(B, {batch, tokens, N}, "B", B_copy);
  const float* C_data = floats(C, {batch, tokens, N}, "C", C_copy);
  const float* D = floats(in.D, {channels}, "D", D_copy);
  const float* dt_bias = floats(in.dt_bias, {channels}, "dt_bias", bias_copy);
  const at::Tensor x = with_contiguous_rows(in.x);
  at::Tensor z;
  if (in.z.has_value()) {
    check_dtype(*in.z, dtype, "z");
    check_shape(*in.z, in.x.sizes(), "z");
    z = with_contiguous_rows(*in.z);
  }
  if (in.state.has_value()) {
    check_dtype(*in.state, at::kFloat, "state");
    check_shape(*in.state, {batch, channels, N}, "state");
    TORCH_CHECK_VALUE(in.state->is_contiguous(), "state must be contiguous: it is updated in place");
  }
  at::Tensor out = at::empty({batch, tokens, channels}, x.options().dtype(at::kFloat));
  at::Tensor scratch = at::empty({(channels + 15) / 16 * 16, 2, N}, out.options());
  for (int64_t b = 0; b < batch; ++b) {
    ScanArgs<T> args{};
    args.x = x.const_data_ptr<T>() + b * x.stride(0);
    args.x_stride = x.stride(1);
    args.x_scale = x_scale;
    args.dt = dt + b * tokens * channels;
    args.dt_bias = dt_bias;
    args.A = A;
    args.B = B_data + b * tokens * N;
    args.C = C_data + b * tokens * N;
    args.D = D;
    args.z = z.defined() ? z.const_data_ptr<T>() + b * z.stride(0) : nullptr;
    args.z_stride = z.defined() ? z.stride(1) : 0;
    args.z_scale = z_scale;
    args.state = in.state ? in.state->mutable_data_ptr<float>() + b * channels * N : nullptr;
    args.out = out.mutable_data_ptr<float>() + b * tokens * channels;
    args.scratch = scratch.mutable_data_ptr<float>();
    args.tokens = tokens;
    args.channels = channels;
    args.d_state = N;
    parallel_over_channels(channels, tokens * N, 16, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }
  return out;
}

at::Tensor selective_scan(const at::Tensor& x, const at::Tensor& dt, const at::Tensor& A, const at::Tensor& B,
                          const at::Tensor& C, const std::optional<at::Tensor>& D, const std::optional<at::Tensor>& z,
                          const std::optional<at::Tensor>& dt_bias, const std::optional<at::Tensor>& state) {
  return run<float>({x, dt, A, D, z, dt_bias, state}, B, C, 1.0f, 1.0f, kernels().selective_scan_float);
}

at::Tensor selective_scan_int8(const at::Tensor& x, const at::Tensor& dt, const at::Tensor& A, const at::Tensor& B,
                               const at::Tensor& C, const std::optional<at::Tensor>& D,
                               const std::optional<at::Tensor>& z, const std::optional<at::Tensor>& dt_bias,
                               const std::optional<at::Tensor>& state, const at::Tensor& x_scale,
                               const at::Tensor& B_scale, const at::Tensor& C_scale, const at::Tensor& z_scale) {
  check_dtype(B, at::kChar, "B");
  check_dtype(C, at::kChar, "C");
  // [B, L, N] is small beside [B, L, D]: dequantized here once, not once per channel block
  return run<int8_t>({x, dt, A, D, z, dt_bias, state}, B.to(at::kFloat).mul_(scalar_of(B_scale, "B_scale")),
                     C.to(at::kFloat).mul_(scalar_of(C_scale, "C_scale")), scalar_of(x_scale, "x_scale"),
                     scalar_of(z_scale, "z_scale"), kernels().selective_scan_int8);
}

}  // namespace

TORCH_LIBRARY_IMPL(quamba, CPU, m) {
  m.impl("selective_scan", &selective_scan);
  m.impl("selective_scan_int8", &selective_scan_int8);
}

}  // namespace quamba::cpu
