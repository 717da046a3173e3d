// torch.nn.functional.binary_cross_entropy_with_logits, in one pass forward and one backward.
#include "../cpu/bce.h"
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
#include "../cuda/bce.h"
#endif

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

#include "common.h"
#include "higher_order.h"
#include "layout.h"
#include "scopes.h"

namespace fastgan::bindings {

namespace {

using torch::autograd::AutogradContext;

using OptionalTensor = std::optional<Tensor>;
using BceForward = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, int64_t);
using BceBackward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                                               const OptionalTensor&, int64_t, bool, bool);

Tensor forward_op(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                  const OptionalTensor& pos_weight, int64_t reduction) {
  FASTGAN_OP("bce_with_logits", BceForward);
  return op.call(input, target, weight, pos_weight, reduction);
}

bool is_given(const OptionalTensor& tensor) { return tensor && tensor->defined(); }

void check(const Tensor& input, const Tensor& target, const OptionalTensor& weight, const OptionalTensor& pos_weight) {
  TORCH_CHECK(target.sym_sizes() == input.sym_sizes(), "bce_with_logits: target of shape ", target.sym_sizes(),
              " must have the shape ", input.sym_sizes(), " of input");
  for (const Tensor* other : {&target, weight ? &*weight : nullptr, pos_weight ? &*pos_weight : nullptr})
    TORCH_CHECK(other == nullptr || (other->scalar_type() == input.scalar_type() && other->device() == input.device()),
                "bce_with_logits: all tensors must have the dtype and device of input, ", input.scalar_type(), " on ",
                input.device());
}

// The layouts that torch's own ops give the loss and the gradients, each the result of a chain of elementwise ops. In
// backward the later ones of a chain work in place, so that its first decides.
Layout loss_layout(const Tensor& target) { return Layout(at::empty_like(target)); }

Layout grad_input_layout(const Tensor& input, const Tensor& target, const OptionalTensor& pos_weight) {
  if (!is_given(pos_weight)) return unary_layout(input);  // sigma(x) - t
  const Layout product = elementwise_layout(input.sym_sizes(), {Layout(*pos_weight), Layout(target)});
  return elementwise_layout(input.sym_sizes(), {product, Layout()});  // p t + 1 - t
}

Layout grad_target_layout(const Tensor& input, const OptionalTensor& pos_weight) {
  // log sigma(-x) - ..., or -x; torch's log sigma is contiguous on the CPU alone.
  return is_given(pos_weight) && !input.device().is_cuda() ? contiguous_layout(input.sym_sizes()) : unary_layout(input);
}

// The elements of `tensor`, broadcast to `sizes`, as a repeating pattern: its own memory where it is that already (one
// element, one value a class in the last dimension, every element), else a copy. `keep` holds what owns the memory.
template <class T>
Operand<T> operand(const OptionalTensor& tensor, at::IntArrayRef sizes, const MemoryOrder& order, Tensor& keep) {
  if (!is_given(tensor)) return {nullptr, 1};
  keep = *tensor;
  int64_t leading = 0;  // dimensions of size one in front count for nothing
  while (leading < keep.dim() && keep.size(leading) == 1) ++leading;
  const auto own = keep.sizes().slice(leading);
  const bool pattern = own.size() <= sizes.size() && own == sizes.slice(sizes.size() - own.size());
  if (own.empty() || (pattern && order.is_usual()))
    keep = keep.contiguous();
  else
    keep = order.read(keep.expand(sizes));
  return {data<T>(keep), std::max<int64_t>(1, keep.numel())};
}

// Everything a kernel needs of one call, in one order of elements, and what keeps it alive.
template <class T>
struct BceOperands {
  BceOperands(const MemoryOrder& order, const Tensor& given_input, const Tensor& given_target,
              const OptionalTensor& given_weight, const OptionalTensor& given_pos_weight)
      : input(order.read(given_input)), target(order.read(given_target)) {
    const auto sizes = given_input.sizes();
    arguments = {input.numel(), data<T>(input), data<T>(target), operand<T>(given_weight, sizes, order, weight),
                 operand<T>(given_pos_weight, sizes, order, pos_weight)};
  }
  Tensor input, target, weight, pos_weight;
  BceArguments<T> arguments;
};

template <class Scope>
Tensor bce_forward_kernel(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                          const OptionalTensor& pos_weight, int64_t reduction_number) {
  const Reduction reduction = reduction_of(reduction_number);
  check(input, target, weight, pos_weight);
  Tensor loss = reduction == Reduction::none ? empty_of(loss_layout(target), input.options()) : scalar_like(input);
  const Scope here(input);
  with_dtype(input.scalar_type(), "bce_with_logits", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const MemoryOrder order(loss);
    const BceOperands<T> call(order, input, target, weight, pos_weight);
    if (reduction == Reduction::none)
      order.write(loss, [&](const Tensor& out) { bce_elementwise(here, call.arguments, mutable_data<T>(out)); });
    else
      bce_sum(here, call.arguments, reduction_scale(reduction, input.numel()), mutable_data<T>(loss));
  });
  return loss;
}

