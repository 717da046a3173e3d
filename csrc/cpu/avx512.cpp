// The kernels of csrc/cpu/mlp.h and csrc/cpu/step.h, compiled for AVX-512.
#include "isa_kernels_includes.h"

#ifdef FASTGAN_X86
#include <immintrin.h>
FASTGAN_TARGET_FROM_HERE(FASTGAN_AVX512_FLAGS)
#define FASTGAN_ISA_AVX512 1

namespace fastgan::cpu::avx512 {

#include "isa_kernels.h"

}  // namespace fastgan::cpu::avx512
#endif
