#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"

#define QUAMBA_ISA portable
#define QUAMBA_ISA_NAME "portable"
#include "../common/quantize.h"
#include "isa-inl.h"

const quamba::cpu::Kernels& quamba::cpu::kernels_portable() { return portable::table; }
