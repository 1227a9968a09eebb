// Which instruction set runs: the best of the machine, or what QUAMBA_CPU_CAPABILITY / set_cpu_capability names.

#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <torch/library.h>

#include "kernels.h"

namespace quamba::cpu {
namespace {

#if defined(__x86_64__) && defined(__linux__)
constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;

// Whether the CPU has those parts of AMX.
bool has_amx(unsigned parts) {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & parts) == parts;
}

// Whether the system also lets this process use the tiles.
bool may_use_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return has_amx(kAmxTile | kAmxInt8) && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
constexpr unsigned kAmxBf16 = 0;
bool has_amx(unsigned) { return false; }
bool may_use_amx() { return false; }
#endif

// Best first; only what this machine can run.
std::vector<const Kernels*> find_runnable() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")) {
    if (may_use_amx()) tables.push_back(&kernels_avx512_amx(has_amx(kAmxBf16)));
    tables.push_back(&kernels_avx512_vnni());
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    tables.push_back(&kernels_avx2());
#endif
  tables.push_back(&kernels_portable());
  return tables;
}

const std::vector<const Kernels*>& runnable() {
  static const std::vector<const Kernels*> found = find_runnable();
  return found;
}

const Kernels* find(const std::string& name) {
  std::string known;
  for (const Kernels* table : runnable()) {
    if (name == table->name) return table;
    known += std::string(known.empty() ? "" : ", ") + table->name;
  }
  TORCH_CHECK_VALUE(false, "CPU capability '", name, "' is not one this machine runs: choose one of ", known);
}

std::atomic<const Kernels*> chosen{nullptr};

void set_cpu_capability(const std::string& name) { chosen = find(name); }

std::string cpu_capability() { return kernels().name; }

std::vector<std::string> cpu_capabilities() {
  std::vector<std::string> names;
  for (const Kernels* table : runnable()) names.emplace_back(table->name);
  return names;
}

}  // namespace

const Kernels& kernels() {
  const Kernels* table = chosen.load();
  if (table == nullptr) {
    const char* forced = std::getenv("QUAMBA_CPU_CAPABILITY");
    table = forced != nullptr && *forced != '\0' ? find(forced) : runnable().front();
    chosen = table;
  }
  return *table;
}

TORCH_LIBRARY_FRAGMENT(quamba, m) {
  m.def("cpu_capability() -> str", &cpu_capability);
  m.def("cpu_capabilities() -> str[]", &cpu_capabilities);
  m.def("set_cpu_capability(str name) -> ()", &set_cpu_capability);
}

}  // namespace quamba::cpu
