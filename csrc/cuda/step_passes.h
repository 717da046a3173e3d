// The passes of a step through a network's layers, a launch each or, where the network is narrow, all in one. Only
// step.cu includes this.
#pragma once

#include "batch_norm.h"
#include "mlp.h"
#include "segmented.h"
#include "step.h"
#include "step_buffers.h"

namespace fastgan::cuda {

// The rows of a pass: parts of a batch, of which the first takes the masks with number `first`.
struct PassRows {
  Parts parts;
  int first = 0;
};

// A run of the network's layers over some rows, and the way back. One object a network and rows.
template <class T>
class Passes {
 public:
  Passes(const Context& context, const StepNetwork<T>& network, NetworkBuffers<T> buffers, const PassRows& rows,
         const StepOptions& options)
      : context_(context), network_(network), buffers_(std::move(buffers)), rows_(rows), options_(options) {
    is_narrow_ = options.narrow && options.rounding != Rounding::bf16 && network.count <= max_narrow_layers;
    for (int l = 0; is_narrow_ && l < network.count; ++l) is_narrow_ = network.layers[l].kind == LayerKind::linear;
    is_narrow_ = is_narrow_ && is_narrow(context, narrow());
  }

  bool is_one_launch() const { return is_narrow_; }

  // Where it joins, all branches are done before the output is written.
  void forward(bool joins = false) const {
    if (!is_narrow_) return forward_to(network_.count, joins);
    if (joins) context_.join();
    mlp_forward(context_, narrow(), options_.rounding == Rounding::tf32);
  }

  // Of a network that is not narrow: up to layer `end`.
  void forward_to(int end, bool joins = false) const {
    for (int l = 0; l < end; ++l) {
      if (joins && l == network_.count - 1) context_.join();
      const StepLayer<T>& layer = network_.layers[l];
      const LayerBuffers<T>& own = buffers_.layers[l];
      T* const z = own.saved == own.y ? nullptr : own.saved;
      switch (layer.kind) {
        case LayerKind::linear:
          linear(layer, x(l), z, own.y);
          break;
        case LayerKind::batch_norm:
          batch_norm_forward(
              context_,
              BatchNormForward<T>{
                  .layer = layer, .parts = rows_.parts, .x = x(l), .moments = own.moments, .z = z, .y = own.y});
          break;
        case LayerKind::dropout:
        case LayerKind::identity:
          dropout_forward(context_, dropout(layer), layer.activation, x(l), z, own.y);
          break;
        case LayerKind::segmented:
          segmented(context_, layer.segments,
                    SegmentedPass<T>{.rows = rows(), .input = x(l), .noise = layer.gumbel, .y = own.y});
          break;
      }
    }
  }

  // Where a gradient by a layer's input goes on to: through an activation to (rows, width).
  struct GradientTarget {
    T* grad = nullptr;         // null where it is not wanted
    const T* saved = nullptr;  // null: through no activation
    ActivationArguments activation{Activation::identity, 0};
    int64_t width = 0;
    T* as_it_is = nullptr;  // (rows, width): before the activation; or null
    // Added behind it in the rows from added_begin on, (added_rows, width), or null.
    const T* added = nullptr;
    int64_t added_begin = 0, added_rows = 0;
  };

  // What an update of weights sums over beside the rows of the pass.
  struct UpdateRows {
    int64_t more = 0;                         // rows that follow, in x and in grad_z
    const T* row_weight = nullptr;            // of all of them in a gradient by a bias
    int64_t added_begin = 0, added_rows = 0;  // rows where `curved` is added to grad_z on the way down, or none
  };

  // From the last layer's grad_z down to the lowest layer that has something to update, or to `beyond`.
  void backward(const GradientTarget& beyond, bool updates, T average_rate, const UpdateRows& more = {}) const {
    if (is_narrow_ && more.added_rows == 0) return backward_narrow(beyond, updates, average_rate);
    backward_from(network_.count - 1, beyond, updates, average_rate, more);
  }

  // Of a network that is not narrow: from layer `top` down.
  void backward_from(int top, const GradientTarget& beyond, bool updates, T average_rate,
                     const UpdateRows& more = {}) const {
    const int lowest = beyond.grad != nullptr ? -1 : network_.lowest_updated();
    for (int l = top; l >= 0 && l >= lowest; --l) {
      GradientTarget target = beyond;
      if (l > lowest && l > 0) {
        target = before(l);
        if (more.added_rows > 0)
          target.added = buffers_.layers[l - 1].curved, target.added_begin = more.added_begin,
          target.added_rows = more.added_rows;
      } else if (l > 0) {
        target = {};
      }
      backward_of(l, target, updates, average_rate, more);
    }
  }

