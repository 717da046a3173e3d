// Where a CPU kernel runs: nowhere in particular. It makes one call serve both devices: bce_sum(context, ...) is
// cpu::bce_sum or cuda::bce_sum.
#pragma once

namespace fastgan::cpu {

struct Context {};

}  // namespace fastgan::cpu
