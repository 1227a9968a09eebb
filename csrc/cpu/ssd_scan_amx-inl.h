// Mamba2's scan of int8 inputs with AMX: the products of ssd_scan-inl.h as those of amx_pairs-inl.h. x, B and C go into them as
// integers, what weighs them and the state as split floats; the scales come with the floats or after the sums.
//
// Dims: S heads, P head_dim, G groups, N d_state, Q tokens of a chunk; P, N and Q are padded with zeros to whole tiles.

// A call: its arguments, and its matrices in scratch memory.
struct SsdAmxScan {
  const SsdArgs<int8_t>& args;
  const int64_t P, N;      // padded
  const int64_t begin;     // the first head
  int32_t* const C;        // left [Q, N]
  int32_t* const B;        // left [N, Q]
  int32_t* const B_right;  // right [N, Q]
  int32_t* const mixing;   // left [Q, Q], split: what x_s weighs in y_t in row t, column s
  int32_t* const x;        // right [Q, 32 channels]
  int32_t* const moving;   // right [Q, 32 channels], split: x_s dt_s a_Q / a_s, with the scales of x and B
  int32_t* const h;        // right [N, 32 channels], split: the state before the chunk
  float* const scores;     // [Q, Q]: integers C_t B_s in row t, column s
  float* const states;     // [heads, P / 32, N, 32]

  SsdAmxScan(const SsdArgs<int8_t>& args, int64_t begin)
      : args(args), P(ssd_amx_padded(args.head_dim)), N(ssd_amx_padded(args.d_state)), begin(begin),
        C(reinterpret_cast<int32_t*>(args.scratch)), B(C + kSsdAmxChunk * N / 2), B_right(B + kSsdAmxChunk * N / 2),
        mixing(B_right + kSsdAmxChunk * N / 2), x(mixing + kSsdAmxChunk * kSsdAmxChunk),
        moving(x + kSsdAmxChunk * kAmxColumns / 2), h(moving + kSsdAmxChunk * kAmxColumns),
        scores(reinterpret_cast<float*>(h + N * kAmxColumns)), states(scores + kSsdAmxChunk * kSsdAmxChunk) {}

  float* state(int64_t head) const { return states + (head - begin) * N * P; }
  float* state(int64_t head, int64_t n, int64_t p) const {
    return state(head) + (p / kAmxColumns * N + n) * kAmxColumns + p % kAmxColumns;
  }
  static constexpr int64_t state_stride() { return kAmxColumns; }
};

// The scales of 16 channels of x; zeros beyond the head's.
QUAMBA_INLINE VecF load_channels(const SsdArgs<int8_t>& args, int64_t head, int64_t p) {
  return (VecF)_mm512_maskz_loadu_ps(present_lanes(p, args.head_dim), args.x_scale + head * args.head_dim + p);
}

inline SsdChunk chunk_at(const SsdArgs<int8_t>& args, int64_t first) {
  return {first, args.tokens - first < kSsdAmxChunk ? args.tokens - first : kSsdAmxChunk};
}

// 32 tokens of C from t on, as the left operand, or of B as the right operand of the scores.
inline void lay_out_C(const SsdAmxScan& scan, const int8_t* C, int64_t tokens, int64_t t) {
  const SsdArgs<int8_t>& args = scan.args;
  int32_t* to = scan.C + t * scan.N / 2;
  for (int64_t row = t; row < t + kAmxColumns; row += kAmxRows)
    for (int64_t n = 0; n < scan.N; n += kAmxPairs, to += kTileWords)
      for (int i = 0; i < kAmxRows; ++i) {
        const VecF first = load_padded(C + n, args.C_stride, row + i, tokens, present_lanes(n, args.d_state));
        const VecF second =
            load_padded(C + n + kLanes, args.C_stride, row + i, tokens, present_lanes(n + kLanes, args.d_state));
        store_pairs(to + i * kLanes, exact_pairs(first, second));
      }
}

