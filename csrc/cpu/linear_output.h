// What every linear kernel does with its results: scale of the row, bias, quantization.

// `y` holds outputs o, o + 1, ... of a row, weights' scale applied.
QUAMBA_INLINE void store_output(const LinearOutput& out, VecF y, int64_t row, int64_t o, int count) {
  if (out.bias) y = y + load(out.bias + o, count);
  const int64_t at = row * out.stride + o;
  if (out.out_scale) store(static_cast<int8_t*>(out.to) + at, quantize_int8(y, load(out.out_scale + o, count)), count);
  else store(static_cast<float*>(out.to) + at, y, count);
}

QUAMBA_INLINE VecF row_scale(const LinearOutput& out, int64_t row) {
  return broadcast(out.x_scale ? out.x_scale[row * out.x_scale_stride] : 1.0f);
}
