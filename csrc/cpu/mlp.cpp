#include "mlp.h"

#include <algorithm>

#include "dispatch.h"
#include "parallel.h"

namespace fastgan::cpu {

namespace {

// Threads cost about 5 us, which one alone fills with this much arithmetic.
constexpr double flops_a_thread = 5e5;

template <class Pass>
int64_t widest(const Pass& mlp, bool with_input) {
  int64_t width = with_input ? mlp.layers[0].in : 0;
  for (int l = 0; l < mlp.count; ++l) width = std::max(width, mlp.layers[l].out);
  return width;
}

template <class Pass>
int threads_of(const Pass& mlp) {
  double weights = 0;
  for (int l = 0; l < mlp.count; ++l) weights += double(mlp.layers[l].in) * double(mlp.layers[l].out);
  return threads_for(2 * double(mlp.batch) * weights, flops_a_thread);
}

int64_t aligned(int64_t elements, size_t size) { return (elements * int64_t(size) + 63) / 64 * 64 / int64_t(size); }

// Panels that go through the layers at once.
template <class T>
int64_t panels_in_flight(const Mlp<T>& mlp, int threads) {
  return std::min(panel_count(mlp.batch), threads * panels_a_thread);
}

template <class T>
bool keeps_z(const Mlp<T>& mlp) {
  for (int l = 0; l < mlp.count; ++l)
    if (!saves_output(mlp.layers[l].activation)) return true;
  return false;
}

// Of the scratch memory of MlpBackwardBuffers.
template <class T, class Pass>
int64_t x_rows_elements(const Pass& mlp) {
  int64_t inputs = 0;
  for (int l = 0; l < mlp.count; ++l) inputs = std::max(inputs, mlp.layers[l].in);
  return aligned(padded(inputs) * std::min(mlp.batch, samples_at_once), sizeof(T));
}

template <class T, class Pass>
int64_t backward_elements(const Pass& mlp) {
  return 2 * aligned(mlp.batch * widest(mlp, false), sizeof(T)) + x_rows_elements<T>(mlp) +
         threads_of(mlp) * aligned(own_size<T>(mlp.batch), sizeof(T));
}

template <class T, class Pass>
void lay_out(const Pass& mlp, T* scratch, MlpBackwardBuffers<T>& buffers) {
  const int64_t gradients = aligned(mlp.batch * widest(mlp, false), sizeof(T));
  buffers.even = scratch;
  buffers.odd = buffers.even + gradients;
  buffers.own = buffers.odd + gradients;
  buffers.own_size = aligned(own_size<T>(mlp.batch), sizeof(T));
  buffers.x_rows = buffers.own + threads_of(mlp) * buffers.own_size;
}

}  // namespace

template <class T>
size_t mlp_forward_scratch(const Context&, const Mlp<T>& mlp) {
  return (keeps_z(mlp) ? 3 : 2) * sizeof(T) * panels_in_flight(mlp, threads_of(mlp)) * panel * widest(mlp, true);
}

template <class T>
void mlp_forward(const Context&, const Mlp<T>& mlp, void* scratch) {
  const int64_t stride = widest(mlp, true) * panel, most = panels_in_flight(mlp, threads_of(mlp));
  T* const at = static_cast<T*>(scratch);
  const MlpForwardBuffers<T> buffers{{at, stride}, {at + most * stride, stride}, {at + 2 * most * stride, stride}};
  const int threads = threads_of(mlp);
  const int64_t left = panel_count(mlp.batch) % most;
  Team full(threads, most, groups_for(threads, most)), rest(threads, left, groups_for(threads, left));
  Team full_alone(1, most, 1), rest_alone(1, left, 1);
  in_parallel(threads, [&](int thread, int in_force) {
    const bool alone = in_force < threads;
    with_kernels<T>([&](auto kernels) {
      kernels.mlp_forward(mlp, buffers, alone ? full_alone : full, alone ? rest_alone : rest, thread);
    });
  });
}

template <class T>
size_t mlp_backward_scratch(const Context&, const Mlp<T>& mlp) {
  return sizeof(T) * backward_elements<T>(mlp);
}

template <class T>
void mlp_backward(const Context&, const Mlp<T>& mlp, void* scratch) {
  const int threads = threads_of(mlp);
  MlpBackwardBuffers<T> buffers;
  lay_out(mlp, static_cast<T*>(scratch), buffers);
  Team team(threads, 1, 1), alone(1, 1, 1);
  in_parallel(threads, [&](int thread, int in_force) {
    with_kernels<T>(
        [&](auto kernels) { kernels.mlp_backward(mlp, buffers, in_force < threads ? alone : team, thread); });
  });
}

template <class T>
size_t mlp_double_backward_scratch(const Context&, const MlpSecondPass<T>& mlp) {
  int64_t curved = 0;
  for (int l = mlp.lowest; l < mlp.count; ++l)
    if (!is_piecewise_linear(mlp.layers[l].activation.activation)) curved += mlp.layers[l].out;
  return sizeof(T) * (backward_elements<T>(mlp) + mlp.batch * curved);
}

template <class T>
void mlp_double_backward(const Context&, const MlpSecondPass<T>& mlp, void* scratch) {
  const int threads = threads_of(mlp);
  MlpDoubleBackwardBuffers<T> buffers;
  lay_out(mlp, static_cast<T*>(scratch), buffers);
  buffers.z_bar = static_cast<T*>(scratch) + backward_elements<T>(mlp);
  Team team(threads, 1, 1), alone(1, 1, 1);
  in_parallel(threads, [&](int thread, int in_force) {
    with_kernels<T>(
        [&](auto kernels) { kernels.mlp_double_backward(mlp, buffers, in_force < threads ? alone : team, thread); });
  });
}

#define FASTGAN_INSTANTIATE(T)                                                             \
  template size_t mlp_forward_scratch<T>(const Context&, const Mlp<T>&);                   \
  template size_t mlp_backward_scratch<T>(const Context&, const Mlp<T>&);                  \
  template size_t mlp_double_backward_scratch<T>(const Context&, const MlpSecondPass<T>&); \
  template void mlp_forward<T>(const Context&, const Mlp<T>&, void*);                      \
  template void mlp_backward<T>(const Context&, const Mlp<T>&, void*);                     \
  template void mlp_double_backward<T>(const Context&, const MlpSecondPass<T>&, void*);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cpu
