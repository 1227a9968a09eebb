// Mamba2's scan as matrix products over chunks of tokens (state-space duality, arXiv 2405.21060, section 6): linear in
// the number of tokens. Chunks are outermost, so that what the heads of a group share stays in the cache.
//
// Dims: S heads, P head_dim, G groups, N d_state, Q tokens of a chunk; laid out, P and N are padded.
// Of a head, with a_t = exp(sum_{i <= t} dt_i A) over a chunk and h [N, P] the state before it:
//   y_t = a_t C_t h + sum_{s <= t} (C_t B_s) (a_t / a_s) dt_s x_s
//   h <- a_Q h + sum_s B_s (a_Q / a_s) dt_s x_s

// A call: its arguments, and its matrices in scratch memory.
template <typename T>
struct SsdScan {
  const SsdArgs<T>& args;
  const int64_t P, N;   // row strides
  const int64_t begin;  // the first head
  float* const C;       // [N, Q]
  float* const B;       // [Q, N]
  float* const scores;  // [Q, Q]: B_s C_t in row s, column t
  float* const mixing;  // [Q, Q]: what x_s weighs in y_t in row s, column t
  float* const x;       // [Q, P]
  float* const states;  // [heads, N, P]

  SsdScan(const SsdArgs<T>& args, int64_t begin)
      : args(args), P(ssd_row_stride(args.head_dim)), N(ssd_row_stride(args.d_state)), begin(begin), C(args.scratch),
        B(C + N * kSsdChunk), scores(B + N * kSsdChunk), mixing(scores + kSsdChunk * kSsdChunk),
        x(mixing + kSsdChunk * kSsdChunk), states(x + kSsdChunk * P) {}

  float* state(int64_t head) const { return states + (head - begin) * N * P; }
  float* state(int64_t head, int64_t n, int64_t p) const { return state(head) + n * P + p; }
  int64_t state_stride() const { return P; }
};

// Tokens [first, first + tokens) of a batch row.
struct SsdChunk {
  int64_t first, tokens;
};

// What a head decays by in a chunk of up to kTokens.
template <int64_t kTokens>
struct SsdDecays {
  float dt[kTokens];
  float high[kTokens], low[kTokens];  // log2 a_t as the sum of two floats
  float since_start[kTokens];         // a_t
  float to_end[kTokens];              // dt_s a_Q / a_s
};

// B and C of a group as floats, and their scores for s <= t.
template <typename T>
inline void lay_out_group(const SsdScan<T>& scan, int64_t group, SsdChunk chunk) {
  const SsdArgs<T>& args = scan.args;
  const int64_t N = scan.N;
  const float B_scale = args.B_scale ? args.B_scale[group] : 1.0f, C_scale = args.C_scale ? args.C_scale[group] : 1.0f;
  const T* B = args.B + chunk.first * args.B_stride + group * args.B_group_stride;
  const T* C = args.C + chunk.first * args.C_stride + group * args.C_group_stride;
  for (int64_t n = 0; n < args.d_state; n += kLanes) {
    const int count = lanes_left(n, args.d_state);
    for (int64_t t = 0; t < kSsdChunk; t += kLanes) {
      VecF rows[kLanes] = {};
      for (int i = 0; i < kLanes && t + i < chunk.tokens; ++i) {
        store(scan.B + (t + i) * N + n, load_scaled(B + (t + i) * args.B_stride, B_scale, n, count));
        rows[i] = load_scaled(C + (t + i) * args.C_stride, C_scale, n, count);
      }
      transpose(rows);
      for (int i = 0; i < kLanes; ++i) store(scan.C + (n + i) * kSsdChunk + t, rows[i]);
    }
  }
  for (int64_t s = 0; s < chunk.tokens; s += kTileRows)
    for_column_tiles(s / kLanes * kLanes, chunk.tokens, [&](int64_t t, auto parts) {
      Tile<decltype(parts)::value> sums = {};
      multiply_add<decltype(parts)::value>(sums, scan.B + s * N, N, 1, scan.C + t, kSsdChunk, args.d_state);
      store_tile<decltype(parts)::value>(scan.scores + s * kSsdChunk + t, kSsdChunk, sums);
    });
}