inline void lay_out_B_right(const SsdAmxScan& scan, const int8_t* B, int64_t tokens, int64_t s) {
  const SsdArgs<int8_t>& args = scan.args;
  int32_t* to = scan.B_right + s * scan.N / 2;
  for (int64_t n = 0; n < scan.N; n += kAmxPairs)
    for (int64_t row = s; row < s + kAmxColumns; row += kAmxRows, to += kTileWords) {
      VecF pairs[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const VecF first = load_padded(B + n, args.B_stride, row + i, tokens, present_lanes(n, args.d_state));
        const VecF second =
            load_padded(B + n + kLanes, args.B_stride, row + i, tokens, present_lanes(n + kLanes, args.d_state));
        pairs[i] = (VecF)exact_pairs(first, second);
      }
      transpose(pairs);
      for (int i = 0; i < kLanes; ++i) store(reinterpret_cast<float*>(to) + i * kLanes, pairs[i]);
    }
}

// B of 32 tokens, transposed: the left operand of the state's move.
inline void lay_out_B(const SsdAmxScan& scan, const int8_t* B, int64_t tokens, int64_t s) {
  const SsdArgs<int8_t>& args = scan.args;
  int32_t* to = scan.B + s / kAmxPairs * kTileWords;
  for (int64_t n = 0; n < scan.N; n += kAmxRows, to += kSsdAmxChunk / kAmxPairs * kTileWords) {
    const __mmask16 present = present_lanes(n, args.d_state);
    VecF first[kLanes], second[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      first[i] = load_padded(B + n, args.B_stride, s + i, tokens, present);
      second[i] = load_padded(B + n, args.B_stride, s + kLanes + i, tokens, present);
    }
    transpose(first);
    transpose(second);
    for (int i = 0; i < kLanes; ++i) store_pairs(to + i * kLanes, exact_pairs(first[i], second[i]));
  }
}

// B and C of a group, and their scores for s <= t.
inline void lay_out_group(const SsdAmxScan& scan, int64_t group, SsdChunk chunk) {
  const SsdArgs<int8_t>& args = scan.args;
  const int8_t* B = args.B + chunk.first * args.B_stride + group * args.B_group_stride;
  const int8_t* C = args.C + chunk.first * args.C_stride + group * args.C_group_stride;
  for (int64_t t = 0; t < chunk.tokens; t += kAmxColumns) {
    lay_out_C(scan, C, chunk.tokens, t);
    lay_out_B(scan, B, chunk.tokens, t);
    lay_out_B_right(scan, B, chunk.tokens, t);
    for (int64_t s = 0; s <= t; s += kAmxColumns) {
      zero_sums();
      multiply_pairs<1, 1>(scan.C + t * scan.N / 2, scan.N * 8, scan.B_right + s * scan.N / 2, scan.N / kAmxPairs,
                           kNothing);
      store_float_sums(scan.scores + t * kSsdAmxChunk + s, kSsdAmxChunk);
    }
  }
}

// Columns [p, p + 32) of a head in a chunk, the unit of work. They go panel by panel, head by head, chunk by chunk.
struct SsdPanel {
  SsdChunk chunk;
  int64_t head, p;
};

// The panel after that one, of heads [begin, end). False: there is none.
inline bool move_on(const SsdArgs<int8_t>& args, int64_t begin, int64_t end, SsdPanel& panel) {
  panel.p += kAmxColumns;
  if (panel.p < args.head_dim) return true;
  panel.p = 0;
  if (++panel.head < end) return true;
  panel.head = begin;
  panel.chunk = chunk_at(args, panel.chunk.first + kSsdAmxChunk);
  return panel.chunk.tokens > 0;
}

// With the scales of B and C.
struct SsdAmxDecays {
  SsdDecays<kSsdAmxChunk> of;  // dt: times both scales; since_start: times C's; to_end: times B's
  float whole;                 // a_Q

