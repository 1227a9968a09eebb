// Products of integers of 8 bits with floats in AMX tiles of bfloat16, with float sums. The integers are exact in
// bfloat16. A float is the sum of two: its first 8 bits, and the rest rounded to 8 bits, which together are within
// 2^-16 of it; a product is one tile product for each of them.
//
// A tile is 16 rows of 16 pairs. Of 32 that a step sums over, number i and number 16 + i make pair i, so that two
// vectors of 16 become a row of pairs without a shuffle. Left operands are tiles of [16 rows, 32], right ones of
// [32, 16 columns] with a row for each pair. Left tiles lie row of tiles by row of tiles, right ones in panels of 32
// columns: both tiles of columns of a step, then those of the next step. What is split has its rest after each tile
// (left) or each two tiles (right).

constexpr int64_t kAmxPairs = 32;    // summed over in a step
constexpr int64_t kAmxColumns = 32;  // of a panel
constexpr int64_t kTileWords = 256;  // a pair, or a float, is a word

// Pairs of bfloat16s: the upper halves of floats.
QUAMBA_INLINE VecI upper_halves(VecI first, VecI second) {
  return (VecI)_mm512_mask_mov_epi16(_mm512_srli_epi32((__m512i)first, 16), 0xAAAAAAAA, (__m512i)second);
}

QUAMBA_INLINE void store_pairs(int32_t* to, VecI pairs) { std::memcpy(to, &pairs, sizeof(pairs)); }

// Floats that bfloat16 holds exactly.
QUAMBA_INLINE VecI exact_pairs(VecF first, VecF second) { return upper_halves((VecI)first, (VecI)second); }

// Their first bits go to `to`, the rests to `rest`. Cut off rather than rounded, the largest float and NaN stay so.
QUAMBA_INLINE void split_pairs(VecF first, VecF second, int32_t* to, int32_t* rest) {
  store_pairs(to, upper_halves((VecI)first, (VecI)second));
  const VecF first_rest = first - (VecF)((VecI)first & ~0xFFFF), second_rest = second - (VecF)((VecI)second & ~0xFFFF);
  store_pairs(rest, upper_halves((VecI)first_rest + 0x8000, (VecI)second_rest + 0x8000));
}

// sums += left x right, of 32 rows and 32 columns, over `steps` steps; left_row: words from a row of tiles to the next.
// between(k) comes after step k, for work of vectors that the tiles' work hides.
template <int kLeftParts, int kRightParts, typename Between>
QUAMBA_INLINE void multiply_pairs(const int32_t* left, int64_t left_row, const int32_t* right, int64_t steps,
                                  const Between& between) {
  asm volatile("" : : : "memory");  // GCC 12 does not see that tiles are loaded from memory
  for (int64_t k = 0; k < steps; ++k) {
    QUAMBA_UNROLL for (int l = 0; l < kLeftParts; ++l, left += kTileWords) {
      _tile_loadd(4, left, 64);
      _tile_loadd(5, left + left_row, 64);
      QUAMBA_UNROLL for (int r = 0; r < kRightParts; ++r) {
        if (l == 0 || kRightParts > 1) {
          _tile_loadd(6, right, 64);
          _tile_loadd(7, right + kTileWords, 64);
          right += 2 * kTileWords;
        }
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    between(k);
  }
}

constexpr auto kNothing = [](int64_t) {};

QUAMBA_INLINE void load_float_sums(const float* from, int64_t stride) {
  asm volatile("" : : : "memory");
  _tile_loadd(0, from, stride * 4);
  _tile_loadd(1, from + 16, stride * 4);
  _tile_loadd(2, from + 16 * stride, stride * 4);
  _tile_loadd(3, from + 16 * stride + 16, stride * 4);
}

QUAMBA_INLINE void store_float_sums(float* to, int64_t stride) {
  _tile_stored(0, to, stride * 4);
  _tile_stored(1, to + 16, stride * 4);
  _tile_stored(2, to + 16 * stride, stride * 4);
  _tile_stored(3, to + 16 * stride + 16, stride * 4);
}

// Which of 16 columns from `column` on there are.
QUAMBA_INLINE __mmask16 present_lanes(int64_t column, int64_t columns) {
  const int64_t left = columns - column;
  return left >= kLanes ? 0xFFFF : static_cast<__mmask16>(left > 0 ? (1 << left) - 1 : 0);
}

// 16 integers of row `row` of x as floats; zeros for what is not there.
QUAMBA_INLINE VecF load_padded(const int8_t* x, int64_t stride, int64_t row, int64_t rows, __mmask16 present) {
  const __m128i bytes = _mm_maskz_loadu_epi8(row < rows ? present : 0, x + row * stride);
  return (VecF)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
