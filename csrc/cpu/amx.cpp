// The kernels of csrc/cpu/step.h with products of bfloat16, compiled for AVX-512 and AMX.
#include "isa_kernels_includes.h"

#ifdef FASTGAN_AMX
#include <immintrin.h>
FASTGAN_TARGET_FROM_HERE(FASTGAN_AMX_FLAGS)
#define FASTGAN_ISA_AVX512 1
#define FASTGAN_ISA_BF16 1
#define FASTGAN_ISA_AMX 1

namespace fastgan::cpu::amx {

#include "isa_kernels.h"

}  // namespace fastgan::cpu::amx
#endif
