// logits_loss, discriminator_loss and paired_loss: autograd and autocast over the ops of logits_loss.cpp.
#include "higher_order.h"
#include "logits_loss.h"

namespace fastgan::bindings {

namespace {

using torch::autograd::AutogradContext;

// In one list, which is not a tensor, so that autograd does not record it: targets, sign, term, paired, reduction.
void save_call(AutogradContext* ctx, const LossCall& call) {
  std::vector<double> packed = call.targets;
  packed.insert(packed.end(), {call.sign, static_cast<double>(call.term), static_cast<double>(call.paired),
                               static_cast<double>(call.reduction)});
  ctx->saved_data["call"] = std::move(packed);
}

LossCall saved_call(AutogradContext* ctx) {
  const std::vector<double> packed = ctx->saved_data["call"].toDoubleVector();
  const double* const rest = packed.data() + packed.size() - 4;
  return {static_cast<int64_t>(rest[1]), {packed.data(), rest}, rest[0], rest[2] != 0, static_cast<int64_t>(rest[3])};
}

// What the terms are of.
variable_list terms_of(TensorList logits, const LossCall& call) {
  if (call.paired) return {widened(logits[0]) - widened(logits[1])};
  variable_list out;
  for (const Tensor& x : logits) out.push_back(widened(x));
  return out;
}

// The loss in torch's ops.
Tensor loss_expression(TensorList logits, const LossCall& call) {
  const variable_list terms = terms_of(logits, call);
  const auto value = [&](const Tensor& x, double t) -> Tensor {
    switch (static_cast<LossTerm>(call.term)) {
      case LossTerm::cross_entropy:
        return at::binary_cross_entropy_with_logits(x, at::full_like(x, t), {}, {}, at::Reduction::None);
      case LossTerm::hinge:
        return at::relu(1 - t * x);
      case LossTerm::linear:
        return x * -t;
      case LossTerm::square:
        return (x - t).square() / 2;
    }
    TORCH_CHECK(false, "no such term");
  };
  Tensor loss;
  for (size_t i = 0; i < terms.size(); ++i) {
    Tensor term = value(terms[i], call.targets[i]) * call.sign;
    if (reduction_of(call.reduction) == Reduction::mean) term = term.mean();
    if (reduction_of(call.reduction) == Reduction::sum) term = term.sum();
    loss = loss.defined() ? loss + term : term;
  }
  return loss.to(logits[0].scalar_type());
}

// Its gradients by the logits, times grad_output, in torch's ops: of the cross-entropy torch's own expression, so that
// its derivatives have the layouts of torch's.
variable_list gradient_expressions(const Tensor& grad_output, TensorList logits, const LossCall& call) {
  const variable_list terms = terms_of(logits, call);
  const Tensor g = widened(grad_output) * call.sign;
  const auto gradient = [&](const Tensor& x, double t) -> Tensor {
    switch (static_cast<LossTerm>(call.term)) {
      case LossTerm::cross_entropy:
        return (at::sigmoid(x) - t) * g;
      case LossTerm::hinge:
        return at::threshold_backward(g.expand_as(x), 1 - t * x, 0) * -t;
      case LossTerm::linear:
        return g.expand_as(x) * -t;
      case LossTerm::square:
        return (x - t) * g;
    }
    TORCH_CHECK(false, "no such term");
  };
  variable_list gradients;
  for (size_t i = 0; i < terms.size(); ++i) {
    Tensor each = gradient(terms[i], call.targets[i]);
    if (reduction_of(call.reduction) == Reduction::mean) each = each / static_cast<double>(terms[i].numel());
    each = each.to(logits[i].scalar_type());
    gradients.push_back(each);
    if (call.paired) gradients.push_back(-each);
  }
  return gradients;
}

// The gradient of a linear term does not depend on its logits: none is kept for backward.
bool is_linear(const LossCall& call) { return call.term == static_cast<int64_t>(LossTerm::linear); }

// Its gradients by the logits, times grad_output: one number, written once into each batch.
variable_list linear_gradients(const Tensor& grad_output, TensorList logits, const LossCall& call) {
  variable_list gradients;
  const Reduction reduction = reduction_of(call.reduction);
  for (size_t i = 0; i < logits.size(); ++i) {
    Tensor each = widened(grad_output) * (-call.targets[i] * call.sign);
    if (reduction == Reduction::mean) each = each / c10::Scalar(logits[i].sym_numel());
    each = each.to(logits[i].scalar_type());
    gradients.push_back(reduction == Reduction::none ? each : at::empty_like(logits[i]).copy_(each));
  }
  return gradients;
}

// logits_loss_backward, recorded.
class LogitsLossBackwardFunction : public torch::autograd::Function<LogitsLossBackwardFunction> {
 public:
  struct Constants {
    std::vector<Tensor> gradients;  // of the forward op
  };

  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, TensorList logits, const LossCall& call,
                               const Constants& constants) {
    at::AutoDispatchBelowADInplaceOrView below;
    variable_list saved{grad_output};
    saved.insert(saved.end(), logits.begin(), logits.end());
    ctx->save_for_backward(saved);
    save_call(ctx, call);
    ctx->set_materialize_grads(false);
    if (is_linear(call)) return linear_gradients(grad_output, logits, call);
    return logits_loss_backward(grad_output, constants.gradients, call);
  }

  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const LossCall call = saved_call(ctx);
    const variable_list saved = ctx->get_saved_variables();
    variable_list out;
    // Third derivatives are torch's.
    if (at::GradMode::is_enabled() || std::any_of(cotangents.begin(), cotangents.end(), is_batched))
      out =
          differentiate(saved, cotangents, [&](TensorList v) { return gradient_expressions(v[0], v.slice(1), call); });
    else
      out = by_kernel(cotangents, saved[0], TensorList(saved).slice(1), call);
    out.resize(saved.size() + 2);  // none for call and constants
    return out;
  }

