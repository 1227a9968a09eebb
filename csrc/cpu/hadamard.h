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
  return sign * v + swapped;
}

inline void multiply_blocks_by_base(float* x, int64_t n, const float* base, int64_t p) {
  float product[64];  // p <= 28
  for (float* block = x; block < x + n; block += p) {
    for (int64_t j = 0; j < p; ++j) product[j] = 0.0f;
    for (int64_t i = 0; i < p; ++i)
      for (int64_t j = 0; j < p; ++j) product[j] += block[i] * base[i * p + j];
    for (int64_t j = 0; j < p; ++j) block[j] = product[j];
  }
}

inline void butterflies(float* x, int64_t n, int64_t run) {
  for (; run < n; run *= 2)
    for (int64_t start = 0; start < n; start += 2 * run) {
      float* __restrict low = x + start;
      float* __restrict high = x + start + run;
      for (int64_t i = 0; i < run; ++i) {
        const float a = low[i], b = high[i];
        low[i] = a + b;
        high[i] = a - b;
      }
    }
}

inline void hadamard(float* x, int64_t rows, int64_t n, const float* base, int64_t p) {
  const float norm = 1.0f / std::sqrt(static_cast<float>(n));
  for (int64_t row = 0; row < rows; ++row, x += n) {
    if (p > 1) {
      multiply_blocks_by_base(x, n, base, p);
      butterflies(x, n, p);
    } else if (n >= kLanes) {
      for (int64_t i = 0; i < n; i += kLanes)
        store(x + i, butterfly_in_register<8>(butterfly_in_register<4>(
                         butterfly_in_register<2>(butterfly_in_register<1>(load(x + i))))));
      butterflies(x, n, kLanes);
    } else {
      butterflies(x, n, 1);
    }
    for (int64_t i = 0; i < n; ++i) x[i] *= norm;
  }
}
