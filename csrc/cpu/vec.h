// Sixteen lanes of float, spelled with compiler vector extensions so that one source serves every instruction set:
// one AVX-512 register, two of AVX2, four of SSE or NEON. Included inside the namespace of an instruction set.
//
// Every kernel computes whole vectors, tails padded with zeros, so a value never depends on where it stood in a row.

constexpr int kLanes = 16;

typedef float VecF __attribute__((vector_size(64)));
typedef int32_t VecI __attribute__((vector_size(64)));
typedef int8_t VecB __attribute__((vector_size(16)));

#define QUAMBA_INLINE inline __attribute__((always_inline))

QUAMBA_INLINE VecF broadcast(float value) { return VecF{} + value; }

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

QUAMBA_INLINE VecI load_int(const int32_t* p, int count = kLanes) {
  VecI v{};
  if (count == kLanes) std::memcpy(&v, p, sizeof(v));
  else std::memcpy(&v, p, sizeof(int32_t) * static_cast<size_t>(count));
  return v;
}

QUAMBA_INLINE VecI load_int(const int8_t* p, int count = kLanes) {
  VecB v{};
  if (count == kLanes) std::memcpy(&v, p, sizeof(v));
  else std::memcpy(&v, p, static_cast<size_t>(count));
  return __builtin_convertvector(v, VecI);
}

QUAMBA_INLINE VecF to_float(VecI v) { return __builtin_convertvector(v, VecF); }

QUAMBA_INLINE VecF load(const int8_t* p, int count = kLanes) { return to_float(load_int(p, count)); }

QUAMBA_INLINE void store(float* p, VecF v, int count = kLanes) {
  if (count == kLanes) std::memcpy(p, &v, sizeof(v));
  else std::memcpy(p, &v, sizeof(float) * static_cast<size_t>(count));
}

// `v` holds integral values within [-128, 127].
QUAMBA_INLINE void store(int8_t* p, VecF v, int count = kLanes) {
  const VecB bytes = __builtin_convertvector(__builtin_convertvector(v, VecI), VecB);
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

QUAMBA_INLINE int lanes_left(int64_t i, int64_t n) {
  return static_cast<int>(n - i < kLanes ? n - i : kLanes);
}

// e^x to about 1 ulp on [-87, 88], saturating outside: 2^n * p(r) with x = n ln2 + r, |r| <= ln2 / 2.
QUAMBA_INLINE VecF exp(VecF x) {
  x = (x < -87.0f) ? broadcast(-87.0f) : x;
  x = (x > 88.0f) ? broadcast(88.0f) : x;
  const VecF n = fma(x, broadcast(1.44269504088896341f), broadcast(kRoundingMagic)) - kRoundingMagic;
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

QUAMBA_INLINE VecF silu(VecF x) { return x / (exp(-x) + 1.0f); }

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), and log1p(e) = 2 atanh(e / (2 + e)): full relative accuracy for the small
// steps that a very negative x stands for.
QUAMBA_INLINE VecF softplus(VecF x) {
  const VecF positive = (x > 0.0f) ? x : VecF{};
  const VecF e = exp((x > 0.0f) ? -x : x);
  const VecF s = e / (e + 2.0f);
  const VecF s2 = s * s;
  VecF p = broadcast(1.0f / 17);
  for (int odd = 15; odd > 0; odd -= 2) p = fma(p, s2, broadcast(1.0f / static_cast<float>(odd)));
  return positive + s * p * 2.0f;
}