Tensor bce_forward_meta(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                        const OptionalTensor& pos_weight, int64_t reduction) {
  check(input, target, weight, pos_weight);
  if (reduction_of(reduction) != Reduction::none) return scalar_like(input);
  return empty_of(loss_layout(target), input.options());
}

// (by the input, by the target), each undefined where it is not asked for, without values.
std::tuple<Tensor, Tensor> empty_gradients(const Tensor& input, const Tensor& target, const OptionalTensor& pos_weight,
                                           bool need_input, bool need_target) {
  Tensor grad_input, grad_target;
  if (need_input) grad_input = empty_of(grad_input_layout(input, target, pos_weight), input.options());
  if (need_target) grad_target = empty_of(grad_target_layout(input, pos_weight), input.options());
  return {grad_input, grad_target};
}

template <class Scope>
std::tuple<Tensor, Tensor> bce_backward_kernel(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                                               const OptionalTensor& weight, const OptionalTensor& pos_weight,
                                               int64_t reduction_number, bool need_input, bool need_target) {
  const Reduction reduction = reduction_of(reduction_number);
  const bool none = reduction == Reduction::none;
  check(input, target, weight, pos_weight);
  TORCH_CHECK(grad_output.numel() == (none ? input.numel() : 1) && grad_output.scalar_type() == input.scalar_type() &&
                  grad_output.device() == input.device(),
              "bce_with_logits_backward: grad_output of shape ", grad_output.sizes(), ", ", grad_output.scalar_type(),
              " on ", grad_output.device(), " does not fit input of shape ", input.sizes(), ", ", input.scalar_type(),
              " on ", input.device());
  auto [grad_input, grad_target] = empty_gradients(input, target, pos_weight, need_input, need_target);
  if (!need_input && !need_target) return {grad_input, grad_target};
  const Scope here(input);
  with_dtype(input.scalar_type(), "bce_with_logits_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const MemoryOrder order(need_input ? grad_input : grad_target);
    const BceOperands<T> call(order, input, target, weight, pos_weight);
    const Tensor go = none ? order.read(grad_output.view_as(input)) : grad_output;
    const auto run = [&](T* by_input, T* by_target) {
      bce_backward(here, call.arguments, data<T>(go), none ? 1 : 0, reduction_scale(reduction, input.numel()), by_input,
                   by_target);
    };
    T* const nowhere = nullptr;
    const auto with_target = [&](T* by_input) {
      if (!need_target) return run(by_input, nowhere);
      order.write(grad_target, [&](const Tensor& out) { run(by_input, mutable_data<T>(out)); });
    };
    if (!need_input) return with_target(nowhere);
    order.write(grad_input, [&](const Tensor& out) { with_target(mutable_data<T>(out)); });
  });
  return {grad_input, grad_target};
}

std::tuple<Tensor, Tensor> bce_backward_meta(const Tensor&, const Tensor& input, const Tensor& target,
                                             const OptionalTensor&, const OptionalTensor& pos_weight, int64_t,
                                             bool need_input, bool need_target) {
  return empty_gradients(input, target, pos_weight, need_input, need_target);
}

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

// bce_with_logits_backward, recorded. Its own derivative is torch's, of the same gradients as expressions.
class BceBackwardFunction : public torch::autograd::Function<BceBackwardFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& input,
                               const Tensor& target, const OptionalTensor& weight, const OptionalTensor& pos_weight,
                               int64_t reduction, bool need_input, bool need_target) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({grad_output, input, target, weight.value_or(Tensor()), pos_weight.value_or(Tensor())});
    ctx->saved_data["reduction"] = reduction;
    ctx->set_materialize_grads(false);
    FASTGAN_OP("bce_with_logits_backward", BceBackward);
    auto [grad_input, grad_target] =
        op.call(grad_output, input, target, weight, pos_weight, reduction, need_input, need_target);
    ctx->saved_data["need_input"] = need_input;
    ctx->saved_data["need_target"] = need_target;
    variable_list needed;
    if (need_input) needed.push_back(grad_input);
    if (need_target) needed.push_back(grad_target);
    return needed;
  }

  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const auto saved = ctx->get_saved_variables();
    const Reduction reduction = reduction_of(ctx->saved_data["reduction"].toInt());
    const bool need_input = ctx->saved_data["need_input"].toBool();
    const bool need_target = ctx->saved_data["need_target"].toBool();
    variable_list out = differentiate(saved, cotangents, [&](TensorList v) {
      // Torch's own expressions, so that infinities and layouts come out as its own.
      const Tensor x = widened(v[1]), t = widened(v[2]), p = v[4].defined() ? widened(v[4]) : Tensor();
      const auto scaled = [&](const Tensor& gradient) {
        Tensor out = gradient * widened(v[0]);
        if (v[3].defined()) out = out * widened(v[3]);
        return reduction == Reduction::mean ? out / static_cast<double>(x.numel()) : out;
      };
      const Tensor pt = p.defined() ? p * t : Tensor();
      const Tensor by_input = scaled(p.defined() ? (pt + 1 - t) * at::sigmoid(x) - pt : at::sigmoid(x) - t);
      const Tensor by_target = scaled(p.defined() ? at::log_sigmoid(-x) - at::log_sigmoid(x) * p : -x);
      const auto dtype = v[1].scalar_type();
      variable_list needed;
      if (need_input) needed.push_back(by_input.to(dtype));
      if (need_target) needed.push_back(by_target.to(dtype));
      return needed;
    });
    out.resize(8);  // none for the reduction and the flags
    return out;
  }
};

