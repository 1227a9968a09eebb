// ssd_scan and ssd_scan_int8: checks, launches, registration.

#include "ssd_chunk_scan.cuh"
#include "ssd_chunk_state.cuh"
#include "ssd_state_passing.cuh"
#include "ssd_token.cuh"

#include "checks.h"

namespace quamba::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr int kShortChunk = 64, kLongChunk = 128;
constexpr int kLongFrom = 1024;     // tokens
constexpr int kEnoughBlocks = 512;  // of a launch that fills a GPU: above it, heads share a block and its B and scores
constexpr int64_t kMaxGrid = 65535;  // of its y and z

struct Inputs {  // of the float and the int8 scan alike
  const Tensor& x;
  const Tensor& dt;
  const Tensor& A;
  const Tensor& B;
  const Tensor& C;
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
  check(in.x.dim() == 3, "x must be [B, L, D], got ", text(in.x.sizes()));
  check(in.A.dim() == 1, "A must be [S], got ", text(in.A.sizes()));
  check(in.B.dim() == 4, "B must be [B, L, G, N], got ", text(in.B.sizes()));
  const int64_t channels = in.x.size(2), heads = in.A.size(0), groups = in.B.size(2);
  check(heads > 0 && channels % heads == 0, channels, " channels of x do not split into the ", heads, " heads of A");
  check(groups > 0 && heads % groups == 0, heads, " heads do not split into the ", groups, " groups of B");
  return {in.x.size(0), in.x.size(1), heads, channels / heads, groups, in.B.size(3)};
}

void check_inputs(const Inputs& in, const Sizes& s, ScalarType dtype, const OptionalTensor& state_scale) {
  const std::pair<const Tensor*, const char*> of_dtype[] = {{&in.x, "x"}, {&in.B, "B"}, {&in.C, "C"}};
  for (const auto& [tensor, name] : of_dtype) {
    check_dtype(*tensor, dtype, name);
    check_device(*tensor, in.x, name);
  }
  check_shape(in.B, {s.batch, s.tokens, s.groups, s.d_state}, "B");
  check_shape(in.C, {s.batch, s.tokens, s.groups, s.d_state}, "C");
  check_dtype(in.dt, ScalarType::Float, "dt");
  check_shape(in.dt, {s.batch, s.tokens, s.heads}, "dt");
  check_device(in.dt, in.x, "dt");
  check(in.dt_min <= in.dt_max, "dt_min ", in.dt_min, " is over dt_max ", in.dt_max);
  check(s.batch <= kMaxGrid && s.tokens <= kMaxGrid * kShortChunk && s.heads <= kMaxGrid, "x of shape ",
        text(in.x.sizes()), " is more than one launch takes: split its batch or its tokens");
  check(in.state.has_value() || !state_scale.has_value(), "state_scale is given without a state");
  if (!in.state.has_value()) return;
  if (state_scale.has_value()) check_dtype(*in.state, ScalarType::Char, "state with a state_scale");
  else check_dtype(*in.state, ScalarType::Float, "state without a state_scale");
  check_shape(*in.state, {s.batch, s.heads, s.head_dim, s.d_state}, "state");
  check_device(*in.state, in.x, "state");
  check(in.state->is_contiguous(), "state must be contiguous: it is updated in place");
}

bool starts_at(const void* data, int64_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

SsdStrides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1)}; }

// Whether rows of `columns` values, so many apart from each other, are whole vectors of 16 bytes.
template <typename T>
bool has_vectors(const T* data, std::initializer_list<int64_t> strides, int64_t columns) {
  bool whole = starts_at(data, 16) && columns * sizeof(T) % 16 == 0;
  for (const int64_t stride : strides) whole = whole && stride * sizeof(T) % 16 == 0;
  return whole;
}

// Calls body(a value of the states' type): int8 states come with int8 inputs alone.
template <typename T, typename Body>
void with_states_of(const SsdArgs<T>& args, const Body& body) {
  if constexpr (sizeof(T) == 1) {
    if (args.state_scale) return body(int8_t());
  }
  body(float());
}

