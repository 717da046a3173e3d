// The GAN losses: cross-entropies of logits against constant targets.
//   logits_loss          one batch: the generator's loss, and one unreduced half of the discriminator's
//   discriminator_loss   both halves in one pass
// The forward pass already makes the gradients; backward only scales them.
#include "../cpu/logits_loss.h"
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
#include "../cuda/logits_loss.h"
#endif

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

#include "common.h"
#include "higher_order.h"
#include "layout.h"
#include "scopes.h"

namespace fastgan::bindings {

namespace {

using torch::autograd::AutogradContext;

using LogitsLossForward = std::tuple<Tensor, std::vector<Tensor>>(TensorList, at::ArrayRef<double>, double, int64_t,
                                                                  bool);
using LogitsLossBackward = std::vector<Tensor>(const Tensor&, TensorList, int64_t);

// (loss, gradients by each batch of logits, each for weight one; no gradients unless asked for)
std::tuple<Tensor, std::vector<Tensor>> forward_op(TensorList logits, at::ArrayRef<double> targets, double sign,
                                                   int64_t reduction, bool with_gradient) {
  FASTGAN_OP("logits_loss_forward", LogitsLossForward);
  return op.call(logits, targets, sign, reduction, with_gradient);
}

// Gradients wait for backward in the type of arithmetic: float for the 16-bit types.
at::TensorOptions gradient_options(const Tensor& logits) {
  const bool narrow = logits.scalar_type() == at::kBFloat16 || logits.scalar_type() == at::kHalf;
  return logits.options().dtype(narrow ? at::kFloat : logits.scalar_type());
}

void check_forward(TensorList logits, at::ArrayRef<double> targets, int64_t reduction) {
  TORCH_CHECK(!logits.empty() && logits.size() == targets.size(),
              "logits_loss_forward: logits and targets must have the "
              "same number of entries, at least one, not ",
              logits.size(), " and ", targets.size());
  TORCH_CHECK(reduction_of(reduction) != Reduction::none || logits.size() == 1,
              "logits_loss_forward: reduction none takes one batch of logits, not ", logits.size());
  for (const Tensor& x : logits) {
    TORCH_CHECK(x.scalar_type() == logits[0].scalar_type() && x.device() == logits[0].device(),
                "logits_loss_forward: all logits must have one dtype and device");
  }
}

// Without values: the loss, whose layout unreduced is that of torch's cross-entropy against a target like the logits
// (and, of minus that, of a negation), and the gradients, whose layout is that of sigma(x) - t.
std::tuple<Tensor, std::vector<Tensor>> empty_forward(TensorList logits, double sign, int64_t reduction,
                                                      bool with_gradient) {
  Tensor loss;
  if (reduction_of(reduction) == Reduction::none) {
    loss = at::empty_like(logits[0]);
    if (sign != 1) loss = empty_of(unary_layout(loss), loss.options());
  } else {
    loss = scalar_like(logits[0]);
  }
  std::vector<Tensor> gradients;
  if (with_gradient)
    for (const Tensor& x : logits) gradients.push_back(empty_of(unary_layout(x), gradient_options(x)));
  return {loss, gradients};
}

template <class Scope>
std::tuple<Tensor, std::vector<Tensor>> logits_loss_forward_kernel(TensorList logits, at::ArrayRef<double> targets,
                                                                   double sign, int64_t reduction, bool with_gradient) {
  check_forward(logits, targets, reduction);
  const bool none = reduction_of(reduction) == Reduction::none;
  auto [loss, gradients] = empty_forward(logits, sign, reduction, with_gradient);
  const Scope here(logits[0]);
  with_dtype(logits[0].scalar_type(), "logits_loss", [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<Tensor> memory;  // what the terms point to
    std::vector<LogitsTerm<T>> terms;
    const auto add_term = [&](const MemoryOrder& order, size_t i) {
      memory.push_back(order.read(logits[i]));
      const int64_t n = logits[i].numel();
      terms.push_back(
          {n, data<T>(memory.back()), targets[i], sign, reduction_scale(reduction_of(reduction), n), nullptr});
    };
    if (none) {
      const MemoryOrder order(loss);
      add_term(order, 0);
      const auto run = [&] {
        order.write(loss, [&](const Tensor& out) { logits_loss_elementwise(here, terms[0], mutable_data<T>(out)); });
      };
      if (!with_gradient) return run();
      order.write(gradients[0], [&](const Tensor& gradient) {
        terms[0].gradient = mutable_data<compute_t<T>>(gradient);
        run();
      });
      return;
    }
    for (size_t i = 0; i < logits.size(); ++i) {
      // Of a gradient without gaps the order is its own: no copy is made of it below.
      add_term(with_gradient ? MemoryOrder(gradients[i]) : MemoryOrder(loss), i);
      if (with_gradient) terms.back().gradient = mutable_data<compute_t<T>>(gradients[i]);
    }
    logits_loss_sum(here, terms.data(), static_cast<int>(terms.size()), mutable_data<T>(loss));
  });
  return {loss, gradients};
}

std::tuple<Tensor, std::vector<Tensor>> logits_loss_forward_meta(TensorList logits, at::ArrayRef<double> targets,
                                                                 double sign, int64_t reduction, bool with_gradient) {
  check_forward(logits, targets, reduction);
  return empty_forward(logits, sign, reduction, with_gradient);
}

// Like the gradients of forward, in the dtype of grad_output.
Tensor empty_scaled(const Tensor& gradient, const Tensor& grad_output) {
  return empty_of(unary_layout(gradient), grad_output.options());
}

// The gradients, scaled by grad_output, whose dtype is that of the logits.
template <class Scope>
std::vector<Tensor> logits_loss_backward_kernel(const Tensor& grad_output, TensorList gradients, int64_t reduction) {
  std::vector<Tensor> out;
  const bool none = reduction_of(reduction) == Reduction::none;
  const Scope here(grad_output);
  for (const Tensor& gradient : gradients) {
    TORCH_CHECK(grad_output.numel() == (none ? gradient.numel() : 1) && gradient.device() == grad_output.device() &&
                    gradient.scalar_type() == c10::typeMetaToScalarType(gradient_options(grad_output).dtype()),
                "logits_loss_backward: grad_output of shape ", grad_output.sizes(), ", ", grad_output.scalar_type(),
                " on ", grad_output.device(), " does not fit gradients of shape ", gradient.sizes(), ", ",
                gradient.scalar_type(), " on ", gradient.device());
    out.push_back(empty_scaled(gradient, grad_output));
    const MemoryOrder order(out.back());
    const Tensor g = order.read(gradient), go = none ? order.read(grad_output.view_as(gradient)) : grad_output;
    with_dtype(go.scalar_type(), "logits_loss_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;
      order.write(out.back(), [&](const Tensor& memory) {
        logits_loss_backward(here, g.numel(), data<compute_t<T>>(g), data<T>(go), none ? 1 : 0,
                             reduction_scale(reduction_of(reduction), g.numel()), mutable_data<T>(memory));
      });
    });
  }
  return out;
}

std::vector<Tensor> logits_loss_backward_meta(const Tensor& grad_output, TensorList gradients, int64_t) {
  std::vector<Tensor> out;
  for (const Tensor& gradient : gradients) out.push_back(empty_scaled(gradient, grad_output));
  return out;
}

// What the derivatives of one call share. Not a tensor, so that autograd does not record it.
struct LogitsLossArguments {
  std::vector<double> targets;
  double sign;
  int64_t reduction;