  void find(const SsdArgs<int8_t>& args, SsdPanel panel) {
    const int64_t group = panel.head / (args.heads / args.groups), tokens = panel.chunk.tokens;
    const float B_scale = args.B_scale[group], C_scale = args.C_scale[group];
    find_decays(args, panel.head, panel.chunk, of);
    whole = of.since_start[tokens - 1];
    for (int64_t t = 0; t < tokens; ++t) {
      of.dt[t] *= B_scale * C_scale;
      of.since_start[t] *= C_scale;
      of.to_end[t] *= B_scale;
    }
    for (int64_t t = tokens; t < kSsdAmxChunk; ++t) of.to_end[t] = of.dt[t] = 0;
  }
};

// For tokens s of a block of 16 tokens and t after it, a_t / a_s is the product of two decays, to the block's last
// token and from it: exponentials of vectors rather than of matrices.
struct SsdBlockDecays {
  static constexpr float kLeast = 0x1p-60f;          // less is nothing, so that no product is denormal
  float to_last[kSsdAmxChunk];                       // times dt_s
  float from_last[kSsdAmxChunk / 16][kSsdAmxChunk];  // of each block

  SsdBlockDecays(const SsdDecays<kSsdAmxChunk>& decays, int64_t tokens) {
    for (int64_t s = 0, block = 0; s < tokens; s += kLanes, ++block) {
      const VecF high = broadcast(decays.high[s + kLanes - 1]), low = broadcast(decays.low[s + kLanes - 1]);
      const VecF decay = decay_between(load(decays.high + s), load(decays.low + s), high, low);
      store(to_last + s, at_least(decay) * load(decays.dt + s));
      for (int64_t t = s + kLanes; t < tokens; t += kLanes)
        store(from_last[block] + t, at_least(decay_between(high, low, load(decays.high + t), load(decays.low + t))));
    }
  }

  static QUAMBA_INLINE VecF at_least(VecF decay) { return (decay < kLeast) ? VecF{} : decay; }
};

// Row t: C_t B_s dt_s a_t / a_s for s <= t, with D on the diagonal for the skip connection, and zeros for s > t.
inline void find_mixing(const SsdAmxScan& scan, SsdPanel panel, const SsdDecays<kSsdAmxChunk>& decays) {
  const float D = scan.args.D ? scan.args.D[panel.head] : 0.0f;
  VecI lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  const SsdBlockDecays blocks(decays, panel.chunk.tokens);
  for (int64_t t = 0; t < panel.chunk.tokens; ++t) {
    const float* scores = scan.scores + t * kSsdAmxChunk;
    const auto weights = [&](int64_t s) __attribute__((always_inline)) {
      return load(scores + s) * load(blocks.to_last + s) * blocks.from_last[s / kLanes][t];
    };
    const int64_t block = t / kLanes * kLanes;
    const int32_t diagonal = static_cast<int32_t>(t - block);
    VecF last = load(scores + block) * load(decays.dt + block) *
                decay_between(load(decays.high + block), load(decays.low + block), broadcast(decays.high[t]),
                              broadcast(decays.low[t]));
    last = (lane > diagonal) ? VecF{} : (lane == diagonal) ? last + D : last;
    int32_t* to = scan.mixing + block * kSsdAmxChunk + diagonal * kLanes;
    int64_t s = 0;
    for (; s + kAmxPairs <= block; s += kAmxPairs, to += 2 * kTileWords)
      split_pairs(weights(s), weights(s + kLanes), to, to + kTileWords);
    if (s < block) split_pairs(weights(s), last, to, to + kTileWords);
    else split_pairs(last, VecF{}, to, to + kTileWords);
  }
}

