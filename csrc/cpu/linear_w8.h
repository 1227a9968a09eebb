// Products with int8 weights in tiles: a 64-byte vector holds 4 neighbouring inputs of 16 outputs, so a 32-bit lane is an
// output from the first product to the last and nothing is ever summed across lanes.
//
// Dims: M rows, I in, O out features, Q = ceil(I / 4) quads of inputs. Weights [O / 16, Q, 16, 4], zeros beyond I and O.

QUAMBA_INLINE VecI broadcast_quad(const void* p) {
  int32_t quad;
  std::memcpy(&quad, p, sizeof(quad));
  return quad - VecI{};
}

QUAMBA_INLINE VecI load_tile(const void* p) {
  VecI v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// What an int8 activation is laid out as: vpdpbusd multiplies unsigned by signed bytes, so x + 128 stands in for x there
// and 128 * sum(w) is taken back at the end.
#if defined(QUAMBA_AVX512_VNNI)
constexpr uint8_t kSignFlip = 0x80;
#else
constexpr uint8_t kSignFlip = 0;
#endif

inline void prepare_w8a8(const int8_t* x, int64_t in, int8_t* to) {
  for (int64_t i = 0; i < in; ++i) to[i] = static_cast<int8_t>(static_cast<uint8_t>(x[i]) ^ kSignFlip);
}

// acc + the dot product of the four bytes of each lane of x, as prepare_w8a8 left them, and w.
QUAMBA_INLINE VecI dot_quads(VecI acc, VecI x, VecI w) {
#if defined(QUAMBA_AVX512_VNNI)
  return (VecI)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)w);
#elif defined(QUAMBA_AVX2)
  __m256i a[2], b[2], c[2];  // vpmaddubsw would saturate: even and odd bytes are extended to 16 bits
  std::memcpy(a, &x, sizeof(x));
  std::memcpy(b, &w, sizeof(w));
  std::memcpy(c, &acc, sizeof(acc));
  const auto even = [](__m256i v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); };
  const auto odd = [](__m256i v) { return _mm256_srai_epi16(v, 8); };
  for (int half = 0; half < 2; ++half) {
    c[half] = _mm256_add_epi32(c[half], _mm256_madd_epi16(even(a[half]), even(b[half])));
    c[half] = _mm256_add_epi32(c[half], _mm256_madd_epi16(odd(a[half]), odd(b[half])));
  }
  std::memcpy(&acc, c, sizeof(acc));
  return acc;
#else
  for (int shift = 24; shift >= 0; shift -= 8) acc += ((x << shift) >> 24) * ((w << shift) >> 24);
  return acc;
#endif
}

QUAMBA_INLINE VecI flipped_sums(VecI sums, VecI w) { return kSignFlip ? dot_quads(sums, VecI{} + 0x01010101, w) : sums; }

// A block's outputs of one row: `y` has the scale of the weights.
QUAMBA_INLINE void finish_w8a8(const LinearArgs& args, VecI acc, int64_t row, OutputBlock block) {
  const VecF scale = load_block(static_cast<const float*>(args.scale), block) * row_scale(args.out, row);
  store_block(args.out, to_float(acc) * scale, row, block);
}

// kBlocks blocks of 16 outputs of kRows rows. kChains accumulators a block hide the latency of the products where there
// is a single row.
template <int kRows, int kBlocks, int kChains>
inline void w8a8_tile(const LinearArgs& args, int64_t row, OutputBlock block) {
  const int64_t quads = (args.in + 3) / 4, block_bytes = quads * 64;
  const int8_t* x = static_cast<const int8_t*>(args.x) + row * args.x_stride;
  const int8_t* w = static_cast<const int8_t*>(args.weight) + block.index * block_bytes;
  VecI acc[kRows][kBlocks][kChains] = {}, sums[kBlocks][kChains] = {};
  const auto step = [&](int64_t q, int chain) __attribute__((always_inline)) {
    for (int b = 0; b < kBlocks; ++b) {
      const int8_t* p = w + b * block_bytes + q * 64;
      const VecI weight = load_tile(p);
      if (kRows == 1) prefetch_weights(p);
      sums[b][chain] = flipped_sums(sums[b][chain], weight);
      for (int r = 0; r < kRows; ++r)
        acc[r][b][chain] = dot_quads(acc[r][b][chain], broadcast_quad(x + r * args.x_stride + 4 * q), weight);
    }
  };
  int64_t q = 0;
  for (; q + kChains <= quads; q += kChains)
    for (int chain = 0; chain < kChains; ++chain) step(q + chain, chain);
  for (; q < quads; ++q) step(q, 0);
  for (int b = 0; b < kBlocks; ++b) {
    for (int chain = 1; chain < kChains; ++chain) {
      sums[b][0] += sums[b][chain];
      for (int r = 0; r < kRows; ++r) acc[r][b][0] += acc[r][b][chain];
    }
    for (int r = 0; r < kRows; ++r)
      finish_w8a8(args, acc[r][b][0] - kSignFlip * sums[b][0], row + r, block.after(b));
  }
}

template <int kBlocks>
inline void w8a8_rows(const LinearArgs& args, OutputBlock block, int64_t row) {
  for (; row + 8 <= args.rows; row += 8) w8a8_tile<8, kBlocks, 1>(args, row, block);
  for (; row + 4 <= args.rows; row += 4) w8a8_tile<4, kBlocks, 1>(args, row, block);
  for (; row < args.rows; ++row) w8a8_tile<1, kBlocks, 4 / kBlocks>(args, row, block);
}

// Outputs [begin, end) of every row.
inline void linear_w8a8(const LinearArgs& args, int64_t begin, int64_t end) {
  OutputBlock block = first_block(begin, end);
  for (; block.more() > 1; block = block.after(2)) w8a8_rows<2>(args, block, 0);
  if (block.more()) w8a8_rows<1>(args, block, 0);
}

// The same on float rows: every weight is converted and multiplied as a float.
template <int kRows>
inline void w8a16_tile(const LinearArgs& args, int64_t row, OutputBlock block) {
  const int64_t quads = (args.in + 3) / 4;
  const float* x = static_cast<const float*>(args.x) + row * args.x_stride;
  const int8_t* w = static_cast<const int8_t*>(args.weight) + block.index * quads * 64;
  VecF acc[kRows][4] = {};
  for (int64_t q = 0; q < quads; ++q) {
    const VecI weight = load_tile(w + q * 64);
    if (kRows == 1) prefetch_weights(w + q * 64);
    for (int k = 0; k < 4; ++k) {
      const VecF value = to_float((weight << (24 - 8 * k)) >> 24);
      for (int r = 0; r < kRows; ++r) acc[r][k] = fma(value, broadcast(x[r * args.x_stride + 4 * q + k]), acc[r][k]);
    }
  }
  const VecF scale = load_block(static_cast<const float*>(args.scale), block);
  for (int r = 0; r < kRows; ++r)
    store_block(args.out, ((acc[r][0] + acc[r][1]) + (acc[r][2] + acc[r][3])) * scale, row + r, block);
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
  for (int64_t i = 0; i < args.in; ++i)
    store(to + i * stride, to_float((load_tile(w + i / 4 * 64) << (24 - 8 * (i % 4))) >> 24) * scale);
}
