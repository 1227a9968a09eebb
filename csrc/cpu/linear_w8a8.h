// int8 x int8 products with exact int32 sums, their scales and requantization. Dims: M rows, I in, O out features.

#if defined(QUAMBA_AVX512_VNNI)

// vpdpbusd multiplies unsigned by signed bytes: x + 128 stands in for x, and 128 * sum(w) is taken back.
template <int kRows, int kOuts>
QUAMBA_INLINE void dot_block(const int8_t* x, const int8_t* w, int64_t in, int32_t (*result)[kLanes]) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i acc[kRows][kOuts], weight_sum[kOuts];
  for (int o = 0; o < kOuts; ++o) {
    weight_sum[o] = _mm512_setzero_si512();
    for (int r = 0; r < kRows; ++r) acc[r][o] = _mm512_setzero_si512();
  }
  const auto step = [&](int64_t i, __mmask64 mask) __attribute__((always_inline)) {
    __m512i value[kRows];
    for (int r = 0; r < kRows; ++r)
      value[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, x + r * in + i), flip);
    for (int o = 0; o < kOuts; ++o) {
      const __m512i weight = _mm512_maskz_loadu_epi8(mask, w + o * in + i);
      weight_sum[o] = _mm512_dpbusd_epi32(weight_sum[o], ones, weight);
      for (int r = 0; r < kRows; ++r) acc[r][o] = _mm512_dpbusd_epi32(acc[r][o], value[r], weight);
    }
  };
  int64_t i = 0;
  for (; i + 64 <= in; i += 64) step(i, ~__mmask64{0});
  if (i < in) step(i, (__mmask64{1} << (in - i)) - 1);
  for (int o = 0; o < kOuts; ++o)
    for (int r = 0; r < kRows; ++r)
      result[r][o] = _mm512_reduce_add_epi32(_mm512_sub_epi32(acc[r][o], _mm512_slli_epi32(weight_sum[o], 7)));
}

#elif defined(QUAMBA_AVX2)

// Bytes are sign-extended to 16 bits first: vpmaddubsw would saturate.
template <int kRows, int kOuts>
QUAMBA_INLINE void dot_block(const int8_t* x, const int8_t* w, int64_t in, int32_t (*result)[kLanes]) {
  __m256i acc[kRows][kOuts];
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOuts; ++o) acc[r][o] = _mm256_setzero_si256();
  const auto extended = [](const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  };
  int64_t i = 0;
  for (; i + 16 <= in; i += 16)
    for (int o = 0; o < kOuts; ++o) {
      const __m256i weight = extended(w + o * in + i);
      for (int r = 0; r < kRows; ++r)
        acc[r][o] = _mm256_add_epi32(acc[r][o], _mm256_madd_epi16(extended(x + r * in + i), weight));
    }
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOuts; ++o) {
      int32_t lanes[8], sum = 0;
      std::memcpy(lanes, &acc[r][o], sizeof(lanes));
      for (int lane = 0; lane < 8; ++lane) sum += lanes[lane];
      for (int64_t j = i; j < in; ++j) sum += int32_t{x[r * in + j]} * int32_t{w[o * in + j]};
      result[r][o] = sum;
    }
}

#else

template <int kRows, int kOuts>
QUAMBA_INLINE void dot_block(const int8_t* x, const int8_t* w, int64_t in, int32_t (*result)[kLanes]) {
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOuts; ++o) {
      int32_t sum = 0;
      for (int64_t i = 0; i < in; ++i) sum += int32_t{x[r * in + i]} * int32_t{w[o * in + i]};
      result[r][o] = sum;
    }
}

#endif

QUAMBA_INLINE void finish_w8a8_block(const Int8LinearArgs& args, const int32_t* acc, int64_t row, int64_t o, int count) {
  const VecF scale = load(args.weight_scale + o, count) * row_scale(args.out, row);
  store_output(args.out, to_float(load_int(acc, count)) * scale, row, o, count);
}

// Outputs [o, o + count) of kRows rows; `count` up to 16.
template <int kRows>
inline void linear_w8a8_block(const Int8LinearArgs& args, int64_t row, int64_t o, int count) {
  const int8_t* x = static_cast<const int8_t*>(args.x) + row * args.in;
  int32_t acc[kRows][kLanes];
  int32_t one[kRows][kLanes];
  int done = 0;
  for (; done + 4 <= count; done += 4) {
    dot_block<kRows, 4>(x, args.weight + (o + done) * args.in, args.in, one);
    for (int r = 0; r < kRows; ++r) std::memcpy(&acc[r][done], one[r], 4 * sizeof(int32_t));
  }
  for (; done < count; ++done) {
    dot_block<kRows, 1>(x, args.weight + (o + done) * args.in, args.in, one);
    for (int r = 0; r < kRows; ++r) acc[r][done] = one[r][0];
  }
  for (int r = 0; r < kRows; ++r) finish_w8a8_block(args, acc[r], row + r, o, count);
}

inline void linear_w8a8(const Int8LinearArgs& args, int64_t begin, int64_t end) {
  constexpr int kRowBlock = 4;  // a weight vector in a register serves this many rows
  for (int64_t o = begin; o < end; o += kLanes) {
    const int count = lanes_left(o, end);
    int64_t row = 0;
    for (; row + kRowBlock <= args.rows; row += kRowBlock) linear_w8a8_block<kRowBlock>(args, row, o, count);
    for (; row < args.rows; ++row) linear_w8a8_block<1>(args, row, o, count);
  }
}

inline void finish_w8a8(const Int8LinearArgs& args, const int32_t* acc, int64_t out_features, int64_t row_begin,
                        int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row)
    for (int64_t o = 0; o < out_features; o += kLanes)
      finish_w8a8_block(args, acc + row * out_features + o, row, o, lanes_left(o, out_features));
}
