// Prefill with AMX: tiles of 16 rows by 16 outputs, 64 inputs a step. The integers are exact and the float operations
// on them are those of linear_w8-inl.h and linear_w4-inl.h, so the results are theirs bit for bit. Rows that fill no tile go
// there.
//
// A tile of activations is 16 rows as they lie, one of weights the 16 quads by 16 outputs that a block stores in a row.

constexpr int64_t kAmxRows = 16, kTileBytes = 1024, kStep = 64;

// Tiles 0-3: sums of row tile i and block j at 2 i + j; 4, 5: activations; 6, 7: weights.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileConfig(int64_t step) {  // inputs a step: 64, or 32 in groups of 32
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? step : 64);
      rows[tile] = static_cast<uint8_t>(tile >= 6 ? step / 4 : kAmxRows);
    }
  }
};

// Sets the thread's tiles up for one call and gives them back: a thread with tiles in use is slower to switch.
class Tiles {
 public:
  explicit Tiles(int64_t step) {
    const TileConfig config(step);
    asm volatile("" : : "m"(config));  // GCC 12 does not see that the next line reads it
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

QUAMBA_INLINE void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// sums += activations x weights over `steps` steps; unsigned by signed numbers (int8 weights), or signed by signed.
// between(s) comes after step s: the work of vectors that the tiles' work hides, if it is given out in small pieces.
template <bool kInt8, int kRowTiles, int kBlocks, typename Between>
QUAMBA_INLINE void multiply_tiles(const int8_t* x, int64_t x_stride, const uint8_t* w, int64_t block_bytes,
                                  int64_t step, int64_t steps, const Between& between) {
  for (int64_t s = 0; s < steps; ++s, x += step, w += step * 16) {
    _tile_loadd(4, x, x_stride);
    _tile_loadd(6, w, 64);
    if constexpr (kInt8) _tile_dpbusd(0, 4, 6);
    else _tile_dpbssd(0, 4, 6);
    if constexpr (kBlocks > 1) {
      _tile_loadd(7, w + block_bytes, 64);
      if constexpr (kInt8) _tile_dpbusd(1, 4, 7);
      else _tile_dpbssd(1, 4, 7);
    }
    if constexpr (kRowTiles > 1) {
      _tile_loadd(5, x + kAmxRows * x_stride, x_stride);
      if constexpr (kInt8) _tile_dpbusd(2, 5, 6);
      else _tile_dpbssd(2, 5, 6);
      if constexpr (kBlocks > 1) {
        if constexpr (kInt8) _tile_dpbusd(3, 5, 7);
        else _tile_dpbssd(3, 5, 7);
      }
    }
    between(s);
  }
}

constexpr int64_t kMaxAmxRows = 2 * kAmxRows;

// Of row r and block b of what the tiles hold.
struct alignas(64) Sums {
  int32_t of[kMaxAmxRows][2][kLanes];
};

template <int kRowTiles, int kBlocks>
QUAMBA_INLINE void store_sums(Sums& sums) {
  _tile_stored(0, sums.of[0][0], sizeof(sums.of[0]));
  if constexpr (kBlocks > 1) _tile_stored(1, sums.of[0][1], sizeof(sums.of[0]));
  if constexpr (kRowTiles > 1) _tile_stored(2, sums.of[kAmxRows][0], sizeof(sums.of[0]));
  if constexpr (kRowTiles > 1 && kBlocks > 1) _tile_stored(3, sums.of[kAmxRows][1], sizeof(sums.of[0]));
}

// Calls body(row) for the share of `rows` that goes with step s of `steps`.
template <typename Body>
QUAMBA_INLINE void share_of_rows(int64_t rows, int64_t s, int64_t steps, const Body& body) {
  const int64_t share = (rows + steps - 1) / steps, end = (s + 1) * share < rows ? (s + 1) * share : rows;
  for (int64_t row = s * share; row < end; ++row) body(row);
}

// A panel of weights: a few blocks with all of their inputs, padded with zeros to whole steps.
struct Panel {
  const uint8_t* data;
  int64_t block_bytes;
};

inline Panel int8_panel(const LinearArgs& args, OutputBlock block, int64_t blocks) {
  const int64_t bytes = (args.in + 3) / 4 * 64, padded = (args.in + kStep - 1) / kStep * kTileBytes;
  const uint8_t* from = static_cast<const uint8_t*>(args.weight) + block.index * bytes;
  if (bytes == padded) return {from, bytes};
  uint8_t* to = static_cast<uint8_t*>(args.scratch);
  for (int64_t b = 0; b < blocks; ++b) {
    std::memcpy(to + b * padded, from + b * bytes, bytes);
    std::memset(to + b * padded + bytes, 0, padded - bytes);
  }
  asm volatile("" : : : "memory");  // GCC 12 does not see that tiles are loaded from memory
  return {to, padded};
}

// Weights less their group's zero, which as signed bytes make sum - zero * x_sum one product.
inline Panel int4_panel(const LinearArgs& args, OutputBlock block, int64_t blocks) {
  const int64_t eights = (args.in + 7) / 8, group_eights = args.group_size / 8;
  const int64_t padded = (args.in + kStep - 1) / kStep * kTileBytes;
  const uint8_t* from = static_cast<const uint8_t*>(args.weight) + block.index * eights * 64;
  const uint8_t* zeros = args.zero + block.index * group_count(args) * kLanes;
  uint8_t* to = static_cast<uint8_t*>(args.scratch);
  for (int64_t b = 0; b < blocks; ++b, to += padded) {
    for (int64_t first = 0; first < eights; first += group_eights, zeros += kLanes) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
      const __m512i zero = _mm512_mullo_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(0x01010101));
      const int64_t last = first + group_eights < eights ? first + group_eights : eights;
      for (int64_t e = first; e < last; ++e, from += 64) {
        const VecI weight = load_tile(from);
        _mm512_storeu_si512(to + e * 128, _mm512_sub_epi8((__m512i)low_halves(weight), zero));
        _mm512_storeu_si512(to + e * 128 + 64, _mm512_sub_epi8((__m512i)high_halves(weight), zero));
      }
    }
    std::memset(to + eights * 128, 0, padded - eights * 128);
  }
  asm volatile("" : : : "memory");
  return {static_cast<const uint8_t*>(args.scratch), padded};
}

