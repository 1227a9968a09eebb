// Depthwise causal convolution + SiLU: tokens outermost, so that memory is read in the order in which it lies, channels
// across lanes. One loop serves prefill (many tokens), continuation (a state) and decoding (one token).

template <typename T>
struct ConvTypes;
template <>
struct ConvTypes<float> {
  using Vec = VecF;
};
template <>
struct ConvTypes<int8_t> {
  using Vec = VecI;
};

QUAMBA_INLINE VecF load_taps(const float* p, int count) { return load(p, count); }
QUAMBA_INLINE VecI load_taps(const int8_t* p, int count) { return load_int(p, count); }

QUAMBA_INLINE VecF multiply_add(VecF a, VecF b, VecF c) { return fma(a, b, c); }
QUAMBA_INLINE VecI multiply_add(VecI a, VecI b, VecI c) { return a * b + c; }

QUAMBA_INLINE VecF conv_output(VecF acc, VecF bias, const ConvArgs<float>&, int64_t, int) {
  return silu(acc + bias);
}
QUAMBA_INLINE VecF conv_output(VecI acc, VecF bias, const ConvArgs<int8_t>& args, int64_t d, int count) {
  const VecF out_scale = args.out_scale_stride ? load(args.out_scale + d, count) : broadcast(*args.out_scale);
  return quantize_int8(silu(to_float(acc) * load(args.scale + d, count) + bias), out_scale);
}

// Channels [begin, end) of one token; rows[k] points at the token that weight column k multiplies.
template <typename T>
inline void causal_conv1d_rows(const ConvArgs<T>& args, const T* const* rows, const T* columns, T* out,
                                int64_t begin, int64_t end) {
  for (int64_t d = begin; d < end; d += kLanes) {
    const int count = lanes_left(d, end);
    typename ConvTypes<T>::Vec acc{};
    for (int64_t k = 0; k < args.width; ++k)
      acc = multiply_add(load_taps(rows[k] + d, count), load_taps(columns + k * args.channels + d, count), acc);
    const VecF bias = args.bias ? load(args.bias + d, count) : VecF{};
    store(out + d, conv_output(acc, bias, args, d, count), count);
  }
}

constexpr int64_t kFourTaps = 4;  // Mamba's width, which has kernels of its own
constexpr int64_t kTokensAtOnce = 16;  // that go through 16 channels before the next channels do

// The four int8 taps of a channel are one 32-bit lane, the newest on top: 16 channels move on by a token.
QUAMBA_INLINE VecI next_taps(VecI taps, const int8_t* x, int count) {
  return ((taps >> 8) & 0xFFFFFF) | (load_int(x, count) << 24);
}

QUAMBA_INLINE VecI load_four_taps(const int8_t* p, int count) {
  VecI taps{};
  std::memcpy(&taps, p, static_cast<size_t>(count) * kFourTaps);
  return taps;
}

// Sum of the four products of each lane.
QUAMBA_INLINE VecI dot_four_taps(VecI taps, VecI weight) {
#if defined(QUAMBA_AVX512_VNNI)
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));  // unsigned by signed: see linear_w8a8.h
  const __m512i shifted = _mm512_dpbusd_epi32(_mm512_setzero_si512(), (__m512i)taps ^ flip, (__m512i)weight);
  return (VecI)_mm512_sub_epi32(shifted, _mm512_dpbusd_epi32(_mm512_setzero_si512(), flip, (__m512i)weight));
#else
  VecI acc{};
  for (int k = 0; k < kFourTaps; ++k) acc += ((taps << (24 - 8 * k)) >> 24) * ((weight << (24 - 8 * k)) >> 24);
  return acc;
#endif
}