// x of a panel as both products over tokens take it.
inline void lay_out_x(const SsdAmxScan& scan, SsdPanel panel, const float* to_end) {
  const SsdArgs<int8_t>& args = scan.args;
  const int64_t tokens = panel.chunk.tokens;
  const int8_t* from = args.x + panel.chunk.first * args.x_stride + panel.head * args.head_dim;
  int32_t *x = scan.x, *moving = scan.moving;
  for (int64_t s = 0; s < tokens; s += kAmxPairs, moving += 4 * kTileWords)
    for (int64_t c = 0; c < 2; ++c, x += kTileWords) {
      const int64_t p = panel.p + c * kLanes;
      const VecF scale = load_channels(args, panel.head, p);
      const __mmask16 present = present_lanes(p, args.head_dim);
      for (int i = 0; i < kLanes; ++i) {
        const VecF first = load_padded(from + p, args.x_stride, s + i, tokens, present);
        const VecF second = load_padded(from + p, args.x_stride, s + kLanes + i, tokens, present);
        store_pairs(x + i * kLanes, exact_pairs(first, second));
        int32_t* to = moving + c * kTileWords + i * kLanes;
        split_pairs(first * scale * to_end[s + i], second * scale * to_end[s + kLanes + i], to, to + 2 * kTileWords);
      }
    }
}

// Rows [n, n + 32) of a panel of the state, laid out and decayed by the chunk: share `row`, of 32.
QUAMBA_INLINE void lay_out_state_row(const SsdAmxScan& scan, SsdPanel panel, float decay, int64_t n, int64_t row) {
  const int64_t i = row / 2, c = row % 2;
  int32_t* to = scan.h + n / kAmxPairs * 4 * kTileWords + c * kTileWords + i * kLanes;
  float* h = scan.state(panel.head, n + i, panel.p) + c * kLanes;
  const VecF first = load(h), second = load(h + kLanes * kAmxColumns);
  split_pairs(first, second, to, to + 2 * kTileWords);
  store(h, first * decay);
  store(h + kLanes * kAmxColumns, second * decay);
}

inline void lay_out_state(const SsdAmxScan& scan, SsdPanel panel, float decay) {
  for (int64_t n = 0; n < scan.N; n += kAmxPairs)
    for (int64_t row = 0; row < kAmxPairs; ++row) lay_out_state_row(scan, panel, decay, n, row);
}

// The products of 32 tokens' outputs, which wait here until the next ones run: tiles just stored are slow to read.
struct SsdAmxOutputs {
  alignas(64) float before[kMaxAmxRows][kAmxColumns];  // C_t h
  alignas(64) float within[kMaxAmxRows][kAmxColumns];  // of the chunk itself, without the scale of x
  float since_start[kMaxAmxRows];
  VecF scale[2];
  float* out;
  int64_t channels, columns, rows = 0;

  void set(const SsdArgs<int8_t>& args, SsdPanel panel, const float* decays, int64_t t) {
    channels = args.heads * args.head_dim;
    out = args.out + (panel.chunk.first + t) * channels + panel.head * args.head_dim + panel.p;
    columns = args.head_dim - panel.p;
    rows = panel.chunk.tokens - t < kMaxAmxRows ? panel.chunk.tokens - t : kMaxAmxRows;
    std::memcpy(since_start, decays + t, sizeof(since_start));
    for (int c = 0; c < 2; ++c) scale[c] = load_channels(args, panel.head, panel.p + c * kLanes);
  }

  QUAMBA_INLINE void finish(int64_t r) const {
    QUAMBA_UNROLL for (int c = 0; c < 2; ++c) {
      const VecF own = load(within[r] + c * kLanes) * scale[c];
      const VecF y = fma(load(before[r] + c * kLanes), broadcast(since_start[r]), own);
      if (columns >= kAmxColumns) store(out + r * channels + c * kLanes, y);
      else if (columns > c * kLanes) store(out + r * channels + c * kLanes, y, lanes_left(c * kLanes, columns));
    }
  }
};

