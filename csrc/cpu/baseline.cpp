// The kernels of csrc/cpu/mlp.h and csrc/cpu/step.h, compiled for any processor.
#include "isa_kernels_includes.h"

namespace fastgan::cpu::baseline {

#include "isa_kernels.h"

}  // namespace fastgan::cpu::baseline
