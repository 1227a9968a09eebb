// Products with group-wise uint4 weights in tiles: as linear_w8-inl.h, two quads of inputs in the halves of a byte. The sum
// over a group is an exact integer; then, group by group, y += scale * (sum - zero * sum of the group's activations).
// These operations are the same, in the same order, for any number of rows and with AMX: results are bit for bit equal.
//
// Dims: M rows, I in, O out features, E = ceil(I / 8) eights of inputs, G = ceil(I / group_size) groups.
// Weights [O / 16, E, 16, 4]: the low half of byte j of a lane is input j of the eight, the high half input 4 + j.
// scale float16, zero uint8 [O / 16, G, 16]. Activations are padded with zeros to whole eights.

struct GroupParameters {
  PartF scale, zero;
};

QUAMBA_INLINE GroupParameters load_group(const LinearArgs& args, int64_t block, int64_t group, int part = 0) {
  const int64_t at = (block * group_count(args) + group) * kLanes + part * kPartLanes;
  return {load_half_part(static_cast<const uint16_t*>(args.scale) + at), load_uint8_part(args.zero + at)};
}

QUAMBA_INLINE PartI low_halves(PartI v) { return v & 0x0F0F0F0F; }
QUAMBA_INLINE PartI high_halves(PartI v) { return (v >> 4) & 0x0F0F0F0F; }

// The sum over a group of products of weights w, both quads of an eight, with activations x_low and x_high.
#if defined(QUAMBA_AVX512_VNNI)
struct EightSum {
  PartI low, high;  // two hide the latency of the products

  QUAMBA_INLINE void add(PartI w, PartI x_low, PartI x_high) {
    low = (PartI)_mm512_dpbusd_epi32((__m512i)low, (__m512i)low_halves(w), (__m512i)x_low);
    high = (PartI)_mm512_dpbusd_epi32((__m512i)high, (__m512i)high_halves(w), (__m512i)x_high);
  }
  QUAMBA_INLINE PartI total() const { return low + high; }
};
#else
struct EightSum {
  PartI sum;

  QUAMBA_INLINE void add(PartI w, PartI x_low, PartI x_high) {
#if defined(QUAMBA_AVX2)  // 4 * 15 * 128 does not saturate 16 bits
    const PartH low = (PartH)_mm256_maddubs_epi16((__m256i)low_halves(w), (__m256i)x_low);
    const PartH high = (PartH)_mm256_maddubs_epi16((__m256i)high_halves(w), (__m256i)x_high);
    sum += dot_pairs(low + high, PartH{} + 1);
#else
    sum = dot_quads(dot_quads(sum, x_low, low_halves(w)), x_high, high_halves(w));
#endif
  }
  QUAMBA_INLINE PartI total() const { return sum; }
};
#endif

// y + scale * (sum - zero * x_sum); the difference is exact.
QUAMBA_INLINE PartF add_group(PartF y, GroupParameters group, PartF sum, float x_sum) {
  return fma(group.scale, fma(-group.zero, broadcast_part(x_sum), sum), y);
}

QUAMBA_INLINE VecF finish_int4(const LinearArgs& args, VecF y, int64_t row) {
  return args.out.x_scale ? y * row_scale(args.out, row) : y;
}

// kBlocks blocks of 16 outputs, `apart` blocks from each other, of kRows rows.
template <int kRows, int kBlocks = 1>
inline void w4a8_tile(const LinearArgs& args, int64_t row, OutputBlock block, int64_t apart = 1) {
  const int64_t eights = (args.in + 7) / 8, groups = group_count(args), group_eights = args.group_size / 8;
  const int8_t* x = static_cast<const int8_t*>(args.x) + row * args.x_stride;
  const uint8_t* w = static_cast<const uint8_t*>(args.weight) + block.index * eights * 64;
  PartF y[kRows][kBlocks][kParts] = {};
  for (int64_t g = 0; g < groups; ++g) {
    EightSum sum[kRows][kBlocks][kParts] = {};
    const int64_t end = (g + 1) * group_eights < eights ? (g + 1) * group_eights : eights;
    for (int64_t e = g * group_eights; e < end; ++e) {
      QUAMBA_UNROLL for (int b = 0; b < kBlocks; ++b) {
        const uint8_t* at = w + (b * apart * eights + e) * 64;
        if (kRows == 1) prefetch_weights(at);
        QUAMBA_UNROLL for (int p = 0; p < kParts; ++p) {
          const PartI weight = load_tile(at, p);
          QUAMBA_UNROLL for (int r = 0; r < kRows; ++r) {
            const int8_t* eight = x + r * args.x_stride + e * 8;
            sum[r][b][p].add(weight, broadcast_quad(eight), broadcast_quad(eight + 4));
          }
        }
      }
    }
    QUAMBA_UNROLL for (int b = 0; b < kBlocks; ++b)
      QUAMBA_UNROLL for (int p = 0; p < kParts; ++p) {
        const GroupParameters group = load_group(args, block.index + b * apart, g, p);
        QUAMBA_UNROLL for (int r = 0; r < kRows; ++r)
          y[r][b][p] = add_group(y[r][b][p], group, to_float(sum[r][b][p].total()), args.x_sums[(row + r) * groups + g]);
      }
  }
  for (int b = 0; b < kBlocks; ++b)
    for (int r = 0; r < kRows; ++r)
      store_block(args.out, finish_int4(args, join(y[r][b]), row + r), row + r, block.after(b * apart));
}

