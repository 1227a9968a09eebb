// The fibres of emulation.h: their stacks, who runs next, barriers, warps that meet, poisoned memory.

#include "emulation.h"

#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace quamba::emulation {
namespace {
constexpr size_t kStackBytes = 128 << 10, kGuardBytes = 4096;  // touched pages alone take memory
constexpr unsigned kMaxThreads = 1024, kMaxGridYZ = 65535;
constexpr size_t kMaxSharedBytes = 99 << 10;  // of the GPUs of compute capability 8.6 and 8.9
constexpr size_t kCanaryBytes = 256;

enum class State { kReady, kAtBarrier, kMeeting, kEnded };

struct Meeting {
  unsigned mask;
  const char* name;
  void* mine;
  Resolve resolve;
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fibre {
  jmp_buf context{};
  ucontext_t first{};  // of the stack's first entry
  bool started = false;
  State state = State::kEnded;
  unsigned number = 0;
  uint3 index{};
  Meeting meeting{};
  std::vector<std::vector<Copy>> copies;  // groups not waited for; the last one is not committed yet
};

// A launch has all of this to itself.
std::mutex launching;
std::vector<std::unique_ptr<Fibre>> fibres;  // a pool; the first `threads` are this launch's
unsigned threads;
Fibre* running;  // null outside of kernels
jmp_buf scheduler;
const std::function<void()>* kernel;
std::string failure;
alignas(128) unsigned char shared_memory[kMaxSharedBytes + kCanaryBytes];
thread_local volatile char in_static_shared;  // it lies where every __shared__ variable does

void leave() {
  if (_setjmp(running->context) == 0) _longjmp(scheduler, 1);
}

void main_of_fibre() {
  for (;;) {
    (*kernel)();
    running->state = State::kEnded;
    leave();
  }
}

// Of its own, because the compiler takes it for a call that returns twice.
__attribute__((noinline)) void note_context(ucontext_t& context) { getcontext(&context); }

Fibre& fibre(unsigned number) {
  while (fibres.size() <= number) {
    auto created = std::make_unique<Fibre>();
    char* stack = static_cast<char*>(mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0));
    if (stack == MAP_FAILED || mprotect(stack, kGuardBytes, PROT_NONE) != 0)
      throw std::runtime_error("no memory for the stacks of emulated threads");
    note_context(created->first);
    created->first.uc_stack = {stack + kGuardBytes, 0, kStackBytes};
    created->number = static_cast<unsigned>(fibres.size());
    fibres.push_back(std::move(created));
  }
  return *fibres[number];
}

// Runs a fibre until it waits or ends. _setjmp and _longjmp switch without a system call; setcontext is for the start.
__attribute__((noinline)) void resume(Fibre& next) {
  running = &next;
  threadIdx = next.index;
  if (_setjmp(scheduler) != 0) {
    running = nullptr;
    return;
  }
  if (next.started) _longjmp(next.context, 1);
  next.started = true;
  makecontext(&next.first, main_of_fibre, 0);
  setcontext(&next.first);
}

// The static __shared__ variables are this library's thread-local ones: one piece of memory.
void poison_static_shared() {
  in_static_shared = 0;  // or this thread's piece might not exist yet
  dl_iterate_phdr(
      [](dl_phdr_info* library, size_t, void*) {
        const char* tls = static_cast<const char*>(library->dlpi_tls_data);
        const char* mine = const_cast<const char*>(&in_static_shared);
        for (int i = 0; tls && i < library->dlpi_phnum; ++i) {
          const auto& segment = library->dlpi_phdr[i];
          if (segment.p_type != PT_TLS || mine < tls || mine >= tls + segment.p_memsz) continue;
          poison(library->dlpi_tls_data, segment.p_memsz);
          return 1;
        }
        return 0;
      },
      nullptr);
}

// The lanes of the calling lane's warp that `mask` names and that have not ended.
unsigned expected(unsigned warp, unsigned mask) {
  unsigned lanes = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const unsigned number = warp * kWarp + lane;
    if ((mask >> lane & 1) && number < threads && fibres[number]->state != State::kEnded) lanes |= 1u << lane;
  }
  return lanes;
}

