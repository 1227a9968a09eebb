// Prefill with AMX: tiles of 16 rows by 16 outputs, 64 inputs a step. The integers are exact and the float operations
// on them are those of linear_w8.h and linear_w4.h, so the results are theirs bit for bit. Rows that fill no tile go
// there.
//
// A tile of activations is 16 rows as they lie, one of weights the 16 quads by 16 outputs that a block stores in a row.

constexpr int64_t kTileRows = 16, kTileBytes = 1024, kStep = 64;

// Tiles 0-3: sums of row tile i and block j at 2 i + j; 4, 5: activations; 6, 7: weights.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileConfig(int64_t step) {  // inputs a step: 64, or 32 in groups of 32
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? step : 64);
      rows[tile] = static_cast<uint8_t>(tile >= 6 ? step / 4 : kTileRows);
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

// sums += activations x weights over `steps` steps; unsigned by signed numbers (int8 weights), or signed by unsigned.
template <bool kInt8, int kRowTiles, int kBlocks>
QUAMBA_INLINE void multiply_tiles(const int8_t* x, int64_t x_stride, const uint8_t* w, int64_t block_bytes,
                                  int64_t step, int64_t steps) {
  for (int64_t s = 0; s < steps; ++s, x += step, w += step * 16) {
    _tile_loadd(4, x, x_stride);
    _tile_loadd(6, w, 64);
    if constexpr (kInt8) _tile_dpbusd(0, 4, 6);
    else _tile_dpbsud(0, 4, 6);
    if constexpr (kBlocks > 1) {
      _tile_loadd(7, w + block_bytes, 64);
      if constexpr (kInt8) _tile_dpbusd(1, 4, 7);
      else _tile_dpbsud(1, 4, 7);
    }
    if constexpr (kRowTiles > 1) {
      _tile_loadd(5, x + kTileRows * x_stride, x_stride);
      if constexpr (kInt8) _tile_dpbusd(2, 5, 6);
      else _tile_dpbsud(2, 5, 6);
      if constexpr (kBlocks > 1) {
        if constexpr (kInt8) _tile_dpbusd(3, 5, 7);
        else _tile_dpbsud(3, 5, 7);
      }
    }
  }
}

struct alignas(64) Sums {
  int32_t of[kTileRows][kLanes];
};

template <int kRowTiles, int kBlocks>
QUAMBA_INLINE void store_sums(Sums (&sums)[2][2]) {
  _tile_stored(0, sums[0][0].of, 64);
  if constexpr (kBlocks > 1) _tile_stored(1, sums[0][1].of, 64);
  if constexpr (kRowTiles > 1) _tile_stored(2, sums[1][0].of, 64);
  if constexpr (kRowTiles > 1 && kBlocks > 1) _tile_stored(3, sums[1][1].of, 64);
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
  return {to, padded};
}

inline Panel int4_panel(const LinearArgs& args, OutputBlock block, int64_t blocks) {
  const int64_t eights = (args.in + 7) / 8, padded = (args.in + kStep - 1) / kStep * kTileBytes;
  const uint8_t* from = static_cast<const uint8_t*>(args.weight) + block.index * eights * 64;
  uint8_t* to = static_cast<uint8_t*>(args.scratch);
  for (int64_t b = 0; b < blocks; ++b, to += padded, from += eights * 64) {
    for (int64_t e = 0; e < eights; ++e) {
      const VecI weight = load_tile(from + e * 64), low = low_halves(weight), high = high_halves(weight);
      std::memcpy(to + e * 128, &low, 64);
      std::memcpy(to + e * 128 + 64, &high, 64);
    }
    std::memset(to + eights * 128, 0, padded - eights * 128);
  }
  return {static_cast<const uint8_t*>(args.scratch), padded};
}

template <int kRowTiles, int kBlocks>
inline void amx_w8a8_tile(const LinearArgs& args, Panel panel, const VecI* flipped, int64_t row, OutputBlock block) {
  Sums sums[2][2];
  zero_sums();
  multiply_tiles<true, kRowTiles, kBlocks>(static_cast<const int8_t*>(args.x) + row * args.x_stride, args.x_stride,
                                           panel.data, panel.block_bytes, kStep, (args.in + kStep - 1) / kStep);
  store_sums<kRowTiles, kBlocks>(sums);
  for (int i = 0; i < kRowTiles; ++i)
    for (int b = 0; b < kBlocks; ++b)
      for (int r = 0; r < kTileRows; ++r) {
        const VecI sum = load_tile(sums[i][b].of[r]) - kSignFlip * flipped[b];
        finish_w8a8(args, sum, row + i * kTileRows + r, block.after(b));
      }
}