// Sums are doubles, and gone once they are two floats: a sum of large decays keeps what tells its tokens apart.
template <typename T, int64_t kTokens>
inline void find_decays(const SsdArgs<T>& args, int64_t head, SsdChunk chunk, SsdDecays<kTokens>& decays) {
  const float* dt = args.dt + chunk.first * args.dt_stride + head;
  const float bias = args.dt_bias ? args.dt_bias[head] : 0.0f;
  constexpr double kLeast = -1e4;  // a step that decays everything, and whose sums are finite
  const double log2_decay = static_cast<double>(args.A[head]) * 1.4426950408889634;
  for (int64_t t = 0; t < chunk.tokens; t += kLanes) {
    const VecF steps =
        gather_column(dt + t * args.dt_stride, args.dt_stride, 0, lanes_left(t, chunk.tokens)) + bias;
    store(decays.dt + t, ssd_step_size(steps, args.dt_min, args.dt_max));
  }
  double sums[kTokens] = {};
  for (int64_t t = 0; t < chunk.tokens; ++t) {  // loops of their own, but for the sum, become operations on vectors
    const double step = decays.dt[t] * log2_decay;
    sums[t] = step < kLeast ? kLeast : step;
  }
  double sum = 0;
  for (int64_t t = 0; t < kTokens; ++t) sums[t] = sum += sums[t];
  for (int64_t t = 0; t < kTokens; ++t) {
    decays.high[t] = static_cast<float>(sums[t]);
    decays.low[t] = static_cast<float>(sums[t] - decays.high[t]);
  }
  for (int64_t t = 0; t < chunk.tokens; t += kLanes) {
    const VecF high = load(decays.high + t), low = load(decays.low + t);
    store(decays.since_start + t, ssd_decay(high));
    const VecF rest = (decays.high[kTokens - 1] - high) + (decays.low[kTokens - 1] - low);
    store(decays.to_end + t, ssd_decay(rest) * load(decays.dt + t));
  }
}

// a_t / a_s
QUAMBA_INLINE VecF decay_between(VecF high_s, VecF low_s, VecF high_t, VecF low_t) {
  return ssd_decay((high_t - high_s) + (low_t - low_s));
}

// scores[s][t] dt_s a_t / a_s for s <= t, with D on the diagonal for the skip connection, and zeros for s > t.
template <typename T>
inline void find_mixing(const SsdScan<T>& scan, int64_t head, SsdChunk chunk, const SsdDecays<kSsdChunk>& decays) {
  const float D = scan.args.D ? scan.args.D[head] : 0.0f;
  VecI lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  for (int64_t s = 0; s < chunk.tokens; ++s) {
    float* row = scan.mixing + s * kSsdChunk;
    const int64_t diagonal = s / kLanes * kLanes;
    for (int64_t t = 0; t < diagonal; t += kLanes) store(row + t, VecF{});
    for (int64_t t = diagonal; t < chunk.tokens; t += kLanes) {
      const VecF decay = decay_between(broadcast(decays.high[s]), broadcast(decays.low[s]), load(decays.high + t),
                                       load(decays.low + t));
      VecF weight = decay * (load(scan.scores + s * kSsdChunk + t) * decays.dt[s]);
      if (t == diagonal) weight = (lane < static_cast<int32_t>(s - t)) ? VecF{} : weight;
      store(row + t, weight);
    }
    row[s] += D;
  }
}

// Columns [p, p + kCols parts) of a head's outputs of a chunk.
template <int kCols, typename T>
inline void find_outputs(const SsdScan<T>& scan, int64_t head, SsdChunk chunk, const SsdDecays<kSsdChunk>& decays,
                         int64_t p) {
  const SsdArgs<T>& args = scan.args;
  const int64_t channels = args.heads * args.head_dim;
  float* out = args.out + chunk.first * channels + head * args.head_dim + p;
  for (int64_t t = 0; t < chunk.tokens; t += kTileRows) {
    Tile<kCols> y = {};
    multiply_add<kCols>(y, scan.C + t, 1, kSsdChunk, scan.state(head) + p, scan.P, args.d_state);
    scale_rows<kCols>(y, decays.since_start + t);
    const int64_t seen = t + kTileRows < chunk.tokens ? t + kTileRows : chunk.tokens;
    multiply_add<kCols>(y, scan.mixing + t, 1, kSsdChunk, scan.x + p, scan.P, seen);
    store_corner<kCols>(out + t * channels, channels, y, chunk.tokens - t, args.head_dim - p);
  }
}

// The same columns of its state, moved on. It scales scan.x in place, which the outputs have read before.
template <int kCols, typename T>
inline void move_state(const SsdScan<T>& scan, int64_t head, SsdChunk chunk, const SsdDecays<kSsdChunk>& decays,
                       int64_t p) {
  float* x = scan.x + p;
  for (int64_t s = 0; s < chunk.tokens; ++s)
    QUAMBA_UNROLL for (int c = 0; c < kCols; ++c) {
      float* part = x + s * scan.P + c * kPartLanes;
      const PartF decayed = load_as<PartF>(part) * decays.to_end[s];
      std::memcpy(part, &decayed, sizeof(decayed));
    }
  const PartF decay = broadcast_part(decays.since_start[chunk.tokens - 1]);
  for (int64_t n = 0; n < scan.args.d_state; n += kTileRows) {
    float* h = scan.state(head) + n * scan.P + p;
    Tile<kCols> next;
    QUAMBA_UNROLL for (int r = 0; r < kTileRows; ++r)
      QUAMBA_UNROLL for (int c = 0; c < kCols; ++c)
        next[r][c] = load_as<PartF>(h + r * scan.P + c * kPartLanes) * decay;
    multiply_add<kCols>(next, scan.B + n, 1, scan.N, x, scan.P, chunk.tokens);
    store_tile<kCols>(h, scan.P, next);
  }
}