// Channels [begin, end) of any number of tokens; args.scratch holds the taps of all channels.
inline void causal_conv1d_four_taps(const ConvArgs<int8_t>& args, int64_t begin, int64_t end) {
  int8_t* taps = args.tokens == 1 && args.conv_state ? args.conv_state : args.scratch;
  if (args.conv_state && taps != args.conv_state)
    std::copy(args.conv_state + begin * kFourTaps, args.conv_state + end * kFourTaps, taps + begin * kFourTaps);
  else if (!args.conv_state) std::fill(taps + begin * kFourTaps, taps + end * kFourTaps, int8_t{});
  for (int64_t first = 0; first < args.tokens; first += kTokensAtOnce) {
    const int64_t last = std::min(first + kTokensAtOnce, args.tokens);
    over_lanes(end - begin, [&](int64_t i, int count) __attribute__((always_inline)) {
      const int64_t d = begin + i;
      const VecI weight = load_four_taps(args.weight + d * kFourTaps, count);
      const VecF bias = args.bias ? load(args.bias + d, count) : VecF{}, scale = load(args.scale + d, count);
      const Divisor out_scale(args.out_scale_stride ? load(args.out_scale + d, count) : broadcast(*args.out_scale));
      VecI moved = load_four_taps(taps + d * kFourTaps, count);
      for (int64_t t = first; t < last; ++t) {
        moved = next_taps(moved, args.x + t * args.x_stride + d, count);
        const VecF y = silu(to_float(dot_four_taps(moved, weight)) * scale + bias);
        store_quantized(args.out + t * args.channels + d, y, out_scale, count);
      }
      std::memcpy(taps + d * kFourTaps, &moved, static_cast<size_t>(count) * kFourTaps);
    });
  }
  if (args.conv_state && taps != args.conv_state)
    std::copy(taps + begin * kFourTaps, taps + end * kFourTaps, args.conv_state + begin * kFourTaps);
}

// Channels [begin, end) of a single token with a state: nothing to transpose but 16 channels at a time.
inline void causal_conv1d_token(const ConvArgs<float>& args, int64_t begin, int64_t end) {
  const int64_t width = args.width;
  for (int64_t d = begin; d < end; d += kLanes) {
    const int count = lanes_left(d, end);
    for (int64_t c = d; c < d + count; ++c) {
      std::memmove(args.conv_state + c * width, args.conv_state + c * width + 1, (width - 1) * sizeof(float));
      args.conv_state[(c + 1) * width - 1] = args.x[c];
    }
    VecF acc{};
    for (int64_t k = 0; k < width; ++k)
      acc = fma(gather_column(args.conv_state + d * width, width, k, count),
                gather_column(args.weight + d * width, width, k, count), acc);
    store(args.out + d, conv_output(acc, args.bias ? load(args.bias + d, count) : VecF{}, args, d, count), count);
  }
}

// args.scratch: [2K, D]: the weight's columns, then the context of the first tokens, each with channels contiguous.
template <typename T>
inline void causal_conv1d(const ConvArgs<T>& args, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, int8_t>) {
    if (args.width == kFourTaps) return causal_conv1d_four_taps(args, begin, end);
  } else {
    if (args.tokens == 1 && args.conv_state) return causal_conv1d_token(args, begin, end);
  }
  const int64_t width = args.width, channels = args.channels;
  T* columns = args.scratch;
  T* context = args.scratch + width * channels;
  for (int64_t d = begin; d < end; ++d)
    for (int64_t k = 0; k < width; ++k) {
      columns[k * channels + d] = args.weight[d * width + k];
      context[k * channels + d] = args.conv_state ? args.conv_state[d * width + k] : T{};
    }
  // context row k holds token k - width: the state's newest token is token -1
  const auto token = [&](int64_t t) { return t >= 0 ? args.x + t * args.x_stride : context + (t + width) * channels; };
  const T* rows[kMaxConvWidth];
  for (int64_t t = 0; t < args.tokens; ++t) {
    for (int64_t k = 0; k < width; ++k) rows[k] = token(t - width + 1 + k);
    causal_conv1d_rows<T>(args, rows, columns, args.out + t * channels, begin, end);
  }
  if (args.conv_state)
    for (int64_t k = 0; k < width; ++k) {
      const T* row = token(args.tokens - width + k);
      for (int64_t d = begin; d < end; ++d) args.conv_state[d * width + k] = row[d];
    }
}
