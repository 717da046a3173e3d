// The GAN losses: terms of logits against constants (csrc/core/logits_loss.h).
//   logits_loss          one batch: the generator's loss, and one unreduced half of the discriminator's
//   discriminator_loss   both halves in one pass
//   paired_loss          the differences of two batches, of which one relativistic loss is made
// The forward pass already makes the gradients; backward only scales them; double backward makes the second
// derivatives, by the logits and by grad_output, in one pass. This file has the kernels, logits_loss_autograd.cpp the
// three above.
#include "logits_loss.h"

#include "../cpu/logits_loss.h"
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
#include "../cuda/logits_loss.h"
#endif

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

#include "layout.h"
#include "scopes.h"

namespace fastgan::bindings {

namespace {

// Gradients wait for backward in the type of arithmetic: float for the 16-bit types.
at::TensorOptions gradient_options(const Tensor& logits) {
  const bool narrow = logits.scalar_type() == at::kBFloat16 || logits.scalar_type() == at::kHalf;
  return logits.options().dtype(narrow ? at::kFloat : logits.scalar_type());
}

LossTerm loss_term_of(const char* op, int64_t number, bool paired) {
  constexpr int64_t count = std::size(loss_term_names);
  TORCH_CHECK(number >= 0 && number < count, op, ": term must be at least 0 and below ", count, ", not ", number);
  const auto term = static_cast<LossTerm>(number);
  TORCH_CHECK(!paired || term == LossTerm::cross_entropy, op, ": pairs are of the cross-entropy, not of the term ",
              loss_term_names[number]);
  return term;
}

void check_logits(const char* op, TensorList logits, int64_t term, at::ArrayRef<double> targets, bool paired,
                  int64_t reduction) {
  loss_term_of(op, term, paired);
  if (paired) {
    TORCH_CHECK(logits.size() == 2 && targets.size() == 1, op, ": a pair is two batches of logits and one target, not ",
                logits.size(), " and ", targets.size());
    TORCH_CHECK(logits[0].sym_sizes() == logits[1].sym_sizes(), op, ": the logits of a pair must have one shape, not ",
                logits[0].sym_sizes(), " and ", logits[1].sym_sizes());
  } else {
    TORCH_CHECK(!logits.empty() && logits.size() == targets.size(), op,
                ": logits and targets must have the same number of entries, at least one, not ", logits.size(), " and ",
                targets.size());
    TORCH_CHECK(reduction_of(reduction) != Reduction::none || logits.size() == 1, op,
                ": reduction none takes one batch of logits, not ", logits.size());
  }
  for (const Tensor& x : logits) {
    TORCH_CHECK(x.scalar_type() == logits[0].scalar_type() && x.device() == logits[0].device(), op,
                ": all logits must have one dtype and device");
  }
}

// The layout of a pointwise function of what the terms are of.
Layout term_layout(TensorList logits, size_t i, bool paired) {
  if (!paired) return unary_layout(logits[i]);
  return elementwise_layout(logits[0].sym_sizes(), {Layout(logits[0]), Layout(logits[1])});
}

// Without values: the loss, whose layout unreduced is that of torch's cross-entropy against a target like the logits
// (and, of minus that or of other terms, of a pointwise function), and the gradients, whose layout is that of
// sigma(x) - t.
std::tuple<Tensor, std::vector<Tensor>> empty_forward(TensorList logits, int64_t term, double sign, bool paired,
                                                      int64_t reduction, bool with_gradient) {
  Tensor loss;
  if (reduction_of(reduction) == Reduction::none) {
    if (paired || term != static_cast<int64_t>(LossTerm::cross_entropy)) {
      loss = empty_of(term_layout(logits, 0, paired), logits[0].options());
    } else {
      loss = at::empty_like(logits[0]);
      if (sign != 1) loss = empty_of(unary_layout(loss), loss.options());
    }
  } else {
    loss = scalar_like(logits[0]);
  }
  std::vector<Tensor> gradients;
  if (with_gradient)
    for (size_t i = 0; i < (paired ? 1 : logits.size()); ++i)
      gradients.push_back(empty_of(term_layout(logits, i, paired), gradient_options(logits[i])));
  return {loss, gradients};
}

template <class Scope>
std::tuple<Tensor, std::vector<Tensor>> logits_loss_forward_kernel(TensorList logits, int64_t term,
                                                                   at::ArrayRef<double> targets, double sign,
                                                                   bool paired, int64_t reduction, bool with_gradient) {
  check_logits("logits_loss_forward", logits, term, targets, paired, reduction);
  const bool none = reduction_of(reduction) == Reduction::none;
  auto [loss, gradients] = empty_forward(logits, term, sign, paired, reduction, with_gradient);
  const auto of = static_cast<LossTerm>(term);
  const Scope here(logits[0]);
  with_dtype(logits[0].scalar_type(), "logits_loss", [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<Tensor> memory;  // what the batches point to
    std::vector<LogitsTerm<T>> batches;
    const auto read = [&](const MemoryOrder& order, const Tensor& x) {
      memory.push_back(order.read(x));
      return data<T>(memory.back());
    };
    const auto add_batch = [&](const MemoryOrder& order, size_t i) {
      const int64_t n = logits[i].numel();
      const T* x = read(order, logits[i]);
      batches.push_back({n, x, paired ? read(order, logits[1]) : nullptr, targets[i], sign,
                         reduction_scale(reduction_of(reduction), n), nullptr});
    };
    if (none) {
      const MemoryOrder order(loss);
      add_batch(order, 0);
      const auto run = [&] {
        order.write(loss,
                    [&](const Tensor& out) { logits_loss_elementwise(here, of, batches[0], mutable_data<T>(out)); });
      };
      if (!with_gradient) return run();
      order.write(gradients[0], [&](const Tensor& gradient) {
        batches[0].gradient = mutable_data<compute_t<T>>(gradient);
        run();
      });
      return;
    }
    for (size_t i = 0; i < targets.size(); ++i) {
      // Of a gradient without gaps the order is its own: no copy is made of it below.
      add_batch(with_gradient ? MemoryOrder(gradients[i]) : MemoryOrder(loss), i);
      if (with_gradient) batches.back().gradient = mutable_data<compute_t<T>>(gradients[i]);
    }
    logits_loss_sum(here, of, batches.data(), static_cast<int>(batches.size()), mutable_data<T>(loss));
  });
  return {loss, gradients};
}

std::tuple<Tensor, std::vector<Tensor>> logits_loss_forward_meta(TensorList logits, int64_t term,
                                                                 at::ArrayRef<double> targets, double sign, bool paired,
                                                                 int64_t reduction, bool with_gradient) {
  check_logits("logits_loss_forward", logits, term, targets, paired, reduction);
  return empty_forward(logits, term, sign, paired, reduction, with_gradient);
}

// Like the gradients of forward, in the dtype of grad_output.
Tensor empty_scaled(const Tensor& gradient, const Tensor& grad_output) {
  return empty_of(unary_layout(gradient), grad_output.options());
}

// The gradients, scaled by grad_output, whose dtype is that of the logits.
template <class Scope>
std::vector<Tensor> logits_loss_backward_kernel(const Tensor& grad_output, TensorList gradients, int64_t term,
                                                bool paired, int64_t reduction) {
  std::vector<Tensor> out;
  const LossTerm of = loss_term_of("logits_loss_backward", term, paired);
  const bool none = reduction_of(reduction) == Reduction::none;
  const Scope here(grad_output);
  for (const Tensor& gradient : gradients) {
    TORCH_CHECK(grad_output.numel() == (none ? gradient.numel() : 1) && gradient.device() == grad_output.device() &&
                    gradient.scalar_type() == c10::typeMetaToScalarType(gradient_options(grad_output).dtype()),
                "logits_loss_backward: grad_output of shape ", grad_output.sizes(), ", ", grad_output.scalar_type(),
                " on ", grad_output.device(), " does not fit gradients of shape ", gradient.sizes(), ", ",
                gradient.scalar_type(), " on ", gradient.device());
    Tensor to = empty_scaled(gradient, grad_output), to_minus = paired ? empty_scaled(gradient, grad_output) : Tensor();
    const MemoryOrder order(to);
    const Tensor g = order.read(gradient), go = none ? order.read(grad_output.view_as(gradient)) : grad_output;
    with_dtype(go.scalar_type(), "logits_loss_backward", [&](auto tag) {
      using T = typename decltype(tag)::type;  // both are without gaps: their order is their own
      logits_loss_backward(here, of, g.numel(), data<compute_t<T>>(g), data<T>(go), none ? 1 : 0,
                           reduction_scale(reduction_of(reduction), g.numel()), mutable_data<T>(to),
                           paired ? mutable_data<T>(to_minus) : nullptr);
    });
    out.push_back(std::move(to));
    if (paired) out.push_back(std::move(to_minus));
  }
  return out;
}

std::vector<Tensor> logits_loss_backward_meta(const Tensor& grad_output, TensorList gradients, int64_t, bool paired,
                                              int64_t) {
  std::vector<Tensor> out;
  for (const Tensor& gradient : gradients)
    for (int i = 0; i < (paired ? 2 : 1); ++i) out.push_back(empty_scaled(gradient, grad_output));
  return out;
}

void check_double_backward(TensorList cotangents, const Tensor& grad_output, TensorList logits, int64_t term,
                           at::ArrayRef<double> targets, bool paired, int64_t reduction) {
  check_logits("logits_loss_double_backward", logits, term, targets, paired, reduction);
  TORCH_CHECK(cotangents.size() == logits.size(),
              "logits_loss_double_backward: there must be one cotangent for each batch of logits, not ",
              cotangents.size(), " for ", logits.size());
  const bool none = reduction_of(reduction) == Reduction::none;
  TORCH_CHECK(grad_output.scalar_type() == logits[0].scalar_type() && grad_output.device() == logits[0].device() &&
                  (none ? grad_output.sym_sizes() == logits[0].sym_sizes() : grad_output.sym_numel() == 1),
              "logits_loss_double_backward: grad_output of shape ", grad_output.sym_sizes(), ", ",
              grad_output.scalar_type(), " on ", grad_output.device(), " does not fit logits of shape ",
              logits[0].sym_sizes(), ", ", logits[0].scalar_type(), " on ", logits[0].device());
  for (size_t i = 0; i < logits.size(); ++i)
    TORCH_CHECK(cotangents[i].sym_sizes() == logits[i].sym_sizes() &&
                    cotangents[i].scalar_type() == logits[i].scalar_type() &&
                    cotangents[i].device() == logits[i].device(),
                "logits_loss_double_backward: a cotangent of shape ", cotangents[i].sym_sizes(), ", ",
                cotangents[i].scalar_type(), " on ", cotangents[i].device(), " does not fit logits of shape ",
                logits[i].sym_sizes(), ", ", logits[i].scalar_type(), " on ", logits[i].device());
}

// Without values, in the layouts of the derivatives of torch's (sigma(x) - t) grad_output.
std::tuple<Tensor, std::vector<Tensor>> empty_double_backward(TensorList cotangents, const Tensor& grad_output,
                                                              TensorList logits, bool paired, int64_t reduction) {
  const bool none = reduction_of(reduction) == Reduction::none;
  Tensor grad_grad_output = at::empty_symint(grad_output.sym_sizes(), grad_output.options());
  std::vector<Tensor> out;
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto sizes = logits[i].sym_sizes();
    const Layout cotangent = term_layout(cotangents, i, paired), x = term_layout(logits, i, paired);
    const Layout scaled = none ? elementwise_layout(sizes, {cotangent, Layout(grad_output)}) : cotangent;
    out.push_back(empty_of(elementwise_layout(sizes, {scaled, x}), logits[i].options()));
    if (none) grad_grad_output = empty_of(elementwise_layout(sizes, {cotangent, x}), grad_output.options());
  }
  return {grad_grad_output, out};
}

template <class Scope>
std::tuple<Tensor, std::vector<Tensor>> logits_loss_double_backward_kernel(TensorList cotangents,
                                                                           const Tensor& grad_output, TensorList logits,
                                                                           int64_t term, at::ArrayRef<double> targets,
                                                                           double sign, bool paired,
                                                                           int64_t reduction) {
  check_double_backward(cotangents, grad_output, logits, term, targets, paired, reduction);
  const bool none = reduction_of(reduction) == Reduction::none;
  auto [grad_grad_output, out] = empty_double_backward(cotangents, grad_output, logits, paired, reduction);
  const auto of = static_cast<LossTerm>(term);
  const Scope here(logits[0]);
  with_dtype(logits[0].scalar_type(), "logits_loss_double_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<Tensor> memory;  // what the batches point to
    const auto read = [&](const MemoryOrder& order, const Tensor& x) {
      memory.push_back(order.read(x));
      return data<T>(memory.back());
    };
    std::vector<LogitsTangent<T>> batches;
    for (size_t i = 0; i < targets.size(); ++i) {
      const MemoryOrder order(out[i]);
      const int64_t n = logits[i].numel();
      LogitsTangent<T> batch = {};
      batch.n = n, batch.target = targets[i], batch.sign = sign;
      // Of no elements the sum is zero, also of a mean.
      batch.scale = n == 0 ? 1 : reduction_scale(reduction_of(reduction), n);
      batch.logits = read(order, logits[i]), batch.tangent = read(order, cotangents[i]);
      batch.out = mutable_data<T>(out[i]);
      if (paired) {
        batch.minus = read(order, logits[1]);
        batch.tangent_of_minus = read(order, cotangents[1]);
        batch.out_of_minus = mutable_data<T>(out[1]);
      }
      batches.push_back(batch);
    }
    const auto run = [&](const T* go, const Tensor& to) {
      logits_loss_double_backward(here, of, batches.data(), static_cast<int>(batches.size()), go, none ? 1 : 0,
                                  mutable_data<T>(to));
    };
    if (!none) return run(data<T>(grad_output), grad_grad_output);
    const MemoryOrder order(out[0]);
    const T* go = read(order, grad_output);
    order.write(grad_grad_output, [&](const Tensor& to) { run(go, to); });
  });
  return {grad_grad_output, out};
}