template <typename T>
void launch_token(const OnDevice& device, const SsdArgs<T>& args, unsigned batch) {
  int width = 1;
  while (width < kWarp && width * 4 < args.d_state) width *= 2;
  const int block_rows = kTokenThreads / width * kTokenRows;
  const dim3 grid(ceil_div(args.head_dim, block_rows), static_cast<unsigned>(args.heads), batch);
  with_states_of(args, [&](auto state) {
    device.launch(ssd_token_kernel<decltype(state), T>, grid, kTokenThreads, 0, args, width);
  });
}

// How many heads of a group share a block, so that there are enough blocks of `parts` each for a slice of heads.
template <typename T>
void share_heads(SsdArgs<T>& args, int64_t parts) {
  const int group_heads = args.heads / args.groups;
  args.block_heads = 1;
  while (args.block_heads * 2 <= std::min(kSsdMaxHeads, group_heads) &&
         parts * args.groups * ceil_div(group_heads, args.block_heads * 2) >= kEnoughBlocks)
    args.block_heads *= 2;
  args.slices = ceil_div(group_heads, args.block_heads);
}

template <int kChunk, typename T>
void launch_chunks(const OnDevice& device, SsdArgs<T> args, unsigned batch, const Tensor& like) {
  args.chunks = ceil_div(args.tokens, kChunk);
  args.state_columns = ceil_div(args.d_state, 4) * 4;
  const int64_t chunk_heads = static_cast<int64_t>(batch) * args.chunks * args.heads;
  const int64_t decays_shape[] = {chunk_heads * 3 * kChunk};
  const int64_t states_shape[] = {chunk_heads * args.head_dim * args.state_columns};
  const Tensor decays = empty({decays_shape, 1}, ScalarType::Float, like);
  const Tensor states = empty({states_shape, 1}, ScalarType::Float, like);
  args.decays = pointer<float>(decays), args.states = pointer<float>(states);

  const unsigned chunks = static_cast<unsigned>(args.chunks);
  const int parts = ceil_div(args.head_dim, kStateP) * std::max(1, ceil_div(args.d_state, kStateN));
  share_heads(args, static_cast<int64_t>(parts) * chunks * batch);
  const int needed = args.state ? args.chunks : args.chunks - 1;  // nobody asks for the states behind the last one
  device.launch(ssd_chunk_state_kernel<T, kChunk>, dim3(args.groups * args.slices * parts, chunks, batch), kSsdThreads,
                sizeof(ChunkStateTiles<T, kChunk>), args, needed);

  const int64_t quads = static_cast<int64_t>(args.heads) * args.head_dim * (args.state_columns / 4);
  const dim3 passing(static_cast<unsigned>(ceil_div<int64_t>(quads, kPassingThreads)), batch);
  with_states_of(args, [&](auto state) {
    if (needed) device.launch(ssd_state_passing_kernel<decltype(state), kChunk, T>, passing, kPassingThreads, 0, args);
  });

  const int tiles = ceil_div(args.tokens, kSsdRows), p_parts = ceil_div(args.head_dim, kScanP);
  share_heads(args, static_cast<int64_t>(p_parts) * tiles * batch);
  const dim3 scan(args.groups * args.slices * p_parts, static_cast<unsigned>(tiles), batch);
  device.launch(ssd_chunk_scan_kernel<T, kChunk>, scan, kSsdThreads, sizeof(ChunkScanTiles<T, kChunk>), args);
}

// Longer chunks mean fewer states to write and read, and fewer blocks. With floats, which multiply more anyway, their
// scores do not fit the registers.
template <typename T>
void launch_some_chunks(const OnDevice& device, const SsdArgs<T>& args, unsigned batch, const Tensor& like) {
  if constexpr (sizeof(T) == 1) {
    if (args.tokens >= kLongFrom) return launch_chunks<kLongChunk>(device, args, batch, like);
  }
  launch_chunks<kShortChunk>(device, args, batch, like);
}

