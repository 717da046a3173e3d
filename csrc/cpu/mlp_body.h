// The work of csrc/cpu/mlp.h, in the namespace of an instruction set; each part uses those before it.
// clang-format off
#if defined(FASTGAN_ISA_AVX512)
#include "step_avx512.h"
#endif
#include "step_transpose.h"
#include "step_product.h"
#include "step_layers.h"
#include "step_linear.h"
#include "mlp_forward.h"
#include "mlp_backward.h"
// clang-format on

#define FASTGAN_INSTANTIATE(T)                                                                         \
  template void work_on_mlp_forward<T>(const Mlp<T>&, const MlpForwardBuffers<T>&, Team&, Team&, int); \
  template void work_on_mlp_backward<T>(const Mlp<T>&, const MlpBackwardBuffers<T>&, Team&, int);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE
