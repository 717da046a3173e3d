// A whole MLP on the CPU, forward, backward and double backward, each in one parallel region with this project's own
// products: see core/mlp.h. T is float or double.
#pragma once

#include <cstddef>

#include "../core/mlp.h"
#include "context.h"

namespace fastgan::cpu {

template <class T>
struct Mlp : MlpPass<T> {
  MlpLayer<T>* layers = nullptr;
  StridedRows<T> input;  // forward: (batch, in)
};

// And what its double backward reads of the backward pass: (batch, out) each.
template <class T>
struct MlpSecondLayer : MlpLayer<T> {
  const T* kept_grad_z = nullptr;  // never null
  const T* kept_grad_y = nullptr;  // of curved activations never null
};

// The double backward of a pass whose gradient by the input alone has a cotangent: what a gradient penalty asks for.
// grad_input and lowest are of what goes back through forward; without that, lowest is count.
template <class T>
struct MlpSecondPass : MlpPass<T> {
  MlpSecondLayer<T>* layers = nullptr;
  const T* grad_input_bar = nullptr;  // the cotangent: (batch, in)
  T* grad_output_bar = nullptr;       // the gradient by grad_output: (batch, out); null where not wanted

  // The last layer with a curved activation, or -1: from its z down there is something to go back through forward.
  int highest() const {
    int l = this->count - 1;
    while (l >= 0 && is_piecewise_linear(layers[l].activation.activation)) --l;
    return l;
  }
};

// Bytes of scratch memory for each, aligned to 64.
template <class T>
size_t mlp_forward_scratch(const Context&, const Mlp<T>& mlp);
template <class T>
size_t mlp_backward_scratch(const Context&, const Mlp<T>& mlp);
template <class T>
size_t mlp_double_backward_scratch(const Context&, const MlpSecondPass<T>& mlp);

template <class T>
void mlp_forward(const Context&, const Mlp<T>& mlp, void* scratch);

// All gradients that have a place in mlp.
template <class T>
void mlp_backward(const Context&, const Mlp<T>& mlp, void* scratch);

// All gradients that have a place in mlp. Those of weights exist for every layer, the others where lowest <= highest().
template <class T>
void mlp_double_backward(const Context&, const MlpSecondPass<T>& mlp, void* scratch);

}  // namespace fastgan::cpu
