// Products with int8 weights in tiles: 64 bytes hold 4 neighbouring inputs of 16 outputs, so a 32-bit lane is an output
// from the first product to the last and nothing is ever summed across lanes. Sums are parts of those lanes, see vec-inl.h.
//
// Dims: M rows, I in, O out features, Q = ceil(I / 4) quads of inputs.
// Weights [O / 16, Q, 16, 4], zeros beyond I and O.

QUAMBA_INLINE PartI broadcast_quad(const void* p) {
  int32_t quad;
  std::memcpy(&quad, p, sizeof(quad));
  return quad - PartI{};
}

// Part `part` of the 64 bytes of a tile.
QUAMBA_INLINE PartI load_tile(const void* p, int part = 0) {
  return load_as<PartI>(static_cast<const char*>(p) + part * sizeof(PartI));
}

// The most rows that a tile of int8 products has registers for.
#if defined(QUAMBA_AVX512_VNNI)
constexpr int kMaxRows = 8;
#else
constexpr int kMaxRows = 4;
#endif

// What an int8 activation is laid out as: vpdpbusd multiplies unsigned by signed bytes, so x + 128 stands in for x
// there and 128 * sum(w) is taken back at the end.
#if defined(QUAMBA_AVX512_VNNI)
constexpr uint8_t kSignFlip = 0x80;
#else
constexpr uint8_t kSignFlip = 0;
#endif

inline void prepare_w8a8(const int8_t* x, int64_t in, int8_t* to) {
  for (int64_t i = 0; i < in; ++i) to[i] = static_cast<int8_t>(static_cast<uint8_t>(x[i]) ^ kSignFlip);
}

#if !defined(QUAMBA_AVX512_VNNI)
typedef int16_t PartH __attribute__((vector_size(4 * kPartLanes)));

// The even and the odd bytes, extended to 16 bits.
QUAMBA_INLINE PartH even_bytes(PartI v) { return ((PartH)v << 8) >> 8; }
QUAMBA_INLINE PartH odd_bytes(PartI v) { return (PartH)v >> 8; }

// Of each lane, the dot product of two 16-bit values by two.
QUAMBA_INLINE PartI dot_pairs(PartH a, PartH b) {
#if defined(QUAMBA_AVX2)
  return (PartI)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return __builtin_ia32_pmaddwd128(a, b);
#else
  const PartI x = (PartI)a, y = (PartI)b;
  return ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
#endif
}
#endif

// acc + the dot product of the four bytes of each lane of x, as prepare_w8a8 left them, and w.
QUAMBA_INLINE PartI dot_quads(PartI acc, PartI x, PartI w) {
#if defined(QUAMBA_AVX512_VNNI)
  return (PartI)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)w);
#else  // vpmaddubsw would saturate
  return acc + (dot_pairs(even_bytes(x), even_bytes(w)) + dot_pairs(odd_bytes(x), odd_bytes(w)));
#endif
}

QUAMBA_INLINE PartI flipped_sums(PartI sums, PartI w) {
  return kSignFlip ? dot_quads(sums, PartI{} + 0x01010101, w) : sums;
}

// A block's outputs of one row: `y` has the scale of the weights.
QUAMBA_INLINE void finish_w8a8(const LinearArgs& args, VecI acc, int64_t row, OutputBlock block) {
  const VecF scale = load_block(static_cast<const float*>(args.scale), block) * row_scale(args.out, row);
  store_block(args.out, to_float(acc) * scale, row, block);
}

// kBlocks blocks of 16 outputs, `apart` blocks from each other, of kRows rows. kChains accumulators a block hide the
// latency of the products where there is a single row.
template <int kRows, int kBlocks, int kChains>
inline void w8a8_tile(const LinearArgs& args, int64_t row, OutputBlock block, int64_t apart = 1) {
  const int64_t quads = (args.in + 3) / 4, block_bytes = quads * 64, next = apart * block_bytes;
  const int8_t* x = static_cast<const int8_t*>(args.x) + row * args.x_stride;
  const int8_t* w = static_cast<const int8_t*>(args.weight) + block.index * block_bytes;
  PartI acc[kRows][kBlocks][kChains][kParts] = {}, sums[kBlocks][kChains][kParts] = {};
  const auto step = [&](int64_t q, int chain) __attribute__((always_inline)) {
    QUAMBA_UNROLL for (int b = 0; b < kBlocks; ++b) {
      const int8_t* at = w + b * next + q * 64;
      if (kRows == 1) prefetch_weights(at);
      QUAMBA_UNROLL for (int p = 0; p < kParts; ++p) {
        const PartI weight = load_tile(at, p);
        sums[b][chain][p] = flipped_sums(sums[b][chain][p], weight);
        QUAMBA_UNROLL for (int r = 0; r < kRows; ++r)
          acc[r][b][chain][p] = dot_quads(acc[r][b][chain][p], broadcast_quad(x + r * args.x_stride + 4 * q), weight);
      }
    }
  };
  int64_t q = 0;
  for (; q + kChains <= quads; q += kChains) {
    QUAMBA_UNROLL for (int chain = 0; chain < kChains; ++chain) step(q + chain, chain);
  }
  for (; q < quads; ++q) step(q, 0);
  PartI total[kRows][kBlocks][kParts] = {};
  QUAMBA_UNROLL for (int r = 0; r < kRows; ++r)
    QUAMBA_UNROLL for (int b = 0; b < kBlocks; ++b)
      QUAMBA_UNROLL for (int chain = 0; chain < kChains; ++chain)
        QUAMBA_UNROLL for (int p = 0; p < kParts; ++p)
          total[r][b][p] += acc[r][b][chain][p] - kSignFlip * sums[b][chain][p];
  for (int b = 0; b < kBlocks; ++b)
    for (int r = 0; r < kRows; ++r) finish_w8a8(args, join(total[r][b]), row + r, block.after(b * apart));
}