  // In one list: targets, sign, reduction.
  void save(AutogradContext* ctx) const {
    std::vector<double> packed = targets;
    packed.push_back(sign);
    packed.push_back(static_cast<double>(reduction));
    ctx->saved_data["call"] = std::move(packed);
  }
  static LogitsLossArguments of(AutogradContext* ctx) {
    std::vector<double> packed = ctx->saved_data["call"].toDoubleVector();
    const auto reduction = static_cast<int64_t>(packed.back());
    packed.pop_back();
    const double sign = packed.back();
    packed.pop_back();
    return {std::move(packed), sign, reduction};
  }
};

// logits_loss_backward, recorded. Its own derivative is torch's, of the same gradients as expressions of the logits.
class LogitsLossBackwardFunction : public torch::autograd::Function<LogitsLossBackwardFunction> {
 public:
  struct Constants {
    std::vector<Tensor> gradients;  // of the forward op
  };

  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, TensorList logits,
                               const LogitsLossArguments& call, const Constants& constants) {
    at::AutoDispatchBelowADInplaceOrView below;
    variable_list saved{grad_output};
    saved.insert(saved.end(), logits.begin(), logits.end());
    ctx->save_for_backward(saved);
    call.save(ctx);
    ctx->set_materialize_grads(false);
    FASTGAN_OP("logits_loss_backward", LogitsLossBackward);
    return op.call(grad_output, constants.gradients, call.reduction);
  }

  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const LogitsLossArguments call = LogitsLossArguments::of(ctx);
    variable_list out = differentiate(ctx->get_saved_variables(), cotangents, [&](TensorList v) {
      variable_list gradients;
      for (size_t i = 0; i + 1 < v.size(); ++i) {
        const Tensor x = widened(v[i + 1]);
        // Torch's own expression, so that its derivatives have the layouts of torch's.
        Tensor gradient = (at::sigmoid(x) - call.targets[i]) * (widened(v[0]) * call.sign);
        if (reduction_of(call.reduction) == Reduction::mean) gradient = gradient / static_cast<double>(x.numel());
        gradients.push_back(gradient.to(v[i + 1].scalar_type()));
      }
      return gradients;
    });
    out.resize(out.size() + 2);  // none for call and constants
    return out;
  }
};

