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

// What the layers of a network share.
struct Layout {
  int64_t panels;  // of the whole batch
  int parts;       // of which it consists, each with statistics of its own
  int64_t inputs;  // of the largest part
  int64_t pac = 1;
  bool bf16, clips, is_penalized = false, is_smooth = false;
};

template <class T>
bool has_updates(const StepLayer<T>& layer) {
  return layer.weight.is_updated() || layer.bias.is_updated();
}

// Elements of a layer's gradient, weight and bias.
template <class T>
int64_t gradient_size(const StepLayer<T>& layer) {
  if (!has_updates(layer)) return 0;
  return layer.kind == LayerKind::linear ? layer.out * (layer.in + 1) : 2 * layer.out;
}

template <class T>
LayerBuffers<T> lay_out_layer_of(StepArena& arena, const StepLayer<T>& layer, const Layout& layout,
                                 const LayerMatrices<Panels<T>>& matrices, const Panels<T>& x, T* given) {
  LayerBuffers<T> own{{matrices}};
  own.x = x;
  if (given != nullptr)
    own.gradient = given;
  else if (layout.clips && has_updates(layer))
    own.gradient = arena.take<T>(gradient_size(layer));
  own.short_panels = layout.parts * layout.pac;
  own.short_samples = samples_in(panel_count(layout.inputs) - 1, layout.inputs);
  switch (layer.kind) {
    case LayerKind::linear:
      if (layout.bf16) {
        for (uint16_t** input : {&own.x_pairs, &own.x_transposed})
          *input = arena.take<uint16_t>(layout.panels * padded(layer.in) * panel);
        for (uint16_t** grad : {&own.grad_pairs, &own.grad_rounded})  // of which a tile may begin at any row
          *grad = arena.take<uint16_t>((layout.panels * padded(layer.out) + 32) * panel);
      } else if (layer.weight.is_updated() && layer.in > thin_width) {
        own.x_rows = arena.take<T>(padded(layer.in) * layout.panels * panel);
      }
      break;
    case LayerKind::batch_norm:
      own.moments = arena.take<T>(layout.parts * 2 * layer.out);
      own.sums = arena.take<T>(layout.panels * 2 * layer.out);
      break;
    case LayerKind::segmented:
      own.mask = arena.take<T>(layout.panels * layer.segments.gumbel_columns * panel);
      break;
    case LayerKind::dropout:
    case LayerKind::identity:
      if (layer.mask[0] != nullptr) own.mask = arena.take<T>(layout.panels * layer.out * panel);
      break;
  }
  if (!layout.is_penalized) return own;
  own.tangent = take_panels<T>(arena, layout.panels, layer.in);
  if (!layout.is_smooth) {
    if (layer.in <= thin_width) own.combined = take_panels<T>(arena, layout.panels, layer.in);
    return own;
  }
  own.delta = take_panels<T>(arena, layout.panels, layer.out);
  if (!is_piecewise_linear(layer.activation.activation))
    own.curvature = take_panels<T>(arena, layout.panels, layer.out);
  if (layer.kind == LayerKind::linear && layer.in > thin_width)
    own.tangent_rows = arena.take<T>(padded(layer.in) * layout.panels * panel);
  return own;
}

