// The threads of a fused op: one parallel region for the whole op, with a barrier where they exchange results.
//
// A fork and join for each of the hundreds of small phases of a token would cost more than the phases themselves.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

namespace quamba::cpu {

// Memory that a thread will read next, fetched into its cache bit by bit while it has to wait.
class ReadAhead {
 public:
  ReadAhead() = default;
  ReadAhead(const void* begin, int64_t bytes) : at_(static_cast<const char*>(begin)), end_(at_ + std::min(bytes, kMost)) {}

  void fetch() {
    for (int line = 0; line < kLines && at_ < end_; ++line, at_ += 64) __builtin_prefetch(at_, 0, 2);
  }

 private:
  static constexpr int64_t kMost = 512 << 10;  // bytes: a part of a cache that is one core's own
  static constexpr int kLines = 4;

  const char* at_ = nullptr;
  const char* end_ = nullptr;
};

class SpinBarrier {
 public:
  explicit SpinBarrier(int threads) : threads_(threads) {}

  // Phases are microseconds long, so a waiting thread spins; it gives up its core only when another process seems to
  // have taken that of the thread it waits for. While it waits it fetches what it reads next.
  void wait(ReadAhead& next) {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      next.fetch();
      if (spins < kSpins) relax();
      else std::this_thread::yield();
    }
  }

 private:
  static constexpr int kSpins = 1000;

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  const int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

struct Range {
  int64_t begin, end;
};

// The share of thread `index` of `threads` in [0, n), cut at multiples of `block`.
inline Range share(int64_t n, int64_t block, int index, int threads) {
  const int64_t blocks = (n + block - 1) / block;
  const auto cut = [&](int64_t i) { return std::min(n, blocks * i / threads * block); };
  return {cut(index), cut(index + 1)};
}

}  // namespace quamba::cpu