// Lets the lanes that wait for `meeting` go on if all of them are there.
void resolve_if_complete(unsigned warp, const Meeting meeting) {
  const unsigned lanes = expected(warp, meeting.mask);
  void* brought[kWarp] = {};
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    const Fibre& other = *fibres[warp * kWarp + lane];
    const bool there = other.state == State::kMeeting && other.meeting.mask == meeting.mask;
    if (!there || other.meeting.resolve != meeting.resolve) return;
    brought[lane] = other.meeting.mine;
  }
  meeting.resolve(brought, lanes);
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if (lanes >> lane & 1) fibres[warp * kWarp + lane]->state = State::kReady;
}

// A lane that has ended may have been the last that others of its warp waited for.
void resolve_without(const Fibre& ended) {
  const unsigned warp = ended.number / kWarp;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const unsigned number = warp * kWarp + lane;
    if (number < threads && fibres[number]->state == State::kMeeting)
      resolve_if_complete(warp, fibres[number]->meeting);
  }
}

std::string place(const Fibre& f) {
  std::ostringstream out;
  out << "thread (" << f.index.x << ", " << f.index.y << ", " << f.index.z << ") of block (" << blockIdx.x << ", "
      << blockIdx.y << ", " << blockIdx.z << ")";
  return out.str();
}

// Who waits where: a few of the threads.
std::string deadlock() {
  std::ostringstream out;
  out << "deadlock in a kernel:";
  const char* last = "";
  int listed = 0;
  for (unsigned i = 0; i < threads && listed < 4; ++i) {
    const Fibre& f = *fibres[i];
    const char* where = f.state == State::kEnded       ? "has ended"
                        : f.state == State::kAtBarrier ? "waits at __syncthreads"
                                                       : f.meeting.name;
    if (where == last) continue;
    last = where, ++listed;
    const char* verb = f.state == State::kMeeting ? " waits for the lanes of its mask in " : " ";
    out << ' ' << place(f) << verb << where << ';';
  }
  return out.str();
}

bool release_barrier() {
  for (unsigned i = 0; i < threads; ++i)
    if (fibres[i]->state != State::kEnded && fibres[i]->state != State::kAtBarrier) return false;
  for (unsigned i = 0; i < threads; ++i)
    if (fibres[i]->state == State::kAtBarrier) fibres[i]->state = State::kReady;
  return true;
}

[[noreturn]] void abandon(const std::string& message) {
  for (unsigned i = 0; i < threads; ++i) fibres[i]->started = false;  // their stacks are what they were at the start
  throw std::runtime_error(message);
}

// Runs the lanes of a warp in turn until all of them have ended or wait at a barrier or for lanes that do.
void run_warp(unsigned warp, bool backward) {
  const unsigned first = warp * kWarp, lanes = std::min<unsigned>(kWarp, threads - first);
  for (bool progress = true; progress;) {
    progress = false;
    for (unsigned i = 0; i < lanes; ++i) {
      Fibre& next = *fibres[first + (backward ? lanes - 1 - i : i)];
      if (next.state != State::kReady) continue;
      progress = true;
      resume(next);
      if (!failure.empty()) abandon(failure);
      if (next.state == State::kEnded) resolve_without(next);
    }
  }
}

bool have_ended() {
  for (unsigned i = 0; i < threads; ++i)
    if (fibres[i]->state != State::kEnded) return false;
  return true;
}

// From barrier to barrier a warp is as far ahead of the others as can be, and behind every barrier warps and lanes run
// in the other direction, so that no order hides a missing one.
void run_block() {
  for (unsigned i = 0; i < threads; ++i) {
    fibres[i]->state = State::kReady;
    fibres[i]->copies.clear();
  }
  const unsigned warps = (threads + kWarp - 1) / kWarp;
  for (bool backward = false;; backward = !backward) {
    for (unsigned i = 0; i < warps; ++i) run_warp(backward ? warps - 1 - i : i, backward);
    if (have_ended()) return;
    if (!release_barrier()) abandon(deadlock());
  }
}

