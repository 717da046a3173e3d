// The engine of csrc/cpu/step.h with products of bfloat16, compiled for AVX-512 and AMX. See step_avx512.cpp.
#include "step_includes.h"

#ifdef FASTGAN_AMX
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")
#define FASTGAN_ISA_AVX512 1
#define FASTGAN_ISA_AMX 1

namespace fastgan::cpu::amx {

#include "step_body.h"

}  // namespace fastgan::cpu::amx
#endif
