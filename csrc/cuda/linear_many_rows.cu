// Launches of linear_many_rows.cuh: the shape of tiles.

#include "linear_many_rows.cuh"

namespace quamba::cuda {
namespace {

// A GPU with 132 multiprocessors is busy with so many large tiles.
constexpr int64_t kEnoughTiles = 96;

using SmallTile = TileShape<64, 64, 32, 32, 4>;
// uint4 weights and float activations need more registers for each result.
template <typename P>
using LargeTile = TileShape<128, 128, 64, P::kUint4 || P::kFloat ? 32 : 64, 4>;

template <typename P, typename Shape>
void launch(const OnDevice& device, const LinearArgs& args) {
  const int64_t across = ceil_div<int64_t>(args.rows, Shape::kRows);
  const dim3 grid(static_cast<unsigned>(across), ceil_div(args.out, Shape::kOutputs));
  constexpr int kShared = Shape::kStages * StageLayout<P, Shape>::kBytes;
  static_assert(kShared <= kMaxShared);
  device.launch(linear_many_rows_kernel<P, Shape>, grid, Shape::kThreads, kShared, args);
}

template <typename P>
void launch_busiest(const OnDevice& device, const LinearArgs& args) {
  using Large = LargeTile<P>;
  const int64_t tiles = ceil_div<int64_t>(args.rows, Large::kRows) * ceil_div(args.out, Large::kOutputs);
  if (tiles >= kEnoughTiles) launch<P, Large>(device, args);
  else launch<P, SmallTile>(device, args);
}

}  // namespace

template <typename X>
void linear_many_rows(const OnDevice& device, const LinearArgs& args) {
  if (args.zero) launch_busiest<Product<true, X>>(device, args);
  else launch_busiest<Product<false, X>>(device, args);
}

template void linear_many_rows<int8_t>(const OnDevice&, const LinearArgs&);
template void linear_many_rows<float>(const OnDevice&, const LinearArgs&);

}  // namespace quamba::cuda
