// A whole MLP, forward and backward, as the kernels of each device take it: its layers, and what they share. Matrices
// are contiguous, rows x cols, unless said otherwise, and every size is at least 1.
#pragma once

#include <cstdint>

#include "activation.h"

namespace fastgan {

// A matrix (batch, width) of any strides, in elements.
template <class T>
struct StridedRows {
  const T* data = nullptr;
  int64_t width = 0, row_stride = 0, col_stride = 0;
};

// What a layer's passes leave for others to read, in a device's own kind of matrix: (batch, out) each.
template <class Matrix>
struct LayerMatrices {
  Matrix y{};
  Matrix saved{};   // what the derivative of the activation is a function of: y or z
  Matrix grad_z{};  // the gradient by z
};

// y = activation(x weight^T + bias). Width: int where registers are scarce.
template <class T, class Width = int64_t>
struct LinearLayer {
  Width in = 0, out = 0;
  ActivationArguments activation{Activation::identity, 0};
  const T* weight = nullptr;  // (out, in), never null
  const T* bias = nullptr;    // (out); null without one
};

// And where its passes read and write. Null where not wanted, unless said otherwise.
template <class T, class Width = int64_t>
struct MlpLayer : LinearLayer<T, Width> {
  T* y = nullptr;  // forward: (batch, out)
  T* z = nullptr;  // forward: the pre-activation, of activations whose derivative is a function of it

  const T* x = nullptr;      // backward, never null: (batch, in); on CUDA forward reads the first layer's
  const T* saved = nullptr;  // backward, never null: (batch, out), y or z, whichever the activation saves
  T* grad_z = nullptr;       // backward: (batch, out), kept where given
  T* grad_y = nullptr;       // backward: (batch, out), kept where given
  T* grad_weight = nullptr;
  T* grad_bias = nullptr;
};

// A pass through `count` layers.
template <class T>
struct MlpPass {
  int64_t batch = 0;
  int count = 0;
  const T* grad_output = nullptr;  // backward: (batch, out of the last layer)
  T* grad_input = nullptr;         // backward: (batch, in); null where not wanted
  int lowest = 0;                  // backward: no gradient goes below this layer's z; 0 where grad_input is wanted
};

}  // namespace fastgan
