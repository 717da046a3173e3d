// The work of csrc/cpu/mlp.h, compiled for one instruction set. Nothing of the standard library may be instantiated
// after the pragma: the linker could choose that copy for processors without these instructions.
#include "mlp_includes.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#pragma GCC target("avx2,fma")
#define FASTGAN_ISA_AVX2 1

namespace fastgan::cpu::avx2 {

#include "mlp_body.h"

}  // namespace fastgan::cpu::avx2
#endif
