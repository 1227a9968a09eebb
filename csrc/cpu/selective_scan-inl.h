// Selective scan (Mamba, arXiv 2312.00752, Algorithm 2), gated: sequential over tokens so that prefill, chunks and
// single steps agree bit for bit; channels across lanes. Tokens are cut into tiles that fit the cache, so that rows are
// read by neighbouring channel blocks while they are near.

constexpr int64_t kScanTile = 32;  // tokens

// h <- e^(dt A) h + (dt x) B; A comes times log2(e).
QUAMBA_INLINE VecF next_state(VecF dt, VecF A, VecF h, VecF dt_x, VecF B) { return fma(exp2(dt * A), h, dt_x * B); }

// Tokens [t_begin, t_end) of 16 channels; A (times log2 e) and state are [N][16 channels]. kN is N where the state fits
// the registers, else 0.
template <typename T, int kN>
inline void selective_scan_tile(const ScanArgs<T>& args, const float* A, float* state, int64_t d, int count,
                                int64_t t_begin, int64_t t_end) {
  const int64_t N = kN ? kN : args.d_state;
  const VecF skip = args.D ? load(args.D + d, count) : VecF{};
  const VecF dt_bias = args.dt_bias ? load(args.dt_bias + d, count) : VecF{};
  // what does not wait for the state, for all tokens first: its long chains of operations overlap across tokens
  VecF x[kScanTile], dt[kScanTile];
  for (int64_t t = t_begin; t < t_end; ++t) {
    x[t - t_begin] = load(args.x + t * args.x_stride + d, count) * args.x_scale;
    dt[t - t_begin] = softplus(load(args.dt + t * args.channels + d, count) + dt_bias);
  }
  VecF registers[kN ? kN : 1];
  for (int n = 0; n < kN; ++n) registers[n] = load(state + n * kLanes);
  for (int64_t t = t_begin; t < t_end; ++t) {
    const VecF step = dt[t - t_begin], dt_x = step * x[t - t_begin];
    const float* B = args.B + t * N;
    const float* C = args.C + t * N;
    VecF y = skip * x[t - t_begin];
    if constexpr (kN != 0) {
#pragma GCC unroll 16
      for (int n = 0; n < kN; ++n) {
        registers[n] = next_state(step, load(A + n * kLanes), registers[n], dt_x, broadcast(B[n]));
        y = fma(registers[n], broadcast(C[n]), y);
      }
    } else {
      for (int64_t n = 0; n < N; ++n) {
        const VecF h = next_state(step, load(A + n * kLanes), load(state + n * kLanes), dt_x, broadcast(B[n]));
        store(state + n * kLanes, h);
        y = fma(h, broadcast(C[n]), y);
      }
    }
    x[t - t_begin] = y;
  }
  for (int64_t t = t_begin; t < t_end; ++t) {
    const VecF y = x[t - t_begin];
    const VecF out = args.z ? y * silu(load(args.z + t * args.z_stride + d, count) * args.z_scale) : y;
    store(args.out + t * args.channels + d, out, count);
  }
  for (int n = 0; n < kN; ++n) store(state + n * kLanes, registers[n]);
}

// One token with a state of 16: the state's rows are read and written as they lie, one vector a channel, and only what
// the output sums over is transposed. The operations on each number are those of selective_scan_tile.
template <typename T>
inline void selective_scan_token(const ScanArgs<T>& args, int64_t begin, int64_t end) {
  const VecF B = load(args.B);
  for (int64_t d = begin; d < end; d += kLanes) {
    const int count = lanes_left(d, end);
    const VecF x = load(args.x + d, count) * args.x_scale;
    const VecF dt_bias = args.dt_bias ? load(args.dt_bias + d, count) : VecF{};
    const VecF dt = softplus(load(args.dt + d, count) + dt_bias);
    const VecF dt_x = dt * x;
    VecF h[kLanes] = {};  // [channel][n]
    for (int c = 0; c < count; ++c) {
      const int64_t row = (d + c) * kLanes;
      h[c] = next_state(broadcast(dt[c]), load(args.A + row) * kLog2E, load(args.state + row), broadcast(dt_x[c]), B);
      store(args.state + row, h[c]);
    }
    transpose(h);
    VecF y = args.D ? load(args.D + d, count) * x : VecF{};
    for (int n = 0; n < kLanes; ++n) y = fma(h[n], broadcast(args.C[n]), y);
    if (args.z) y = y * silu(load(args.z + d, count) * args.z_scale);
    store(args.out + d, y, count);
  }
}

// Channels [begin, end), begin a multiple of 16.
template <typename T>
inline void selective_scan(const ScanArgs<T>& args, int64_t begin, int64_t end) {
  if (args.tokens == 1 && args.d_state == kLanes && args.state) return selective_scan_token<T>(args, begin, end);
  const int64_t N = args.d_state;
  // A and state of the block of channels that starts at d, columns first
  const auto A = [&](int64_t d) { return args.scratch + 2 * d * N; };
  const auto state = [&](int64_t d) { return args.scratch + (2 * d + kLanes) * N; };
  for (int64_t d = begin; d < end; d += kLanes)
    for (int64_t n = 0; n < N; ++n) {
      const int count = lanes_left(d, end);
      store(A(d) + n * kLanes, gather_column(args.A + d * N, N, n, count) * kLog2E);
      store(state(d) + n * kLanes, args.state ? gather_column(args.state + d * N, N, n, count) : VecF{});
    }
  const auto tile = N == kLanes ? selective_scan_tile<T, kLanes> : selective_scan_tile<T, 0>;
  for (int64_t t = 0; t < args.tokens; t += kScanTile)
    for (int64_t d = begin; d < end; d += kLanes)
      tile(args, A(d), state(d), d, lanes_left(d, end), t, std::min(args.tokens, t + kScanTile));
  if (args.state)
    for (int64_t d = begin; d < end; d += kLanes)
      for (int lane = 0; lane < lanes_left(d, end); ++lane)
        for (int64_t n = 0; n < N; ++n) args.state[(d + lane) * N + n] = state(d)[n * kLanes + lane];
}
