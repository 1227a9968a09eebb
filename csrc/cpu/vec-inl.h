// Sixteen lanes of float, spelled with compiler vector extensions so that one source serves every instruction set:
// one AVX-512 register, two of AVX2, four of SSE or NEON. Included inside the namespace of an instruction set.
//
// Every kernel computes whole vectors, tails padded with zeros, so a value never depends on where it stood in a row.

constexpr int kLanes = 16;

typedef float VecF __attribute__((vector_size(64)));
typedef int32_t VecI __attribute__((vector_size(64)));
typedef int8_t VecB __attribute__((vector_size(16)));

#define QUAMBA_INLINE inline __attribute__((always_inline))

QUAMBA_INLINE VecF broadcast(float value) { return value - VecF{}; }  // no operation: x - 0 is x, x + 0 is not for -0

// The second operand where they do not compare, so that a NaN in it stays.
QUAMBA_INLINE VecF max(VecF limit, VecF x) {
#if defined(QUAMBA_AVX512_VNNI)
  return (VecF)_mm512_max_ps((__m512)limit, (__m512)x);
#else
  return (limit > x) ? limit : x;
#endif
}
QUAMBA_INLINE VecF min(VecF limit, VecF x) {
#if defined(QUAMBA_AVX512_VNNI)
  return (VecF)_mm512_min_ps((__m512)limit, (__m512)x);
#else
  return (limit < x) ? limit : x;
#endif
}

// a * b + c, rounded once where the instruction set has it. Every kernel says where it fuses (the compiler may not:
// -ffp-contract=off), so that the same formula gives the same bits wherever it is inlined.
QUAMBA_INLINE VecF fma(VecF a, VecF b, VecF c) {
#if defined(QUAMBA_AVX512_VNNI)
  return (VecF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(QUAMBA_AVX2)
  __m256 x[2], y[2], z[2];
  std::memcpy(x, &a, sizeof(a));
  std::memcpy(y, &b, sizeof(b));
  std::memcpy(z, &c, sizeof(c));
  for (int half = 0; half < 2; ++half) z[half] = _mm256_fmadd_ps(x[half], y[half], z[half]);
  std::memcpy(&c, z, sizeof(c));
  return c;
#else
  return a * b + c;
#endif
}

// Loads and stores of `count` (1..16) lanes; missing lanes read as zero.
QUAMBA_INLINE VecF load(const float* p, int count = kLanes) {
  VecF v{};
  if (count == kLanes) std::memcpy(&v, p, sizeof(v));
  else std::memcpy(&v, p, sizeof(float) * static_cast<size_t>(count));
  return v;
}

// Spelled for each instruction set, because GCC 12 converts vectors of unequal sizes value by value.
QUAMBA_INLINE VecI widen(VecB v) {
#if defined(QUAMBA_AVX512_VNNI)
  return (VecI)_mm512_cvtepi8_epi32((__m128i)v);
#elif defined(QUAMBA_AVX2)
  const __m256i halves[2] = {_mm256_cvtepi8_epi32((__m128i)v), _mm256_cvtepi8_epi32(_mm_srli_si128((__m128i)v, 8))};
  VecI wide;
  std::memcpy(&wide, halves, sizeof(wide));
  return wide;
#else
  return __builtin_convertvector(v, VecI);
#endif
}

// Lanes within [-128, 127].
QUAMBA_INLINE VecB narrow(VecI v) {
#if defined(QUAMBA_AVX512_VNNI)
  return (VecB)_mm512_cvtepi32_epi8((__m512i)v);
#elif defined(QUAMBA_AVX2)
  __m128i quarters[4];
  std::memcpy(quarters, &v, sizeof(v));
  return (VecB)_mm_packs_epi16(_mm_packs_epi32(quarters[0], quarters[1]), _mm_packs_epi32(quarters[2], quarters[3]));
#else
  return __builtin_convertvector(v, VecB);
#endif
}

QUAMBA_INLINE VecI load_int(const int8_t* p, int count = kLanes) {
  VecB v{};
  if (count == kLanes) std::memcpy(&v, p, sizeof(v));
  else std::memcpy(&v, p, static_cast<size_t>(count));
  return widen(v);
}

QUAMBA_INLINE VecF to_float(VecI v) { return __builtin_convertvector(v, VecF); }

QUAMBA_INLINE VecF load(const int8_t* p, int count = kLanes) { return to_float(load_int(p, count)); }

QUAMBA_INLINE void store(float* p, VecF v, int count = kLanes) {
  if (count == kLanes) std::memcpy(p, &v, sizeof(v));
  else std::memcpy(p, &v, sizeof(float) * static_cast<size_t>(count));
}

// `v` holds integral values within [-128, 127].
QUAMBA_INLINE void store(int8_t* p, VecF v, int count = kLanes) {
  const VecB bytes = narrow(__builtin_convertvector(v, VecI));
  if (count == kLanes) std::memcpy(p, &bytes, sizeof(bytes));
  else std::memcpy(p, &bytes, static_cast<size_t>(count));
}

QUAMBA_INLINE float horizontal_sum(VecF v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

QUAMBA_INLINE float horizontal_max(VecF v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  float largest = lanes[0];
  for (int i = 1; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

// Column n of a row-major [lanes, width] matrix; lanes from `count` on read as zero.
QUAMBA_INLINE VecF gather_column(const float* rows, int64_t width, int64_t n, int count) {
#if defined(QUAMBA_AVX512_VNNI)
  if (width < (1 << 24)) {  // lanes put in one by one go through memory
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i at = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(width)));
    const __mmask16 present = static_cast<__mmask16>((1u << count) - 1);
    return (VecF)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), present, at, rows + n, 4);
  }
#endif
  VecF column{};
  for (int lane = 0; lane < count; ++lane) column[lane] = rows[lane * width + n];
  return column;
}