template <int kBlocks>
inline void w8a8_rows(const LinearArgs& args, OutputBlock block, int64_t row) {
  for (; row + kMaxRows <= args.rows; row += kMaxRows) w8a8_tile<kMaxRows, kBlocks, 1>(args, row, block);
  for (; row + 4 <= args.rows; row += 4) w8a8_tile<4, kBlocks, 1>(args, row, block);
  for (; row < args.rows; ++row) w8a8_tile<1, kBlocks, 4 / kBlocks>(args, row, block);
}

// Outputs [begin, end) of every row.
inline void linear_w8a8(const LinearArgs& args, int64_t begin, int64_t end) {
  OutputBlock block = first_block(begin, end);
  if (args.rows == 1)
    return in_streams(
        block, [&](OutputBlock first, int64_t apart) { w8a8_tile<1, kStreams, 1>(args, 0, first, apart); },
        [&](OutputBlock last) { w8a8_tile<1, 1, 4>(args, 0, last); });
  for (; block.more() > 1; block = block.after(2)) w8a8_rows<2>(args, block, 0);
  for (; block.more(); block = block.after(1)) w8a8_rows<1>(args, block, 0);
}

// Input k of a quad, of the outputs of a part.
QUAMBA_INLINE PartF quad_values(PartI quad, int k) { return to_float((quad << (24 - 8 * k)) >> 24); }

// The same on float rows: every weight is converted and multiplied as a float, a few parts of the block at a time.
template <int kRows>
inline void w8a16_tile(const LinearArgs& args, int64_t row, OutputBlock block) {
  const int64_t quads = (args.in + 3) / 4;
  const float* x = static_cast<const float*>(args.x) + row * args.x_stride;
  const int8_t* w = static_cast<const int8_t*>(args.weight) + block.index * quads * 64;
  constexpr int kAtOnce = kRows == 1 && kParts > 1 ? 2 : 1;  // as many as there are registers for
  PartF y[kRows][kParts];
  QUAMBA_UNROLL for (int first = 0; first < kParts; first += kAtOnce) {
    PartF acc[kRows][kAtOnce][4] = {};
    for (int64_t q = 0; q < quads; ++q) {
      if (kRows == 1) prefetch_weights(w + q * 64);
      QUAMBA_UNROLL for (int p = 0; p < kAtOnce; ++p) {
        const PartI weight = load_tile(w + q * 64, first + p);
        QUAMBA_UNROLL for (int k = 0; k < 4; ++k) {
          const PartF value = quad_values(weight, k);
          QUAMBA_UNROLL for (int r = 0; r < kRows; ++r)
            acc[r][p][k] = fma(value, broadcast_part(x[r * args.x_stride + 4 * q + k]), acc[r][p][k]);
        }
      }
    }
    QUAMBA_UNROLL for (int p = 0; p < kAtOnce; ++p)
      QUAMBA_UNROLL for (int r = 0; r < kRows; ++r)
        y[r][first + p] = (acc[r][p][0] + acc[r][p][1]) + (acc[r][p][2] + acc[r][p][3]);
  }
  const VecF scale = load_block(static_cast<const float*>(args.scale), block);
  for (int r = 0; r < kRows; ++r) store_block(args.out, join(y[r]) * scale, row + r, block);
}

inline void linear_w8a16(const LinearArgs& args, int64_t begin, int64_t end) {
  for (OutputBlock block = first_block(begin, end); block.more(); block = block.after(1)) {
    int64_t row = 0;
    for (; row + 4 <= args.rows; row += 4) w8a16_tile<4>(args, row, block);
    for (; row < args.rows; ++row) w8a16_tile<1>(args, row, block);
  }
}

// The block's weights as floats, [I] rows of 16 outputs `stride` apart.
inline void dequantize_w8(const LinearArgs& args, int64_t block, float* to, int64_t stride) {
  const int64_t quads = (args.in + 3) / 4;
  const int8_t* w = static_cast<const int8_t*>(args.weight) + block * quads * 64;
  const VecF scale = load_block(static_cast<const float*>(args.scale), first_block(block * kLanes, args.out.stride));
  for (int64_t i = 0; i < args.in; ++i) {
    PartF values[kParts];
    QUAMBA_UNROLL for (int p = 0; p < kParts; ++p)
      values[p] = quad_values(load_tile(w + i / 4 * 64, p), static_cast<int>(i % 4));
    store(to + i * stride, join(values) * scale);
  }
}