class LogitsLossFunction : public torch::autograd::Function<LogitsLossFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, TensorList logits, const LogitsLossArguments& call) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [loss, gradients] = forward_op(logits, call.targets, call.sign, call.reduction, true);
    variable_list saved(logits.begin(), logits.end());
    saved.insert(saved.end(), gradients.begin(), gradients.end());
    ctx->save_for_backward(saved);
    call.save(ctx);
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const LogitsLossArguments call = LogitsLossArguments::of(ctx);
    const auto saved = ctx->get_saved_variables();
    const size_t count = saved.size() / 2;
    const TensorList logits = TensorList(saved).slice(0, count), gradients = TensorList(saved).slice(count);
    variable_list out;
    if (is_batched(grad_outputs[0])) {
      out = differentiate(logits, grad_outputs, [&](TensorList v) -> variable_list {
        Tensor loss;
        for (size_t i = 0; i < v.size(); ++i) {
          const Tensor term = call.sign * at::binary_cross_entropy_with_logits(
                                              v[i], at::full_like(v[i], call.targets[i]), {}, {}, call.reduction);
          loss = loss.defined() ? loss + term : term;
        }
        return {loss};
      });
    } else if (at::GradMode::is_enabled()) {
      out = LogitsLossBackwardFunction::apply(grad_outputs[0], logits, call,
                                              LogitsLossBackwardFunction::Constants{gradients.vec()});
    } else {
      const at::AutoDispatchBelowADInplaceOrView below;  // nothing to record
      FASTGAN_OP("logits_loss_backward", LogitsLossBackward);
      out = op.call(grad_outputs[0], gradients, call.reduction);
    }
    out.resize(count + 1);  // none for call
    return out;
  }
};

Tensor autograd(TensorList logits, std::vector<double> targets, double sign, int64_t reduction) {
  if (any_requires_grad(logits))
    return LogitsLossFunction::apply(logits, LogitsLossArguments{targets, sign, reduction});
  at::AutoDispatchBelowADInplaceOrView below;
  return std::get<0>(forward_op(logits, targets, sign, reduction, false));
}

