// Products of small float matrices that lie in the cache: a tile of sums stays in registers. Rows stand an odd multiple
// of 16 floats apart, see ssd_row_stride.

#if defined(QUAMBA_AVX512_VNNI)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileParts = 2;
constexpr int64_t kTileColumns = kTileParts * kPartLanes;

template <int kCols>
using Tile = PartF[kTileRows][kCols];

// tile[r][j] += sum_k a[r][k] b[k][j] over `steps` k; a[r][k] lies at r * a_row + k * a_step, row k of b at k * b_step.
template <int kCols>
QUAMBA_INLINE void multiply_add(Tile<kCols>& tile, const float* a, int64_t a_row, int64_t a_step, const float* b,
                                int64_t b_step, int64_t steps) {
  for (int64_t k = 0; k < steps; ++k, a += a_step, b += b_step) {
    PartF columns[kCols];
    QUAMBA_UNROLL for (int c = 0; c < kCols; ++c) columns[c] = load_as<PartF>(b + c * kPartLanes);
    QUAMBA_UNROLL for (int r = 0; r < kTileRows; ++r) {
      const PartF value = broadcast_part(a[r * a_row]);
      QUAMBA_UNROLL for (int c = 0; c < kCols; ++c) tile[r][c] = fma(value, columns[c], tile[r][c]);
    }
  }
}

// tile[r][j] *= factors[r]
template <int kCols>
QUAMBA_INLINE void scale_rows(Tile<kCols>& tile, const float* factors) {
  QUAMBA_UNROLL for (int r = 0; r < kTileRows; ++r)
    QUAMBA_UNROLL for (int c = 0; c < kCols; ++c) tile[r][c] = tile[r][c] * factors[r];
}

template <int kCols>
QUAMBA_INLINE void store_tile(float* to, int64_t stride, const Tile<kCols>& tile) {
  QUAMBA_UNROLL for (int r = 0; r < kTileRows; ++r)
    QUAMBA_UNROLL for (int c = 0; c < kCols; ++c)
      std::memcpy(to + r * stride + c * kPartLanes, &tile[r][c], sizeof(PartF));
}

// Its first `rows` and `columns`.
template <int kCols>
QUAMBA_INLINE void store_corner(float* to, int64_t stride, const Tile<kCols>& tile, int64_t rows, int64_t columns) {
  constexpr int64_t kWidth = kCols * kPartLanes;
  if (rows >= kTileRows && columns >= kWidth) return store_tile<kCols>(to, stride, tile);
  float whole[kTileRows * kWidth];
  store_tile<kCols>(whole, kWidth, tile);
  for (int64_t r = 0; r < rows && r < kTileRows; ++r)
    for (int64_t c = 0; c < columns && c < kWidth; ++c) to[r * stride + c] = whole[r * kWidth + c];
}

// Calls body(first column, number of parts as a constant) for tiles that cover columns [begin, end) in whole vectors.
template <typename Body>
QUAMBA_INLINE void for_column_tiles(int64_t begin, int64_t end, const Body& body) {
  int64_t c = begin;
  end = (end + kLanes - 1) / kLanes * kLanes;
  for (; c + kTileColumns <= end; c += kTileColumns) body(c, std::integral_constant<int, kTileParts>{});
  for (; c < end; c += kPartLanes) body(c, std::integral_constant<int, 1>{});
}