class BceFunction : public torch::autograd::Function<BceFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                        const OptionalTensor& pos_weight, int64_t reduction) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({input, target, weight.value_or(Tensor()), pos_weight.value_or(Tensor())});
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["need_input"] = input.requires_grad();
    ctx->saved_data["need_target"] = target.requires_grad();
    return forward_op(input, target, weight, pos_weight, reduction);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &target = saved[1], &weight = saved[2], &pos_weight = saved[3];
    const int64_t reduction = ctx->saved_data["reduction"].toInt();
    const bool need_input = ctx->saved_data["need_input"].toBool() && ctx->needs_input_grad(0);
    const bool need_target = ctx->saved_data["need_target"].toBool() && ctx->needs_input_grad(1);
    variable_list out;
    if (is_batched(grad_outputs[0])) {
      out = differentiate(saved, grad_outputs, [&](TensorList v) -> variable_list {
        return {at::binary_cross_entropy_with_logits(v[0], v[1], optional(v[2]), optional(v[3]), reduction)};
      });
    } else if (at::GradMode::is_enabled()) {
      variable_list needed = BceBackwardFunction::apply(grad_outputs[0], input, target, optional(weight),
                                                        optional(pos_weight), reduction, need_input, need_target);
      out = {need_input ? needed.front() : Tensor(), need_target ? needed.back() : Tensor()};
    } else {
      FASTGAN_OP("bce_with_logits_backward", BceBackward);
      auto [grad_input, grad_target] = op.call(grad_outputs[0], input, target, optional(weight), optional(pos_weight),
                                               reduction, need_input, need_target);
      out = {grad_input, grad_target};
    }
    out.resize(5);  // none for the weights and the reduction
    return out;
  }
};

Tensor forward_autograd(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                        const OptionalTensor& pos_weight, int64_t reduction) {
  for (const auto& [name, tensor] : {std::pair("weight", &weight), std::pair("pos_weight", &pos_weight)})
    TORCH_CHECK(!*tensor || !any_requires_grad({**tensor}), "bce_with_logits is not differentiable with respect to ",
                name, ", which requires grad");
  if (any_requires_grad({input, target})) return BceFunction::apply(input, target, weight, pos_weight, reduction);
  at::AutoDispatchBelowADInplaceOrView below;
  return forward_op(input, target, weight, pos_weight, reduction);
}

// Autocast computes losses in float32, as it does torch's.
template <c10::DeviceType device>
Tensor forward_autocast(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                        const OptionalTensor& pos_weight, int64_t reduction) {
  const WithoutAutocast guard;
  const auto cast = [](const Tensor& t) { return at::autocast::cached_cast(at::kFloat, t, device); };
  const auto cast_optional = [&](const OptionalTensor& t) { return t ? OptionalTensor(cast(*t)) : std::nullopt; };
  return forward_op(cast(input), cast(target), cast_optional(weight), cast_optional(pos_weight), reduction);
}

template <class Scope>
void register_bce_kernels(torch::Library& m) {
  m.impl("bce_with_logits", bce_forward_kernel<Scope>);
  m.impl("bce_with_logits_backward", bce_backward_kernel<Scope>);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(FASTGAN_LIBRARY, m) {
  m.def("bce_with_logits(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, int reduction) -> Tensor");
  m.def(
      "bce_with_logits_backward(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, "
      "int reduction, bool need_input, bool need_target) -> (Tensor, Tensor)");
}

FASTGAN_KERNELS(register_bce_kernels)

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, Meta, m) {
  m.impl("bce_with_logits", bce_forward_meta);
  m.impl("bce_with_logits_backward", bce_backward_meta);
}

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, Autograd, m) {
  m.impl("bce_with_logits", forward_autograd);
  m.impl("bce_with_logits_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, AutocastCPU, m) { m.impl("bce_with_logits", forward_autocast<c10::kCPU>); }
TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, AutocastCUDA, m) { m.impl("bce_with_logits", forward_autocast<c10::kCUDA>); }

}  // namespace fastgan::bindings