template <typename T>
inline void scan_head(const SsdScan<T>& scan, int64_t head, SsdChunk chunk) {
  const SsdArgs<T>& args = scan.args;
  SsdDecays<kSsdChunk> decays;
  find_decays(args, head, chunk, decays);
  find_mixing(scan, head, chunk, decays);
  const T* x = args.x + chunk.first * args.x_stride;
  for (int64_t t = 0; t < chunk.tokens; ++t, x += args.x_stride)
    for (int64_t p = 0; p < args.head_dim; p += kLanes) {
      const int64_t channel = head * args.head_dim + p;
      store(scan.x + t * scan.P + p, load_scaled(x, args.x_scale, channel, lanes_left(p, args.head_dim)));
    }
  for_column_tiles(0, args.head_dim, [&](int64_t p, auto parts) {
    find_outputs<decltype(parts)::value>(scan, head, chunk, decays, p);
    move_state<decltype(parts)::value>(scan, head, chunk, decays, p);
  });
}

// A head's state, [P, N] in the caller's memory, as [N, P], and back.
template <typename State, typename Scan>
inline void read_state(const Scan& scan, int64_t head) {
  const auto& args = scan.args;
  const State* h = static_cast<const State*>(args.state) + head * args.head_dim * args.d_state;
  for (int64_t p = 0; p < args.head_dim; p += kLanes)
    for (int64_t n = 0; n < args.d_state; n += kLanes) {
      VecF rows[kLanes] = {};
      for (int i = 0; i < lanes_left(p, args.head_dim); ++i) {
        const StateScale scale = state_scale(args, head * args.head_dim + p + i);
        rows[i] = load_state(h + (p + i) * args.d_state + n, scale, lanes_left(n, args.d_state));
      }
      transpose(rows);
      for (int i = 0; i < kLanes; ++i) store(scan.state(head, n, p) + i * scan.state_stride(), rows[i]);
    }
}

template <typename State, typename Scan>
inline void write_state(const Scan& scan, int64_t head) {
  const auto& args = scan.args;
  State* h = static_cast<State*>(args.state) + head * args.head_dim * args.d_state;
  for (int64_t p = 0; p < args.head_dim; p += kLanes)
    for (int64_t n = 0; n < args.d_state; n += kLanes) {
      VecF rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = load(scan.state(head, n, p) + i * scan.state_stride());
      transpose(rows);
      for (int i = 0; i < lanes_left(p, args.head_dim); ++i) {
        const StateScale scale = state_scale(args, head * args.head_dim + p + i);
        store_state(h + (p + i) * args.d_state + n, rows[i], scale, lanes_left(n, args.d_state));
      }
    }
}

template <typename Scan>
inline void read_states(const Scan& scan, int64_t begin, int64_t end) {
  for (int64_t head = begin; head < end; ++head) {
    if (!scan.args.state) std::fill(scan.state(head), scan.state(head + 1), 0.0f);
    else if (scan.args.state_scale) read_state<int8_t>(scan, head);
    else read_state<float>(scan, head);
  }
}

template <typename Scan>
inline void write_states(const Scan& scan, int64_t begin, int64_t end) {
  for (int64_t head = begin; scan.args.state && head < end; ++head)
    scan.args.state_scale ? write_state<int8_t>(scan, head) : write_state<float>(scan, head);
}

// Heads [begin, end) of one batch row.
template <typename T>
inline void ssd_scan(const SsdArgs<T>& args, int64_t begin, int64_t end) {
  if (args.tokens == 1) return ssd_token(args, begin, end);
  const SsdScan<T> scan(args, begin);
  read_states(scan, begin, end);
  const int64_t group_heads = args.heads / args.groups;
  for (int64_t first = 0; first < args.tokens; first += kSsdChunk) {
    const SsdChunk chunk{first, args.tokens - first < kSsdChunk ? args.tokens - first : kSsdChunk};
    for (int64_t head = begin; head < end; ++head) {
      if (head == begin || head % group_heads == 0) lay_out_group(scan, head / group_heads, chunk);
      scan_head(scan, head, chunk);
    }
  }
  write_states(scan, begin, end);
}
