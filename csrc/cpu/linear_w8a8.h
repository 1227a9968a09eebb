// Exact int8 x int8 -> int32 dot products, and what turns an accumulator into an output.

#if defined(QUAMBA_AVX512_VNNI)

// vpdpbusd multiplies unsigned by signed bytes: x + 128 stands in for x, and 128 * sum(w) is taken back.
template <int kRows>
QUAMBA_INLINE void dot_rows(const int8_t* x, int64_t x_stride, const int8_t* w, int64_t in, int32_t* result) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i acc[kRows], weight_sum = _mm512_setzero_si512();
  for (int r = 0; r < kRows; ++r) acc[r] = _mm512_setzero_si512();
  for (int64_t i = 0; i < in; i += 64) {
    const __mmask64 mask = in - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (in - i)) - 1;
    const __m512i weight = _mm512_maskz_loadu_epi8(mask, w + i);
    weight_sum = _mm512_dpbusd_epi32(weight_sum, ones, weight);
    for (int r = 0; r < kRows; ++r) {
      const __m512i value = _mm512_maskz_loadu_epi8(mask, x + r * x_stride + i);
      acc[r] = _mm512_dpbusd_epi32(acc[r], _mm512_xor_si512(value, flip), weight);
    }
  }
  const int32_t correction = 128 * _mm512_reduce_add_epi32(weight_sum);
  for (int r = 0; r < kRows; ++r) result[r] = _mm512_reduce_add_epi32(acc[r]) - correction;
}

#elif defined(QUAMBA_AVX2)

// Bytes are sign-extended to 16 bits first: vpmaddubsw would saturate.
template <int kRows>
QUAMBA_INLINE void dot_rows(const int8_t* x, int64_t x_stride, const int8_t* w, int64_t in, int32_t* result) {
  __m256i acc[kRows];
  for (int r = 0; r < kRows; ++r) acc[r] = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 16 <= in; i += 16) {
    const __m256i weight = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + i)));
    for (int r = 0; r < kRows; ++r) {
      const __m256i value =
          _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + r * x_stride + i)));
      acc[r] = _mm256_add_epi32(acc[r], _mm256_madd_epi16(value, weight));
    }
  }
  for (int r = 0; r < kRows; ++r) {
    int32_t lanes[8];
    std::memcpy(lanes, &acc[r], sizeof(lanes));
    int32_t sum = 0;
    for (int lane = 0; lane < 8; ++lane) sum += lanes[lane];
    for (int64_t j = i; j < in; ++j) sum += int32_t{x[r * x_stride + j]} * int32_t{w[j]};
    result[r] = sum;
  }
}

#else

template <int kRows>
QUAMBA_INLINE void dot_rows(const int8_t* x, int64_t x_stride, const int8_t* w, int64_t in, int32_t* result) {
  for (int r = 0; r < kRows; ++r) {
    int32_t sum = 0;
    for (int64_t i = 0; i < in; ++i) sum += int32_t{x[r * x_stride + i]} * int32_t{w[i]};
    result[r] = sum;
  }
}

#endif

inline void int8_dot(const int8_t* x, int64_t rows, const int8_t* weight, int64_t in, int64_t out_begin,
                     int64_t out_end, int32_t* acc, int64_t acc_stride) {
  constexpr int kRowBlock = 4;  // a weight vector in a register serves this many rows
  for (int64_t row = 0; row < rows; row += kRowBlock) {
    const int64_t count = rows - row < kRowBlock ? rows - row : kRowBlock;
    for (int64_t o = out_begin; o < out_end; ++o) {
      int32_t result[kRowBlock];
      const int8_t* first = x + row * in;
      const int8_t* w = weight + o * in;
      if (count == kRowBlock) dot_rows<kRowBlock>(first, in, w, in, result);
      else for (int64_t r = 0; r < count; ++r) dot_rows<1>(first + r * in, in, w, in, result + r);
      for (int64_t r = 0; r < count; ++r) acc[(row + r) * acc_stride + o] = result[r];
    }
  }
}

QUAMBA_INLINE VecF scale_accumulator(const int32_t* acc, const float* scale, const float* bias, int count) {
  const VecF y = to_float(load_int(acc, count)) * load(scale, count);
  return bias ? y + load(bias, count) : y;
}

inline void dequantize(const int32_t* acc, int64_t rows, int64_t cols, const float* scale, const float* bias,
                       float* out) {
  for (int64_t row = 0; row < rows; ++row, acc += cols, out += cols)
    for (int64_t o = 0; o < cols; o += kLanes) {
      const int count = lanes_left(o, cols);
      store(out + o, scale_accumulator(acc + o, scale + o, bias ? bias + o : nullptr, count), count);
    }
}

inline void requantize(const int32_t* acc, int64_t rows, int64_t cols, const float* scale, const float* bias,
                       const float* out_scale, int8_t* out) {
  for (int64_t row = 0; row < rows; ++row, acc += cols, out += cols)
    for (int64_t o = 0; o < cols; o += kLanes) {
      const int count = lanes_left(o, cols);
      const VecF y = scale_accumulator(acc + o, scale + o, bias ? bias + o : nullptr, count);
      store(out + o, quantize_int8(y, load(out_scale + o, count)), count);
    }
}