// rows[i][j] <-> rows[j][i]
QUAMBA_INLINE void transpose(VecF (&rows)[kLanes]) {
#if defined(QUAMBA_AVX512_VNNI)
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
  for (int stride = 1; stride < kLanes; stride *= 2) {  // swap the blocks off the diagonal, ever larger ones
    const __m512i bit = _mm512_set1_epi32(stride);
    const __mmask16 upper = _mm512_test_epi32_mask(lane, bit);
    const __m512i first = _mm512_mask_add_epi32(lane, upper, lane, _mm512_set1_epi32(kLanes - stride));
    const __m512i second = _mm512_mask_add_epi32(_mm512_add_epi32(lane, bit), upper, lane, _mm512_set1_epi32(kLanes));
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & stride) continue;
      const __m512 a = (__m512)rows[i], b = (__m512)rows[i + stride];
      rows[i] = (VecF)_mm512_permutex2var_ps(a, first, b);
      rows[i + stride] = (VecF)_mm512_permutex2var_ps(a, second, b);
    }
  }
#else
  float values[kLanes * kLanes];
  std::memcpy(values, rows, sizeof(values));
  for (int n = 0; n < kLanes; ++n) rows[n] = gather_column(values, kLanes, n, kLanes);
#endif
}

QUAMBA_INLINE int lanes_left(int64_t i, int64_t n) {
  return static_cast<int>(n - i < kLanes ? n - i : kLanes);
}

// body(i, count) for the lanes of n values from i on; a constant count makes plain loads and stores of whole vectors.
template <typename Body>
QUAMBA_INLINE void over_lanes(int64_t n, const Body& body) {
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) body(i, kLanes);
  if (whole < n) body(whole, lanes_left(whole, n));
}

// Asks for the weights that a single-row product reads next: on huge pages this reads a sixth faster than the hardware's
// own prefetching does, with one stream or with several (measured: 2 KB ahead).
QUAMBA_INLINE void prefetch_weights(const void* p) { __builtin_prefetch(static_cast<const char*>(p) + 2048); }

