// RMSNorm without weight (fused into in_proj), and quantization of rows with a given scale or with one of their own.

inline void quantize_row(const float* x, float scale, int8_t* out, int64_t n) {
  const Divisor divisor(broadcast(scale));
  over_lanes(n, [&](int64_t i, int count) __attribute__((always_inline)) {
    store_quantized(out + i, load(x + i, count), divisor, count);
  });
}

inline float quantize_per_token(const float* x, int64_t n, int8_t* out) {
  VecF largest{};
  over_lanes(n, [&](int64_t i, int count) __attribute__((always_inline)) {
    const VecF v = load(x + i, count);
    const VecF magnitude = (v < 0.0f) ? -v : v;
    largest = (magnitude > largest) ? magnitude : largest;
  });
  const float scale = symmetric_int8_scale(horizontal_max(largest));
  quantize_row(x, scale, out, n);
  return scale;
}

QUAMBA_INLINE VecF inverse_rms(const float* x, int64_t n, float eps) {
  VecF squares{};
  over_lanes(n, [&](int64_t i, int count) __attribute__((always_inline)) {
    const VecF v = load(x + i, count);
    squares = fma(v, v, squares);
  });
  return broadcast(1.0f / std::sqrt(horizontal_sum(squares) / static_cast<float>(n) + eps));
}

inline void rms_norm(const float* x, int64_t n, float eps, float* out) {
  const VecF factor = inverse_rms(x, n, eps);
  over_lanes(n, [&](int64_t i, int count) __attribute__((always_inline)) {
    store(out + i, load(x + i, count) * factor, count);
  });
}

inline void rms_norm_quant(const float* x, int64_t rows, int64_t cols, float eps, float scale, int8_t* out) {
  const Divisor divisor(broadcast(scale));
  for (int64_t row = 0; row < rows; ++row, x += cols, out += cols) {
    const VecF factor = inverse_rms(x, cols, eps);
    over_lanes(cols, [&](int64_t i, int count) __attribute__((always_inline)) {
      store_quantized(out + i, load(x + i, count) * factor, divisor, count);
    });
  }
}
