// The kernels of csrc/cpu/mlp.h and csrc/cpu/step.h, compiled for NEON, which every 64-bit ARM processor has.
#include "isa_kernels_includes.h"

#ifdef FASTGAN_NEON
#include <arm_neon.h>
#define FASTGAN_ISA_NEON 1

namespace fastgan::cpu::neon {

#include "isa_kernels.h"

}  // namespace fastgan::cpu::neon
#endif