constexpr float kLog2E = 1.44269504088896341f;

// e^x to about 1 ulp on [-87, 88], saturating outside: 2^n * p(r) with x = n ln2 + r, |r| <= ln2 / 2.
QUAMBA_INLINE VecF exp(VecF x) {
  x = min(broadcast(88.0f), max(broadcast(-87.0f), x));
  const VecF n = fma(x, broadcast(kLog2E), broadcast(kRoundingMagic)) - kRoundingMagic;
  VecF r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  VecF p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.0f);
  const VecI exponent = (__builtin_convertvector(n, VecI) + 127) << 23;
  VecF power;
  std::memcpy(&power, &exponent, sizeof(power));
  return p * power;
}

// 2^x to about 1 ulp for x <= 127, at least 2^-126: the same without a product that would lose bits, x being exact.
QUAMBA_INLINE VecF exp2(VecF x) {
  x = max(broadcast(-126.0f), x);
  const VecF n = (x + kRoundingMagic) - kRoundingMagic;
  const VecF r = x - n;
  VecF p = broadcast(1.535336188319500e-4f);
  p = fma(p, r, broadcast(1.339887440266574e-3f));
  p = fma(p, r, broadcast(9.618437357674640e-3f));
  p = fma(p, r, broadcast(5.550332471162809e-2f));
  p = fma(p, r, broadcast(2.402264791363012e-1f));
  p = fma(p, r, broadcast(6.931472028550421e-1f));
  p = fma(p, r, broadcast(1.0f));
#if defined(QUAMBA_AVX512_VNNI)
  return (VecF)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const VecI exponent = (__builtin_convertvector(n, VecI) + 127) << 23;
  VecF power;
  std::memcpy(&power, &exponent, sizeof(power));
  return p * power;
#endif
}

// 1 / x to about 1 ulp for normal x: a division takes as long as sixteen multiplications.
QUAMBA_INLINE VecF reciprocal(VecF x) {
#if defined(QUAMBA_AVX512_VNNI)
  const VecF r = (VecF)_mm512_rcp14_ps((__m512)x);
  return fma(fma(-x, r, broadcast(1.0f)), r, r);
#else
  return 1.0f / x;
#endif
}

// A positive divisor that many values share.
struct Divisor {
  VecF value, inverse;
  VecF smallest;  // what is not larger gives 0, and would have a denormal remainder, which is slow
  bool exact;     // where it is not, a product or a remainder could overflow or lose bits

  explicit Divisor(VecF divisor)
      : value(divisor), inverse(1.0f / divisor), smallest(divisor * 0x1p-10f), exact(true) {
    for (int i = 0; i < kLanes; ++i) exact = exact && divisor[i] > 0x1p-100f && divisor[i] < 0x1p100f;
  }
};

// Stores quantize_int8(x, divisor) in a quarter of a division's time: a product, and a correction by the exact remainder,
// which rounds as the division does (Markstein, IBM J. Res. Dev. 34, 1990). What the first clamp reaches saturates in any
// case. The conversion rounds half to even and makes a NaN the integer whose low byte is 0.
QUAMBA_INLINE void store_quantized(int8_t* to, VecF x, const Divisor& divisor, int count = kLanes) {
#if defined(QUAMBA_AVX512_VNNI)
  if (divisor.exact) {
    x = (divisor.smallest < max(x, -x)) ? x : VecF{};
    VecF q = min(broadcast(256.0f), max(broadcast(-256.0f), x * divisor.inverse));
    q = fma(fma(-q, divisor.value, x), divisor.inverse, q);
    q = min(broadcast(kInt8Max), max(broadcast(kInt8Min), q));
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32((__m512)q));
    if (count == kLanes) std::memcpy(to, &bytes, sizeof(bytes));
    else std::memcpy(to, &bytes, static_cast<size_t>(count));
    return;
  }
