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

QUAMBA_INLINE int lanes_left(int64_t i, int64_t n) {
  return static_cast<int>(n - i < kLanes ? n - i : kLanes);
}

// e^x to about 1 ulp on [-87, 88], saturating outside: 2^n * p(r) with x = n ln2 + r, |r| <= ln2 / 2.
QUAMBA_INLINE VecF exp(VecF x) {
  x = (x < -87.0f) ? broadcast(-87.0f) : x;
  x = (x > 88.0f) ? broadcast(88.0f) : x;
  const VecF shifted = x * 1.44269504088896341f + kRoundingMagic;
  const VecF n = shifted - kRoundingMagic;
  VecF r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  VecF p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
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
  p = p * s2 + 1.0f / 15;
  p = p * s2 + 1.0f / 13;
  p = p * s2 + 1.0f / 11;
  p = p * s2 + 1.0f / 9;
  p = p * s2 + 1.0f / 7;
  p = p * s2 + 1.0f / 5;
  p = p * s2 + 1.0f / 3;
  p = p * s2 + 1.0f;
  return positive + s * p * 2.0f;
}
