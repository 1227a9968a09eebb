// RMSNorm without weight (fused into in_proj), and quantization of rows with a given scale or with one of their own.

inline void quantize_row(const float* x, float scale, int8_t* out, int64_t n) {
  const VecF s = broadcast(scale);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = lanes_left(i, n);
    store(out + i, quantize_int8(load(x + i, count), s), count);
  }
}

inline float quantize_per_token(const float* x, int64_t n, int8_t* out) {
  VecF largest{};
  for (int64_t i = 0; i < n; i += kLanes) {
    const VecF v = load(x + i, lanes_left(i, n));
    const VecF magnitude = (v < 0.0f) ? -v : v;
    largest = (magnitude > largest) ? magnitude : largest;
  }
  const float scale = symmetric_int8_scale(horizontal_max(largest));
  quantize_row(x, scale, out, n);
  return scale;
}

QUAMBA_INLINE VecF inverse_rms(const float* x, int64_t n, float eps) {
  VecF squares{};
  for (int64_t i = 0; i < n; i += kLanes) {
    const VecF v = load(x + i, lanes_left(i, n));
    squares = fma(v, v, squares);
  }
  return broadcast(1.0f / std::sqrt(horizontal_sum(squares) / static_cast<float>(n) + eps));
}

inline void rms_norm(const float* x, int64_t n, float eps, float* out) {
  const VecF factor = inverse_rms(x, n, eps);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = lanes_left(i, n);
    store(out + i, load(x + i, count) * factor, count);
  }
}

inline void rms_norm_quant(const float* x, int64_t rows, int64_t cols, float eps, float scale, int8_t* out) {
  const VecF s = broadcast(scale);
  for (int64_t row = 0; row < rows; ++row, x += cols, out += cols) {
    const VecF factor = inverse_rms(x, cols, eps);
    for (int64_t i = 0; i < cols; i += kLanes) {
      const int count = lanes_left(i, cols);
      store(out + i, quantize_int8(load(x + i, count) * factor, s), count);
    }
  }
}
