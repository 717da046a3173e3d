// segmented_activation: runs of columns, each with an activation of its own (csrc/core/segmented.h), in one pass
// forward, one backward, and one for the derivative of backward. All of them are functions of the output, so that
// neither the input nor the draws are kept.
#include "../cpu/segmented.h"
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
#include "../cuda/segmented.h"
#endif

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

#include "common.h"
#include "higher_order.h"
#include "scopes.h"
#include "segment_list.h"

namespace fastgan::bindings {

namespace {

using torch::autograd::AutogradContext;

using SegmentedForwardOp = Tensor(const Tensor&, const std::optional<Tensor>&, at::IntArrayRef, at::IntArrayRef,
                                  double);
using SegmentedBackwardOp = Tensor(const Tensor&, const Tensor&, at::IntArrayRef, at::IntArrayRef, double);
using SegmentedDoubleBackwardOp = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                             at::IntArrayRef, at::IntArrayRef, double);

void check_draws(const Segments& segments, const Tensor& input, const std::optional<Tensor>& noise) {
  const bool is_given = noise && noise->defined();
  TORCH_CHECK(is_given || segments.gumbel_columns == 0, "segmented_activation: noise must be given for the ",
              segments.gumbel_columns, " gumbel_softmax columns");
  if (!is_given) return;
  std::vector<c10::SymInt> wanted = input.sym_sizes().vec();
  wanted.back() = segments.gumbel_columns;
  const auto dtype = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK(noise->sym_sizes() == c10::SymIntArrayRef(wanted) && noise->scalar_type() == dtype &&
                  noise->device() == input.device(),
              "segmented_activation: noise of shape ", noise->sym_sizes(), ", ", noise->scalar_type(), " on ",
              noise->device(), " must have shape ", c10::SymIntArrayRef(wanted), ", ", dtype, " on ", input.device());
}

void check_like(const char* op, const char* name, const Tensor& tensor, const Tensor& output) {
  TORCH_CHECK(tensor.sym_sizes() == output.sym_sizes() && tensor.scalar_type() == output.scalar_type() &&
                  tensor.device() == output.device(),
              op, ": ", name, " of shape ", tensor.sym_sizes(), ", ", tensor.scalar_type(), " on ", tensor.device(),
              " does not fit an output of shape ", output.sym_sizes(), ", ", output.scalar_type(), " on ",
              output.device());
}

Tensor empty_rows(const Tensor& like) { return at::empty_symint(like.sym_sizes(), like.options()); }

// Calls set(pass) to fill in what a pass reads and writes, and runs it.
template <class Scope, class Set>
void run_segmented(const char* op, const Tensor& like, const Segments& segments, const Set& set) {
  const Scope here(like);
  with_dtype(like.scalar_type(), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    SegmentedPass<T> pass{};
    pass.rows = segments.columns == 0 ? 0 : like.numel() / segments.columns;
    set(pass, tag);
    segmented(here, segments, pass);
  });
}

template <class Scope>
Tensor segmented_forward_kernel(const Tensor& input, const std::optional<Tensor>& noise, at::IntArrayRef widths,
                                at::IntArrayRef kinds, double tau) {
  const SegmentList list("segmented_activation", widths, kinds, tau);
  list.check_columns("segmented_activation", input);
  check_draws(list.get(), input, noise);
  const Tensor x = input.contiguous(), y = empty_rows(input);
  const Tensor draws = list.get().gumbel_columns > 0 ? noise->contiguous() : Tensor();
  run_segmented<Scope>("segmented_activation", x, list.get(), [&](auto& pass, auto tag) {
    using T = typename decltype(tag)::type;
    pass.input = data<T>(x);
    if (draws.defined()) pass.noise = data<compute_t<T>>(draws);
    pass.y = mutable_data<T>(y);
  });
  return y;
}

Tensor segmented_forward_meta(const Tensor& input, const std::optional<Tensor>& noise, at::IntArrayRef widths,
                              at::IntArrayRef kinds, double tau) {
  const SegmentList list("segmented_activation", widths, kinds, tau);
  list.check_columns("segmented_activation", input);
  check_draws(list.get(), input, noise);
  return empty_rows(input);
}

template <class Scope>
Tensor segmented_backward_kernel(const Tensor& grad_output, const Tensor& output, at::IntArrayRef widths,
                                 at::IntArrayRef kinds, double tau) {
  const char* const op = "segmented_activation_backward";
  const SegmentList list(op, widths, kinds, tau);
  list.check_columns(op, output);
  check_like(op, "grad_output", grad_output, output);
  const Tensor g = grad_output.contiguous(), y = output.contiguous(), grad_input = empty_rows(output);
  run_segmented<Scope>(op, y, list.get(), [&](auto& pass, auto tag) {
    using T = typename decltype(tag)::type;
    pass.output = data<T>(y), pass.grad_output = data<T>(g);
    pass.grad_input = mutable_data<T>(grad_input);
  });
  return grad_input;
}

Tensor segmented_backward_meta(const Tensor& grad_output, const Tensor& output, at::IntArrayRef, at::IntArrayRef,
                               double) {
  check_like("segmented_activation_backward", "grad_output", grad_output, output);
  return empty_rows(output);
}

// The derivatives of backward, against cotangent, by grad_output and by output.
template <class Scope>
std::tuple<Tensor, Tensor> segmented_double_backward_kernel(const Tensor& cotangent, const Tensor& grad_output,
                                                            const Tensor& output, at::IntArrayRef widths,
                                                            at::IntArrayRef kinds, double tau) {
  const char* const op = "segmented_activation_double_backward";
  const SegmentList list(op, widths, kinds, tau);
  list.check_columns(op, output);
  check_like(op, "cotangent", cotangent, output);
  check_like(op, "grad_output", grad_output, output);
  const Tensor c = cotangent.contiguous(), g = grad_output.contiguous(), y = output.contiguous();
  const Tensor by_grad_output = empty_rows(output), by_output = empty_rows(output);
  run_segmented<Scope>(op, y, list.get(), [&](auto& pass, auto tag) {
    using T = typename decltype(tag)::type;
    pass.output = data<T>(y), pass.grad_output = data<T>(g), pass.cotangent = data<T>(c);
    pass.by_grad_output = mutable_data<T>(by_grad_output), pass.by_output = mutable_data<T>(by_output);
  });
  return {by_grad_output, by_output};
}

std::tuple<Tensor, Tensor> segmented_double_backward_meta(const Tensor& cotangent, const Tensor& grad_output,
                                                          const Tensor& output, at::IntArrayRef, at::IntArrayRef,
                                                          double) {
  check_like("segmented_activation_double_backward", "cotangent", cotangent, output);
  check_like("segmented_activation_double_backward", "grad_output", grad_output, output);
  return {empty_rows(output), empty_rows(output)};
}

struct SegmentedCall {
  std::vector<int64_t> widths, kinds;
  double tau;

  void save(AutogradContext* ctx) const {
    ctx->saved_data["widths"] = widths;
    ctx->saved_data["kinds"] = kinds;
    ctx->saved_data["tau"] = tau;
  }
  static SegmentedCall saved(AutogradContext* ctx) {
    return {ctx->saved_data["widths"].toIntVector(), ctx->saved_data["kinds"].toIntVector(),
            ctx->saved_data["tau"].toDouble()};
  }
};

// What segmented_activation_backward computes, in torch's ops.
Tensor segmented_gradient(const Tensor& grad_output, const Tensor& output, const SegmentedCall& call) {
  const variable_list grads = at::split_with_sizes(widened(grad_output), call.widths, -1);
  const variable_list outputs = at::split_with_sizes(widened(output), call.widths, -1);
  variable_list parts;
  for (size_t i = 0; i < grads.size(); ++i) {
    const Tensor &g = grads[i], &y = outputs[i];
    switch (static_cast<SegmentKind>(call.kinds[i])) {
      case SegmentKind::tanh:
        parts.push_back(g * (1 - y * y));
        break;
      case SegmentKind::identity:
        parts.push_back(g);
        break;
      case SegmentKind::softmax:
        parts.push_back(y * (g - (y * g).sum(-1, true)));
        break;
      case SegmentKind::gumbel_softmax:
        parts.push_back(y * (g - (y * g).sum(-1, true)) / call.tau);
        break;
    }
  }
  return at::cat(parts, -1).to(output.scalar_type());
}

// The columns that have draws, which the draws are added to: their gradient, in the type of those.
Tensor gumbel_columns(const Tensor& grad_input, const SegmentedCall& call) {
  const variable_list all = at::split_with_sizes(grad_input, call.widths, -1);
  variable_list parts;
  for (size_t i = 0; i < all.size(); ++i)
    if (static_cast<SegmentKind>(call.kinds[i]) == SegmentKind::gumbel_softmax) parts.push_back(all[i]);
  return widened(at::cat(parts, -1));
}