inline void w4a8_rows(const LinearArgs& args, OutputBlock block, int64_t row) {
  for (; row + kMaxRows <= args.rows; row += kMaxRows) w4a8_tile<kMaxRows>(args, row, block);
  for (; row + 4 <= args.rows; row += 4) w4a8_tile<4>(args, row, block);
  for (; row < args.rows; ++row) w4a8_tile<1>(args, row, block);
}

inline void linear_w4a8(const LinearArgs& args, int64_t begin, int64_t end) {
  OutputBlock block = first_block(begin, end);
  if (args.rows == 1)
    return in_streams(
        block, [&](OutputBlock first, int64_t apart) { w4a8_tile<1, kStreams>(args, 0, first, apart); },
        [&](OutputBlock last) { w4a8_tile<1>(args, 0, last); });
  for (; block.more(); block = block.after(1)) w4a8_rows(args, block, 0);
}

// The values 0..15 that the low four bits of each lane stand for.
QUAMBA_INLINE PartF nibble_values(PartI v) {
#if defined(QUAMBA_AVX512_VNNI)  // a lookup reads the low four bits of its index: no mask, no conversion
  const __m512 values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return (PartF)_mm512_permutexvar_ps((__m512i)v, values);
#else
  return to_float(v & 0xF);
#endif
}

// Input k of an eight, of 16 outputs.
QUAMBA_INLINE PartF eight_values(PartI eight, int k) { return nibble_values(eight >> ((k % 4) * 8 + (k / 4) * 4)); }

template <int kRows>
inline void w4a16_tile(const LinearArgs& args, int64_t row, OutputBlock block) {
  const int64_t eights = (args.in + 7) / 8, groups = group_count(args), group_eights = args.group_size / 8;
  const float* x = static_cast<const float*>(args.x) + row * args.x_stride;
  const uint8_t* w = static_cast<const uint8_t*>(args.weight) + block.index * eights * 64;
  PartF y[kRows][kParts] = {};
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t end = (g + 1) * group_eights < eights ? (g + 1) * group_eights : eights;
    QUAMBA_UNROLL for (int p = 0; p < kParts; ++p) {
      PartF sum[kRows][4] = {};
      for (int64_t e = g * group_eights; e < end; ++e) {
        const PartI weight = load_tile(w + e * 64, p);
        if (kRows == 1) prefetch_weights(w + e * 64);
        QUAMBA_UNROLL for (int k = 0; k < 8; ++k) {
          const PartF value = eight_values(weight, k);
          QUAMBA_UNROLL for (int r = 0; r < kRows; ++r)
            sum[r][k % 4] = fma(value, broadcast_part(x[r * args.x_stride + e * 8 + k]), sum[r][k % 4]);
        }
      }
      const GroupParameters group = load_group(args, block.index, g, p);
      QUAMBA_UNROLL for (int r = 0; r < kRows; ++r) {
        const PartF total = (sum[r][0] + sum[r][1]) + (sum[r][2] + sum[r][3]);
        y[r][p] = add_group(y[r][p], group, total, args.x_sums[(row + r) * groups + g]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) store_block(args.out, join(y[r]), row + r, block);
}

inline void linear_w4a16(const LinearArgs& args, int64_t begin, int64_t end) {
  for (OutputBlock block = first_block(begin, end); block.more(); block = block.after(1)) {
    int64_t row = 0;
    for (; row + 4 <= args.rows; row += 4) w4a16_tile<4>(args, row, block);
    for (; row < args.rows; ++row) w4a16_tile<1>(args, row, block);
  }
}

// The block's weights as floats, [I] rows of 16 outputs `stride` apart.
inline void dequantize_w4(const LinearArgs& args, int64_t block, float* to, int64_t stride) {
  const uint8_t* w = static_cast<const uint8_t*>(args.weight) + block * ((args.in + 7) / 8) * 64;
  GroupParameters group[kParts] = {};
  for (int64_t i = 0; i < args.in; ++i, to += stride) {
    PartF values[kParts];
    QUAMBA_UNROLL for (int p = 0; p < kParts; ++p) {
      if (i % args.group_size == 0) group[p] = load_group(args, block, i / args.group_size, p);
      const PartF value = eight_values(load_tile(w + i / 8 * 64, p), static_cast<int>(i % 8));
      values[p] = (value - group[p].zero) * group[p].scale;
    }
    store(to, join(values));
  }
}

template <typename T>
QUAMBA_INLINE float sum_of(const T* x, int64_t n) {
  VecF sum{};
  for (int64_t i = 0; i < n; i += kLanes) sum = sum + load(x + i, lanes_left(i, n));
  return horizontal_sum(sum);
}

#if defined(QUAMBA_AVX512_VNNI)
QUAMBA_INLINE float sum_of(const int8_t* x, int64_t n) {  // products with ones, 64 at a time
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 64) {
    const __mmask64 present = n - i < 64 ? (uint64_t{1} << (n - i)) - 1 : ~uint64_t{0};
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_maskz_loadu_epi8(present, x + i));
  }
  return static_cast<float>(_mm512_reduce_add_epi32(sum));
}
#endif

// sums[g] of a row [in]: exact for int8.
template <typename T>
inline void group_sums(const T* x, int64_t in, int64_t group_size, float* sums) {
  for (int64_t g = 0; g * group_size < in; ++g) {
    const int64_t left = in - g * group_size;
    sums[g] = sum_of(x + g * group_size, left < group_size ? left : group_size);
  }
}