Tensor value(TensorList logits, std::vector<double> targets, double sign, int64_t reduction) {
  return std::get<0>(forward_op(logits, targets, sign, reduction, false));
}

Tensor logits_loss_autograd(const Tensor& logits, double target, double sign, int64_t reduction) {
  return autograd({logits}, {target}, sign, reduction);
}
Tensor logits_loss_value(const Tensor& logits, double target, double sign, int64_t reduction) {
  return value({logits}, {target}, sign, reduction);
}
Tensor discriminator_loss_autograd(const Tensor& real, const Tensor& fake, double real_target, double fake_target,
                                   int64_t reduction) {
  return autograd({real, fake}, {real_target, fake_target}, 1.0, reduction);
}
Tensor discriminator_loss_value(const Tensor& real, const Tensor& fake, double real_target, double fake_target,
                                int64_t reduction) {
  return value({real, fake}, {real_target, fake_target}, 1.0, reduction);
}

// Autocast computes losses in float32, as it does torch's.
template <c10::DeviceType device>
Tensor logits_loss_autocast(const Tensor& logits, double target, double sign, int64_t reduction) {
  const WithoutAutocast guard;
  FASTGAN_OP("logits_loss", Tensor(const Tensor&, double, double, int64_t));
  return op.call(at::autocast::cached_cast(at::kFloat, logits, device), target, sign, reduction);
}
template <c10::DeviceType device>
Tensor discriminator_loss_autocast(const Tensor& real, const Tensor& fake, double real_target, double fake_target,
                                   int64_t reduction) {
  const WithoutAutocast guard;
  FASTGAN_OP("discriminator_loss", Tensor(const Tensor&, const Tensor&, double, double, int64_t));
  return op.call(at::autocast::cached_cast(at::kFloat, real, device),
                 at::autocast::cached_cast(at::kFloat, fake, device), real_target, fake_target, reduction);
}

template <class Scope>
void register_logits_loss_kernels(torch::Library& m) {
  m.impl("logits_loss_forward", logits_loss_forward_kernel<Scope>);
  m.impl("logits_loss_backward", logits_loss_backward_kernel<Scope>);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(FASTGAN_LIBRARY, m) {
  m.def("logits_loss(Tensor logits, float target, float sign, int reduction) -> Tensor");
  m.def(
      "discriminator_loss(Tensor real_logits, Tensor fake_logits, float real_target, float fake_target, int reduction) "
      "-> Tensor");
  m.def(
      "logits_loss_forward(Tensor[] logits, float[] targets, float sign, int reduction, bool with_gradient) -> "
      "(Tensor, Tensor[])");
  m.def("logits_loss_backward(Tensor grad_output, Tensor[] gradients, int reduction) -> Tensor[]");
}

FASTGAN_KERNELS(register_logits_loss_kernels)

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, Meta, m) {
  m.impl("logits_loss_forward", logits_loss_forward_meta);
  m.impl("logits_loss_backward", logits_loss_backward_meta);
}

// Whatever the device, these two are the forward op's value.
TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("logits_loss", logits_loss_value);
  m.impl("discriminator_loss", discriminator_loss_value);
}

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, Autograd, m) {
  m.impl("logits_loss", logits_loss_autograd);
  m.impl("discriminator_loss", discriminator_loss_autograd);
  m.impl("logits_loss_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("logits_loss_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, AutocastCPU, m) {
  m.impl("logits_loss", logits_loss_autocast<c10::kCPU>);
  m.impl("discriminator_loss", discriminator_loss_autocast<c10::kCPU>);
}

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, AutocastCUDA, m) {
  m.impl("logits_loss", logits_loss_autocast<c10::kCUDA>);
  m.impl("discriminator_loss", discriminator_loss_autocast<c10::kCUDA>);
}

}  // namespace fastgan::bindings
