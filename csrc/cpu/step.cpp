#include "step.h"

#include <algorithm>

#include "../core/arena.h"
#include "dispatch.h"
#include "parallel.h"

#ifdef FASTGAN_X86
#include <immintrin.h>
#endif

namespace fastgan::cpu {

namespace {

using StepArena = Arena<64>;

template <class T>
Panels<T> take_panels(StepArena& arena, int64_t count, int64_t width) {
  return {arena.take<T>(count * width * panel), width * panel};
}

// `output` is where the last layer's y goes where that is not a buffer of its own.
template <class T>
NetworkBuffers<T> lay_out(StepArena& arena, const StepNetwork<T>& network, int64_t panels, int halves, bool bf16,
                          const Panels<T>* output) {
  NetworkBuffers<T> buffers;
  buffers.panels = panels * halves;
  buffers.input = take_panels<T>(arena, buffers.panels, network.in());
  buffers.layers = arena.take<LayerBuffers<T>>(network.count);
  Panels<T> x = buffers.input;
  for (int l = 0; l < network.count; ++l) {
    const StepLayer<T>& layer = network.layers[l];
    const bool given = l == network.count - 1 && output != nullptr;
    LayerBuffers<T> own{{lay_out_layer(layer, given ? output : nullptr,
                                       [&](int64_t width) { return take_panels<T>(arena, buffers.panels, width); })}};
    own.x = x;
    switch (layer.kind) {
      case LayerKind::linear:
        if (bf16) {
          for (uint16_t** input : {&own.x_pairs, &own.x_transposed})
            *input = arena.take<uint16_t>(buffers.panels * padded(layer.in) * panel);
          for (uint16_t** grad : {&own.grad_pairs, &own.grad_rounded})  // of which a tile may begin at any row
            *grad = arena.take<uint16_t>((buffers.panels * padded(layer.out) + 32) * panel);
        } else if (layer.weight.is_updated() && layer.in > thin_width) {
          own.x_rows = arena.take<T>(padded(layer.in) * buffers.panels * panel);
        }
        break;
      case LayerKind::batch_norm:
        own.moments = arena.take<T>(halves * 2 * layer.out);
        own.sums = arena.take<T>(buffers.panels * 2 * layer.out);
        break;
      case LayerKind::dropout:
      case LayerKind::identity:
        if (layer.mask[0] != nullptr) own.mask = arena.take<T>(buffers.panels * layer.out * panel);
        break;
    }
    if (buffers.layers != nullptr) buffers.layers[l] = own;
    x = own.y;
  }
  return buffers;
}

template <class T>
StepBuffers<T> lay_out(StepArena& arena, const StepProblem<T>& problem) {
  StepBuffers<T> buffers;
  buffers.panels = panel_count(problem.batch);
  buffers.sums = arena.take<double>(2 * 2 * buffers.panels);
  buffers.discriminator = lay_out<T>(arena, problem.discriminator, buffers.panels, 2, problem.bf16, nullptr);
  // The generator writes into the second half of the discriminator's input.
  const Panels<T> input = buffers.discriminator.input;
  const Panels<T> fakes = input.data == nullptr ? Panels<T>{} : half_of(input, 1);
  buffers.generator = lay_out(arena, problem.generator, buffers.panels, 1, problem.bf16, &fakes);
  return buffers;
}

template <class T>
double weights_of(const StepNetwork<T>& network) {
  double weights = 0;
  for (int l = 0; l < network.count; ++l)
    if (network.layers[l].kind == LayerKind::linear) weights += double(network.layers[l].in) * network.layers[l].out;
  return weights;
}

// Threads cost about 5 us a phase, which one alone fills with this much arithmetic.
constexpr double flops_a_thread = 1e6;

// For the length of a scope, subnormal numbers are zeros. The moments of units that get no gradient fade into them and
// stay there (with beta1 = 0.9 from step 900 on), where each operation costs 150 cycles: a step of `ring` took 17 %
// longer. What is lost is below 1e-37.
class WithoutSubnormals {
#ifdef FASTGAN_X86
 public:
  WithoutSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~WithoutSubnormals() { _mm_setcsr(before_); }

 private:
  const unsigned before_;
#endif
};

template <class T, class F>
void run(const StepProblem<T>& problem, const F& work) {
  const int threads =
      threads_for(6.0 * double(problem.batch) * (weights_of(problem.generator) + 2 * weights_of(problem.discriminator)),
                  flops_a_thread);
  const int64_t panels = panel_count(problem.batch);
  Team team(threads, panels, groups_for(threads, panels)), alone(1, panels, 1);
  in_parallel(threads, [&](int thread, int in_force) {
    const WithoutSubnormals without_subnormals;
    work(in_force < threads ? alone : team, thread);
  });
}

// As with_kernels, of the products that the problem asks for.
template <class T, class F>
void with_kernels_of(const StepProblem<T>& problem, const F& f) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (problem.bf16) return with_bf16_kernels(f);
  }
  with_kernels<T>(f);
}

// Of what each panel has left in buffers.sums: [panel][loss, score].
template <class T>
T mean_over(const StepBuffers<T>& buffers, int64_t batch, int half, int which) {
  double total = 0;
  for (int64_t p = 0; p < buffers.panels; ++p) total += buffers.sums[2 * (2 * p + half) + which];
  return T(total / double(batch));
}

}  // namespace

bool has_bf16_step() { return bf16_isa() != Bf16Isa::none; }

template <class T>
size_t step_workspace(const Context&, const StepProblem<T>& problem) {
  StepArena arena(nullptr);
  lay_out(arena, problem);
  return arena.used();
}

template <class T>
void discriminator_step(const Context&, const StepProblem<T>& problem, void* workspace, StepSums<T>* sums,
                        double* seconds) {
  StepArena arena(workspace);
  const StepBuffers<T> buffers = lay_out(arena, problem);
  run(problem, [&](Team& team, int thread) {
    with_kernels_of(problem,
                    [&](auto kernels) { kernels.discriminator_step(problem, buffers, team, thread, seconds); });
  });
  sums->d_loss = mean_over(buffers, problem.batch, 0, 0) + mean_over(buffers, problem.batch, 1, 0);
  sums->real_score = mean_over(buffers, problem.batch, 0, 1);
  sums->fake_score = mean_over(buffers, problem.batch, 1, 1);
}

template <class T>
void generator_step(const Context&, const StepProblem<T>& problem, void* workspace, bool fresh, StepSums<T>* sums,
                    double* seconds) {
  StepArena arena(workspace);
  const StepBuffers<T> buffers = lay_out(arena, problem);
  run(problem, [&](Team& team, int thread) {
    with_kernels_of(problem,
                    [&](auto kernels) { kernels.generator_step(problem, buffers, fresh, team, thread, seconds); });
  });
  sums->g_loss = mean_over(buffers, problem.batch, 1, 0);
}

#define FASTGAN_INSTANTIATE(T)                                                                              \
  template size_t step_workspace<T>(const Context&, const StepProblem<T>&);                                 \
  template void discriminator_step<T>(const Context&, const StepProblem<T>&, void*, StepSums<T>*, double*); \
  template void generator_step<T>(const Context&, const StepProblem<T>&, void*, bool, StepSums<T>*, double*);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cpu
