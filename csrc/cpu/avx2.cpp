// The kernels of csrc/cpu/mlp.h and csrc/cpu/step.h, compiled for AVX2.
#include "isa_kernels_includes.h"

#ifdef FASTGAN_X86
#include <immintrin.h>
FASTGAN_TARGET_FROM_HERE(FASTGAN_AVX2_FLAGS)
#define FASTGAN_ISA_AVX2 1

namespace fastgan::cpu::avx2 {

#include "isa_kernels.h"

}  // namespace fastgan::cpu::avx2
#endif