 private:
  static variable_list by_kernel(const variable_list& cotangents, const Tensor& grad_output, TensorList logits,
                                 const LossCall& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    variable_list out(1 + logits.size()), given, of;
    LossCall part = call;
    std::vector<size_t> places;
    if (!call.paired) part.targets.clear();
    for (size_t i = 0; i < logits.size(); ++i) {
      if (!call.paired && !cotangents[i].defined()) continue;  // nothing was asked of this batch
      given.push_back(cotangents[i].defined() ? cotangents[i] : at::zeros_like(logits[i]));
      of.push_back(logits[i]);
      places.push_back(1 + i);
      if (!call.paired) part.targets.push_back(call.targets[i]);
    }
    if (of.empty()) return out;
    const auto [grad_grad_output, gradients] = logits_loss_double_backward(given, grad_output, of, part);
    out[0] = grad_grad_output;
    for (size_t i = 0; i < places.size(); ++i) out[places[i]] = gradients[i];
    return out;
  }
};

class LogitsLossFunction : public torch::autograd::Function<LogitsLossFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, TensorList logits, const LossCall& call) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [loss, gradients] = logits_loss_forward(logits, call, !is_linear(call));
    variable_list saved(logits.begin(), logits.end());
    saved.insert(saved.end(), gradients.begin(), gradients.end());
    ctx->save_for_backward(saved);
    save_call(ctx, call);
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const LossCall call = saved_call(ctx);
    const variable_list saved = ctx->get_saved_variables();
    const size_t count = call.paired ? 2 : call.targets.size();
    const TensorList logits = TensorList(saved).slice(0, count), gradients = TensorList(saved).slice(count);
    variable_list out;
    if (is_batched(grad_outputs[0])) {
      out = differentiate(logits, grad_outputs, [&](TensorList v) { return variable_list{loss_expression(v, call)}; });
    } else if (at::GradMode::is_enabled()) {
      variable_list of;
      for (const Tensor& x : logits) of.push_back(is_linear(call) ? x.detach() : x);
      out = LogitsLossBackwardFunction::apply(grad_outputs[0], TensorList(of), call,
                                              LogitsLossBackwardFunction::Constants{gradients.vec()});
    } else {
      const at::AutoDispatchBelowADInplaceOrView below;  // nothing to record
      out = is_linear(call) ? linear_gradients(grad_outputs[0], logits, call)
                            : logits_loss_backward(grad_outputs[0], gradients, call);
    }
    out.resize(count + 1);  // none for call
    return out;
  }
};

