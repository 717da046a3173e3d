// D's gradients and its update where its loss has penalties of the gradient of D by its input. Only step.cu includes
// this.
//
// D's output is one number a sample, so all of D's own derivatives are one chain: delta_l, the gradient of the output
// by z_l. It starts from one at the last logit, and the gradient of the loss is c delta_l, with c the loss's derivative
// by the logit. The penalty's gradient by D's gradient, t_0, goes up through the layers: t_l = act'(z_l) (W_l t_(l-1)),
// and dW_l = sum delta_l (c h_(l-1) + t_(l-1))^T, db_l = sum c delta_l: the loss and the penalty share one chain and
// one product for the weight gradient, whose operand c h + t is made where t is.
//
// Where an activation has a second derivative, the penalty has a gradient by z_l besides, e_l = act''(z_l) (W_(l+1)^T
// delta_(l+1)) (W_l t_(l-1)), which joins the chain of the loss: G_l = e_l + act'(z_l) (W_(l+1)^T G_(l+1)) and dW_l =
// sum G_l h_(l-1)^T + sum delta_l t_(l-1)^T, one product over the rows of G and h and, after them, those of delta and
// t.
#pragma once

#include "step_passes.h"
#include "step_penalty.h"

namespace fastgan::cuda {

template <class T>
class PenalizedUpdate {
 public:
  PenalizedUpdate(const Context& context, const StepProblem<T>& problem, const Buffers<T>& buffers,
                  const Penalized& penalized, const StepOptions& options)
      : context_(context),
        problem_(problem),
        network_(problem.discriminator),
        buffers_(buffers),
        penalized_(penalized),
        options_(options),
        parts_(parts_of(problem)),
        some_(parts_.some(penalized.first, penalized.end)),
        begin_(parts_.begin[penalized.first]),
        last_(network_.count - 1),
        own_(buffers.discriminator.from(network_, parts_, penalized.first)),
        all_(passes(buffers.discriminator, parts_, 0)) {}

  // Where the chain of D's own derivatives starts: what StepLoss writes.
  void say_start(StepLoss<T>& loss) const {
    loss.first_unit = penalized_.first, loss.end_unit = penalized_.end;
    loss.row_weight = buffers_.row_weight;
    if (penalized_.is_smooth) loss.unit = buffers_.discriminator.layers[last_].grad_z + parts_.rows();
  }

  // After the loss. Writes the penalty.
  void run(T* penalty, bool is_last_of_step) const {
    penalized_.is_smooth ? run_smooth(penalty, is_last_of_step) : run_piecewise_linear(penalty, is_last_of_step);
  }

 private:
  using Target = typename Passes<T>::GradientTarget;

  Passes<T> passes(const NetworkBuffers<T>& buffers, const Parts& parts, int first) const {
    return Passes<T>(context_, network_, buffers, {parts, first}, options_);
  }

  void run_piecewise_linear(T* penalty, bool is_last_of_step) const {
    const Passes<T> some = passes(own_, some_, penalized_.first);
    const Target to_input{.grad = buffers_.steps[0], .width = network_.in()};
    if (some.is_one_launch()) {
      some.backward(to_input, false, T(0));
      for (const auto& [first, end] : {std::pair{0, penalized_.first}, {penalized_.end, parts_.count}})
        if (end > first)
          passes(buffers_.discriminator.from(network_, parts_, first), parts_.some(first, end), first)
              .backward({}, false, T(0));
    } else {
      for (int l = all_.has_head() ? last_ - 1 : last_; l > 0; --l)
        all_.backward_of(l, all_.before(l), false, T(0), {});
      some.backward_of(0, to_input, false, T(0), {});
    }
    PenaltyStart<T> start = start_of(buffers_.steps[0], penalty, is_last_of_step);
    start.row_weight = buffers_.row_weight + begin_;
    start.mixed = is_operand(0) ? own_.input : nullptr;
    penalty_start(context_, start);
    if (some.is_one_launch() && problem_.clip_norm == 0)
      return all_.tangent_update({begin_, some_.rows(), buffers_.steps[0], buffers_.row_weight});
    for (int l = 0; l < network_.count; ++l) {
      const T* const steps = buffers_.steps[l % 2];
      if (has_updates_above(l)) {
        Tangent<T> to = tangent_of(l, buffers_.steps[(l + 1) % 2]);
        to.row_weight = buffers_.row_weight + begin_;
        to.mixed = is_operand(l + 1) ? own_.layers[l].y : nullptr;
        some.tangent(l, steps, to);
      }
      // After the steps have passed through the weight as it was.
      if (network_.layers[l].kind == LayerKind::linear) all_.update(l, T(0), {.row_weight = buffers_.row_weight});
    }
  }

