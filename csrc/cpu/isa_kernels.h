// The kernels of csrc/cpu/mlp.h and csrc/cpu/step.h, in the namespace of an instruction set; each part uses those
// before it.
// clang-format off
#if defined(FASTGAN_ISA_AVX512)
#include "panels/transpose_avx512.h"
#include "adam_avx512.h"
#endif
#if defined(FASTGAN_ISA_NEON)
#include "panels/product_neon.h"
#endif
#include "panels/transpose.h"
#include "panels/product.h"
#include "panels/layers.h"
#include "panels/rows.h"
#if defined(FASTGAN_ISA_BF16)
#include "panels/bf16.h"
#include "step_bf16_operands.h"
#if defined(FASTGAN_ISA_AMX)
#include "panels/linear_amx.h"
#include "step_weight_gradient_amx.h"
#else
#include "panels/linear_avx512_bf16.h"
#include "step_weight_gradient_avx512_bf16.h"
#endif
#else
#include "panels/linear.h"
#include "mlp_forward.h"
#include "mlp_backward.h"
#include "mlp_double_backward.h"
#include "step_weight_gradient.h"
#endif
#include "segmented_panels.h"
#include "step_inputs.h"
#include "step_elementwise.h"
#include "step_dropout.h"
#include "step_batch_norm.h"
#include "step_segmented.h"
#include "step_layers.h"
#include "step_update.h"
#include "step_penalties.h"
#include "step_phases.h"
// clang-format on

template struct Kernels<float>;
#if !defined(FASTGAN_ISA_BF16)
template struct Kernels<double>;
#define FASTGAN_INSTANTIATE(S)                                                                \
  template void Kernels<compute_t<S>>::segmented<S>(const Segments&, const SegmentedPass<S>&, \
                                                    const SegmentedBuffers<compute_t<S>>&, int64_t, int64_t);
FASTGAN_EACH_FLOATING(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE
#endif