Tensor loss_recorded(TensorList logits, const LossCall& call) {
  if (any_requires_grad(logits)) return LogitsLossFunction::apply(logits, call);
  at::AutoDispatchBelowADInplaceOrView below;
  return std::get<0>(logits_loss_forward(logits, call, false));
}

Tensor loss_value(TensorList logits, const LossCall& call) {
  return std::get<0>(logits_loss_forward(logits, call, false));
}

constexpr auto of_pairs = static_cast<int64_t>(LossTerm::cross_entropy);

// The three ops, by what makes a loss of a call.
template <Tensor (*loss)(TensorList, const LossCall&)>
void register_losses(torch::Library& m) {
  m.impl("logits_loss", [](const Tensor& logits, int64_t term, double target, double sign, int64_t reduction) {
    return loss({logits}, {term, {target}, sign, false, reduction});
  });
  m.impl("discriminator_loss", [](const Tensor& real, const Tensor& fake, int64_t term, double real_target,
                                  double fake_target, int64_t reduction) {
    return loss({real, fake}, {term, {real_target, fake_target}, 1.0, false, reduction});
  });
  m.impl("paired_loss", [](const Tensor& logits, const Tensor& minus, double target, int64_t reduction) {
    return loss({logits, minus}, {of_pairs, {target}, 1.0, true, reduction});
  });
}

// Autocast computes losses in float32, as it does torch's.
template <c10::DeviceType device>
void register_autocast(torch::Library& m) {
  m.impl("logits_loss", [](const Tensor& logits, int64_t term, double target, double sign, int64_t reduction) {
    const WithoutAutocast guard;
    FASTGAN_OP("logits_loss", Tensor(const Tensor&, int64_t, double, double, int64_t));
    return op.call(at::autocast::cached_cast(at::kFloat, logits, device), term, target, sign, reduction);
  });
  m.impl("discriminator_loss", [](const Tensor& real, const Tensor& fake, int64_t term, double real_target,
                                  double fake_target, int64_t reduction) {
    const WithoutAutocast guard;
    FASTGAN_OP("discriminator_loss", Tensor(const Tensor&, const Tensor&, int64_t, double, double, int64_t));
    return op.call(at::autocast::cached_cast(at::kFloat, real, device),
                   at::autocast::cached_cast(at::kFloat, fake, device), term, real_target, fake_target, reduction);
  });
  m.impl("paired_loss", [](const Tensor& logits, const Tensor& minus, double target, int64_t reduction) {
    const WithoutAutocast guard;
    FASTGAN_OP("paired_loss", Tensor(const Tensor&, const Tensor&, double, int64_t));
    return op.call(at::autocast::cached_cast(at::kFloat, logits, device),
                   at::autocast::cached_cast(at::kFloat, minus, device), target, reduction);
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(FASTGAN_LIBRARY, m) {
  m.def("logits_loss(Tensor logits, int term, float target, float sign, int reduction) -> Tensor");
  m.def(
      "discriminator_loss(Tensor real_logits, Tensor fake_logits, int term, float real_target, float fake_target, "
      "int reduction) -> Tensor");
  m.def("paired_loss(Tensor logits, Tensor minus, float target, int reduction) -> Tensor");
}

// Whatever the device, a loss is the forward op's value.
TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, CompositeExplicitAutograd, m) { register_losses<loss_value>(m); }
TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, Autograd, m) { register_losses<loss_recorded>(m); }
TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, AutocastCPU, m) { register_autocast<c10::kCPU>(m); }
TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, AutocastCUDA, m) { register_autocast<c10::kCUDA>(m); }

}  // namespace fastgan::bindings
