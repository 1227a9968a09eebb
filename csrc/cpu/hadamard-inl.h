// x @ kron(Sylvester(s), base) / sqrt(n), n = s * p: the small dense base on contiguous blocks of p, then s's
// butterflies on contiguous runs (fast Walsh-Hadamard transform).

// y[i] = x[i] + x[i ^ kStride] where bit kStride of i is clear, x[i ^ kStride] - x[i] where it is set.
template <int kStride>
QUAMBA_INLINE VecF butterfly_in_register(VecF v) {
  VecI index;
  VecF sign;
  for (int i = 0; i < kLanes; ++i) {
    index[i] = i ^ kStride;
    sign[i] = (i & kStride) ? -1.0f : 1.0f;
  }
#if defined(__clang__)
  VecF swapped;
  for (int i = 0; i < kLanes; ++i) swapped[i] = v[i ^ kStride];
#else
  const VecF swapped = __builtin_shuffle(v, index);
#endif
  return fma(sign, v, swapped);
}

constexpr int kFourBlocks = 4;

// Four blocks of p of a row times the base, and the butterflies of runs of p and of 2 p over them, in registers.
template <int kVectors>
QUAMBA_INLINE void multiply_four_blocks(const float* x, float* out, const float* padded_base, int64_t p) {
  VecF y[kVectors][kFourBlocks] = {};
  QUAMBA_UNROLL for (int v = 0; v < kVectors; ++v) {
    for (int64_t i = 0; i < p; ++i) {
      const VecF row = load(padded_base + (i * kVectors + v) * kLanes);
      QUAMBA_UNROLL for (int b = 0; b < kFourBlocks; ++b) y[v][b] = fma(broadcast(x[b * p + i]), row, y[v][b]);
    }
    const VecF sum = y[v][0] + y[v][1], difference = y[v][0] - y[v][1];
    const VecF next_sum = y[v][2] + y[v][3], next_difference = y[v][2] - y[v][3];
    y[v][0] = sum + next_sum;
    y[v][1] = difference + next_difference;
    y[v][2] = sum - next_sum;
    y[v][3] = difference - next_difference;
  }
  for (int b = 0; b < kFourBlocks; ++b)
    for (int v = 0; v < kVectors; ++v) store(out + b * p + v * kLanes, y[v][b]);
}

// Every block of p of a row times the base, whose rows are padded to whole vectors, and the first butterflies, whose
// runs are not; returns the run of the next ones. A block is stored with its padding, which the next block overwrites:
// `out` has room for n + 32 values.
template <int kVectors>
inline int64_t multiply_blocks_by_base(const float* x, float* out, int64_t n, const float* padded_base, int64_t p) {
  if (n % (kFourBlocks * p) == 0) {
    for (int64_t start = 0; start < n; start += kFourBlocks * p)
      multiply_four_blocks<kVectors>(x + start, out + start, padded_base, p);
    return kFourBlocks * p;
  }
  for (int64_t start = 0; start < n; start += p) {
    VecF product[kVectors] = {};
    for (int64_t i = 0; i < p; ++i)
      for (int v = 0; v < kVectors; ++v)
        product[v] = fma(broadcast(x[start + i]), load(padded_base + (i * kVectors + v) * kLanes), product[v]);
    for (int v = 0; v < kVectors; ++v) store(out + start + v * kLanes, product[v]);
  }
  return p;
}

// One level: low, high <- low + high, low - high on every pair of runs, which are whole vectors and a tail of kTail.
template <int kTail>
inline void butterfly_level(float* x, int64_t n, int64_t run) {
  for (float *low = x, *high = x + run; low < x + n; low += 2 * run, high += 2 * run) {
    const auto pair = [&](int64_t i, int count) __attribute__((always_inline)) {
      const VecF a = load(low + i, count), b = load(high + i, count);
      store(low + i, a + b, count);
      store(high + i, a - b, count);
    };
    int64_t i = 0;
    for (; i + kLanes <= run; i += kLanes) pair(i, kLanes);
    if (kTail) pair(i, kTail);
  }
}

// Two levels, of runs that are whole vectors and of pairs of them, in one pass over the row.
inline void two_butterfly_levels(float* x, int64_t n, int64_t run) {
  for (float* at = x; at < x + n; at += 4 * run)
    for (int64_t i = 0; i < run; i += kLanes) {
      const VecF a = load(at + i), b = load(at + run + i), c = load(at + 2 * run + i), d = load(at + 3 * run + i);
      const VecF sum = a + b, difference = a - b, next_sum = c + d, next_difference = c - d;
      store(at + i, sum + next_sum);
      store(at + run + i, difference + next_difference);
      store(at + 2 * run + i, sum - next_sum);
      store(at + 3 * run + i, difference - next_difference);
    }
}

inline void butterflies(float* x, int64_t n, int64_t run) {
  for (; run < n && run % 4 != 0; run *= 2)  // runs of 1 and 2, which only small transforms have
    for (int64_t start = 0; start < n; start += 2 * run)
      for (int64_t i = start; i < start + run; ++i) {
        const float a = x[i], b = x[i + run];
        x[i] = a + b;
        x[i + run] = a - b;
      }
  for (; run < n && run % kLanes != 0; run *= 2) switch (run % kLanes) {
    case 4: butterfly_level<4>(x, n, run); break;
    case 8: butterfly_level<8>(x, n, run); break;
    case 12: butterfly_level<12>(x, n, run); break;
  }
  for (; 4 * run <= n; run *= 4) two_butterfly_levels(x, n, run);
  if (run < n) butterfly_level<0>(x, n, run);
}

// The base [p, p] with its rows padded to whole vectors, one for p <= 16 to four for p <= 64.
inline void pad_base(const float* base, int64_t p, float* padded) {
  const int64_t columns = (p + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = 0; i < p; ++i)
    for (int64_t j = 0; j < columns; ++j) padded[i * columns + j] = j < p ? base[i * p + j] : 0.0f;
}

inline void hadamard(const float* x, int64_t n, const float* base, int64_t p, float* out) {
  if (p > 1) {
    float padded[kMaxHadamardBase * kMaxHadamardBase];  // columns are padded to at most that
    pad_base(base, p, padded);
    int64_t run = 0;
    switch ((p + kLanes - 1) / kLanes) {
      case 1: run = multiply_blocks_by_base<1>(x, out, n, padded, p); break;
      case 2: run = multiply_blocks_by_base<2>(x, out, n, padded, p); break;
      case 3: run = multiply_blocks_by_base<3>(x, out, n, padded, p); break;
      default: run = multiply_blocks_by_base<4>(x, out, n, padded, p);
    }
    butterflies(out, n, run);
  } else if (n >= kLanes) {
    for (int64_t i = 0; i < n; i += kLanes)
      store(out + i, butterfly_in_register<8>(butterfly_in_register<4>(
                         butterfly_in_register<2>(butterfly_in_register<1>(load(x + i))))));
    butterflies(out, n, kLanes);
  } else {
    std::copy_n(x, n, out);
    butterflies(out, n, 1);
  }
  const VecF norm = broadcast(1.0f / std::sqrt(static_cast<float>(n)));
  over_lanes(n, [&](int64_t i, int count) __attribute__((always_inline)) {
    store(out + i, load(out + i, count) * norm, count);
  });
}
