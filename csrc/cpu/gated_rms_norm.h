// Mamba2's gated norm: RMSNorm without weight (fused into out_proj) of y * SiLU(z), over one group's part of a row.

template <typename T>
inline void gated_rms_norm(const float* y, const T* z, float z_scale, int64_t n, float eps, float* out) {
  VecF squares{};
  // a constant count makes plain loads and stores of those of whole vectors
  const auto gate = [&](int64_t i, int count) __attribute__((always_inline)) {
    const VecF gated = load(y + i, count) * silu(load(z + i, count) * z_scale);
    squares = fma(gated, gated, squares);
    store(out + i, gated, count);
  };
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) gate(i, kLanes);
  if (whole < n) gate(whole, lanes_left(whole, n));
  const VecF factor = broadcast(1.0f / std::sqrt(horizontal_sum(squares) / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < whole; i += kLanes) store(out + i, load(out + i) * factor);
  if (whole < n) store(out + whole, load(out + whole, lanes_left(whole, n)) * factor, lanes_left(whole, n));
}
