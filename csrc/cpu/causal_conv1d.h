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

QUAMBA_INLINE VecF conv_output(VecF acc, VecF bias, const ConvArgs<float>&, int64_t, int) {
  return silu(acc + bias);
}
QUAMBA_INLINE VecF conv_output(VecI acc, VecF bias, const ConvArgs<int8_t>& args, int64_t d, int count) {
  return quantize_int8(silu(to_float(acc) * load(args.scale + d, count) + bias), broadcast(args.out_scale));
}

// Channels [begin, end) of one token; rows[k] points at the token that weight column k multiplies.
template <typename T>
inline void causal_conv1d_token(const ConvArgs<T>& args, const T* const* rows, const T* columns, T* out,
                                int64_t begin, int64_t end) {
  for (int64_t d = begin; d < end; d += kLanes) {
    const int count = lanes_left(d, end);
    typename ConvTypes<T>::Vec acc{};
    for (int64_t k = 0; k < args.width; ++k)
      acc += load_taps(rows[k] + d, count) * load_taps(columns + k * args.channels + d, count);
    const VecF bias = args.bias ? load(args.bias + d, count) : VecF{};
    store(out + d, conv_output(acc, bias, args, d, count), count);
  }
}

// args.scratch: [2K, D]: the weight's columns, then the context of the first tokens, each with channels contiguous.
template <typename T>
inline void causal_conv1d(const ConvArgs<T>& args, int64_t begin, int64_t end) {
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
    causal_conv1d_token<T>(args, rows, columns, args.out + t * channels, begin, end);
  }
  if (args.conv_state)
    for (int64_t k = 0; k < width; ++k) {
      const T* row = token(args.tokens - width + k);
      for (int64_t d = begin; d < end; ++d) args.conv_state[d * width + k] = row[d];
    }
}
