// CUDA kernels of a whole narrow network, forward and backward in one launch each. Matrices are contiguous; T is float,
// double, bfloat16 or float16; tf32 as in linear.h.
#pragma once

#include "../core/activation.h"
#include "../core/step.h"
#include "platform.h"

namespace fastgan::cuda {

constexpr int max_narrow_layers = 8;
constexpr int max_narrow_width = 256;  // of what stays on chip between two layers

template <class T>
struct NarrowLayer {
  int in, out;
  ActivationArguments activation;
  const T* weight;  // (out, in)
  const T* bias;    // (out) or null
  const T* x;       // (batch, in): the input, or y of the layer before; backward reads it for the weight gradient
  // forward writes these
  T* z;  // (batch, out) or null
  T* y;  // (batch, out); null where nobody but the next layer reads it
  // backward reads `saved` and writes the rest
  const T* saved;  // (batch, out): y or z, whichever the activation saves
  T* grad_z;       // (batch, out)
  T* grad_weight;  // (out, in) or null
  T* grad_bias;    // (out) or null
  // mlp_update writes these instead of grad_weight and grad_bias
  Trained<T> trained_weight, trained_bias;
};

template <class T>
struct NarrowNetwork {
  int64_t batch;
  int count;   // of layers, at most max_narrow_layers
  int lowest;  // backward: the lowest layer whose grad_z is wanted
  NarrowLayer<T> layers[max_narrow_layers];
  const T* grad_output;  // backward: (batch, out of the last layer); null where the last grad_z is there already
  T* grad_input;         // backward: (batch, input_width), or null; then lowest is 0
  int input_width;       // of the input's features, those whose gradient is wanted: the first of them
  // The gradient by the input goes on through this activation, of which input_saved is what its derivative is a
  // function of, (batch, input_width); null: it goes out as it is.
  const T* input_saved;
  ActivationArguments input_activation;
  T average_rate;  // mlp_update: 1 - decay of the moving averages
};

// Whether the kernels below take this network: all but its first input and last output are at most max_narrow_width
// wide, it has at most max_narrow_layers layers, and the device has the shared memory.
template <class T>
bool is_narrow(const Context& context, const NarrowNetwork<T>& network);

template <class T>
void mlp_forward(const Context& context, const NarrowNetwork<T>& network, bool tf32);

template <class T>
void mlp_backward(const Context& context, const NarrowNetwork<T>& network, bool tf32);

// As mlp_backward, with the update of the parameters as the weight gradients' epilogue; T is float or double.
template <class T>
void mlp_update(const Context& context, const NarrowNetwork<T>& network, bool tf32);

}  // namespace fastgan::cuda