// What turns a block's sums of int8 weights into outputs.
class W8A8Rows {
 public:
  W8A8Rows(const LinearArgs& args, OutputBlock block, const uint8_t* weights, int64_t bytes)
      : to_(args.out, block), scale_(load_block(static_cast<const float*>(args.scale), block)) {
    VecI sums[4] = {};  // that many hide the latency of the products
    for (int64_t at = 0; at < bytes; at += 256)
      QUAMBA_UNROLL for (int i = 0; i < 4; ++i) sums[i] = flipped_sums(sums[i], load_tile(weights + at + i * 64));
    offset_ = kSignFlip * ((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }

  QUAMBA_INLINE void finish(const int32_t* sums, int64_t row) const {
    to_.store_row(to_float(load_tile(sums) - offset_) * (scale_ * row_scale(to_.output(), row)), row);
  }

 private:
  BlockRows to_;
  VecF scale_;
  VecI offset_;
};

template <int kBlocks>
inline void amx_w8a8_rows(const LinearArgs& args, OutputBlock block) {
  const Panel panel = int8_panel(args, block, kBlocks);
  const auto rows_of = [&](int b) {
    return W8A8Rows(args, block.after(b), panel.data + b * panel.block_bytes, panel.block_bytes);
  };
  const W8A8Rows outputs[2] = {rows_of(0), rows_of(kBlocks - 1)};
  const int64_t steps = (args.in + kStep - 1) / kStep;
  Sums sums;
  const auto finish = [&](int64_t r, int64_t row) __attribute__((always_inline)) {
    QUAMBA_UNROLL for (int b = 0; b < kBlocks; ++b) outputs[b].finish(sums.of[r][b], row + r);
  };
  const auto multiply = [&](auto row_tiles, int64_t row, int64_t unfinished) __attribute__((always_inline)) {
    const int8_t* x = static_cast<const int8_t*>(args.x) + row * args.x_stride;
    zero_sums();
    multiply_tiles<true, row_tiles, kBlocks>(x, args.x_stride, panel.data, panel.block_bytes, kStep, steps,
                                             [&](int64_t s) __attribute__((always_inline)) {
      share_of_rows(unfinished, s, steps, [&](int64_t r) __attribute__((always_inline)) { finish(r, row - unfinished); });
    });
    store_sums<row_tiles, kBlocks>(sums);
  };
  int64_t row = 0, unfinished = 0;  // rows before `row` whose sums wait
  for (; row + kMaxAmxRows <= args.rows; row += kMaxAmxRows, unfinished = kMaxAmxRows)
    multiply(std::integral_constant<int, 2>(), row, unfinished);
  if (row + kAmxRows <= args.rows) {
    multiply(std::integral_constant<int, 1>(), row, unfinished);
    row += kAmxRows;
    unfinished = kAmxRows;
  }
  for (int64_t r = 0; r < unfinished; ++r) finish(r, row - unfinished);
  if (row < args.rows) w8a8_rows<kBlocks>(args, block, row);
}

inline void amx_linear_w8a8(const LinearArgs& args, int64_t begin, int64_t end) {
  if (args.rows < kAmxRows) return linear_w8a8(args, begin, end);
  const Tiles tiles(kStep);
  OutputBlock block = first_block(begin, end);
  for (; block.more() > 1; block = block.after(2)) amx_w8a8_rows<2>(args, block);
  if (block.more()) amx_w8a8_rows<1>(args, block);
}

template <int kRowTiles, int kBlocks>
inline void amx_w4a8_tile(const LinearArgs& args, Panel panel, int64_t row, OutputBlock block,
                          const BlockRows (&to)[2]) {
  const int64_t groups = group_count(args), step = args.group_size < kStep ? args.group_size : kStep;
  const int8_t* x = static_cast<const int8_t*>(args.x) + row * args.x_stride;
  constexpr int64_t kRows = kRowTiles * kAmxRows;
  VecF y[kRows][kBlocks] = {};
  Sums sums;
  VecF scale[kBlocks] = {};  // of the group whose sums wait
  const auto add = [&](int64_t r) __attribute__((always_inline)) {
    QUAMBA_UNROLL for (int b = 0; b < kBlocks; ++b)
      y[r][b] = fma(scale[b], to_float(load_tile(sums.of[r][b])), y[r][b]);
  };
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * args.group_size, left = args.in - first;
    const int64_t steps = ((left < args.group_size ? left : args.group_size) + step - 1) / step;
    zero_sums();
    multiply_tiles<false, kRowTiles, kBlocks>(x + first, args.x_stride, panel.data + first * 16, panel.block_bytes,
                                              step, steps, [&](int64_t s) __attribute__((always_inline)) {
      if (g > 0) share_of_rows(kRows, s, steps, add);
    });
    store_sums<kRowTiles, kBlocks>(sums);
    QUAMBA_UNROLL for (int b = 0; b < kBlocks; ++b) scale[b] = load_group(args, block.index + b, g).scale;
  }
  for (int64_t r = 0; r < kRows; ++r) {
    add(r);
    for (int b = 0; b < kBlocks; ++b) to[b].store_row(finish_int4(args, y[r][b], row + r), row + r);
  }
}

template <int kBlocks>
inline void amx_w4a8_rows(const LinearArgs& args, OutputBlock block) {
  const Panel panel = int4_panel(args, block, kBlocks);
  const BlockRows to[2] = {{args.out, block}, {args.out, block.after(kBlocks - 1)}};
  int64_t row = 0;
  for (; row + 2 * kAmxRows <= args.rows; row += 2 * kAmxRows) amx_w4a8_tile<2, kBlocks>(args, panel, row, block, to);
  for (; row + kAmxRows <= args.rows; row += kAmxRows) amx_w4a8_tile<1, kBlocks>(args, panel, row, block, to);
  for (int b = 0; b < kBlocks && row < args.rows; ++b) w4a8_rows(args, block.after(b), row);
}

inline void amx_linear_w4a8(const LinearArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kExactGroup = 8192;  // up to which a float holds every sum of 127 * 15 * group_size
  if (args.rows < kAmxRows || args.group_size > kExactGroup) return linear_w4a8(args, begin, end);
  const Tiles tiles(args.group_size < kStep ? args.group_size : kStep);
  OutputBlock block = first_block(begin, end);
  for (; block.more() > 1; block = block.after(2)) amx_w4a8_rows<2>(args, block);
  if (block.more()) amx_w4a8_rows<1>(args, block);
}
