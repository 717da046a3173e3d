// The kernels of csrc/cpu/step.h with products of bfloat16, compiled for AVX-512 BF16.
#include "isa_kernels_includes.h"

#ifdef FASTGAN_AVX512_BF16
#include <immintrin.h>
FASTGAN_TARGET_FROM_HERE(FASTGAN_AVX512_BF16_FLAGS)
#define FASTGAN_ISA_AVX512 1
#define FASTGAN_ISA_BF16 1

namespace fastgan::cpu::avx512_bf16 {

#include "isa_kernels.h"

}  // namespace fastgan::cpu::avx512_bf16
#endif