template <typename T>
Tensor run(const Inputs& in, const Scales& scales) {
  const Sizes s = sizes_of(in);
  check_inputs(in, s, torch::headeronly::CppTypeToScalarType<T>::value, scales.state);
  const Tensor x = with_contiguous_rows(in.x), dt = with_contiguous_rows(in.dt);
  const Tensor B = with_contiguous_rows(in.B), C = with_contiguous_rows(in.C);
  const int64_t channels = s.heads * s.head_dim;
  OptionalTensor keep[7];
  const Tensor out = empty(x.sizes(), ScalarType::Float, x);
  SsdArgs<T> args{};
  args.x = const_pointer<T>(x), args.B = const_pointer<T>(B), args.C = const_pointer<T>(C);
  args.dt = const_pointer<float>(dt);
  args.x_at = strides_of(x), args.B_at = strides_of(B), args.C_at = strides_of(C), args.dt_at = strides_of(dt);
  args.B_group = B.stride(2), args.C_group = C.stride(2);
  args.A = values<float>(in.A, {s.heads}, x, "A", keep[0]);
  args.D = values<float>(in.D, {s.heads}, x, "D", keep[1]);
  args.dt_bias = values<float>(in.dt_bias, {s.heads}, x, "dt_bias", keep[2]);
  args.x_scale = values<float>(scales.x, {channels}, x, "x_scale", keep[3]);
  args.B_scale = values<float>(scales.B, {s.groups}, x, "B_scale", keep[4]);
  args.C_scale = values<float>(scales.C, {s.groups}, x, "C_scale", keep[5]);
  args.state_scale = values<float>(scales.state, {s.heads, s.head_dim}, x, "state_scale", keep[6]);
  args.dt_min = static_cast<float>(in.dt_min), args.dt_max = static_cast<float>(in.dt_max);
  args.state = in.state.has_value() ? in.state->mutable_data_ptr() : nullptr;
  args.state_vectors = s.d_state % 4 == 0 && starts_at(args.state, scales.state.has_value() ? 4 : 16);
  args.out = pointer<float>(out);
  args.tokens = static_cast<int>(s.tokens), args.heads = static_cast<int>(s.heads);
  args.groups = static_cast<int>(s.groups), args.head_dim = static_cast<int>(s.head_dim);
  args.d_state = static_cast<int>(s.d_state);
  args.x_vectors = has_vectors(args.x, {x.stride(0), x.stride(1)}, s.head_dim);
  args.B_vectors = has_vectors(args.B, {B.stride(0), B.stride(1), B.stride(2)}, s.d_state);
  args.C_vectors = has_vectors(args.C, {C.stride(0), C.stride(1), C.stride(2)}, s.d_state);
  const OnDevice device(x);
  const unsigned batch = static_cast<unsigned>(s.batch);
  if (s.tokens == 1) launch_token(device, args, batch);
  else if (s.tokens > 1) launch_some_chunks(device, args, batch, x);
  return out;
}

Tensor ssd_scan(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                const OptionalTensor& D, const OptionalTensor& dt_bias, double dt_min, double dt_max,
                const OptionalTensor& state) {
  return run<float>({x, dt, A, B, C, D, dt_bias, dt_min, dt_max, state}, {});
}

Tensor ssd_scan_int8(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                     const OptionalTensor& D, const OptionalTensor& dt_bias, double dt_min, double dt_max,
                     const OptionalTensor& state, const Tensor& x_scale, const Tensor& B_scale, const Tensor& C_scale,
                     const OptionalTensor& state_scale) {
  return run<int8_t>({x, dt, A, B, C, D, dt_bias, dt_min, dt_max, state}, {x_scale, B_scale, C_scale, state_scale});
}

}  // namespace

QUAMBA_LIBRARY(m) {
  m.impl("ssd_scan", TORCH_BOX(&ssd_scan));
  m.impl("ssd_scan_int8", TORCH_BOX(&ssd_scan_int8));
}

}  // namespace quamba::cuda