void check_geometry(dim3 grid, dim3 block, size_t shared_bytes) {
  std::ostringstream out;
  const uint64_t in_block = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (in_block < 1 || in_block > kMaxThreads || block.z > 64) out << "a block of " << in_block << " threads";
  else if (grid.x > 0x7fffffffu || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ)
    out << "a grid of " << grid.x << " x " << grid.y << " x " << grid.z << " blocks";
  else if (shared_bytes > kMaxSharedBytes) out << shared_bytes << " bytes of shared memory";
  if (!out.str().empty()) throw std::runtime_error("no GPU takes " + out.str());
}

}  // namespace

void poison(void* begin, size_t bytes) {
  char* to = static_cast<char*>(begin);
  for (size_t i = 0; i < bytes; i += sizeof(kPoison))
    std::memcpy(to + i, &kPoison, bytes - i < sizeof(kPoison) ? bytes - i : sizeof(kPoison));
}

void* dynamic_shared() { return shared_memory; }

unsigned lane() { return running->number % kWarp; }

void block_barrier() {
  running->state = State::kAtBarrier;
  leave();
}

void meet(unsigned mask, const char* name, void* mine, Resolve resolve) {
  if (!(mask >> lane() & 1)) fail((std::string(name) + ": a lane calls it that its mask does not name").c_str());
  running->meeting = {mask, name, mine, resolve};
  running->state = State::kMeeting;
  resolve_if_complete(running->number / kWarp, running->meeting);
  if (running->state == State::kMeeting) leave();
}

unsigned ballot(unsigned mask, const char* name, bool predicate) {
  Voted mine{predicate, 0};
  meet(mask, name, &mine, [](void* const(&brought)[kWarp], unsigned came) {
    unsigned votes = 0;
    for (int lane = 0; lane < kWarp; ++lane)
      if ((came >> lane & 1) && static_cast<Voted*>(brought[lane])->predicate) votes |= 1u << lane;
    for (int lane = 0; lane < kWarp; ++lane)
      if (came >> lane & 1) static_cast<Voted*>(brought[lane])->result = votes;
  });
  return mine.result;
}

void copy_later(void* to, const void* from, size_t bytes) {
  const auto misaligned = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % bytes != 0; };
  if (misaligned(to) || misaligned(from)) fail("cp.async: an address is not aligned to the copy's size");
  poison(to, bytes);
  if (running->copies.empty()) running->copies.emplace_back();
  running->copies.back().push_back({to, from, bytes});
}

void commit_copies() { running->copies.emplace_back(); }

void wait_for_copies(int latest) {
  auto& groups = running->copies;
  const size_t keep = static_cast<size_t>(latest) + 1;  // and the one not committed
  while (groups.size() > keep) {
    for (const Copy& copy : groups.front()) {
      if (copy.from) std::memcpy(copy.to, copy.from, copy.bytes);
      else std::memset(copy.to, 0, copy.bytes);
    }
    groups.erase(groups.begin());
  }
}

void fail(const char* message) {
  failure = std::string(message) + " (" + place(*running) + ")";
  _longjmp(scheduler, 1);
}

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  check_geometry(grid, block, shared_bytes);
  const std::lock_guard<std::mutex> alone(launching);
  kernel = &thread;
  failure.clear();
  gridDim = grid, blockDim = block;
  threads = block.x * block.y * block.z;
  for (unsigned i = 0; i < threads; ++i)
    fibre(i).index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        poison_static_shared();
        poison(shared_memory, shared_bytes + kCanaryBytes);
        run_block();
        for (size_t i = shared_bytes; i < shared_bytes + kCanaryBytes; ++i)
          if (shared_memory[i] != static_cast<unsigned char>(kPoison >> 8 * (i % 4)))
            throw std::runtime_error("a kernel wrote beyond the dynamic shared memory it asked for");
      }
}

}  // namespace quamba::emulation

// What -fsanitize=alignment has a kernel call before it reads or writes where no GPU can: the compiler's own runtime
// library would end the process. The layout of its argument is that library's.
struct UbsanTypeMismatch {
  const char* file;
  uint32_t line, column;
};

extern "C" [[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(const UbsanTypeMismatch* at, uintptr_t pointer) {
  std::ostringstream out;
  out << "misaligned address " << std::hex << pointer << std::dec << " at " << at->file << ":" << at->line;
  if (quamba::emulation::running) quamba::emulation::fail(out.str().c_str());
  std::fprintf(stderr, "%s\n", out.str().c_str());
  std::abort();
}