#endif
  store(to, quantize_int8(x, divisor.value), count);
}

QUAMBA_INLINE VecF silu(VecF x) { return x * reciprocal(exp(min(broadcast(80.0f), -x)) + 1.0f); }

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), and log1p(e) = 2 atanh(e / (2 + e)): full relative accuracy for the small
// steps that a very negative x stands for.
QUAMBA_INLINE VecF softplus(VecF x) {
  const VecF positive = (x > 0.0f) ? x : VecF{};
  const VecF e = exp((x > 0.0f) ? -x : x);
  const VecF s = e * reciprocal(e + 2.0f);
  const VecF s2 = s * s;
  VecF p = broadcast(1.0f / 17);
  for (int odd = 15; odd > 0; odd -= 2) p = fma(p, s2, broadcast(1.0f / static_cast<float>(odd)));
  return positive + s * p * 2.0f;
}

// What one register holds of a VecF or VecI: kParts parts make one. Sums that stay in registers over a whole loop are
// declared as parts, because GCC keeps a value of several registers in memory.
#if defined(QUAMBA_AVX512_VNNI)
constexpr int kPartLanes = 16;
#elif defined(QUAMBA_AVX2)
constexpr int kPartLanes = 8;
#else
constexpr int kPartLanes = 4;
#endif
constexpr int kParts = kLanes / kPartLanes;

typedef float PartF __attribute__((vector_size(4 * kPartLanes)));
typedef int32_t PartI __attribute__((vector_size(4 * kPartLanes)));

// Before a loop over rows, blocks or parts: arrays of parts are registers only where every index is a constant.
#define QUAMBA_UNROLL _Pragma("GCC unroll 16")

#if !defined(QUAMBA_AVX512_VNNI)  // where a part is the whole, these are those of VecF
QUAMBA_INLINE PartF fma(PartF a, PartF b, PartF c) {
#if defined(QUAMBA_AVX2)
  return (PartF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

QUAMBA_INLINE PartF max(PartF limit, PartF x) { return (limit > x) ? limit : x; }
QUAMBA_INLINE PartF min(PartF limit, PartF x) { return (limit < x) ? limit : x; }

QUAMBA_INLINE PartF to_float(PartI v) { return __builtin_convertvector(v, PartF); }
#endif

QUAMBA_INLINE PartF broadcast_part(float value) { return value - PartF{}; }

template <typename T, typename Element>
QUAMBA_INLINE T load_as(const Element* p) {
  T v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

QUAMBA_INLINE VecF join(const PartF (&parts)[kParts]) { return load_as<VecF>(parts); }
QUAMBA_INLINE VecI join(const PartI (&parts)[kParts]) { return load_as<VecI>(parts); }

QUAMBA_INLINE PartF load_uint8_part(const uint8_t* p) {
  typedef uint8_t Bytes __attribute__((vector_size(kPartLanes)));
  return to_float(__builtin_convertvector(load_as<Bytes>(p), PartI));
}

// float16 values of a part.
QUAMBA_INLINE PartF load_half_part(const uint16_t* p) {
#if defined(QUAMBA_AVX512_VNNI)
  return (PartF)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(QUAMBA_AVX2)
  return (PartF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  typedef uint16_t Halves __attribute__((vector_size(2 * kPartLanes)));
  const PartI half = __builtin_convertvector(load_as<Halves>(p), PartI), magnitude = half & 0x7FFF;
  // the exponent of a normal number moves by 112; a subnormal one is its bits times 2^-24
  const PartI normal = (magnitude << 13) + (112 << 23), special = (magnitude << 13) | 0x7F800000;
  PartI value = (magnitude < 0x0400) ? (PartI)(to_float(magnitude) * 0x1p-24f) : normal;
  value = (magnitude >= 0x7C00) ? special : value;
  return (PartF)(value | (half & 0x8000) << 16);
#endif
}
