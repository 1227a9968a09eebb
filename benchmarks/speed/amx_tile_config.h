/* Included before every C++ file of llama.cpp when it is compiled for .venv-bench.
 *
 * GCC before 12.4 and 13.3 (bug 114098) believes that _tile_loadconfig reads 8 bytes. It reads 64, so the stores of the
 * other 56 are dropped as dead, and on a processor with AMX llama.cpp ends with a segmentation fault at its first
 * product of quantized weights. This spells the instruction with all that it reads. */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])(config)))
#endif
