// The order of a step's launches. The real half of D's batch is its first rows, the fake half the rest; where there are
// no labels, G writes its output there.
#include <algorithm>
#include <vector>

#include "../core/arena.h"
#include "batch_norm.h"
#include "mlp.h"
#include "step.h"
#include "step_parts.h"

namespace fastgan::cuda {

namespace {

template <class T>
struct LayerBuffers : LayerMatrices<T*> {
  T* moments = nullptr;  // batch_norm: [half][2][out]
};

template <class T>
struct NetworkBuffers {
  T* input;
  std::vector<LayerBuffers<T>> layers;
};

template <class T>
struct Buffers {
  NetworkBuffers<T> generator, discriminator;
  T* fakes;     // (batch, data), the second half of D's input
  T* gradient;  // where a library makes the weight gradient: (out, in), then of the bias
};

using StepArena = Arena<256>;

// `output` is where the last layer's y goes where that is not a buffer of its own.
template <class T>
NetworkBuffers<T> lay_out(StepArena& arena, const StepNetwork<T>& network, int64_t rows, T* output) {
  NetworkBuffers<T> buffers;
  buffers.input = arena.take<T>(rows * network.in());
  for (int l = 0; l < network.count; ++l) {
    const StepLayer<T>& layer = network.layers[l];
    const bool given = l == network.count - 1 && output != nullptr;
    LayerBuffers<T> own{
        lay_out_layer(layer, given ? &output : nullptr, [&](int64_t width) { return arena.take<T>(rows * width); })};
    switch (layer.kind) {
      case LayerKind::batch_norm:
        own.moments = arena.take<T>(2 * 2 * layer.out);
        break;
      case LayerKind::linear:
      case LayerKind::dropout:
      case LayerKind::identity:
        break;
    }
    buffers.layers.push_back(own);
  }
  return buffers;
}

template <class T>
Buffers<T> lay_out(const Context& context, StepArena& arena, const StepProblem<T>& problem) {
  Buffers<T> buffers;
  int64_t largest = 0;
  for (const StepNetwork<T>* network : {&problem.generator, &problem.discriminator})
    for (int l = 0; l < network->count; ++l) {
      const StepLayer<T>& layer = network->layers[l];
      const int64_t rows = (network == &problem.discriminator ? 2 : 1) * problem.batch;
      const ProductShape update{ProductRole::weight_gradient, layer.out, layer.in, rows};
      if (layer.kind == LayerKind::linear && context.prefers_library(update, sizeof(T)))
        largest = std::max(largest, layer.out * layer.in + layer.out);
    }
  buffers.gradient = arena.take<T>(largest);
  buffers.discriminator = lay_out<T>(arena, problem.discriminator, 2 * problem.batch, nullptr);
  T* const input = buffers.discriminator.input;
  buffers.fakes = input == nullptr ? nullptr : input + problem.batch * problem.discriminator.in();
  // With labels beside them the fakes are no matrix of their own.
  buffers.generator =
      lay_out<T>(arena, problem.generator, problem.batch, problem.classes == 0 ? buffers.fakes : nullptr);
  return buffers;
}

// The rows of a pass through a network: one half of a batch or both.
struct Rows {
  int64_t batch;
  int halves;

  int64_t count() const { return halves * batch; }
};

// A run of the network's layers over `rows`, and the way back. One object a network and step.
template <class T>
class Passes {
 public:
  Passes(const Context& context, const StepNetwork<T>& network, const NetworkBuffers<T>& buffers, Rows rows,
         const T* input, T* gradient, const StepOptions& options)
      : context_(context),
        network_(network),
        buffers_(buffers),
        rows_(rows),
        input_(input),
        gradient_(gradient),
        options_(options) {
    is_narrow_ = options.narrow && options.rounding != Rounding::bf16 && network.count <= max_narrow_layers;
    for (int l = 0; is_narrow_ && l < network.count; ++l) is_narrow_ = network.layers[l].kind == LayerKind::linear;
    is_narrow_ = is_narrow_ && is_narrow(context, narrow());
  }

  void forward() const {
    if (is_narrow_) return mlp_forward(context_, narrow(), options_.rounding == Rounding::tf32);
    for (int l = 0; l < network_.count; ++l) {
      const StepLayer<T>& layer = network_.layers[l];
      const LayerBuffers<T>& own = buffers_.layers[l];
      T* const z = own.saved == own.y ? nullptr : own.saved;
      switch (layer.kind) {
        case LayerKind::linear:
          linear(layer, x(l), z, own.y);
          break;
        case LayerKind::batch_norm:
          batch_norm_forward(context_, BatchNormForward<T>{.layer = layer,
                                                           .batch = rows_.batch,
                                                           .halves = rows_.halves,
                                                           .x = x(l),
                                                           .moments = own.moments,
                                                           .z = z,
                                                           .y = own.y});
          break;
        case LayerKind::dropout:
        case LayerKind::identity:
          dropout_forward(context_, dropout(layer), layer.activation, x(l), z, own.y);
          break;
      }
    }
  }

