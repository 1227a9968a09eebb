// selective_scan and selective_scan_int8: checks, launches, registration.

#include "selective_scan.cuh"

#include "checks.h"

namespace quamba::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kShortPrompt = 64;  // tokens, two for every lane
constexpr int64_t kMaxStates = 512;   // of a channel: those of a block's channels are in shared memory

struct Inputs {  // what the float and the int8 scan share
  const Tensor& x;
  const Tensor& dt;
  const Tensor& A;
  const Tensor& B;
  const Tensor& C;
  const OptionalTensor& D;
  const OptionalTensor& z;
  const OptionalTensor& dt_bias;
  const OptionalTensor& state;
};

// `keep` holds a copy where rows had none of their values side by side.
template <typename T>
ScanRows<T> rows_of(const Tensor& t, Shape shape, const Tensor& like, const char* name, OptionalTensor& keep) {
  check_dtype(t, torch::headeronly::CppTypeToScalarType<T>::value, name);
  check_shape(t, std::vector<int64_t>(shape.begin(), shape.end()), name);
  check_device(t, like, name);
  keep = with_contiguous_rows(t);
  return {const_pointer<T>(*keep), keep->stride(0), keep->stride(1)};
}

template <typename T>
void launch(const OnDevice& device, const ScanArgs<T>& args) {
  if (args.tokens == 1) {
    const auto at = [](const float* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(float4); };
    const bool whole = args.d_state % 4 == 0 && at(args.A) == 0 && at(args.state) == 0;
    const int64_t blocks = ceil_div<int64_t>(args.batch * args.channels, kTokenThreads / kTokenLanes);
    device.launch(selective_scan_token_kernel<T>, static_cast<unsigned>(blocks), kTokenThreads, 0, args, whole);
    return;
  }
  if (args.tokens == 0) return;
  const auto blocks = static_cast<unsigned>(args.batch * ceil_div<int64_t>(args.channels, kScanChannels));
  const auto with = [&](auto kernel, int items) {
    device.launch(kernel, blocks, kScanThreads, scan_shared_floats(items, args.d_state) * sizeof(float), args);
  };
  if (args.tokens <= kShortPrompt) with(selective_scan_kernel<T, 2>, 2);
  else with(selective_scan_kernel<T, 8>, 8);
}

template <typename T>
Tensor run(const Inputs& in, const float* x_scale, const float* B_scale, const float* C_scale, const float* z_scale) {
  const Tensor& x = in.x;
  check_dtype(x, torch::headeronly::CppTypeToScalarType<T>::value, "x");
  check(x.dim() == 3, "x must be [B, L, D], got ", text(x.sizes()));
  check(in.A.dim() == 2, "A must be [D, N], got ", text(in.A.sizes()));
  const int64_t batch = x.size(0), tokens = x.size(1), channels = x.size(2), N = in.A.size(1);
  check(N <= kMaxStates, "A must be [D, N] with N up to ", kMaxStates, ", got ", text(in.A.sizes()));
  OptionalTensor keep[8];
  ScanArgs<T> args{};
  const std::vector<int64_t> of_states = {batch, tokens, N};
  args.x = rows_of<T>(x, x.sizes(), x, "x", keep[0]);
  args.dt = rows_of<float>(in.dt, x.sizes(), x, "dt", keep[1]);
  args.A = values<float>(in.A, {channels, N}, x, "A", keep[2]);
  args.B = rows_of<T>(in.B, of_states, x, "B", keep[3]);
  args.C = rows_of<T>(in.C, of_states, x, "C", keep[4]);
  args.D = values<float>(in.D, {channels}, x, "D", keep[5]);
  args.dt_bias = values<float>(in.dt_bias, {channels}, x, "dt_bias", keep[6]);
  if (in.z.has_value()) args.z = rows_of<T>(*in.z, x.sizes(), x, "z", keep[7]);
  if (in.state.has_value()) {
    check_dtype(*in.state, ScalarType::Float, "state");
    check_shape(*in.state, {batch, channels, N}, "state");
    check_device(*in.state, x, "state");
    check(in.state->is_contiguous(), "state must be contiguous: it is updated in place");
    args.state = pointer<float>(*in.state);
  }
  args.x_scale = x_scale, args.B_scale = B_scale, args.C_scale = C_scale, args.z_scale = z_scale;
  args.batch = batch, args.tokens = tokens, args.channels = channels, args.d_state = static_cast<int>(N);
  const Tensor out = empty(x.sizes(), ScalarType::Float, x);
  args.out = pointer<float>(out);
  launch(OnDevice(x), args);
  return out;
}

Tensor selective_scan(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                      const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& dt_bias,
                      const OptionalTensor& state) {
  return run<float>({x, dt, A, B, C, D, z, dt_bias, state}, nullptr, nullptr, nullptr, nullptr);
}

Tensor selective_scan_int8(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                           const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& dt_bias,
                           const OptionalTensor& state, const Tensor& x_scale, const Tensor& B_scale,
                           const Tensor& C_scale, const Tensor& z_scale) {
  return run<int8_t>({x, dt, A, B, C, D, z, dt_bias, state}, scalar(x_scale, x, "x_scale"),
                     scalar(B_scale, x, "B_scale"), scalar(C_scale, x, "C_scale"), scalar(z_scale, x, "z_scale"));
}

}  // namespace

QUAMBA_LIBRARY(m) {
  m.impl("selective_scan", TORCH_BOX(&selective_scan));
  m.impl("selective_scan_int8", TORCH_BOX(&selective_scan_int8));
}

}  // namespace quamba::cuda
