// The work of csrc/cpu/mlp.h, compiled for any processor.
#include "mlp_includes.h"

namespace fastgan::cpu::baseline {

#include "mlp_body.h"

}  // namespace fastgan::cpu::baseline
