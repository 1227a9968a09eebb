// One token of Mamba2's scan: one pass over the state, d_state across lanes.
//
// Dims: S heads, P head_dim, G groups, N d_state.

// e^x as 2^x, x times log2(e), but 0 for what is lost beside any other term: denormal numbers would slow products down.
QUAMBA_INLINE VecF ssd_decay(VecF x) { return (x < -100.0f) ? VecF{} : exp2(x); }

QUAMBA_INLINE VecF ssd_step_size(VecF dt, float dt_min, float dt_max) {
  return min(broadcast(dt_max), max(broadcast(dt_min), softplus(dt)));
}

// Lanes from x[i] on as floats, with the scales of their channels or the scale of all; floats have none.
QUAMBA_INLINE VecF load_scaled(const float* x, const float*, int64_t i, int count) { return load(x + i, count); }
QUAMBA_INLINE VecF load_scaled(const int8_t* x, const float* scale, int64_t i, int count) {
  return load(x + i, count) * load(scale + i, count);
}
QUAMBA_INLINE VecF load_scaled(const float* x, float, int64_t i, int count) { return load(x + i, count); }
QUAMBA_INLINE VecF load_scaled(const int8_t* x, float scale, int64_t i, int count) {
  return load(x + i, count) * scale;
}

// Of a row of an int8 state: its scale, and the values of -128 and 127. A float state has none.
struct StateScale {
  float scale, inverse, lowest, highest;
};

template <typename T>
QUAMBA_INLINE StateScale state_scale(const SsdArgs<T>& args, int64_t row) {
  const float scale = args.state_scale ? args.state_scale[row] : 1.0f;
  return {scale, 1.0f / scale, scale * kInt8Min, scale * kInt8Max};
}

QUAMBA_INLINE PartF load_state_part(const float* h, StateScale) { return load_as<PartF>(h); }
QUAMBA_INLINE void store_state_part(float* to, PartF h, StateScale) { std::memcpy(to, &h, sizeof(h)); }

QUAMBA_INLINE PartF load_state_part(const int8_t* h, StateScale s) {
#if defined(QUAMBA_AVX512_VNNI)
  const PartI integers = widen(load_as<VecB>(h));
#elif defined(QUAMBA_AVX2)
  const PartI integers = (PartI)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(h)));
#else
  typedef int8_t Bytes __attribute__((vector_size(kPartLanes)));
  const PartI integers = __builtin_convertvector(load_as<Bytes>(h), PartI);
#endif
  return to_float(integers) * s.scale;
}

#if defined(QUAMBA_AVX512_VNNI) || defined(QUAMBA_AVX2)
// h / scale without a division, which would take longer than all the rest: a product and Markstein's correction give
// the division's bits, but for the last one once in 10^5 times.
QUAMBA_INLINE PartF state_quotient(PartF h, StateScale s) {
  h = min(broadcast_part(s.highest), max(broadcast_part(s.lowest), h));
  const PartF q = h * s.inverse, rest = fma(-q, broadcast_part(s.scale), h);
  return fma(rest, broadcast_part(s.inverse), q);
}
#endif

// quantize_int8 of h. The conversions round half to even and make a NaN the integer whose low byte is 0.
QUAMBA_INLINE void store_state_part(int8_t* to, PartF h, StateScale s) {
#if defined(QUAMBA_AVX512_VNNI)
  const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32((__m512)state_quotient(h, s)));
#elif defined(QUAMBA_AVX2)
  const __m256i low_bytes = _mm256_set1_epi32(0x0C080400);
  const __m256i integers = _mm256_shuffle_epi8(_mm256_cvtps_epi32((__m256)state_quotient(h, s)), low_bytes);
  const __m128i bytes = _mm_unpacklo_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
#else
  typedef int8_t Bytes __attribute__((vector_size(kPartLanes)));
  const PartF q = quantize_int8(h, broadcast_part(s.scale));
  const Bytes bytes = __builtin_convertvector(__builtin_convertvector(q, PartI), Bytes);
#endif
  std::memcpy(to, &bytes, kPartLanes);
}

// `count` lanes of a row.
template <typename State>
QUAMBA_INLINE VecF load_state(const State* h, StateScale s, int count) {
  State lanes[kLanes] = {};
  if (count < kLanes) h = static_cast<State*>(std::memcpy(lanes, h, sizeof(State) * static_cast<size_t>(count)));
  PartF parts[kParts];
  QUAMBA_UNROLL for (int p = 0; p < kParts; ++p) parts[p] = load_state_part(h + p * kPartLanes, s);
  return join(parts);
}

template <typename State>
QUAMBA_INLINE void store_state(State* to, VecF h, StateScale s, int count) {
  State lanes[kLanes];
  State* target = count < kLanes ? lanes : to;
  PartF parts[kParts];
  std::memcpy(parts, &h, sizeof(h));
  QUAMBA_UNROLL for (int p = 0; p < kParts; ++p) store_state_part(target + p * kPartLanes, parts[p], s);
  if (count < kLanes) std::memcpy(to, lanes, sizeof(State) * static_cast<size_t>(count));
}