template <int kBlocks>
inline void amx_w8a8_rows(const LinearArgs& args, OutputBlock block) {
  const Panel panel = int8_panel(args, block, kBlocks);
  VecI flipped[kBlocks] = {};
  for (int b = 0; b < kBlocks; ++b)
    for (int64_t at = 0; at < panel.block_bytes; at += 64)
      flipped[b] = flipped_sums(flipped[b], load_tile(panel.data + b * panel.block_bytes + at));
  int64_t row = 0;
  for (; row + 2 * kTileRows <= args.rows; row += 2 * kTileRows)
    amx_w8a8_tile<2, kBlocks>(args, panel, flipped, row, block);
  for (; row + kTileRows <= args.rows; row += kTileRows) amx_w8a8_tile<1, kBlocks>(args, panel, flipped, row, block);
  if (row < args.rows) w8a8_rows<kBlocks>(args, block, row);
}

inline void amx_linear_w8a8(const LinearArgs& args, int64_t begin, int64_t end) {
  if (args.rows < kTileRows) return linear_w8a8(args, begin, end);
  const Tiles tiles(kStep);
  OutputBlock block = first_block(begin, end);
  for (; block.more() > 1; block = block.after(2)) amx_w8a8_rows<2>(args, block);
  if (block.more()) amx_w8a8_rows<1>(args, block);
}

template <int kRowTiles, int kBlocks>
inline void amx_w4a8_tile(const LinearArgs& args, Panel panel, int64_t row, OutputBlock block) {
  const int64_t groups = group_count(args), step = args.group_size < kStep ? args.group_size : kStep;
  const int8_t* x = static_cast<const int8_t*>(args.x) + row * args.x_stride;
  const float* x_sums = args.x_sums + row * groups;
  VecF y[kRowTiles * kTileRows][kBlocks] = {};
  Sums sums[2][2];
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * args.group_size, left = args.in - first;
    const int64_t inputs = left < args.group_size ? left : args.group_size;
    zero_sums();
    multiply_tiles<false, kRowTiles, kBlocks>(x + first, args.x_stride, panel.data + first * 16, panel.block_bytes,
                                              step, (inputs + step - 1) / step);
    store_sums<kRowTiles, kBlocks>(sums);
    for (int b = 0; b < kBlocks; ++b) {
      const GroupParameters group = load_group(args, block.index + b, g);
      for (int r = 0; r < kRowTiles * kTileRows; ++r) {
        const VecF sum = to_float(load_tile(sums[r / kTileRows][b].of[r % kTileRows]));
        y[r][b] = add_group(y[r][b], group, sum, x_sums[r * groups + g]);
      }
    }
  }
  for (int r = 0; r < kRowTiles * kTileRows; ++r)
    for (int b = 0; b < kBlocks; ++b)
      store_block(args.out, finish_int4(args, y[r][b], row + r), row + r, block.after(b));
}

template <int kBlocks>
inline void amx_w4a8_rows(const LinearArgs& args, OutputBlock block) {
  const Panel panel = int4_panel(args, block, kBlocks);
  int64_t row = 0;
  for (; row + 2 * kTileRows <= args.rows; row += 2 * kTileRows) amx_w4a8_tile<2, kBlocks>(args, panel, row, block);
  for (; row + kTileRows <= args.rows; row += kTileRows) amx_w4a8_tile<1, kBlocks>(args, panel, row, block);
  for (int b = 0; b < kBlocks && row < args.rows; ++b) w4a8_rows(args, block.after(b), row);
}

inline void amx_linear_w4a8(const LinearArgs& args, int64_t begin, int64_t end) {
  if (args.rows < kTileRows) return linear_w4a8(args, begin, end);
  const Tiles tiles(args.group_size < kStep ? args.group_size : kStep);
  OutputBlock block = first_block(begin, end);
  for (; block.more() > 1; block = block.after(2)) amx_w4a8_rows<2>(args, block);
  if (block.more()) amx_w4a8_rows<1>(args, block);
}