// `last` hands out the matrices of the last layer, as `lay_out_layer` takes them.
template <class T, class Last>
NetworkBuffers<T> lay_out(StepArena& arena, const StepNetwork<T>& network, const Layout& layout, const Last& last) {
  NetworkBuffers<T> buffers;
  if (network.count == 0) return buffers;
  buffers.panels = layout.panels;
  buffers.input = take_panels<T>(arena, layout.panels, network.in());
  buffers.layers = arena.take<LayerBuffers<T>>(network.count);
  const auto take = [&](int64_t width) { return take_panels<T>(arena, layout.panels, width); };
  Panels<T> x = buffers.input;
  int64_t chunks = 0;
  T* given = network.gradients;
  for (int l = 0; l < network.count; ++l) {
    const StepLayer<T>& layer = network.layers[l];
    const bool is_last = l == network.count - 1;
    LayerBuffers<T> own =
        lay_out_layer_of(arena, layer, layout, is_last ? last(layer) : lay_out_layer<Panels<T>>(layer, nullptr, take),
                         x, has_updates(layer) ? given : nullptr);
    if (given != nullptr) given += gradient_size(layer);
    if (is_last && layout.is_penalized) own.tangent_of_y = take(layer.out);
    if (buffers.layers != nullptr) {
      buffers.layers[l] = own;
      if (l > 0) buffers.layers[l - 1].tangent_of_y = own.tangent;
    }
    x = own.y;
    chunks += (layer.in * layer.out + layer.out) / clip_chunk + 2;
  }
  if (layout.clips) buffers.squares = arena.take<double>(chunks);
  return buffers;
}

template <class T>
bool is_smooth(const StepNetwork<T>& network) {
  for (int l = 0; l < network.count; ++l)
    if (!is_piecewise_linear(network.layers[l].activation.activation)) return true;
  return false;
}

template <class T>
StepBuffers<T> lay_out(StepArena& arena, const StepProblem<T>& problem) {
  StepBuffers<T> buffers;
  const StepNetwork<T>& discriminator = problem.discriminator;
  const int64_t pac = problem.pac;
  const int64_t inputs = std::max(problem.batch, problem.fake_batch) / pac;
  buffers.panels = panel_count(inputs);
  buffers.parts = problem.penalties.gp > 0 ? 3 : 2;
  const int64_t panels = buffers.parts * buffers.panels;
  buffers.sums = arena.take<double>(3 * panels);
  buffers.slopes = arena.take<T>(panels * panel), buffers.factors = arena.take<T>(panels * panel);
  buffers.discriminator = lay_out(arena, discriminator,
                                  Layout{panels, buffers.parts, inputs, 1, problem.bf16, problem.clip_norm > 0,
                                         problem.penalties.exist(), is_smooth(discriminator)},
                                  [&](const StepLayer<T>& layer) {
                                    return lay_out_layer<Panels<T>>(layer, nullptr, [&](int64_t width) {
                                      return take_panels<T>(arena, panels, width);
                                    });
                                  });
  // The generator's last layer has its matrices as D has its input, where several samples are one of those; and writes
  // into that, unless noise comes in between.
  const Panels<T> input = buffers.discriminator.input;
  const int64_t width = discriminator.in() * panel, within = width / pac;
  Panels<T> fakes{input.data == nullptr ? nullptr : input.data + width, buffers.parts * width};
  if (pac > 1) fakes.group = pac, fakes.within = within;
  buffers.generator = lay_out(arena, problem.generator,
                              Layout{buffers.panels * pac, 1, inputs, pac, problem.bf16, problem.clip_norm > 0},
                              [&](const StepLayer<T>& layer) {
                                const auto take = [&](int64_t out) {
                                  if (pac == 1) return take_panels<T>(arena, buffers.panels, out);
                                  return Panels<T>{arena.take<T>(buffers.panels * width), width, pac, within};
                                };
                                return lay_out_layer(layer, problem.has_noise ? nullptr : &fakes, take);
                              });
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

// As with_kernels, of the products that the problem asks for.
template <class T, class F>
void with_kernels_of(const StepProblem<T>& problem, const F& f) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (problem.bf16) return with_bf16_kernels(f);
  }
  with_kernels<T>(f);
}

