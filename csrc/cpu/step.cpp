#include "step.h"

#include <algorithm>

#include "parallel.h"
#include "simd.h"
#include "step_buffers.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef FASTGAN_X86
#include <immintrin.h>
#endif

namespace fastgan::cpu {

// step_body.h, compiled for each.
#define FASTGAN_DECLARE(isa)                                                                                      \
  namespace isa {                                                                                                 \
  template <class T>                                                                                              \
  void work_on_discriminator(const StepProblem<T>&, const StepBuffers<T>&, Team&, int thread, double* seconds);   \
  template <class T>                                                                                              \
  void work_on_generator(const StepProblem<T>&, const StepBuffers<T>&, bool, Team&, int thread, double* seconds); \
  }
FASTGAN_DECLARE(baseline)
#ifdef FASTGAN_X86
FASTGAN_DECLARE(avx2)
FASTGAN_DECLARE(avx512)
#endif
#ifdef FASTGAN_AMX
FASTGAN_DECLARE(amx)
#endif
#undef FASTGAN_DECLARE

int groups_for(int threads, int64_t panels) {
  for (int groups = threads; groups > 1; --groups) {
    if (threads % groups != 0 || groups > panels) continue;
    const int64_t most = (panels + groups - 1) / groups;
    if (double(panels) / double(most * groups) >= 0.8) return groups;
  }
  return 1;
}

namespace {

// Hands out pieces of the workspace, or only counts what they take.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <class T>
  T* take(int64_t n) {
    T* at = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (n * sizeof(T) + 63) / 64 * 64;
    return at;
  }
  template <class T>
  Panels<T> panels(int64_t count, int64_t width) {
    return {take<T>(count * width * panel), width * panel};
  }
  size_t used() const { return used_; }

 private:
  unsigned char* base_;
  size_t used_ = 0;
};

// `output` is where the last layer's y goes where that is not a buffer of its own.
template <class T>
NetworkBuffers<T> lay_out(Arena& arena, const StepNetwork<T>& network, int64_t panels, int halves, bool bf16,
                          const Panels<T>* output) {
  NetworkBuffers<T> buffers;
  buffers.panels = panels * halves;
  buffers.input = arena.panels<T>(buffers.panels, network.in());
  buffers.layers = arena.take<LayerBuffers<T>>(network.count);
  Panels<T> x = buffers.input;
  for (int l = 0; l < network.count; ++l) {
    const StepLayer<T>& layer = network.layers[l];
    LayerBuffers<T> own;
    own.x = x;
    own.y = l == network.count - 1 && output != nullptr ? *output : arena.panels<T>(buffers.panels, layer.out);
    own.saved = saves_output(layer.activation.activation, layer.activation.negative_slope)
                    ? own.y
                    : arena.panels<T>(buffers.panels, layer.out);
    own.grad_z = arena.panels<T>(buffers.panels, layer.out);
    if (layer.kind == LayerKind::linear && bf16) {
      const int64_t in = (layer.in + 31) / 32 * 32, out = (layer.out + 31) / 32 * 32;
      for (uint16_t** input : {&own.x_pairs, &own.x_turned}) *input = arena.take<uint16_t>(buffers.panels * in * panel);
      for (uint16_t** grad : {&own.grad_pairs, &own.grad_rounded})
        *grad = arena.take<uint16_t>(buffers.panels * out * panel + 32 * panel);  // a tile may begin at any row
    } else if (layer.kind == LayerKind::linear && layer.weight.is_updated() && layer.in > thin_width)
      own.x_rows = arena.take<T>((layer.in + panel - 1) / panel * panel * buffers.panels * panel);
    if (layer.mask[0] != nullptr) own.mask = arena.take<T>(buffers.panels * layer.out * panel);
    if (layer.kind == LayerKind::batch_norm) {
      own.moments = arena.take<T>(halves * 2 * layer.out);
      own.sums = arena.take<T>(buffers.panels * 2 * layer.out);
    }
    if (buffers.layers != nullptr) buffers.layers[l] = own;
    x = own.y;
  }
  return buffers;
}

template <class T>
StepBuffers<T> lay_out(Arena& arena, const StepProblem<T>& problem) {
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
constexpr double flops_worth_a_thread = 1e6;

template <class T>
int threads_for(const StepProblem<T>& problem) {
#ifdef _OPENMP
  if (omp_in_parallel()) return 1;
  const double flops =
      6.0 * double(problem.batch) * (weights_of(problem.generator) + 2 * weights_of(problem.discriminator));
  return std::max(1, std::min(omp_get_max_threads(), int(std::min(1e6, flops / flops_worth_a_thread))));
#else
  return 1;
#endif
}

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
  const int threads = threads_for(problem);
  const int64_t panels = panel_count(problem.batch);
  Team team(threads, panels, groups_for(threads, panels)), alone(1, panels, 1);
  in_parallel(threads, [&](int thread, int in_force) {
    const WithoutSubnormals without_subnormals;
    work(in_force < threads ? alone : team, thread);
  });
}

#ifdef FASTGAN_AMX
#define FASTGAN_ON_AMX(call)                  \
  if constexpr (sizeof(T) == sizeof(float)) { \
    if (problem.bf16) return amx::call;       \
  }
#else
#define FASTGAN_ON_AMX(call)
#endif
#ifdef FASTGAN_X86
#define FASTGAN_ON_ISA(call)                     \
  FASTGAN_ON_AMX(call)                           \
  if (isa() == Isa::avx512) return avx512::call; \
  if (isa() == Isa::avx2) return avx2::call;     \
  return baseline::call
#else
#define FASTGAN_ON_ISA(call) return baseline::call
#endif

// Of what each panel has left in buffers.sums: [panel][loss, score].
template <class T>
T mean_over(const StepBuffers<T>& buffers, int64_t batch, int half, int which) {
  double total = 0;
  for (int64_t p = 0; p < buffers.panels; ++p) total += buffers.sums[2 * (2 * p + half) + which];
  return T(total / double(batch));
}

}  // namespace

bool has_bf16_step() { return has_amx(); }

template <class T>
size_t step_workspace(const Context&, const StepProblem<T>& problem) {
  Arena arena(nullptr);
  lay_out(arena, problem);
  return arena.used();
}

template <class T>
void discriminator_step(const Context&, const StepProblem<T>& problem, void* workspace, StepSums<T>* sums,
                        double* seconds) {
  Arena arena(workspace);
  const StepBuffers<T> buffers = lay_out(arena, problem);
  run(problem,
      [&](Team& team, int thread) { FASTGAN_ON_ISA(work_on_discriminator(problem, buffers, team, thread, seconds)); });
  sums->d_loss = mean_over(buffers, problem.batch, 0, 0) + mean_over(buffers, problem.batch, 1, 0);
  sums->real_score = mean_over(buffers, problem.batch, 0, 1);
  sums->fake_score = mean_over(buffers, problem.batch, 1, 1);
}

template <class T>
void generator_step(const Context&, const StepProblem<T>& problem, void* workspace, bool fresh, StepSums<T>* sums,
                    double* seconds) {
  Arena arena(workspace);
  const StepBuffers<T> buffers = lay_out(arena, problem);
  run(problem, [&](Team& team, int thread) {
    FASTGAN_ON_ISA(work_on_generator(problem, buffers, fresh, team, thread, seconds));
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