  // Whether the last layer, the loss and the gradient before that layer are one launch (step_loss.cu).
  bool has_head() const {
    const StepLayer<T>& last = network_.layers[network_.count - 1];
    return !is_narrow_ && network_.count > 1 && last.kind == LayerKind::linear && last.out == 1;
  }
  // What that launch takes beside the loss; the gradient goes on to the layer before for the rows of some parts.
  StepHead<T> head(const StepLoss<T>& loss, int first, int end) const {
    const int last = network_.count - 1;
    const StepLayer<T>& layer = network_.layers[last];
    const LayerBuffers<T>& own = buffers_.layers[last];
    const GradientTarget target = before(last);
    return {.loss = loss,
            .in = layer.in,
            .x = x(last),
            .weight = layer.weight.value,
            .bias = layer.bias.value,
            .z = own.saved == own.y ? nullptr : own.saved,
            .y = own.y,
            .first = first,
            .end = end,
            .saved_before = target.saved,
            .activation_before = target.activation,
            .grad_before = target.grad};
  }

  // D's pass as far as the loss, and the way back from it: without what is one launch with the loss.
  void forward_to_loss() const { has_head() ? forward_to(network_.count - 1) : forward(); }
  void backward_from_loss(const GradientTarget& beyond, bool updates, T average_rate) const {
    if (!has_head()) return backward(beyond, updates, average_rate);
    const int last = network_.count - 1;
    if (updates) update(last, average_rate, {});
    backward_from(last - 1, beyond, updates, average_rate);
  }

  // The gradient by the input of one layer, of its grad_z; of a batch_norm, its update as well. Then the update of what
  // other layer it is, after the gradient has passed through the weight as it was.
  void backward_of(int l, const GradientTarget& target, bool updates, T average_rate, const UpdateRows& more) const {
    const StepLayer<T>& layer = network_.layers[l];
    const LayerBuffers<T>& own = buffers_.layers[l];
    switch (layer.kind) {
      case LayerKind::linear:
        if (target.grad != nullptr) input_gradient(layer, own.grad_z, target);
        if (updates) update(l, average_rate, more);
        break;
      case LayerKind::batch_norm:
        batch_norm_backward(context_, BatchNormBackward<T>{.layer = layer,
                                                           .parts = rows_.parts,
                                                           .x = x(l),
                                                           .grad_z = own.grad_z,
                                                           .moments = own.moments,
                                                           .target_width = target.width,
                                                           .saved = target.saved,
                                                           .activation = target.activation,
                                                           .grad = target.grad,
                                                           .updates = updates,
                                                           .average_rate = average_rate,
                                                           .grad_weight = own.grad_weight,
                                                           .grad_bias = own.grad_bias});
        break;
      case LayerKind::dropout:
      case LayerKind::identity:
        if (target.grad == nullptr) break;
        if (target.as_it_is == nullptr) {
          dropout_backward(context_, dropout(layer), target.activation, target.width, own.grad_z, target.saved,
                           target.grad);
        } else {
          dropout_backward<T>(context_, dropout(layer), target.activation, target.width, own.grad_z, nullptr,
                              target.as_it_is);
          act_backward<T>(context_, target.activation, rows(), target.width, target.as_it_is, target.saved, target.grad,
                          nullptr);
        }
        add(target);
        break;
      case LayerKind::segmented:
        if (target.grad != nullptr) segments_backward(l, target);
        break;
    }
  }

  // Where the gradient by the input of a layer above the first goes.
  GradientTarget before(int l) const {
    const LayerBuffers<T>& own = buffers_.layers[l - 1];
    return {own.grad_z, own.saved, network_.layers[l - 1].activation, network_.layers[l].in};
  }

