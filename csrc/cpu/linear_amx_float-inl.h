// Prefill of float activations with AMX tiles of bfloat16 (amx_pairs-inl.h): weights, uint4 ones less their zero, are exact
// in bfloat16, and an activation is exactly the sum of three, so three tile products stand for one of float32.
//
// Dims: M rows, I in, O out features, S = ceil(I / 32) steps. Activations [M / 16, S, 3, 16 rows, 16 pairs], M rounded
// up to 32; a panel of weights [S, 2 blocks, 16 pairs, 16 outputs]. A group of uint4 weights is whole steps; int8
// weights are one group.

constexpr int kFloatParts = 3;
static_assert(kSplitWords == kFloatParts * kTileWords && kPanelWords == 2 * kTileWords);

QUAMBA_INLINE VecF first_bits(VecF x) { return (VecF)((VecI)x & ~0xFFFF); }

// Up to 16 rows [rows, I], side by side, as a row of tiles: their first 8 bits, the next 8, the last 8.
inline void amx_split_rows(const float* x, int64_t rows, int64_t in, int32_t* to) {
  for (int64_t first = 0; first < in; first += kAmxPairs, to += kSplitWords) {
    const int left = static_cast<int>(in - first < kAmxPairs ? in - first : kAmxPairs);
    const int lower = left < kLanes ? left : kLanes, upper = left - lower;
    for (int64_t r = 0; r < kAmxRows; ++r) {
      VecF low{}, high{};
      if (r < rows) low = load(x + r * in + first, lower);
      if (r < rows && upper > 0) high = load(x + r * in + first + kLanes, upper);
      QUAMBA_UNROLL for (int part = 0; part < kFloatParts; ++part) {
        store_pairs(to + part * kTileWords + r * kLanes, exact_pairs(low, high));
        low = low - first_bits(low), high = high - first_bits(high);
      }
    }
  }
}

// A block's tiles of int8 weights; the quads of a step are 0 .. 3 and, 16 inputs on, 4 .. 7.
inline void fill_int8_tiles(const LinearArgs& args, int64_t block, int32_t* to) {
  const int64_t quads = (args.in + 3) / 4;
  const uint8_t* from = static_cast<const uint8_t*>(args.weight) + block * quads * 64;
  const auto quad = [&](int64_t q) { return q < quads ? load_tile(from + q * 64) : VecI{}; };
  for (int64_t first = 0; first < quads; first += 8, to += kPanelWords)
    for (int64_t q = 0; q < 4; ++q) {
      const VecI low = quad(first + q), high = quad(first + 4 + q);
      QUAMBA_UNROLL for (int k = 0; k < 4; ++k)
        store_pairs(to + (4 * q + k) * kLanes, exact_pairs(quad_values(low, k), quad_values(high, k)));
    }
}

// A block's tiles of uint4 weights less their zeros; the eights of a step are 0, 1 and, 16 inputs on, 2, 3.
inline void fill_int4_tiles(const LinearArgs& args, int64_t block, int32_t* to) {
  const int64_t eights = (args.in + 7) / 8;
  const uint8_t* from = static_cast<const uint8_t*>(args.weight) + block * eights * 64;
  const auto eight = [&](int64_t e) { return e < eights ? load_tile(from + e * 64) : VecI{}; };  // x is 0 where none is
  for (int64_t first = 0; first < eights; first += 4, to += kPanelWords) {
    const VecF zero = load_group(args, block, first * 8 / args.group_size).zero;
    for (int64_t e = 0; e < 2; ++e) {
      const VecI low = eight(first + e), high = eight(first + 2 + e);
      QUAMBA_UNROLL for (int k = 0; k < 8; ++k)
        store_pairs(to + (8 * e + k) * kLanes, exact_pairs(eight_values(low, k) - zero, eight_values(high, k) - zero));
    }
  }
}

// The scale of a block's weights in a group.
template <bool kInt4>
QUAMBA_INLINE VecF group_scale(const LinearArgs& args, OutputBlock block, int64_t group) {
  if constexpr (kInt4) return load_group(args, block.index, group).scale;
  else return load_block(static_cast<const float*>(args.scale), block);
}

// 32 rows from `row` on of two blocks, or of one.
template <bool kInt4, int kBlocks>
inline void amx_float_tile(const LinearArgs& args, const int32_t* panel, int64_t row, OutputBlock block,
                           const BlockRows (&to)[2]) {
  const int64_t steps = (args.in + kAmxPairs - 1) / kAmxPairs, row_words = steps * kSplitWords;
  const int64_t groups = kInt4 ? group_count(args) : 1, group_steps = kInt4 ? args.group_size / kAmxPairs : steps;
  const int32_t* x = static_cast<const int32_t*>(args.x) + row / kAmxRows * row_words;
  alignas(64) float sums[kMaxAmxRows][kAmxColumns];  // of a group
  VecF y[kMaxAmxRows][kBlocks], scale[kBlocks] = {};
  const auto add = [&](int64_t group, int64_t r) __attribute__((always_inline)) {
    QUAMBA_UNROLL for (int b = 0; b < kBlocks; ++b)
      y[r][b] = fma(scale[b], load(sums[r] + b * kLanes), group ? y[r][b] : VecF{});
  };
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * group_steps, count = steps - first < group_steps ? steps - first : group_steps;
    zero_sums();
    multiply_pairs<kFloatParts, 1>(x + first * kSplitWords, row_words, panel + first * kPanelWords, count,
                                   [&](int64_t s) __attribute__((always_inline)) {
      if (g > 0)
        share_of_rows(kMaxAmxRows, s, count, [&](int64_t r) __attribute__((always_inline)) { add(g - 1, r); });
    });
    store_float_sums(sums[0], kAmxColumns);
    QUAMBA_UNROLL for (int b = 0; b < kBlocks; ++b) scale[b] = group_scale<kInt4>(args, block.after(b), g);
  }
  const int64_t rows = args.rows - row < kMaxAmxRows ? args.rows - row : kMaxAmxRows;
  for (int64_t r = 0; r < rows; ++r) {
    add(groups - 1, r);
    for (int b = 0; b < kBlocks; ++b) to[b].store_row(y[r][b], row + r);
  }
}

template <bool kInt4, int kBlocks>
inline void amx_float_rows(const LinearArgs& args, OutputBlock block) {
  int32_t* panel = static_cast<int32_t*>(args.scratch);
  for (int b = 0; b < kBlocks; ++b) {
    if constexpr (kInt4) fill_int4_tiles(args, block.index + b, panel + b * kTileWords);
    else fill_int8_tiles(args, block.index + b, panel + b * kTileWords);
  }
  const BlockRows to[2] = {{args.out, block}, {args.out, block.after(kBlocks - 1)}};
  for (int64_t row = 0; row < args.rows; row += kMaxAmxRows) amx_float_tile<kInt4, kBlocks>(args, panel, row, block, to);
}

// args.x: rows of tiles as amx_split_rows makes them.
template <bool kInt4>
inline void amx_linear_float(const LinearArgs& args, int64_t begin, int64_t end) {
  const Tiles tiles(kStep);
  OutputBlock block = first_block(begin, end);
  for (; block.more() > 1; block = block.after(2)) amx_float_rows<kInt4, 2>(args, block);
  if (block.more()) amx_float_rows<kInt4, 1>(args, block);
}
