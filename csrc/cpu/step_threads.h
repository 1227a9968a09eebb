// The threads of a fused op: one parallel region for the whole op, with a barrier where they exchange results.
//
// A fork and join for each of the hundreds of small phases of a token would cost more than the phases themselves. But
// where another process has the core of one thread, all of them wait for its turn, hundreds of times a token: who waits
// for long sleeps, so that its core can take the thread that is late, and the next tokens take fewer threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
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

using StepClock = std::chrono::steady_clock;

class StepBarrier {
 public:
  // `threads`: how many meet, the same at every call. Phases are microseconds long, so a waiting thread spins, and
  // fetches what it reads next; it sleeps only when another process seems to have the core of the thread it waits for.
  void wait(int threads, ReadAhead& next) {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_seq_cst);  // before notify_all looks for threads that sleep
#if defined(__cpp_lib_atomic_wait)
      phase_.notify_all();
#endif
      return;
    }
    for (int spins = 0; spins < kSpins; ++spins) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
      next.fetch();
      relax();
    }
    sleep(phase);
  }

  // How long threads slept, added up; not at the first barrier, which a thread reaches that has just been woken.
  StepClock::duration slept() const { return StepClock::duration(slept_.load(std::memory_order_relaxed)); }

 private:
  static constexpr int kSpins = 4000;  // a tenth of a millisecond: a few percent of what a scheduler gives a process

  void sleep(uint32_t phase) {
    const auto start = StepClock::now();
    while (phase_.load(std::memory_order_acquire) == phase) {
#if defined(__cpp_lib_atomic_wait)
      phase_.wait(phase, std::memory_order_acquire);
#else
      std::this_thread::yield();  // before C++20
#endif
    }
    if (phase > 0) slept_.fetch_add((StepClock::now() - start).count(), std::memory_order_relaxed);
  }

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<StepClock::rep> slept_{0};
};

// How many threads a step takes: all, until one is late for a good part of a step; then one less, and so on. After some
// steps one more is tried, and after twice as many where that one is late again. Of a process: its steps share the cores.
class StepCrew {
 public:
  int next(int most) {
    const std::lock_guard lock(mutex_);
    if (absent_ > 0 && --patience_ < 0) {
      --absent_;
      trying_ = true;
      patience_ = rest_;
    }
    absent_ = std::min(absent_, most - 1);
    return most - absent_;
  }

  // What became of a step on that many threads: the time it took, and how long they slept, added up.
  void took(int threads, StepClock::duration time, StepClock::duration slept) {
    if (threads == 1) return;
    const std::lock_guard lock(mutex_);
    const bool late = slept > (threads - 1) * time / kLate;  // all others sleep while one is late
    if (late) {
      ++absent_;
      rest_ = trying_ ? std::min(2 * rest_, kMostRest) : kLeastRest;
      patience_ = rest_;
    } else if (trying_) {
      rest_ = patience_ = kLeastRest;  // it is there again: the next one is tried as soon
    }
    trying_ = false;
  }

 private:
  static constexpr int kLate = 4, kLeastRest = 8, kMostRest = 256;

  std::mutex mutex_;
  int absent_ = 0;                              // threads that steps do without
  int rest_ = kLeastRest, patience_ = kLeastRest;  // steps until one more is tried: from the last time on, from now on
  bool trying_ = false;
};

inline StepCrew& step_crew() {
  static StepCrew crew;
  return crew;
}

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