// The sum of every row's lanes.
QUAMBA_INLINE VecF sum_rows(VecF (&rows)[kLanes]) {
#if defined(QUAMBA_AVX512_VNNI)
  transpose(rows);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) rows[i] = rows[i] + rows[i + width];
  return rows[0];
#else
  float sums[kLanes];
  for (int i = 0; i < kLanes; ++i) sums[i] = horizontal_sum(rows[i]);
  return load(sums);
#endif
}

// The next 16 of a row's states: h <- decay h + dt_x B, and y += h C lane by lane. State: of the row, or a copy.
template <typename State>
QUAMBA_INLINE void ssd_token_lanes(State* h, StateScale scale, float decay, float dt_x, const float* B, const float* C,
                                   PartF (&y)[kParts]) {
  QUAMBA_UNROLL for (int p = 0; p < kParts; ++p) {
    const int at = p * kPartLanes;
    const PartF dt_x_B = load_as<PartF>(B + at) * dt_x;
    const PartF next = fma(broadcast_part(decay), load_state_part(h + at, scale), dt_x_B);
    store_state_part(h + at, next, scale);
    y[p] = fma(next, load_as<PartF>(C + at), y[p]);
  }
}

// A row of a head; its output is the sum of the lanes.
template <typename State>
QUAMBA_INLINE VecF ssd_token_row(State* h, StateScale scale, float decay, float dt_x, const float* B, const float* C,
                                 int64_t N) {
  PartF y[kParts] = {};
  int64_t n = 0;
  for (; n + kLanes <= N; n += kLanes) ssd_token_lanes(h + n, scale, decay, dt_x, B + n, C + n, y);
  if (n < N) {
    State last[kLanes] = {};
    const size_t bytes = sizeof(State) * static_cast<size_t>(N - n);
    std::memcpy(last, h + n, bytes);
    ssd_token_lanes(last, scale, decay, dt_x, B + n, C + n, y);
    std::memcpy(h + n, last, bytes);
  }
  return join(y);
}

// The same of a state that was zero and is dropped.
QUAMBA_INLINE VecF ssd_first_token_row(float dt_x, const float* B, const float* C, int64_t N) {
  VecF y{};
  for (int64_t n = 0; n < N; n += kLanes) y = fma(load(B + n) * dt_x, load(C + n), y);
  return y;
}

template <typename State, typename T>
inline void ssd_token_head(const SsdArgs<T>& args, int64_t head, const float* B, const float* C) {
  const int64_t P = args.head_dim, N = args.d_state;
  const VecF dt = ssd_step_size(broadcast(args.dt[head] + (args.dt_bias ? args.dt_bias[head] : 0.0f)), args.dt_min,
                                args.dt_max);
  const float decay = ssd_decay(dt * (args.A[head] * kLog2E))[0];
  const float D = args.D ? args.D[head] : 0.0f;
  State* state = static_cast<State*>(args.state);
  for (int64_t p = 0; p < P; p += kLanes) {
    const int count = lanes_left(p, P);
    const int64_t d = head * P + p;
    const VecF x = load_scaled(args.x, args.x_scale, d, count), dt_x = dt * x;
    VecF y[kLanes] = {};  // [row][lane of N]
    for (int i = 0; i < count; ++i) {
      if (state) y[i] = ssd_token_row(state + (d + i) * N, state_scale(args, d + i), decay, dt_x[i], B, C, N);
      else y[i] = ssd_first_token_row(dt_x[i], B, C, N);
    }
    store(args.out + d, fma(x, broadcast(D), sum_rows(y)), count);
  }
}

// Heads [begin, end); args.scratch holds B and C of a group.
template <typename T>
inline void ssd_token(const SsdArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t group_heads = args.heads / args.groups;
  float* B = args.scratch;
  float* C = args.scratch + (args.d_state + kLanes - 1) / kLanes * kLanes;
  for (int64_t head = begin; head < end; ++head) {
    if (head == begin || head % group_heads == 0) {
      const int64_t group = head / group_heads;
      const float B_scale = args.B_scale ? args.B_scale[group] : 1.0f;
      const float C_scale = args.C_scale ? args.C_scale[group] : 1.0f;
      for (int64_t n = 0; n < args.d_state; n += kLanes) {
        const int count = lanes_left(n, args.d_state);
        store(B + n, load_scaled(args.B + group * args.B_group_stride, B_scale, n, count));
        store(C + n, load_scaled(args.C + group * args.C_group_stride, C_scale, n, count));
      }
    }
    args.state_scale ? ssd_token_head<int8_t>(args, head, B, C) : ssd_token_head<float>(args, head, B, C);
  }
}