std::tuple<Tensor, std::vector<Tensor>> logits_loss_double_backward_meta(TensorList cotangents,
                                                                         const Tensor& grad_output, TensorList logits,
                                                                         int64_t term, at::ArrayRef<double> targets,
                                                                         double, bool paired, int64_t reduction) {
  check_double_backward(cotangents, grad_output, logits, term, targets, paired, reduction);
  return empty_double_backward(cotangents, grad_output, logits, paired, reduction);
}

template <class Scope>
void register_logits_loss_kernels(torch::Library& m) {
  m.impl("logits_loss_forward", logits_loss_forward_kernel<Scope>);
  m.impl("logits_loss_backward", logits_loss_backward_kernel<Scope>);
  m.impl("logits_loss_double_backward", logits_loss_double_backward_kernel<Scope>);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(FASTGAN_LIBRARY, m) {
  m.def(
      "logits_loss_forward(Tensor[] logits, int term, float[] targets, float sign, bool paired, int reduction, "
      "bool with_gradient) -> (Tensor, Tensor[])");
  m.def(
      "logits_loss_backward(Tensor grad_output, Tensor[] gradients, int term, bool paired, int reduction) -> Tensor[]");
  m.def(
      "logits_loss_double_backward(Tensor[] cotangents, Tensor grad_output, Tensor[] logits, int term, "
      "float[] targets, float sign, bool paired, int reduction) -> (Tensor, Tensor[])");
}

FASTGAN_KERNELS(register_logits_loss_kernels)

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, Meta, m) {
  m.impl("logits_loss_forward", logits_loss_forward_meta);
  m.impl("logits_loss_backward", logits_loss_backward_meta);
  m.impl("logits_loss_double_backward", logits_loss_double_backward_meta);
}

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, Autograd, m) {
  for (const char* name : {"logits_loss_forward", "logits_loss_backward", "logits_loss_double_backward"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fastgan::bindings
