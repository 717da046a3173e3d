#include "mlp.h"

#include <algorithm>

#include "mlp_buffers.h"
#include "parallel.h"
#include "simd.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastgan::cpu {

// mlp_body.h, compiled for each.
#define FASTGAN_DECLARE(isa)                                                                           \
  namespace isa {                                                                                      \
  template <class T>                                                                                   \
  void work_on_mlp_forward(const Mlp<T>&, const MlpForwardBuffers<T>&, Team&, Team& rest, int thread); \
  template <class T>                                                                                   \
  void work_on_mlp_backward(const Mlp<T>&, const MlpBackwardBuffers<T>&, Team&, int thread);           \
  }
FASTGAN_DECLARE(baseline)
#ifdef FASTGAN_X86
FASTGAN_DECLARE(avx2)
FASTGAN_DECLARE(avx512)
#endif
#undef FASTGAN_DECLARE

#ifdef FASTGAN_X86
#define FASTGAN_ON_ISA(call)                     \
  if (isa() == Isa::avx512) return avx512::call; \
  if (isa() == Isa::avx2) return avx2::call;     \
  return baseline::call
#else
#define FASTGAN_ON_ISA(call) return baseline::call
#endif

namespace {

// Threads cost about 5 us, which one alone fills with this much arithmetic.
constexpr double flops_worth_a_thread = 5e5;

template <class T>
int64_t widest(const Mlp<T>& mlp, bool with_input) {
  int64_t width = with_input ? mlp.layers[0].in : 0;
  for (int l = 0; l < mlp.count; ++l) width = std::max(width, mlp.layers[l].out);
  return width;
}

template <class T>
int threads_for(const Mlp<T>& mlp) {
#ifdef _OPENMP
  if (omp_in_parallel()) return 1;
  double weights = 0;
  for (int l = 0; l < mlp.count; ++l) weights += double(mlp.layers[l].in) * double(mlp.layers[l].out);
  return std::max(
      1, std::min(omp_get_max_threads(), int(std::min(1e6, 2 * double(mlp.batch) * weights / flops_worth_a_thread))));
#else
  return 1;
#endif
}

int64_t aligned(int64_t elements, size_t size) { return (elements * int64_t(size) + 63) / 64 * 64 / int64_t(size); }

// Panels that go through the layers at once.
template <class T>
int64_t panels_at_once(const Mlp<T>& mlp, int threads) {
  return std::min(panel_count(mlp.batch), threads * panels_a_thread);
}

template <class T>
bool keeps_z(const Mlp<T>& mlp) {
  for (int l = 0; l < mlp.count; ++l)
    if (!saves_output(mlp.layers[l].activation.activation, mlp.layers[l].activation.negative_slope)) return true;
  return false;
}

}  // namespace

template <class T>
size_t mlp_forward_scratch(const Context&, const Mlp<T>& mlp) {
  return (keeps_z(mlp) ? 3 : 2) * sizeof(T) * panels_at_once(mlp, threads_for(mlp)) * panel * widest(mlp, true);
}

template <class T>
void mlp_forward(const Context&, const Mlp<T>& mlp, void* scratch) {
  const int64_t stride = widest(mlp, true) * panel, most = panels_at_once(mlp, threads_for(mlp));
  T* const at = static_cast<T*>(scratch);
  const MlpForwardBuffers<T> buffers{{at, stride}, {at + most * stride, stride}, {at + 2 * most * stride, stride}};
  const int threads = threads_for(mlp);
  const int64_t left = panel_count(mlp.batch) % most;
  Team full(threads, most, groups_for(threads, most)), rest(threads, left, groups_for(threads, left));
  Team full_alone(1, most, 1), rest_alone(1, left, 1);
  in_parallel(threads, [&](int thread, int in_force) {
    const bool alone = in_force < threads;
    FASTGAN_ON_ISA(work_on_mlp_forward(mlp, buffers, alone ? full_alone : full, alone ? rest_alone : rest, thread));
  });
}

template <class T>
size_t mlp_backward_scratch(const Context&, const Mlp<T>& mlp) {
  int64_t inputs = 0;
  for (int l = 0; l < mlp.count; ++l) inputs = std::max(inputs, mlp.layers[l].in);
  const int64_t rows = (inputs + panel - 1) / panel * panel * std::min(mlp.batch, samples_at_once);
  return sizeof(T) * (2 * aligned(mlp.batch * widest(mlp, false), sizeof(T)) + rows +
                      threads_for(mlp) * aligned(own_size<T>(mlp.batch), sizeof(T)));
}

template <class T>
void mlp_backward(const Context&, const Mlp<T>& mlp, void* scratch) {
  const int64_t gradients = aligned(mlp.batch * widest(mlp, false), sizeof(T));
  const int threads = threads_for(mlp);
  MlpBackwardBuffers<T> buffers;
  buffers.even = static_cast<T*>(scratch);
  buffers.odd = buffers.even + gradients;
  buffers.own = buffers.odd + gradients;
  buffers.own_size = aligned(own_size<T>(mlp.batch), sizeof(T));
  buffers.x_rows = buffers.own + threads * buffers.own_size;
  Team team(threads, 1, 1), alone(1, 1, 1);
  in_parallel(threads, [&](int thread, int in_force) {
    FASTGAN_ON_ISA(work_on_mlp_backward(mlp, buffers, in_force < threads ? alone : team, thread));
  });
}

#define FASTGAN_INSTANTIATE(T)                                            \
  template size_t mlp_forward_scratch<T>(const Context&, const Mlp<T>&);  \
  template size_t mlp_backward_scratch<T>(const Context&, const Mlp<T>&); \
  template void mlp_forward<T>(const Context&, const Mlp<T>&, void*);     \
  template void mlp_backward<T>(const Context&, const Mlp<T>&, void*);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cpu