  // Where a gradient by the network's input goes on to: through an activation to (rows, width).
  struct GradientTarget {
    T* grad = nullptr;  // null where it is not wanted
    const T* saved = nullptr;
    ActivationArguments activation{Activation::identity, 0};
    int64_t width = 0;
  };

  // From the last layer's grad_z down to the lowest layer that has something to update, or to `beyond`.
  void backward(const GradientTarget& beyond, bool updates, T average_rate) const {
    if (is_narrow_) return backward_narrow(beyond, updates, average_rate);
    const int lowest = beyond.grad != nullptr ? -1 : network_.lowest_updated();
    for (int l = network_.count - 1; l >= 0 && l >= lowest; --l) {
      const StepLayer<T>& layer = network_.layers[l];
      const LayerBuffers<T>& own = buffers_.layers[l];
      GradientTarget target = beyond;
      if (l > lowest && l > 0) {
        const LayerBuffers<T>& before = buffers_.layers[l - 1];
        target = {before.grad_z, before.saved, network_.layers[l - 1].activation, layer.in};
      } else if (l > 0) {
        target = {};
      }
      switch (layer.kind) {
        case LayerKind::linear:
          if (target.grad != nullptr) input_gradient(layer, own.grad_z, target);
          // After the gradient has passed through the weight as it was.
          if (updates && (layer.weight.is_updated() || layer.bias.is_updated()))
            update(layer, own.grad_z, x(l), average_rate);
          break;
        case LayerKind::batch_norm:
          batch_norm_backward(context_, BatchNormBackward<T>{.layer = layer,
                                                             .batch = rows_.batch,
                                                             .halves = rows_.halves,
                                                             .x = x(l),
                                                             .grad_z = own.grad_z,
                                                             .moments = own.moments,
                                                             .target_width = target.width,
                                                             .saved = target.saved,
                                                             .activation = target.activation,
                                                             .grad = target.grad,
                                                             .updates = updates,
                                                             .average_rate = average_rate});
          break;
        case LayerKind::dropout:
        case LayerKind::identity:
          if (target.grad != nullptr)
            dropout_backward(context_, dropout(layer), target.activation, target.width, own.grad_z, target.saved,
                             target.grad);
          break;
      }
    }
  }

 private:
  const T* x(int l) const { return l == 0 ? input_ : buffers_.layers[l - 1].y; }

  bool by_library(ProductRole role, int64_t m, int64_t n, int64_t k) const {
    const ProductShape shape{role, m, n, k};
    const bool library = context_.prefers_library(shape, sizeof(T));
    context_.took(shape, library);
    return library;
  }

  void linear(const StepLayer<T>& layer, const T* x, T* z, T* y) const {
    const int64_t rows = rows_.count();
    if (!by_library(ProductRole::forward, rows, layer.out, layer.in))
      return linear_forward(context_,
                            LinearForward<T>{.batch = rows,
                                             .in = layer.in,
                                             .out = layer.out,
                                             .x = x,
                                             .weight = layer.weight.value,
                                             .bias = layer.bias.value,
                                             .activation = layer.activation,
                                             .z = z,
                                             .y = y},
                            options_.rounding);
    T* const sums = z != nullptr ? z : y;
    context_.product(LibraryProduct<T>{.m = rows,
                                       .n = layer.out,
                                       .k = layer.in,
                                       .a = x,
                                       .a_row = layer.in,
                                       .a_col = 1,
                                       .b = layer.weight.value,
                                       .b_row = 1,
                                       .b_col = layer.in,
                                       .c = sums});
    bias_act(context_, layer.activation, rows, layer.out, sums, layer.bias.value, y);
  }

