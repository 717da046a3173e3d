// The engine of csrc/cpu/step.h, compiled for any processor.
#include "step_includes.h"

namespace fastgan::cpu::baseline {

#include "step_body.h"

}  // namespace fastgan::cpu::baseline