  // `steps` through a layer (cuda/linear.h): of its input, in (rows, in), to those of its output.
  void tangent(int l, const T* steps, const Tangent<T>& to) const {
    const StepLayer<T>& layer = network_.layers[l];
    switch (layer.kind) {
      case LayerKind::linear:
        if (!by_library(ProductRole::forward, rows(), layer.out, layer.in))
          return linear_tangent(
              context_, LinearTangent<T>{.in = layer.in, .steps = steps, .weight = layer.weight.value, .to = to},
              options_.rounding);
        multiply(layer, steps, to.t);
        return act_tangent<T>(context_, to, to.t);
      case LayerKind::dropout:
      case LayerKind::identity:
        if (layer.mask[0] == nullptr) return act_tangent(context_, to, steps);
        dropout_forward<T>(context_, dropout(layer), {Activation::identity, 0}, steps, nullptr, to.t);
        return act_tangent<T>(context_, to, to.t);
      case LayerKind::batch_norm:
      case LayerKind::segmented:
        break;  // such a D has no penalties here
    }
  }

  // The tangent pass of some of the rows, and all updates, of a network in one launch.
  void tangent_update(const NarrowTangent<T>& tangent) const {
    NarrowNetwork<T> to = narrow();
    for (int l = 0; l < network_.count; ++l) {
      to.layers[l].adam_weight = network_.layers[l].weight;
      to.layers[l].adam_bias = network_.layers[l].bias;
    }
    mlp_tangent_update(context_, to, tangent, options_.rounding == Rounding::tf32);
  }

  // The update of a linear layer, or, where gradients are clipped, its gradients: beside what comes next, which may
  // write neither the layer's grad_z nor its input.
  void update(int l, T average_rate, const UpdateRows& more) const {
    const StepLayer<T>& layer = network_.layers[l];
    const LayerBuffers<T>& own = buffers_.layers[l];
    const int64_t rows = this->rows() + more.more;
    if (!layer.weight.is_updated() && !layer.bias.is_updated()) return;
    LinearUpdate<T> whole{.batch = rows,
                          .in = layer.in,
                          .out = layer.out,
                          .grad_z = own.grad_z,
                          .x = x(l),
                          .weight = layer.weight,
                          .bias = layer.bias,
                          .average_rate = average_rate,
                          .bias_cancels = layer.bias_cancels,
                          .row_weight = more.row_weight,
                          .grad_weight = own.grad_weight,
                          .grad_bias = own.grad_bias};
    if (!by_library(ProductRole::weight_gradient, layer.out, layer.in, rows))
      return linear_update(context_.branch(), whole, options_.rounding);
    if (layer.weight.is_updated()) {
      const Context& branch = context_.branch();
      T* const gradient = own.grad_weight != nullptr ? own.grad_weight : own.gradient;
      branch.product(LibraryProduct<T>{.m = layer.out,
                                       .n = layer.in,
                                       .k = rows,
                                       .a = own.grad_z,
                                       .a_row = 1,
                                       .a_col = layer.out,
                                       .b = x(l),
                                       .b_row = layer.in,
                                       .b_col = 1,
                                       .c = gradient});
      if (own.grad_weight == nullptr)
        update_parameter(branch, Update<T>{layer.weight, gradient, layer.out * layer.in}, average_rate);
    }
    if (!layer.bias.is_updated()) return;
    const Context& branch = context_.branch();
    if (layer.bias_cancels || more.row_weight != nullptr || own.grad_bias != nullptr) {
      whole.weight = {}, whole.grad_weight = nullptr;
      linear_update(branch, whole, options_.rounding);
    } else {
      T* const sums = own.gradient + layer.out * layer.in;
      act_backward<T>(branch, {Activation::identity, 0}, rows, layer.out, own.grad_z, own.grad_z, nullptr, sums);
      update_parameter(branch, Update<T>{layer.bias, sums, layer.out}, average_rate);
    }
  }

 private:
  int64_t rows() const { return rows_.parts.rows(); }
  const T* x(int l) const { return l == 0 ? buffers_.input : buffers_.layers[l - 1].y; }

  bool by_library(ProductRole role, int64_t m, int64_t n, int64_t k) const {
    const ProductShape shape{role, m, n, k};
    const bool library = context_.prefers_library(shape, sizeof(T));
    context_.took(shape, library);
    return library;
  }