  void input_gradient(const StepLayer<T>& layer, const T* grad_z, const GradientTarget& target) const {
    const int64_t rows = rows_.count();
    if (!by_library(ProductRole::input_gradient, rows, target.width, layer.out))
      return linear_input_gradient(context_,
                                   LinearInputGradient<T>{.batch = rows,
                                                          .in = target.width,
                                                          .out = layer.out,
                                                          .grad_z = grad_z,
                                                          .weight = layer.weight.value,
                                                          .saved = target.saved,
                                                          .activation = target.activation,
                                                          .grad_x = nullptr,
                                                          .grad_z_before = target.grad,
                                                          .weight_stride = layer.in},
                                   options_.rounding);
    context_.product(LibraryProduct<T>{.m = rows,
                                       .n = target.width,
                                       .k = layer.out,
                                       .a = grad_z,
                                       .a_row = layer.out,
                                       .a_col = 1,
                                       .b = layer.weight.value,
                                       .b_row = layer.in,
                                       .b_col = 1,
                                       .c = target.grad});
    act_backward<T>(context_, target.activation, rows, target.width, target.grad, target.saved, target.grad, nullptr);
  }

  void update(const StepLayer<T>& layer, const T* grad_z, const T* x, T average_rate) const {
    const int64_t rows = rows_.count();
    LinearUpdate<T> whole{.batch = rows,
                          .in = layer.in,
                          .out = layer.out,
                          .grad_z = grad_z,
                          .x = x,
                          .weight = layer.weight,
                          .bias = layer.bias,
                          .average_rate = average_rate,
                          .bias_cancels = layer.bias_cancels};
    if (!by_library(ProductRole::weight_gradient, layer.out, layer.in, rows))
      return linear_update(context_, whole, options_.rounding);
    if (layer.weight.is_updated()) {
      context_.product(LibraryProduct<T>{.m = layer.out,
                                         .n = layer.in,
                                         .k = rows,
                                         .a = grad_z,
                                         .a_row = 1,
                                         .a_col = layer.out,
                                         .b = x,
                                         .b_row = layer.in,
                                         .b_col = 1,
                                         .c = gradient_});
      update_parameter(context_, layer.weight, layer.out * layer.in, gradient_, average_rate);
    }
    if (layer.bias.is_updated() && layer.bias_cancels) {
      whole.weight = {};
      linear_update(context_, whole, options_.rounding);
    } else if (layer.bias.is_updated()) {
      T* const sums = gradient_ + layer.out * layer.in;
      act_backward<T>(context_, {Activation::identity, 0}, rows, layer.out, grad_z, grad_z, nullptr, sums);
      update_parameter(context_, layer.bias, layer.out, sums, average_rate);
    }
  }

  // A pass of one half has just the first of the masks.
  Dropout<T> dropout(const StepLayer<T>& layer) const {
    return {.mask = {layer.mask[0], layer.mask[1]},
            .scale = layer.keep_scale,
            .batch = rows_.batch,
            .width = layer.out,
            .halves = rows_.halves};
  }

  // The whole network in one launch, where it fits.
  NarrowNetwork<T> narrow() const {
    NarrowNetwork<T> to = {};
    to.batch = rows_.count();
    to.count = network_.count;
    for (int l = 0; l < network_.count; ++l) {
      const StepLayer<T>& layer = network_.layers[l];
      const LayerBuffers<T>& own = buffers_.layers[l];
      NarrowLayer<T>& narrow = to.layers[l];
      narrow.in = int(layer.in), narrow.out = int(layer.out);
      narrow.activation = layer.activation;
      narrow.weight = layer.weight.value, narrow.bias = layer.bias.value;
      narrow.x = x(l);
      narrow.z = own.saved == own.y ? nullptr : own.saved, narrow.y = own.y;
      narrow.saved = own.saved, narrow.grad_z = own.grad_z;
    }
    return to;
  }

  void backward_narrow(const GradientTarget& beyond, bool updates, T average_rate) const {
    NarrowNetwork<T> to = narrow();
    to.lowest = beyond.grad != nullptr ? 0 : network_.lowest_updated();
    if (to.lowest == network_.count) return;
    to.grad_input = beyond.grad;
    to.input_width = int(beyond.width);
    to.input_saved = beyond.saved, to.input_activation = beyond.activation;
    to.average_rate = average_rate;
    const bool tf32 = options_.rounding == Rounding::tf32;
    if (!updates) return mlp_backward(context_, to, tf32);
    for (int l = 0; l < network_.count; ++l) {
      to.layers[l].adam_weight = network_.layers[l].weight;
      to.layers[l].adam_bias = network_.layers[l].bias;
    }
    mlp_update(context_, to, tf32);
  }

  const Context& context_;
  const StepNetwork<T>& network_;
  const NetworkBuffers<T>& buffers_;
  const Rows rows_;
  const T* const input_;
  T* const gradient_;
  const StepOptions& options_;
  bool is_narrow_;
};

// D's loss, and the gradient by z of its last layer.
template <class T>
void loss(const Context& context, const StepProblem<T>& problem, const NetworkBuffers<T>& discriminator, Rows rows,
          const StepOptions& options, double first, double second, double sign, T* sum, T* first_score,
          T* second_score) {
  const LayerBuffers<T>& last = discriminator.layers.back();
  step_loss(context, StepLoss<T>{.batch = rows.batch,
                                 .halves = rows.halves,
                                 .logits = last.y,
                                 .saved = last.saved,
                                 .activation = problem.discriminator.layers[problem.discriminator.count - 1].activation,
                                 .target = {first, second},
                                 .sign = sign,
                                 .grad_z = last.grad_z,
                                 .loss = sum,
                                 .score = {first_score, second_score},
                                 .odd_label = options.odd_labels.found,
                                 .is_last_of_step = rows.halves == 1});
}

// G's output beside its labels, where there are labels.
template <class T>
void pack_fakes(const Context& context, const StepProblem<T>& problem, const Buffers<T>& buffers,
                const StepOptions& options) {
  if (problem.classes == 0) return;
  const int64_t data = problem.generator.out();
  const PackedRows<T> packed{{buffers.generator.layers.back().y, data, data, 1}, buffers.fakes};
  pack_rows(context, &packed, 1, problem.batch, problem.labels, problem.classes, options.odd_labels);
}

}  // namespace

template <class T>
size_t step_workspace(const Context& context, const StepProblem<T>& problem) {
  StepArena arena(nullptr);
  lay_out(context, arena, problem);
  return arena.used();
}

template <class T>
void discriminator_step(const Context& context, const StepProblem<T>& problem, void* workspace, StepSums<T>* sums,
                        const StepOptions& options) {
  StepArena arena(workspace);
  const Buffers<T> buffers = lay_out(context, arena, problem);
  const Rows half{problem.batch, 1}, both{problem.batch, 2};
  const PackedRows<T> packed[] = {{problem.noise, buffers.generator.input},
                                  {problem.real, buffers.discriminator.input}};
  pack_rows(context, packed, 2, problem.batch, problem.labels, problem.classes, options.odd_labels);
  Passes<T>(context, problem.generator, buffers.generator, half, buffers.generator.input, buffers.gradient, options)
      .forward();
  pack_fakes(context, problem, buffers, options);
  const Passes<T> passes(context, problem.discriminator, buffers.discriminator, both, buffers.discriminator.input,
                         buffers.gradient, options);
  passes.forward();
  loss(context, problem, buffers.discriminator, both, options, problem.real_target, problem.fake_target, 1,
       &sums->d_loss, &sums->real_score, &sums->fake_score);
  passes.backward({}, true, T(0));
}

template <class T>
void generator_step(const Context& context, const StepProblem<T>& problem, void* workspace, bool fresh,
                    StepSums<T>* sums, const StepOptions& options) {
  StepArena arena(workspace);
  const Buffers<T> buffers = lay_out(context, arena, problem);
  const Rows half{problem.batch, 1};
  const Passes<T> generator(context, problem.generator, buffers.generator, half, buffers.generator.input,
                            buffers.gradient, options);
  if (fresh) {
    const PackedRows<T> packed{problem.noise, buffers.generator.input};
    pack_rows(context, &packed, 1, problem.batch, problem.labels, problem.classes, options.odd_labels);
    generator.forward();
    pack_fakes(context, problem, buffers, options);
  }
  const Passes<T> discriminator(context, problem.discriminator, buffers.discriminator, half, buffers.fakes,
                                buffers.gradient, options);
  discriminator.forward();
  const LossPart part = problem.loss.generator;
  loss<T>(context, problem, buffers.discriminator, half, options, part.target, part.target, part.sign,
          &sums->g_loss, nullptr, nullptr);
  const LayerBuffers<T>& output = buffers.generator.layers.back();
  discriminator.backward({output.grad_z, output.saved, problem.generator.layers[problem.generator.count - 1].activation,
                          problem.generator.out()},
                         false, T(0));
  generator.backward({}, true, T(problem.average_rate));
}

#define FASTGAN_INSTANTIATE(T)                                                                                         \
  template size_t step_workspace<T>(const Context&, const StepProblem<T>&);                                            \
  template void discriminator_step<T>(const Context&, const StepProblem<T>&, void*, StepSums<T>*, const StepOptions&); \
  template void generator_step<T>(const Context&, const StepProblem<T>&, void*, bool, StepSums<T>*, const StepOptions&);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