  void run_smooth(T* penalty, bool is_last_of_step) const {
    const int64_t after = parts_.rows();  // where delta lies behind G, and t behind h
    NetworkBuffers<T> chain = own_;
    for (int l = 0; l < network_.count; ++l)
      chain.layers[l].grad_z = buffers_.discriminator.layers[l].grad_z + after * network_.layers[l].out;
    const Passes<T> some = passes(chain, some_, penalized_.first);
    for (int l = last_; l > 0; --l) {
      Target target = some.before(l);
      target.as_it_is = own_.layers[l - 1].curved;
      some.backward_of(l, target, false, T(0), {});
    }
    T* steps = buffers_.discriminator.input + after * network_.in();
    some.backward_of(0, {.grad = steps, .width = network_.in()}, false, T(0), {});
    PenaltyStart<T> start = start_of(steps, penalty, is_last_of_step);
    start.grad_z = own_.layers[last_].grad_z;
    penalty_start(context_, start);
    for (int l = 0; l < network_.count; ++l) {
      T* const next = buffers_.discriminator.layers[l].y + after * network_.layers[l].out;
      Tangent<T> to = tangent_of(l, next);
      if (l < last_)
        to.curved = own_.layers[l].curved;
      else
        to.added = own_.layers[l].grad_z;
      if (l < last_ || !is_piecewise_linear(network_.layers[l].activation.activation)) some.tangent(l, steps, to);
      steps = next;
    }
    all_.backward(
        {}, true, T(0),
        {.more = some_.rows(), .row_weight = buffers_.row_weight, .added_begin = begin_, .added_rows = some_.rows()});
  }

  PenaltyStart<T> start_of(T* gradient, T* penalty, bool is_last_of_step) const {
    const int64_t sample = network_.in() / problem_.pac;
    PenaltyStart<T> start{};
    start.parts = some_;
    for (int part = 0; part < some_.count; ++part)
      start.weight[part] = problem_.penalties.weight(penalized_.first + part);
    start.first = penalized_.first, start.penalties = problem_.penalties;
    start.width = network_.in(), start.sample = sample, start.data = sample - problem_.classes;
    start.gradient = gradient;
    start.logits = own_.layers[last_].y;
    start.saved = own_.layers[last_].saved;
    start.activation = network_.layers[last_].activation;
    start.penalty = penalty;
    start.odd_label = options_.odd_labels.found;
    start.is_last_of_step = is_last_of_step;
    return start;
  }

  Tangent<T> tangent_of(int l, T* to) const {
    const StepLayer<T>& layer = network_.layers[l];
    Tangent<T> tangent{};
    tangent.batch = some_.rows(), tangent.out = layer.out;
    tangent.activation = layer.activation;
    tangent.saved = own_.layers[l].saved;
    tangent.t = to;
    return tangent;
  }

  // Whether the input of a layer is an operand of a weight gradient.
  bool is_operand(int l) const {
    return l < network_.count && network_.layers[l].kind == LayerKind::linear && network_.layers[l].weight.is_updated();
  }
  bool has_updates_above(int l) const {
    bool has = false;
    for (int above = l + 1; above < network_.count; ++above) has = has || is_operand(above);
    return has;
  }

  const Context& context_;
  const StepProblem<T>& problem_;
  const StepNetwork<T>& network_;
  const Buffers<T>& buffers_;
  const Penalized& penalized_;
  const StepOptions& options_;
  const Parts parts_, some_;  // of the batch, and those that are penalized
  const int64_t begin_;       // the first row of these
  const int last_;
  const NetworkBuffers<T> own_;  // from that row on
  const Passes<T> all_;
};

}  // namespace fastgan::cuda