  void linear(const StepLayer<T>& layer, const T* x, T* z, T* y) const {
    if (!by_library(ProductRole::forward, rows(), layer.out, layer.in))
      return linear_forward(context_,
                            LinearForward<T>{.batch = rows(),
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
    multiply(layer, x, sums);
    bias_act(context_, layer.activation, rows(), layer.out, sums, layer.bias.value, y);
  }

  // x W^T by the library.
  void multiply(const StepLayer<T>& layer, const T* x, T* to) const {
    context_.product(LibraryProduct<T>{.m = rows(),
                                       .n = layer.out,
                                       .k = layer.in,
                                       .a = x,
                                       .a_row = layer.in,
                                       .a_col = 1,
                                       .b = layer.weight.value,
                                       .b_row = 1,
                                       .b_col = layer.in,
                                       .c = to});
  }

  void input_gradient(const StepLayer<T>& layer, const T* grad_z, const GradientTarget& target) const {
    if (!by_library(ProductRole::input_gradient, rows(), target.width, layer.out)) {
      const bool goes_on = target.saved != nullptr;
      LinearAddedGradient<T> whole{{.batch = rows(),
                                    .in = target.width,
                                    .out = layer.out,
                                    .grad_z = grad_z,
                                    .weight = layer.weight.value,
                                    .saved = target.saved,
                                    .activation = target.activation,
                                    .grad_x = goes_on ? target.as_it_is : target.grad,
                                    .grad_z_before = goes_on ? target.grad : nullptr,
                                    .weight_stride = layer.in},
                                   target.added,
                                   target.added_begin,
                                   target.added_rows};
      return target.added != nullptr ? linear_added_gradient(context_, whole, options_.rounding)
                                     : linear_input_gradient<T>(context_, whole, options_.rounding);
    }
    T* const sums = target.as_it_is != nullptr ? target.as_it_is : target.grad;
    context_.product(LibraryProduct<T>{.m = rows(),
                                       .n = target.width,
                                       .k = layer.out,
                                       .a = grad_z,
                                       .a_row = layer.out,
                                       .a_col = 1,
                                       .b = layer.weight.value,
                                       .b_row = layer.in,
                                       .b_col = 1,
                                       .c = sums});
    if (target.saved != nullptr)
      act_backward<T>(context_, target.activation, rows(), target.width, sums, target.saved, target.grad, nullptr);
    add(target);
  }

  void add(const GradientTarget& target) const {
    if (target.added == nullptr) return;
    add_rows(context_, target.added_rows * target.width, target.added, target.grad + target.added_begin * target.width);
  }

  // Of a layer of segments, whose own activation is the identity.
  void segments_backward(int l, const GradientTarget& target) const {
    const StepLayer<T>& layer = network_.layers[l];
    const LayerBuffers<T>& own = buffers_.layers[l];
    T* const by_input = target.as_it_is != nullptr ? target.as_it_is : target.grad;
    const SegmentedPass<T> pass{.rows = rows(), .output = own.y, .grad_output = own.grad_z, .grad_input = by_input};
    if (layer.asked == nullptr)
      segmented(context_, layer.segments, pass);
    else
      segmented_backward(context_, layer.segments, pass,
                         AskedLevels<T>{layer.asked, layer.asked_from, T(layer.asked_scale), x(l)});
    if (target.saved != nullptr)
      act_backward<T>(context_, target.activation, rows(), target.width, by_input, target.saved, target.grad, nullptr);
    add(target);
  }

  // A pass takes the masks from its first part's on.
  Dropout<T> dropout(const StepLayer<T>& layer) const {
    Dropout<T> to{.mask = {}, .scale = layer.keep_scale, .parts = rows_.parts, .width = layer.out};
    for (int part = 0; part < rows_.parts.count; ++part) to.mask[part] = layer.mask[rows_.first + part];
    return to;
  }

  // The whole network in one launch, where it fits.
  NarrowNetwork<T> narrow() const {
    NarrowNetwork<T> to = {};
    to.batch = rows();
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
    bool clips = false;
    for (int l = 0; l < network_.count; ++l) {
      const LayerBuffers<T>& own = buffers_.layers[l];
      to.layers[l].grad_weight = own.grad_weight, to.layers[l].grad_bias = own.grad_bias;
      clips = clips || own.grad_weight != nullptr || own.grad_bias != nullptr;
      to.layers[l].adam_weight = network_.layers[l].weight;
      to.layers[l].adam_bias = network_.layers[l].bias;
    }
    clips ? mlp_backward(context_, to, tf32) : mlp_update(context_, to, tf32);
  }

  const Context& context_;
  const StepNetwork<T>& network_;
  const NetworkBuffers<T> buffers_;
  const PassRows rows_;
  const StepOptions& options_;
  bool is_narrow_;
};

}  // namespace fastgan::cuda
