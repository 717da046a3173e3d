// The engine's work, in the namespace of an instruction set.
#if defined(FASTGAN_ISA_AVX512)
#include "step_avx512.h"
#endif
#include "step_product.h"
// in this order
#include "step_layers.h"
// each uses those before
#include "step_batch_norm.h"
// so that they are
#include "step_update.h"
// not sorted
#include "step_phases.h"

#define FASTGAN_INSTANTIATE(T)                                                                               \
  template void work_on_discriminator<T>(const StepProblem<T>&, const StepBuffers<T>&, Team&, int, double*); \
  template void work_on_generator<T>(const StepProblem<T>&, const StepBuffers<T>&, bool, Team&, int, double*);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE
