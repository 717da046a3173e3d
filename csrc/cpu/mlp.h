// A whole MLP on the CPU, forward and backward, each in one parallel region with this project's own products: see
// core/mlp.h. T is float or double.
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

// Bytes of scratch memory for each, aligned to 64.
template <class T>
size_t mlp_forward_scratch(const Context&, const Mlp<T>& mlp);
template <class T>
size_t mlp_backward_scratch(const Context&, const Mlp<T>& mlp);

template <class T>
void mlp_forward(const Context&, const Mlp<T>& mlp, void* scratch);

// All gradients that have a place in mlp.
template <class T>
void mlp_backward(const Context&, const Mlp<T>& mlp, void* scratch);

}  // namespace fastgan::cpu
