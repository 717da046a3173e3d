// A whole MLP on the CPU, forward and backward, each in one parallel region with this project's own products. T is
// float or double; matrices are contiguous, rows x cols, and every size is at least 1.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../core/activation.h"
#include "context.h"

namespace fastgan::cpu {

// y = activation(x weight^T + bias); weight is (out, in). Null where not wanted, unless said otherwise.
template <class T>
struct MlpLayer {
  int64_t in = 0, out = 0;
  ActivationArguments activation{Activation::identity, 0};
  const T* weight = nullptr;  // never null
  const T* bias = nullptr;    // null without one

  T* y = nullptr;  // forward: (batch, out)
  T* z = nullptr;  // forward: the pre-activation, of activations whose derivative is a function of it

  const T* x = nullptr;      // backward, never null: (batch, in)
  const T* saved = nullptr;  // backward, never null: y or z, whichever the activation saves
  T* grad_z = nullptr;       // backward: kept where given
  T* grad_y = nullptr;       // backward: kept where given
  T* grad_weight = nullptr;
  T* grad_bias = nullptr;
};

template <class T>
struct Mlp {
  int64_t batch = 0;
  int count = 0;
  MlpLayer<T>* layers = nullptr;

  const T* input = nullptr;  // forward: (batch, in), of these strides in elements
  int64_t row_stride = 0, col_stride = 0;

  const T* grad_output = nullptr;
  T* grad_input = nullptr;  // null where not wanted
  int lowest = 0;           // the layer below whose z no gradient goes, unless grad_input is wanted
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
