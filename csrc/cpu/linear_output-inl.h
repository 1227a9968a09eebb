// Blocks of 16 outputs, and what every linear kernel does with their results: scale of the row, bias, quantization.

// A block of 16 outputs of which [begin, end) are wanted.
struct OutputBlock {
  int64_t index;       // of the block: outputs 16 * index and after
  int64_t begin, end;  // of all outputs that are wanted, in this block and after it

  OutputBlock after(int64_t blocks) const { return {index + blocks, begin, end}; }
  int64_t more() const { return (end + kLanes - 1) / kLanes - index; }  // blocks from this one on
  int64_t first() const { return index * kLanes; }
  int skipped() const { return begin > first() ? static_cast<int>(begin - first()) : 0; }
  int count() const { return lanes_left(first(), end); }
};

inline OutputBlock first_block(int64_t begin, int64_t end) { return {begin < end ? begin / kLanes : end, begin, end}; }

// All blocks from this one on, for a single row: `several(first, apart)` takes the kStreams blocks that lie `apart` blocks
// from each other, `one` a block that is left over. Reading several runs of the weights at once keeps more of the memory
// busy than reading one (measured on two cores: 45 against 36 GB/s).
constexpr int kStreams = 4;

template <typename Several, typename One>
inline void in_streams(OutputBlock block, Several several, One one) {
  const int64_t apart = block.more() / kStreams;
  for (int64_t i = 0; i < apart; ++i) several(block.after(i), apart);
  for (block = block.after(kStreams * apart); block.more(); block = block.after(1)) one(block);
}

// The block's part of a value per output.
QUAMBA_INLINE VecF load_block(const float* values, OutputBlock block) {
  return load(values + block.first(), block.count());
}

QUAMBA_INLINE VecF row_scale(const LinearOutput& out, int64_t row) {
  return broadcast(out.x_scale ? out.x_scale[row * out.x_scale_stride] : 1.0f);
}

// Outputs o, o + 1, ... of a row.
QUAMBA_INLINE void store_output(const LinearOutput& out, VecF y, int64_t row, int64_t o, int count) {
  const int64_t at = row * out.stride + o;
  if (out.bias) y = y + load(out.bias + o, count);
  if (out.out_scale) store(static_cast<int8_t*>(out.to) + at, quantize_int8(y, load(out.out_scale + o, count)), count);
  else store(static_cast<float*>(out.to) + at, y, count);
}

// A block's outputs of a row, every scale applied.
QUAMBA_INLINE void store_block(const LinearOutput& out, VecF y, int64_t row, OutputBlock block) {
  const int skipped = block.skipped();
  if (skipped == 0) return store_output(out, y, row, block.first(), block.count());
  float lanes[2 * kLanes] = {};
  store(lanes, y);
  store_output(out, load(lanes + skipped), row, block.begin, block.count() - skipped);
}

// store_block for many rows: what rows of a whole block share is read once.
class BlockRows {
 public:
  BlockRows(const LinearOutput& out, OutputBlock block)
      : out_(out), block_(block), whole_(block.skipped() == 0 && block.count() == kLanes),
        bias_(whole_ && out.bias ? load_block(out.bias, block) : VecF{}),
        out_scale_(whole_ && out.out_scale ? load_block(out.out_scale, block) : broadcast(1.0f)) {}

  const LinearOutput& output() const { return out_; }

  QUAMBA_INLINE void store_row(VecF y, int64_t row) const {
    if (!whole_) return store_block(out_, y, row, block_);
    const int64_t at = row * out_.stride + block_.first();
    if (out_.bias) y = y + bias_;
    if (out_.out_scale) store_quantized(static_cast<int8_t*>(out_.to) + at, y, out_scale_);
    else store(static_cast<float*>(out_.to) + at, y);
  }

 private:
  LinearOutput out_;
  OutputBlock block_;
  bool whole_;
  VecF bias_;
  Divisor out_scale_;
};
