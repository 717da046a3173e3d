// The kernels that are compiled once for each instruction set (isa_kernels.h) and chosen at run time: a struct in the
// namespace of each, all of them with the same members.
#pragma once

#include "mlp.h"
#include "mlp_buffers.h"
#include "segmented.h"
#include "simd.h"
#include "step.h"
#include "step_buffers.h"

namespace fastgan::cpu {

// One thread's share of each; avx512_bf16 and amx have the steps alone, for float.
#define FASTGAN_DECLARE_KERNELS(isa)                                                                                   \
  namespace isa {                                                                                                      \
  template <class T>                                                                                                   \
  struct Kernels {                                                                                                     \
    static void mlp_forward(const Mlp<T>&, const MlpForwardBuffers<T>&, Team& full, Team& rest, int thread);           \
    static void mlp_backward(const Mlp<T>&, const MlpBackwardBuffers<T>&, Team&, int thread);                          \
    static void mlp_double_backward(const MlpSecondPass<T>&, const MlpDoubleBackwardBuffers<T>&, Team&, int thread);   \
    template <class S>                                                                                                 \
    static void segmented(const Segments&, const SegmentedPass<S>&, const SegmentedBuffers<T>&, int64_t begin,         \
                          int64_t end);                                                                                \
    static void discriminator_step(const StepProblem<T>&, const StepBuffers<T>&, bool gradients_follow, Team&,         \
                                   int thread, double* seconds);                                                       \
    static void generator_step(const StepProblem<T>&, const StepBuffers<T>&, bool fresh, bool gradients_follow, Team&, \
                               int thread, double* seconds);                                                           \
    static void hand_in_gradients(const StepProblem<T>&, const StepBuffers<T>&, bool of_generator, LayerRange, Team&,  \
                                  int thread, double* seconds);                                                        \
    static void apply_gradients(const StepProblem<T>&, const StepBuffers<T>&, bool of_generator, LayerRange, Team&,    \
                                int thread, double* seconds);                                                          \
  };                                                                                                                   \
  }
FASTGAN_DECLARE_KERNELS(baseline)
#ifdef FASTGAN_X86
FASTGAN_DECLARE_KERNELS(avx2)
FASTGAN_DECLARE_KERNELS(avx512)
#endif
#ifdef FASTGAN_NEON
FASTGAN_DECLARE_KERNELS(neon)
#endif
#ifdef FASTGAN_AVX512_BF16
FASTGAN_DECLARE_KERNELS(avx512_bf16)
#endif
#ifdef FASTGAN_AMX
FASTGAN_DECLARE_KERNELS(amx)
#endif
#undef FASTGAN_DECLARE_KERNELS

// Calls f with the Kernels of this processor's instruction set.
template <class T, class F>
void with_kernels(const F& f) {
#ifdef FASTGAN_X86
  if (isa() == Isa::avx512) return f(avx512::Kernels<T>());
  if (isa() == Isa::avx2) return f(avx2::Kernels<T>());
#endif
#ifdef FASTGAN_NEON
  if (isa() == Isa::neon) return f(neon::Kernels<T>());
#endif
  f(baseline::Kernels<T>());
}

// Those whose products take bfloat16, which this processor must have (bf16_isa).
template <class F>
void with_bf16_kernels(const F& f) {
#ifdef FASTGAN_AMX
  if (bf16_isa() == Bf16Isa::amx) return f(amx::Kernels<float>());
#endif
#ifdef FASTGAN_AVX512_BF16
  f(avx512_bf16::Kernels<float>());
#endif
}

}  // namespace fastgan::cpu
