// The engine's work, in the namespace of an instruction set; each part uses those before it.
// clang-format off
#if defined(FASTGAN_ISA_AVX512)
#include "step_avx512.h"
#endif
#include "step_transpose.h"
#include "step_product.h"
#include "step_layers.h"
#if defined(FASTGAN_ISA_AMX)
#include "step_amx.h"
#else
#include "step_linear.h"
#endif
#include "step_batch_norm.h"
#include "step_update.h"
#include "step_phases.h"
// clang-format on

#define FASTGAN_INSTANTIATE(T)                                                                               \
  template void work_on_discriminator<T>(const StepProblem<T>&, const StepBuffers<T>&, Team&, int, double*); \
  template void work_on_generator<T>(const StepProblem<T>&, const StepBuffers<T>&, bool, Team&, int, double*);
FASTGAN_INSTANTIATE(float)
#if !defined(FASTGAN_ISA_AMX)
FASTGAN_INSTANTIATE(double)
#endif
#undef FASTGAN_INSTANTIATE
