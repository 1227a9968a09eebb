// Selective scan (Mamba, arXiv 2312.00752, Algorithm 2), gated: sequential over tokens so that prefill, chunks and
// single steps agree bit for bit; channels across lanes. Tokens are cut into tiles that fit the cache, so that rows are
// read by neighbouring channel blocks while they are near.

constexpr int64_t kScanTile = 32;  // tokens

// Column n of a row-major [D, N] for 16 channels.
QUAMBA_INLINE VecF gather_column(const float* rows, int64_t N, int64_t n, int count) {
  VecF column{};
  for (int lane = 0; lane < count; ++lane) column[lane] = rows[lane * N + n];
  return column;
}

// h <- decay h + (dt x) B
QUAMBA_INLINE VecF next_state(VecF decay, VecF h, VecF dt_x, VecF B) { return fma(decay, h, dt_x * B); }

// Tokens [t_begin, t_end) of 16 channels; A and state are [N][16 channels].
template <typename T>
inline void selective_scan_tile(const ScanArgs<T>& args, const float* A, float* state, int64_t d, int count,
                                int64_t t_begin, int64_t t_end) {
  const int64_t N = args.d_state;
  const VecF skip = args.D ? load(args.D + d, count) : VecF{};
  const VecF dt_bias = args.dt_bias ? load(args.dt_bias + d, count) : VecF{};
  for (int64_t t = t_begin; t < t_end; ++t) {
    const VecF x = load(args.x + t * args.x_stride + d, count) * args.x_scale;
    const VecF dt = softplus(load(args.dt + t * args.channels + d, count) + dt_bias);
    const VecF dt_x = dt * x;
    const float* B = args.B + t * N;
    const float* C = args.C + t * N;
    VecF y = skip * x;
    for (int64_t n = 0; n < N; ++n) {
      const VecF h = next_state(exp(dt * load(A + n * kLanes)), load(state + n * kLanes), dt_x, broadcast(B[n]));
      store(state + n * kLanes, h);
      y = fma(h, broadcast(C[n]), y);
    }
    if (args.z) y = y * silu(load(args.z + t * args.z_stride + d, count) * args.z_scale);
    store(args.out + t * args.channels + d, y, count);
  }
}

// Channels [begin, end), begin a multiple of 16.
template <typename T>
inline void selective_scan(const ScanArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t N = args.d_state;
  // A and state of the block of channels that starts at d, columns first
  const auto A = [&](int64_t d) { return args.scratch + 2 * d * N; };
  const auto state = [&](int64_t d) { return args.scratch + (2 * d + kLanes) * N; };
  for (int64_t d = begin; d < end; d += kLanes)
    for (int64_t n = 0; n < N; ++n) {
      const int count = lanes_left(d, end);
      store(A(d) + n * kLanes, gather_column(args.A + d * N, N, n, count));
      store(state(d) + n * kLanes, args.state ? gather_column(args.state + d * N, N, n, count) : VecF{});
    }
  for (int64_t t = 0; t < args.tokens; t += kScanTile)
    for (int64_t d = begin; d < end; d += kLanes)
      selective_scan_tile<T>(args, A(d), state(d), d, lanes_left(d, end), t, std::min(args.tokens, t + kScanTile));
  if (args.state)
    for (int64_t d = begin; d < end; d += kLanes)
      for (int lane = 0; lane < lanes_left(d, end); ++lane)
        for (int64_t n = 0; n < N; ++n) args.state[(d + lane) * N + n] = state(d)[n * kLanes + lane];
}
