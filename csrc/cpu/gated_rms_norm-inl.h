// Mamba2's gated norm: RMSNorm without weight (fused into out_proj) of y * SiLU(z), over one group's part of a row.

template <typename T>
inline void gated_rms_norm(const float* y, const T* z, float z_scale, int64_t n, float eps, float* out) {
  VecF squares{};
  over_lanes(n, [&](int64_t i, int count) __attribute__((always_inline)) {
    const VecF gated = load(y + i, count) * silu(load(z + i, count) * z_scale);
    squares = fma(gated, gated, squares);
    store(out + i, gated, count);
  });
  const VecF factor = broadcast(1.0f / std::sqrt(horizontal_sum(squares) / static_cast<float>(n) + eps));
  over_lanes(n, [&](int64_t i, int count) __attribute__((always_inline)) {
    store(out + i, load(out + i, count) * factor, count);
  });
}
