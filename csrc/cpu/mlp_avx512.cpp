// The work of csrc/cpu/mlp.h, compiled for one instruction set. Nothing of the standard library may be instantiated
// after the pragma: the linker could choose that copy for processors without these instructions.
#include "mlp_includes.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define FASTGAN_ISA_AVX512 1

namespace fastgan::cpu::avx512 {

#include "mlp_body.h"

}  // namespace fastgan::cpu::avx512
#endif
