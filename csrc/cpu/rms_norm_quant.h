// RMSNorm without weight (fused into in_proj) followed by quantization.

inline void quantize_row(const float* x, float scale, int8_t* out, int64_t n) {
  const VecF s = broadcast(scale);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = lanes_left(i, n);
    store(out + i, quantize_int8(load(x + i, count), s), count);
  }
}

inline void rms_norm_quant(const float* x, int64_t rows, int64_t cols, float eps, float scale, int8_t* out) {
  const VecF s = broadcast(scale);
  for (int64_t row = 0; row < rows; ++row, x += cols, out += cols) {
    VecF squares{};
    for (int64_t i = 0; i < cols; i += kLanes) {
      const VecF v = load(x + i, lanes_left(i, cols));
      squares += v * v;
    }
    const VecF inverse_rms = broadcast(1.0f / std::sqrt(horizontal_sum(squares) / static_cast<float>(cols) + eps));
    for (int64_t i = 0; i < cols; i += kLanes) {
      const int count = lanes_left(i, cols);
      store(out + i, quantize_int8(load(x + i, count) * inverse_rms, s), count);
    }
  }
}
