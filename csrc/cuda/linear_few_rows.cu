// Launches of linear_few_rows.cuh: how many outputs a block owns and how many warps share them.

#include "linear_few_rows.cuh"

#include <algorithm>

namespace quamba::cuda {
namespace {

// Of a GPU with 132 multiprocessors: blocks that keep all of them busy, and warps that keep enough loads in flight.
constexpr int kEnoughBlocks = 128, kEnoughWarps = 3200;
constexpr int kMostWarps = kFewRowsThreads / kWarp;
// Registers that a lane spends on what it has asked for and not yet used.
constexpr int kLoadedWords = 40;

// Slices a lane loads before it multiplies the first.
template <typename P, int T, int kEights>
constexpr int kAhead = std::clamp(kLoadedWords / LoadedSlice<P, T, kEights>::kRegisters, 2, 8);

template <typename P, int T>
bool launch(const OnDevice& device, const LinearArgs& args, size_t most_shared) {
  const int blocks = ceil_div(args.out, 8 * T);
  const int warps = std::clamp(kEnoughWarps / blocks, 1, std::min(kMostWarps, slices_of(args)));
  const size_t shared = few_rows_shared<P, T>(args, warps);
  if (shared > most_shared) return false;
  const auto kernel = args.rows <= 8 ? linear_few_rows_kernel<P, T, 1, kAhead<P, T, 1>>
                                     : linear_few_rows_kernel<P, T, 2, kAhead<P, T, 2>>;
  device.launch(kernel, blocks, warps * kWarp, shared, args);
  return true;
}

// As many outputs a block as leave enough blocks and the sums of groups in 48 KB, where several blocks share a
// multiprocessor's shared memory.
template <typename P>
bool launch_widest(const OnDevice& device, const LinearArgs& args) {
  if (ceil_div(args.out, 32) >= kEnoughBlocks && launch<P, 4>(device, args, kStaticShared)) return true;
  if (ceil_div(args.out, 16) >= kEnoughBlocks && launch<P, 2>(device, args, kStaticShared)) return true;
  return launch<P, 1>(device, args, kMaxShared);
}

}  // namespace

template <typename X>
bool linear_few_rows(const OnDevice& device, const LinearArgs& args) {
  if (args.rows > kFewRows) return false;
  if (args.zero) return launch_widest<Product<true, X>>(device, args);
  return launch_widest<Product<false, X>>(device, args);
}

template bool linear_few_rows<int8_t>(const OnDevice&, const LinearArgs&);
template bool linear_few_rows<float>(const OnDevice&, const LinearArgs&);

}  // namespace quamba::cuda