// Runs work(kernels, buffers, team, thread) by as many threads as the problem has work for; returns the buffers.
template <class T, class F>
StepBuffers<T> run(const StepProblem<T>& problem, void* workspace, const F& work) {
  StepArena arena(workspace);
  const StepBuffers<T> buffers = lay_out(arena, problem);
  const double inputs = double(std::max(problem.batch, problem.fake_batch));
  const int threads = threads_for(
      6.0 * inputs * (weights_of(problem.generator) + 2 * weights_of(problem.discriminator) / double(problem.pac)),
      flops_a_thread);
  const int64_t panels = panel_count(int64_t(inputs) / problem.pac);
  Team team(threads, panels, groups_for(threads, panels)), alone(1, panels, 1);
  in_parallel(threads, [&](int thread, int in_force) {
    const WithoutSubnormals without_subnormals;
    Team& own = in_force < threads ? alone : team;
    with_kernels_of(problem, [&](auto kernels) { work(kernels, buffers, own, thread); });
  });
  return buffers;
}

// Of what each panel has left in buffers.sums: [panel][loss, score, penalty].
template <class T>
double mean_over(const StepBuffers<T>& buffers, const StepProblem<T>& problem, int part, int which) {
  double total = 0;
  for (int64_t n = 0; n < buffers.panels; ++n) total += buffers.sums[3 * (buffers.parts * n + part) + which];
  return total / double((part == 1 ? problem.fake_batch : problem.batch) / problem.pac);
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
                        double* seconds, bool gradients_follow) {
  const StepBuffers<T> buffers = run(problem, workspace, [&](auto kernels, const auto& own, Team& team, int thread) {
    kernels.discriminator_step(problem, own, gradients_follow, team, thread, seconds);
  });
  sums->d_loss = T(mean_over(buffers, problem, 0, 0)) + T(mean_over(buffers, problem, 1, 0));
  sums->real_score = T(mean_over(buffers, problem, 0, 1));
  sums->fake_score = T(mean_over(buffers, problem, 1, 1));
  double penalty = 0;
  for (int part = 0; part < buffers.parts; ++part)
    if (problem.penalties.weight(part) > 0) penalty += mean_over(buffers, problem, part, 2);
  sums->penalty = T(penalty);
}

template <class T>
void generator_step(const Context&, const StepProblem<T>& problem, void* workspace, bool fresh, StepSums<T>* sums,
                    double* seconds, bool gradients_follow) {
  const StepBuffers<T> buffers = run(problem, workspace, [&](auto kernels, const auto& own, Team& team, int thread) {
    kernels.generator_step(problem, own, fresh, gradients_follow, team, thread, seconds);
  });
  sums->g_loss = T(mean_over(buffers, problem, 1, 0));
}

template <class T>
int64_t gradient_elements(const StepNetwork<T>& network, LayerRange range) {
  int64_t elements = 0;
  for (int l = range.first; l < range.last; ++l) elements += gradient_size(network.layers[l]);
  return elements;
}

template <class T>
void hand_in_gradients(const Context&, const StepProblem<T>& problem, void* workspace, bool of_generator,
                       LayerRange range, double* seconds) {
  run(problem, workspace, [&](auto kernels, const auto& own, Team& team, int thread) {
    kernels.hand_in_gradients(problem, own, of_generator, range, team, thread, seconds);
  });
}

template <class T>
void apply_gradients(const Context&, const StepProblem<T>& problem, void* workspace, bool of_generator,
                     LayerRange range, double* seconds) {
  run(problem, workspace, [&](auto kernels, const auto& own, Team& team, int thread) {
    kernels.apply_gradients(problem, own, of_generator, range, team, thread, seconds);
  });
}

#define FASTGAN_INSTANTIATE(T)                                                                                      \
  template size_t step_workspace<T>(const Context&, const StepProblem<T>&);                                         \
  template void discriminator_step<T>(const Context&, const StepProblem<T>&, void*, StepSums<T>*, double*, bool);   \
  template void generator_step<T>(const Context&, const StepProblem<T>&, void*, bool, StepSums<T>*, double*, bool); \
  template int64_t gradient_elements<T>(const StepNetwork<T>&, LayerRange);                                         \
  template void hand_in_gradients<T>(const Context&, const StepProblem<T>&, void*, bool, LayerRange, double*);      \
  template void apply_gradients<T>(const Context&, const StepProblem<T>&, void*, bool, LayerRange, double*);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cpu