// segmented_activation_backward, recorded.
class SegmentedBackwardFunction : public torch::autograd::Function<SegmentedBackwardFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& output,
                        const SegmentedCall& call) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({grad_output, output});
    call.save(ctx);
    FASTGAN_OP("segmented_activation_backward", SegmentedBackwardOp);
    return op.call(grad_output, output, call.widths, call.kinds, call.tau);
  }

  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const SegmentedCall call = SegmentedCall::saved(ctx);
    const variable_list saved = ctx->get_saved_variables();
    variable_list out;
    // Third derivatives are torch's.
    if (at::GradMode::is_enabled() || is_batched(cotangents[0]) || is_batched(saved[0])) {
      out = differentiate(saved, cotangents,
                          [&](TensorList v) { return variable_list{segmented_gradient(v[0], v[1], call)}; });
    } else {
      const at::AutoDispatchBelowADInplaceOrView below;
      FASTGAN_OP("segmented_activation_double_backward", SegmentedDoubleBackwardOp);
      auto [by_grad_output, by_output] = op.call(cotangents[0], saved[0], saved[1], call.widths, call.kinds, call.tau);
      out = {by_grad_output, by_output};
    }
    out.resize(3);  // none for call
    return out;
  }
};

class SegmentedFunction : public torch::autograd::Function<SegmentedFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const std::optional<Tensor>& noise,
                        const SegmentedCall& call) {
    at::AutoDispatchBelowADInplaceOrView below;
    FASTGAN_OP("segmented_activation", SegmentedForwardOp);
    Tensor output = op.call(input, noise, call.widths, call.kinds, call.tau);
    ctx->save_for_backward({output});
    call.save(ctx);
    ctx->saved_data["need_noise"] = noise && noise->requires_grad();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const SegmentedCall call = SegmentedCall::saved(ctx);
    const Tensor output = ctx->get_saved_variables()[0];
    const Tensor& g = grad_outputs[0];
    variable_list out;
    if (is_batched(g)) {
      out = {segmented_gradient(g, output, call)};
    } else if (at::GradMode::is_enabled()) {
      out = {SegmentedBackwardFunction::apply(g, output, call)};
    } else {
      const at::AutoDispatchBelowADInplaceOrView below;  // nothing to record
      FASTGAN_OP("segmented_activation_backward", SegmentedBackwardOp);
      out = {op.call(g, output, call.widths, call.kinds, call.tau)};
    }
    out.resize(3);  // none for call
    if (ctx->saved_data["need_noise"].toBool()) out[1] = gumbel_columns(out[0], call);
    return out;
  }
};

Tensor segmented_autograd(const Tensor& input, const std::optional<Tensor>& noise, at::IntArrayRef widths,
                          at::IntArrayRef kinds, double tau) {
  if (any_requires_grad({input, noise.value_or(Tensor())}))
    return SegmentedFunction::apply(input, noise, SegmentedCall{widths.vec(), kinds.vec(), tau});
  at::AutoDispatchBelowADInplaceOrView below;
  FASTGAN_OP("segmented_activation", SegmentedForwardOp);
  return op.call(input, noise, widths, kinds, tau);
}

// Autocast computes it in float32, as it does torch's softmax.
template <c10::DeviceType device>
Tensor segmented_autocast(const Tensor& input, const std::optional<Tensor>& noise, at::IntArrayRef widths,
                          at::IntArrayRef kinds, double tau) {
  const WithoutAutocast guard;
  const auto cast = [](const Tensor& t) { return at::autocast::cached_cast(at::kFloat, t, device); };
  FASTGAN_OP("segmented_activation", SegmentedForwardOp);
  return op.call(cast(input), noise ? std::optional<Tensor>(cast(*noise)) : std::nullopt, widths, kinds, tau);
}

template <class Scope>
void register_segmented_kernels(torch::Library& m) {
  m.impl("segmented_activation", segmented_forward_kernel<Scope>);
  m.impl("segmented_activation_backward", segmented_backward_kernel<Scope>);
  m.impl("segmented_activation_double_backward", segmented_double_backward_kernel<Scope>);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(FASTGAN_LIBRARY, m) {
  m.def("segmented_activation(Tensor input, Tensor? noise, int[] widths, int[] kinds, float tau) -> Tensor");
  m.def(
      "segmented_activation_backward(Tensor grad_output, Tensor output, int[] widths, int[] kinds, float tau) -> "
      "Tensor");
  m.def(
      "segmented_activation_double_backward(Tensor cotangent, Tensor grad_output, Tensor output, int[] widths, "
      "int[] kinds, float tau) -> (Tensor, Tensor)");
}

FASTGAN_KERNELS(register_segmented_kernels)

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, Meta, m) {
  m.impl("segmented_activation", segmented_forward_meta);
  m.impl("segmented_activation_backward", segmented_backward_meta);
  m.impl("segmented_activation_double_backward", segmented_double_backward_meta);
}

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, Autograd, m) {
  m.impl("segmented_activation", segmented_autograd);
  for (const char* name : {"segmented_activation_backward", "segmented_activation_double_backward"})
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, AutocastCPU, m) { m.impl("segmented_activation", segmented_autocast<c10::kCPU>); }
TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, AutocastCUDA, m) { m.impl("segmented_activation", segmented_autocast<c10::kCUDA>); }

}  // namespace fastgan::bindings