// Finishes the outputs that wait and leaves the panel's last ones.
inline void find_outputs(const SsdAmxScan& scan, SsdPanel panel, const float* since_start, SsdAmxOutputs& outputs) {
  const int64_t steps = scan.N / kAmxPairs;
  for (int64_t t = 0; t < panel.chunk.tokens; t += kMaxAmxRows) {
    zero_sums();
    multiply_pairs<1, 2>(scan.C + t * scan.N / 2, scan.N * 8, scan.h, steps, [&](int64_t k)
                         __attribute__((always_inline)) {
      share_of_rows(outputs.rows, k, steps, [&](int64_t r) __attribute__((always_inline)) { outputs.finish(r); });
    });
    store_float_sums(outputs.before[0], kAmxColumns);
    outputs.set(scan.args, panel, since_start, t);
    zero_sums();
    multiply_pairs<2, 1>(scan.mixing + t * kSsdAmxChunk, kSsdAmxChunk * kAmxRows, scan.x, t / kAmxPairs + 1, kNothing);
    store_float_sums(outputs.within[0], kAmxColumns);
  }
}

// Moves a panel of the state on; between(n, row) follows, for row < 32, on each 32 rows from n on.
template <typename Between>
inline void move_state(const SsdAmxScan& scan, SsdPanel panel, const Between& between) {
  const int64_t steps = (panel.chunk.tokens + kAmxPairs - 1) / kAmxPairs;
  for (int64_t n = 0; n < scan.N; n += kMaxAmxRows) {
    float* h = scan.state(panel.head, n, panel.p);
    load_float_sums(h, kAmxColumns);
    multiply_pairs<1, 2>(scan.B + n * kSsdAmxChunk / 2, kSsdAmxChunk * 8, scan.moving, steps, [&](int64_t k)
                         __attribute__((always_inline)) {
      share_of_rows(kAmxPairs, k, steps, [&](int64_t row) __attribute__((always_inline)) { between(n, row); });
    });
    store_float_sums(h, kAmxColumns);
  }
}

// While the products of a panel run, the outputs of the panel before are finished and the next one's state is laid out.
inline void scan_panels(const SsdAmxScan& scan, int64_t begin, int64_t end) {
  const SsdArgs<int8_t>& args = scan.args;
  const int64_t group_heads = args.heads / args.groups;
  SsdAmxDecays decays;
  SsdAmxOutputs outputs;
  SsdPanel panel{chunk_at(args, 0), begin, 0}, next = panel;
  decays.find(args, panel);
  lay_out_state(scan, panel, decays.whole);
  for (bool more = true; more; panel = next) {
    if (panel.p == 0) {
      if (panel.head == begin || panel.head % group_heads == 0)
        lay_out_group(scan, panel.head / group_heads, panel.chunk);
      find_mixing(scan, panel, decays.of);
    }
    lay_out_x(scan, panel, decays.of.to_end);
    find_outputs(scan, panel, decays.of.since_start, outputs);
    more = move_on(args, begin, end, next);
    if (more && next.p == 0) decays.find(args, next);
    const bool same = next.head == panel.head && next.p == panel.p;  // whose state is only now moved
    if (more && !same)
      move_state(scan, panel, [&](int64_t n, int64_t row) __attribute__((always_inline)) {
        lay_out_state_row(scan, next, decays.whole, n, row);
      });
    else
      move_state(scan, panel, [](int64_t, int64_t) {});
    if (more && same) lay_out_state(scan, next, decays.whole);
  }
  for (int64_t r = 0; r < outputs.rows; ++r) outputs.finish(r);
}

// Heads [begin, end) of one batch row.
inline void amx_ssd_scan(const SsdArgs<int8_t>& args, int64_t begin, int64_t end) {
  if (args.tokens < kAmxRows) return ssd_scan(args, begin, end);
  const SsdAmxScan scan(args, begin);
  if (args.head_dim % kAmxColumns != 0 || args.d_state % kAmxPairs != 0)  // the padding
    std::fill(scan.states, scan.state(end), 0.0f);
  const Tiles tiles(kStep);
  read_states(scan, begin, end);
  scan_panels(scan, begin, end);
  write_states(scan, begin, end);
}
