// Derivatives of derivatives, left to torch: of an expression in torch's own ops that says what a fused kernel
// computed.
#pragma once

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "common.h"

namespace fastgan::bindings {

using torch::autograd::variable_list;

// The 16-bit types in float, so that an expression of many ops rounds as seldom as the kernel it stands for.
inline Tensor widened(const Tensor& x) {
  return x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf ? x.to(at::kFloat) : x;
}

// Whether a gradient comes batched by vmap (is_grads_batched, vectorised jacobians). The kernels have no batching rule:
// backward then differentiates the definition, whose ops have theirs.
inline bool is_batched(const Tensor& gradient) {
  constexpr c10::DispatchKeySet batched({c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched});
  return gradient.defined() && gradient.key_set().has_any(batched);
}

// The gradients by `variables` (some may be undefined) of the outputs of `expression`, a function of a list of them,
// against `cotangents` (undefined ones are zero). Differentiable in turn where autograd is recording.
template <class Expression>
variable_list differentiate(TensorList variables, const variable_list& cotangents, const Expression& expression) {
  const bool record = at::GradMode::is_enabled();
  const at::AutoGradMode recording(true);
  const WithoutAutocast guard;
  // Partial derivatives are wanted, but these tensors may be functions of each other (grad_output of input, say).
  // Aliases are each a variable of its own, and still lead back to the tensors for the next derivative.
  variable_list aliases, leaves;
  std::vector<size_t> places;
  for (const Tensor& variable : variables) {
    const bool wanted = variable.defined() && variable.requires_grad();
    if (wanted) {
      leaves.push_back(record ? at::alias(variable) : variable.detach().requires_grad_());
      places.push_back(aliases.size());
    }
    aliases.push_back(wanted ? leaves.back() : variable);
  }
  variable_list roots, root_cotangents, gradients(variables.size());
  const variable_list outputs = expression(TensorList(aliases));
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!cotangents[i].defined() || !outputs[i].defined() || !outputs[i].requires_grad()) continue;
    roots.push_back(outputs[i]);
    root_cotangents.push_back(cotangents[i]);
  }
  if (roots.empty() || leaves.empty()) return gradients;
  const variable_list found = torch::autograd::grad(roots, leaves, root_cotangents, record, record, true);
  for (size_t i = 0; i < places.size(); ++i) gradients[places[i]] = found[i];
  return gradients;
}

}  // namespace fastgan::bindings
