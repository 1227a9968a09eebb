// Products of many int8 rows and int8 weights by cuBLASLt, where that is expected to be faster than
// linear_many_rows.cuh, whose mma.sync leaves a part of a Hopper GPU idle.

#include "linear_library.cuh"

#include <array>
#include <cstdlib>
#include <string_view>

#include "checks.h"

namespace quamba::cuda {
namespace {

// What the choice assumes of a Hopper GPU: arithmetic, NOT MEASURED. Operations and bytes a second (an H100's memory;
// an H200's 4.8e12 favours the library a little earlier), seconds that two more kernels take to start and to end.
constexpr double kOwnSpeed = 0.5e15, kLibrarySpeed = 1.3e15, kMemorySpeed = 3.35e12, kLaunches = 10e-6;

// The library saves 2 M I O (1 / 0.5e15 - 1 / 1.3e15) seconds, and moves more bytes than our kernel: the weights are
// written as rows and read again, 2 I O; int32 sums are written and read again, 8 M O. So it wins where
//   2.46e-15 M I O > (2 I O + 8 M O) / 3.35e12 + 10e-6
// which in Mamba 2.8b (hidden 2560, inner 5120, dt rank 160, vocabulary 50280) is from so many rows on:
//              outputs x inputs   a row saves   costs   weights cost   from rows
//   in_proj      10240 x 2560       64.5 ns    24.5 ns     15.7 us         650
//   x_proj         192 x 5120        2.4        0.5         0.6           5400
//   dt_proj       5120 x 160         2.0       12.2         0.5          never
//   out_proj      2560 x 5120       32.3        6.1         7.8            700
//   lm_head      50280 x 2560      316.8      120.1        76.8            450
// and never with fewer than 970 inputs, where the sums of a row cost more than it saves.
constexpr bool is_faster(double rows, double in, double out) {
  const double saved = 2 * rows * in * out * (1 / kOwnSpeed - 1 / kLibrarySpeed);
  const double moved = 2 * in * out + 8 * rows * out;
  return saved > moved / kMemorySpeed + kLaunches;
}
static_assert(!is_faster(600, 2560, 10240) && is_faster(650, 2560, 10240));
static_assert(!is_faster(5000, 5120, 192) && is_faster(5400, 5120, 192));
static_assert(!is_faster(1e6, 160, 5120) && !is_faster(1e6, 960, 1e6) && is_faster(1e6, 980, 1e6));
static_assert(!is_faster(650, 5120, 2560) && is_faster(700, 5120, 2560));
static_assert(!is_faster(400, 2560, 50280) && is_faster(450, 2560, 50280));

constexpr int kHopper = 9;  // compute capability 9.x: before it mma.sync is all that the library has, too

enum class Choice { kArithmetic, kLibrary, kOwn };

// Read at every call: measurements compare the two within a process.
Choice forced_choice() {
  const char* value = std::getenv("QUAMBA_CUDA_INT8_PRODUCT");
  const std::string_view name = value ? value : "";
  check(name.empty() || name == "library" || name == "own",
        "QUAMBA_CUDA_INT8_PRODUCT must be library (cuBLASLt) or own (our kernel), got '", name, "'");
  return name.empty() ? Choice::kArithmetic : name == "library" ? Choice::kLibrary : Choice::kOwn;
}

// Tiles of weights as rows int8 [N, K].
Tensor untiled(const OnDevice& device, const LinearArgs& args, const Tensor& like) {
  const int pieces = ceil_div(args.in, kPiece), words = ceil_div(args.in, 4);
  const int64_t shape[] = {tiles_of(args) * kTileOutputs, pieces * kPiece};
  const Tensor rows = empty({shape, 2}, ScalarType::Char, like);
  const dim3 grid(tiles_of(args), ceil_div(pieces * 4, kUntileThreads));
  device.launch(untile_kernel, grid, kUntileThreads, 0, args.weight, pointer<uint4>(rows), words, pieces);
  return rows;
}

// int8 [M, K], [N, K] -> int32 [M, N]. cuBLASLt's conditions hold: M above 16, K and N multiples of 16, rows that are
// contiguous, the second operand the transposed view of such.
Tensor multiplied(const Tensor& x, const Tensor& rows) {
  using torch::stable::detail::from, torch::stable::detail::to;
  std::array<StableIValue, 2> stack{from(x), from(torch::stable::transpose(rows, 0, 1))};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::_int_mm", "", stack.data(), TORCH_ABI_VERSION));
  return to<Tensor>(stack[0]);
}

}  // namespace

bool library_multiplies(const OnDevice& device, const LinearArgs& args) {
  if (args.rows <= kFewRows) return false;
  const Choice choice = forced_choice();
  if (choice != Choice::kArithmetic) return choice == Choice::kLibrary;
  return device.compute_capability_major() == kHopper && is_faster(args.rows, args.in, args.out);
}

void linear_library(const OnDevice& device, const LinearArgs& args, const Tensor& x) {
  const int64_t shape[] = {args.rows, ceil_div(args.in, kPiece) * kPiece};
  const Tensor sums = multiplied(torch::stable::reshape(x, {shape, 2}), untiled(device, args, x));  // rows end here
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(args.rows, kStoreWarps * kStoreRows)),
                  ceil_div(args.out, kStoreOutputs));
  device.launch(store_sums_kernel, grid, kStoreWarps * kWarp, 0, const_pointer<int32_t>(sums), args);
}

}  // namespace quamba::cuda
